"""`sdjax upscale PICTURE --model FILE`: enlarging by a network that needs no prompt."""

from collections.abc import Sequence
from pathlib import Path

from sdjax.cli.interrupt import nothing_to_tidy
from sdjax.cli.output import check_output
from sdjax.cli.painting import Painting
from sdjax.cli.progress import progress_bars
from sdjax.errors import InputError


def enlarge_picture(path: Path, painting: Painting, without: Sequence[str]) -> None:
    """Enlarges, saves and names a picture. Everything that can be wrong is looked at before anything is computed.

    without: the model that a prompt would be for, by default. Raises InputError for settings of painting.
    """
    settings = dict(painting.settings)
    size = (settings.pop("width", None), settings.pop("height", None))
    if painting.loading.model in without or painting.loading.model is None:
        raise InputError("say by what to enlarge, --model FILE, or give a prompt: sdjax upscale PROMPT PICTURE")
    said = {
        "seed": painting.seeds,
        "grid": painting.saving.grid,
        "preview-every or --animate": painting.watching.wanted,
    }
    if others := [*settings, *(name for name, value in said.items() if value)]:
        raise InputError(f"--{others[0].replace('_', '-')} is for painting: give a prompt too, or leave it out")
    if (size[0] is None) != (size[1] is None):
        raise InputError("give --width and --height both, or none of them")
    check_output(painting.output)

    from PIL import Image

    from sdjax.loading import keep_compiled_programs
    from sdjax.pipeline.images import read_image
    from sdjax.upscaling import enlarge, open_upscaler
    from sdjax.version import __version__

    image = read_image("the picture", path)
    assert isinstance(image, Image.Image)  # only arrays are read as latents
    upscaler = open_upscaler(painting.loading.model)
    keep_compiled_programs()
    with progress_bars() as report, nothing_to_tidy():
        made = enlarge(upscaler, image, size if size[0] else None, lambda done, of: report("enlarge", done, of))
    told = {"width": made.width, "height": made.height, "image": str(path), "upscaler": upscaler.name}
    painting.saving.save(made, {**told, "version": __version__}, painting.watching.paths(1)[0])
