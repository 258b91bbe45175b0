"""What a run is: all that its bits depend on, kept in `run.json` so that no other run goes on in its folder."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from sdjax.batch.rows import Item
from sdjax.errors import InputError
from sdjax.files.atomic import PARTIAL, replaced
from sdjax.files.identity import hash_of
from sdjax.version import __version__

RUN = "run.json"


def fingerprint(items: Sequence[Item], folder: Path, report: Callable[[str, int, int], None]) -> str:
    """The hash of all that pictures are to be. Files count by what is in them, and by their path from a folder.

    report: called while images are read.
    """
    paths = list(dict.fromkeys(path for item in items for path in (*item.images.values(), *hint_files(item))))
    digests: dict[Path, str] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for path, digest in zip(paths, pool.map(hash_of, paths)):
            digests[path] = digest
            if len(digests) % 100 == 0 or len(digests) == len(paths):
                report("check images", len(digests), len(paths))
    total = hashlib.sha256()
    for item in items:
        images = {name: (os.path.relpath(path, folder), digests[path]) for name, path in item.images.items()}
        parts = [item.index, item.row, item.name, item.settings, images]
        if hints := hint_files(item):
            units = [unit.settings() | {"image": "", "mask": ""} for unit in item.settings["conditions"]]
            hashed = [(os.path.relpath(path, folder), digests[path]) for path in hints]
            parts[3] = item.settings | {"conditions": [units, hashed]}
        total.update(json.dumps(parts, sort_keys=True).encode())
    return total.hexdigest()


def hint_files(item: Item) -> list[Path]:
    """The pictures and masks of an item's conditions."""
    names = [name for unit in item.settings.get("conditions", ()) for name in (unit.image, unit.mask)]
    return [Path(name) for name in names if name is not None]


def versions() -> dict[str, str]:
    """What computes, as far as bits depend on it."""
    return {"sdjax": __version__, "jax": jax.__version__, "platform": jax.default_backend()}


def check_vacant_or_ours(folder: Path) -> None:
    """Raises InputError where there is something that is no run, or cannot be looked at."""
    try:
        there = [path for path in folder.iterdir() if not path.name.endswith(PARTIAL)] if folder.exists() else []
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from error
    if there and not (folder / RUN).is_file():
        raise InputError(f"{folder} is not empty, and no run of sdjax batch: choose another folder")


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Make a folder that of a run, or find that it is. Raises InputError where it belongs to another run."""
    path = folder / RUN
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with replaced(path) as partial:
            partial.write_text(json.dumps(identity, indent=2) + "\n")
    try:
        there = json.loads(path.read_text())
    except ValueError:
        raise InputError(
            f"{path} is damaged: remove it to go on with the same settings, or choose another folder"
        ) from None
    differing = [name for name in identity if there.get(name) != identity[name]]
    if differing:
        listed = "; ".join(f"{name} is {there.get(name)} there and {identity[name]} here" for name in differing)
        raise InputError(f"{folder} belongs to another run: {listed}")
