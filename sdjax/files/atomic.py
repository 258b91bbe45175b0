"""Files and folders that appear when they are complete, and what is left of those that never were."""

import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves there stays until somebody removes it
    fcntl = None  # type: ignore[assignment]

from sdjax.errors import CheckpointError, InputError

PARTIAL = ".partial"

_unfinished: set[Path] = set()  # files and folders that are being written


def remove_unfinished() -> None:
    """Removes what this process has not finished, before it ends in the middle of its work.

    A thread that is still writing loses its folder first, and can make nothing in it any more.
    """
    for path in list(_unfinished):
        if path.is_dir():
            with suppress(OSError):
                path = path.rename(path.with_name(f".{secrets.token_hex(4)}{PARTIAL}"))
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def check_vacant(destination: Path) -> None:
    """Raises InputError when there is something at a destination already, or nothing can be written there."""
    try:
        if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
            raise InputError(f"{destination} exists already: remove it first, or choose another destination")
        existing = next(place for place in destination.absolute().parents if place.exists())
        trial = existing / f".{secrets.token_hex(4)}.trial"
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        raise InputError(f"{destination} cannot be written: {error.strerror}") from error


@contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Where to write what takes the name `path` when the block ends well."""
    partial = partial_path(path)
    _unfinished.add(partial)
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        if error.errno and not error.filename:  # a full disk does not say which file it is about
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)
        _unfinished.discard(partial)


def partial_path(path: str | os.PathLike[str]) -> Path:
    """Where `replaced` writes before it renames to `path`: a hidden sibling that no other process uses."""
    return Path(path).with_name(f".{Path(path).name}.{os.getpid()}{PARTIAL}")


@contextmanager
def new_directory(destination: Path) -> Iterator[Path]:
    """A folder beside the destination that takes its name when the block ends well, and is removed when it does not.

    Folders that killed processes left there in the same way are removed first. Raises InputError when something is at
    the destination already, or it cannot be written.
    """
    check_vacant(destination)
    sweep(destination.parent, f".{glob.escape(destination.name)}.*{PARTIAL}")
    partial = destination
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        partial, lock = _locked_folder(destination)
        _unfinished.add(partial)
        try:
            yield partial
            os.rename(partial, destination)
        finally:
            os.close(lock)
    except OSError as error:
        if error.filename and not Path(error.filename).is_relative_to(partial):
            raise  # it was another file, such as one to be copied
        raise InputError(f"{destination} cannot be written: {error.strerror or error}") from error
    finally:
        if partial != destination:
            shutil.rmtree(partial, ignore_errors=True)
            _unfinished.discard(partial)


def sweep(folder: Path, pattern: str = f".*{PARTIAL}") -> None:
    """Removes what processes that were killed have left in a folder; what living ones are writing is locked."""
    for partial in folder.glob(pattern) if fcntl else ():
        with suppress(OSError):  # somebody writes it, or has swept it before us
            lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(partial, ignore_errors=True)
            finally:
                os.close(lock)


def _locked_folder(destination: Path) -> tuple[Path, int]:
    """A new folder beside the destination, and a descriptor that locks it for as long as it is open."""
    while True:
        partial = destination.parent / f".{destination.name}.{secrets.token_hex(4)}{PARTIAL}"
        partial.mkdir()
        with suppress(FileNotFoundError):  # it was swept before it was locked
            lock = os.open(partial, os.O_RDONLY)
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX)
            if partial.exists():
                return partial, lock
            os.close(lock)


def within(folder: Path, path: Path) -> Path:
    """The path itself; raises CheckpointError where a symbolic link leads from it out of the folder.

    The hub's cache is built of links: those of a snapshot lead to the blobs beside it.
    """
    root, real = folder.resolve(), path.resolve()
    blobs = [root.parent.parent / "blobs"] if root.parent.name == "snapshots" else []
    if not any(real.is_relative_to(allowed) for allowed in (root, *blobs)):
        raise CheckpointError(f"{path} is a symbolic link out of {folder}: put the file itself there")
    return path
