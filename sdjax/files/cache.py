"""What takes long to work out and stays the same, kept on disk: shapes of parameters, tokenizers, traced programs."""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path

from sdjax.errors import InputError
from sdjax.files.atomic import replaced

LIBRARIES = ("jax", "jaxlib", "flax", "transformers", "tokenizers")
DIGEST = sha256().digest_size


def cache_directory() -> Path:
    """Where converted models and compiled programs are kept: $SDJAX_CACHE, else ~/.cache/sdjax."""
    if chosen := os.environ.get("SDJAX_CACHE"):
        return Path(chosen)
    try:
        return Path.home() / ".cache" / "sdjax"
    except RuntimeError as error:  # a user without one, as in some containers
        raise InputError("there is no home directory to keep models in: set SDJAX_CACHE to a folder") from error


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which need not exist yet."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return existing.is_dir() and os.access(existing, os.W_OK)


def kept(kind: str, depends_on: object, make: Callable[[], bytes]) -> bytes:
    """What `make` gives, from the user's cache where it was made before.

    kind: the folder that it is kept in. depends_on: all that it depends on besides this package's code and the
    libraries' versions; two that have the same `repr` are the same. A file that was damaged is made anew.
    """
    key = sha256(repr((_code(), depends_on)).encode()).hexdigest()
    file = cache_directory() / "kept" / kind / key
    with suppress(OSError):
        content = file.read_bytes()
        if sha256(content[DIGEST:]).digest() == content[:DIGEST]:
            return content[DIGEST:]
    made = make()
    with suppress(OSError):  # `sdjax.load` has said that nothing can be kept there
        file.parent.mkdir(parents=True, exist_ok=True)
        with replaced(file) as partial:
            partial.write_bytes(sha256(made).digest() + made)
    return made


@lru_cache
def _code() -> str:
    """Tells one state of this package and of the libraries below it from another."""
    digest = sha256(repr([metadata.version(library) for library in LIBRARIES]).encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
