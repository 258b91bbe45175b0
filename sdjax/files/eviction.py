"""The entries of the cache, its limit in bytes, and dropping those that were used least recently.

Every kind is a folder of the cache, every entry a file or a folder in it. Symbolic links are neither counted nor
followed nor removed, so that nothing outside of the cache is ever touched.
"""

import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sdjax.errors import InputError
from sdjax.files.atomic import PARTIAL, fcntl, replaced
from sdjax.files.cache import cache_directory

log = logging.getLogger("sdjax")

KINDS = {
    "models": "converted models",
    "programs": "programs as JAX traced them",
    "compiled": "programs as XLA compiled them",
    "shapes": "shapes of models' parameters",
    "tokenizers": "tokenizers as they were read",
    "references": "converged runs of benchmarks",
}
DEFAULT_LIMIT = 50 * 10**9  # a dozen converted models of 4 GB, and some thousand programs
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
VARIABLE = "SDJAX_CACHE_LIMIT"

_held: dict[Path, int] = {}  # folders in use, and the open descriptors that lock them


@dataclass(frozen=True)
class Entry:
    """A file or folder of the cache. size: in bytes. last_used: in seconds since 1970."""

    kind: str
    path: Path
    size: int
    last_used: float


def entries(kinds: Collection[str] = KINDS.keys()) -> list[Entry]:
    """The entries of some kinds, the least recently used first."""
    found = []
    for kind in kinds:
        folder = cache_directory() / kind
        if not folder.is_symlink():
            found += [entry for path in _listed(folder) if (entry := _entry(kind, path))]
    return sorted(found, key=lambda entry: entry.last_used)


def limit() -> int | None:
    """The most bytes that the cache may hold, or None for no limit.

    $SDJAX_CACHE_LIMIT, else what `set_limit` has stored, else DEFAULT_LIMIT. Raises InputError for what is not a size.
    """
    if text := os.environ.get(VARIABLE):
        return parse_size(text, VARIABLE)
    try:
        stored = _limit_file().read_text()
    except FileNotFoundError:
        return DEFAULT_LIMIT
    except (OSError, ValueError) as error:
        raise InputError(f"{_limit_file()} cannot be read: set the limit by `sdjax cache --limit 50GB`") from error
    return parse_size(stored, str(_limit_file()))


def set_limit(text: str) -> None:
    """Stores the limit of this cache. Raises InputError for what is not a size, OSError where it cannot be written."""
    parse_size(text, "--limit")
    _limit_file().parent.mkdir(parents=True, exist_ok=True)
    with replaced(_limit_file()) as partial:
        partial.write_text(text.strip() + "\n")


def keep_to_limit() -> list[Entry]:
    """Drops the least recently used entries until the rest fit the limit; returns the dropped ones.

    Called wherever the cache grows. A model that a process has open stays, however small the limit is.
    """
    most = limit()
    if most is None:
        return []
    present = entries()
    excess = sum(entry.size for entry in present) - most
    dropped = []
    for entry in present:
        if excess <= 0:
            break
        if drop(entry):
            excess -= entry.size
            dropped.append(entry)
            if entry.kind == "models":
                size = format_size(entry.size)
                log.info("dropped %s (%s) from the cache; `sdjax cache --limit` sets its limit", entry.path.name, size)
    return dropped


def drop(entry: Entry) -> bool:
    """Removes an entry, at once and whole; False if a process has it open, or it cannot be removed."""
    if entry.path.is_symlink():
        return False
    try:
        if entry.path.is_dir():
            return _drop_folder(entry.path)
        entry.path.unlink(missing_ok=True)  # who is reading it reads on
    except OSError:
        return False
    return True


def hold(folder: Path) -> bool:
    """Marks a folder as used now, and locks it against `drop` until this process ends. False if it is not there."""
    if sys.platform == "win32":  # where a folder with open files cannot be renamed
        return folder.is_dir()
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    with suppress(OSError):  # a file system without locks, or a cache that can be read only
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.utime(folder)
    if not (folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat())):
        os.close(descriptor)  # it was dropped before it was locked
        return False
    if folder in _held:
        os.close(_held[folder])
    _held[folder] = descriptor
    return True


def parse_size(text: str, name: str) -> int | None:
    """Bytes from a size such as 500MB or 20GB, None from "none". Raises InputError, which begins with `name`."""
    if text.strip().lower() == "none":
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    if not found:
        raise InputError(f"{name} should be a size such as 500MB or 20GB, or none, not {text.strip()!r}")
    return round(float(found[1]) * UNITS[(found[2] or "").upper()])


def format_size(size: float) -> str:
    """1234567 as "1.2 MB"."""
    unit = next(unit for unit in ("TB", "GB", "MB", "KB", "B") if size >= UNITS[unit] or unit == "B")
    return f"{size:.0f} B" if unit == "B" else f"{size / UNITS[unit]:.1f} {unit}"


def _limit_file() -> Path:
    return cache_directory() / "limit"


def _listed(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.is_symlink()]
    except OSError:
        return []


def _entry(kind: str, path: Path) -> Entry | None:
    """An entry as it is, or None if another process has removed it."""
    with suppress(OSError):
        stat = path.lstat()
        if path.is_dir():
            return Entry(kind, path, _size(path), stat.st_mtime)  # the walk itself changes the time of access
        # JAX does not say what it reads; most file systems note it, the first time after a write and once a day.
        return Entry(kind, path, stat.st_size, max(stat.st_mtime, stat.st_atime))
    return None


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def _drop_folder(folder: Path) -> bool:
    if sys.platform == "win32":  # where a folder with open files cannot be renamed
        return _rename_and_remove(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError if a process holds or writes it
        return _rename_and_remove(folder)
    finally:
        os.close(descriptor)


def _rename_and_remove(folder: Path) -> bool:
    """Nobody ever finds half of a folder under its name; what a killed process leaves of it is swept later."""
    hidden = folder.with_name(f".{folder.name.strip('.')}.{secrets.token_hex(4)}{PARTIAL}")
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)
    return True
