"""CIFAR-10 (Krizhevsky, 2009), in its binary version: plain bytes.

The Python version is pickles, which could run code when they are opened, and is refused.
"""

import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sdjax.errors import InputError

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECORD, SIDE = 3073, 32  # bytes: the label, then red, green and blue, row by row
BINARY, PYTHON = re.compile(r"data_batch_\d\.bin"), re.compile(r"data_batch_\d|cifar-10-python\.tar\.gz")


def read_cifar(source: Path) -> list[tuple[np.ndarray, str]] | None:
    """The training pictures [32, 32, 3] 8 bits with the names of what they show, or None where a path has none.

    source: cifar-10-binary.tar.gz, or the folder that it unpacks to. Raises InputError for the Python version, and for
    files that are damaged.
    """
    names = [path.name for path in source.iterdir()] if source.is_dir() else [source.name]
    if any(map(PYTHON.fullmatch, names)):
        raise InputError(
            f"{source} is CIFAR-10's Python version, pickles that could run code: take the binary version, "
            "cifar-10-binary.tar.gz"
        )
    if source.is_file() or any(map(BINARY.fullmatch, names)):
        return [example for name, content in _batches(source) for example in _records(name, content)]
    return None


def _batches(source: Path) -> Iterator[tuple[str, bytes]]:
    """The files of training pictures, in order: their names and what they hold."""
    if source.is_dir():
        for path in sorted(path for path in source.iterdir() if BINARY.fullmatch(path.name)):
            yield str(path), path.read_bytes()
        return
    found = {}
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                name = Path(member.name).name
                if BINARY.fullmatch(name) and (file := archive.extractfile(member)):
                    found[f"{source}: {name}"] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(f"{source} cannot be read as CIFAR-10's archive: {error}") from error
    if not found:
        raise InputError(f"{source} holds no data_batch_1.bin: it is no CIFAR-10 in its binary version")
    yield from sorted(found.items())


def _records(name: str, content: bytes) -> Iterator[tuple[np.ndarray, str]]:
    if len(content) % RECORD or not content:
        raise InputError(f"{name} has {len(content)} bytes, no multiple of {RECORD}: it is damaged, or no CIFAR-10")
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    if (labels := records[:, 0]).max() >= len(LABELS):
        raise InputError(f"{name} has the label {labels.max()}, of 0 to 9: it is damaged, or no CIFAR-10")
    pictures = records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return ((picture, LABELS[label]) for picture, label in zip(pictures, labels))
