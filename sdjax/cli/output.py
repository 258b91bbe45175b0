"""Where pictures go: the meaning of `-o`."""

from pathlib import Path

from sdjax.errors import InputError
from sdjax.files.atomic import partial_path
from sdjax.files.pictures import KINDS, kind_of

PREFIX = "sdjax"
ENDINGS = ", ".join(suffix for suffixes in KINDS.values() for suffix in suffixes)


def names_file(output: Path) -> bool:
    """Whether `-o output` names a picture; otherwise it names a folder that gathers numbered ones."""
    return kind_of(output) is not None and not output.is_dir()


def check_output(output: Path) -> None:
    """Find out whether pictures can be written to `output`, and leave no trace of it. Raises InputError if not."""
    if output.suffix.lower() in {".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic"} and not output.is_dir():
        raise InputError(f"{output}: give a name that ends in {ENDINGS}, or a folder")
    folder = output.parent if names_file(output) else output
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise InputError(f"{output}: {existing} is a file, not a folder")
    trial = partial_path(existing / (output.name if names_file(output) else f"{PREFIX}-0001.png"))
    try:
        trial.touch(exist_ok=False)
        trial.unlink()
    except OSError as error:
        raise InputError(f"{output}: cannot write to {existing}: {error.strerror}") from None


def picture_paths(output: Path, count: int) -> list[Path]:
    """The names of `count` pictures, in a folder that is made if need be.

    A named file is that file, replaced if it exists; several pictures get its name with -1, -2, ... In a folder the
    numbers go on from the highest one there, and nothing is replaced.
    """
    if names_file(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        if count == 1:
            return [output]
        return [output.with_stem(f"{output.stem}-{number}") for number in range(1, count + 1)]
    output.mkdir(parents=True, exist_ok=True)
    stems = (path.stem.removeprefix(f"{PREFIX}-") for path in output.glob(f"{PREFIX}-*.png"))
    highest = max((int(stem) for stem in stems if stem.isdecimal()), default=0)
    return [output / f"{PREFIX}-{number:04d}.png" for number in range(highest + 1, highest + 1 + count)]


def check_file(output: Path) -> None:
    """As `check_output`, for what can be a picture's name only. Raises InputError."""
    if not names_file(output):
        raise InputError(f"{output}: give a name that ends in {ENDINGS}")
    check_output(output)
