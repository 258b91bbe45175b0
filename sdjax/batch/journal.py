"""What a run has done, a line of JSON for each picture, so that a run that was killed goes on where it was.

Every start of a process writes a journal of its own, whose name gives the order. A line that was torn, or damaged, is
as if it had never been written: its picture is made again. At the end the journals become `manifest.jsonl`.
"""

import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

try:
    import fcntl
except ImportError:  # Windows: nobody is kept from starting a run twice there
    fcntl = None  # type: ignore[assignment]

from sdjax.errors import InputError
from sdjax.files.atomic import replaced

MANIFEST = "manifest.jsonl"
SHARDS = "shards.jsonl"
JOURNALS = ".journals"
Key = tuple[str, int]  # ("index", of a picture) or ("shard", its number)


class Place(NamedTuple):
    """Where the last line about something is, and the hash of its file; "" where it failed."""

    file: Path
    offset: int
    sha256: str


@dataclass
class State:
    """What is known of a run: the place of the last line about each picture and each shard."""

    places: dict[Key, Place]
    starts: int

    def made(self, kind: str) -> dict[int, str]:
        """The hashes of what is made, by its number."""
        return {number: place.sha256 for (key, number), place in self.places.items() if key == kind and place.sha256}

    @property
    def failed(self) -> set[int]:
        """The pictures that could not be made."""
        return {number for (key, number), place in self.places.items() if key == "index" and not place.sha256}


def read_state(folder: Path) -> State:
    """The state of a run, read from the manifest and the journals of an output folder."""
    journals = sorted((folder / JOURNALS).glob("*.jsonl"))
    places: dict[Key, Place] = {}
    for file in (folder / MANIFEST, folder / SHARDS, *journals):
        for offset, entry in _entries(file):
            key = _key(entry)
            if key is not None:
                places[key] = Place(file, offset, entry.get("sha256") or "")
    starts = [int(file.name[:6]) for file in journals if file.name[:6].isdecimal()]
    return State(places, max(starts, default=0))


def _entries(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each whole line, and where in the file it begins."""
    if not file.exists():
        return
    with file.open("rb") as lines:
        offset = 0
        for line in lines:
            if line.endswith(b"\n"):
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    entry = None
                if isinstance(entry, dict):
                    yield offset, entry
            offset += len(line)


def _key(entry: Mapping[str, Any]) -> Key | None:
    for kind in ("shard", "index"):
        if isinstance(number := entry.get(kind), int):
            return kind, number
    return None  # a row that was left out


class Journal:
    """The journal of this start of this process; while it is open, no other process can open it."""

    def __init__(self, folder: Path, start: int, process: int):
        (folder / JOURNALS).mkdir(exist_ok=True)
        self.path = folder / JOURNALS / f"{start:06d}-{process:05d}.jsonl"
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = threading.Lock()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write a line; whole, or not at all. Raises OSError where it cannot be written."""
        line = json.dumps(entry).encode() + b"\n"
        with self._lock:
            end = os.fstat(self._file).st_size
            try:
                if os.write(self._file, line) < len(line):
                    raise OSError(28, "No space left on device", str(self.path))
            except OSError as error:
                os.ftruncate(self._file, end)
                raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Let go of it."""
        os.close(self._file)


def lock(folder: Path, process: int) -> int:
    """Keep others from writing into a folder as this process of a run, until the descriptor is closed.

    Raises InputError where somebody does.
    """
    (folder / JOURNALS).mkdir(exist_ok=True)
    descriptor = os.open(folder / JOURNALS / f"{process:05d}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise InputError(f"another process is writing into {folder}: wait for it, or end it first") from None
    return descriptor


def merge(folder: Path, left_out: Mapping[int, str]) -> None:
    """Make the manifest of all journals, in the pictures' order, and remove them.

    left_out: why, by row, for the rows of which no picture is made.
    """
    state = read_state(folder)
    _write(folder / SHARDS, state, "shard", {})
    _write(folder / MANIFEST, state, "index", left_out)
    for file in (folder / JOURNALS).glob("*"):
        file.unlink()
    (folder / JOURNALS).rmdir()


def _write(destination: Path, state: State, kind: str, left_out: Mapping[int, str]) -> None:
    keys = sorted(key for key in state.places if key[0] == kind)
    if not keys and not left_out:
        return
    files = {place.file: place.file.open("rb") for place in state.places.values()}
    try:
        with replaced(destination) as partial, partial.open("wb") as manifest:
            for key in keys:
                place = state.places[key]
                files[place.file].seek(place.offset)
                manifest.write(files[place.file].readline())
            for row, reason in sorted(left_out.items()):
                manifest.write(json.dumps({"row": row, "status": "left out", "reason": reason}).encode() + b"\n")
    finally:
        for file in files.values():
            file.close()
