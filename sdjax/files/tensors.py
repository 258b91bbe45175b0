"""Tensors on disk: safetensors files, memory-mapped one tensor at a time and written one tensor at a time.

The safetensors library checks every file before a byte of it is used. Mapping and writing are ours, for two reasons:
its reader copies each tensor and its writer wants all of them in memory at once, and XLA on the CPU uses a host array
in place (`jax.device_put`; `jnp.asarray` always copies) only where it begins on a 64-byte boundary.
"""

import json
import math
import mmap
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from sdjax.errors import CheckpointError

if TYPE_CHECKING:
    import jax

ALIGNMENT = 64
MAX_HEADER = 1 << 24  # bytes; that of Stable Diffusion XL, the longest of its kind, has 400 thousand

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorFile(Mapping[str, np.ndarray]):
    """The tensors of one safetensors file, by name, as read-only arrays.

    Every look-up maps the file anew, and dropping the array unmaps it again: a caller that takes one tensor after
    another never holds more than one in memory. Who keeps them all takes `arrays`.
    """

    path: Path
    metadata: dict[str, str]
    entries: dict[str, tuple[np.dtype, tuple[int, ...], int]]  # dtype, shape, first byte in the file

    def arrays(self) -> dict[str, np.ndarray]:
        """All tensors, as views of one map: a map costs an open file, of which a process may have a thousand."""
        mapped = np.memmap(self.path, np.uint8, "r")
        return {name: self._view(mapped, name) for name in self.entries}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._view(np.memmap(self.path, np.uint8, "r"), name)

    def _view(self, mapped: np.ndarray, name: str) -> np.ndarray:
        dtype, shape, offset = self.entries[name]
        data = np.asarray(mapped)[offset : offset + math.prod(shape) * dtype.itemsize]
        return data.view(dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def let_go(array: np.ndarray) -> None:
    """Lets the pages of a mapped file, of which `array` is a part, leave this process; reading it brings them back."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap) and hasattr(owner, "madvise") and array.nbytes:  # which Windows lacks
        start = array.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
        page = start // mmap.PAGESIZE * mmap.PAGESIZE
        owner.madvise(mmap.MADV_DONTNEED, page, start + array.nbytes - page)


def open_tensors(path: str | os.PathLike) -> TensorFile:
    """Opens a safetensors file; only its header is read.

    Raises CheckpointError, naming the file, when it is missing, empty, cut short, not safetensors at all, or holds a
    dtype that numpy and ml_dtypes lack.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > min(MAX_HEADER, os.fstat(file.fileno()).st_size):
                raise ValueError(f"its header would have {header_bytes} bytes")
            text = file.read(header_bytes)
        with safe_open(path, framework="numpy") as checked:  # offsets, sizes and the file's length all agree
            metadata = dict(checked.metadata() or {})
        header = json.loads(text, object_pairs_hook=_without_duplicates)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    header.pop("__metadata__", None)
    entries = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(f"{path}: {name!r} is stored as {entry['dtype']}; readable are {', '.join(DTYPES)}")
        offset = 8 + header_bytes + entry["data_offsets"][0]
        entries[name] = (DTYPES[entry["dtype"]], tuple(entry["shape"]), offset)
    return TensorFile(path, metadata, entries)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def write_tensors(
    path: str | os.PathLike,
    specs: "Mapping[str, jax.ShapeDtypeStruct]",
    produce: Callable[[str], np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes a safetensors file, calling `produce(name)` for one tensor of `specs` after another.

    Tensors whose size is a multiple of 64 bytes come first, so each of them begins on a 64-byte boundary of the file;
    the few small ones that follow are aligned as far as their sizes allow. The file appears under its name when it is
    complete and on disk; after any error, also one raised by `produce`, nothing is left of it.
    """
    path = Path(path)
    order = sorted(specs, key=lambda name: -_alignment(_size(specs[name])))
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(_header(specs, order, metadata))
            for name in order:
                array = np.asarray(produce(name), order="C")
                if array.shape != tuple(specs[name].shape) or array.dtype != specs[name].dtype:
                    raise ValueError(f"{name!r} came out as {array.dtype}{array.shape}, expected {specs[name]}")
                file.write(array.reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _size(spec: "jax.ShapeDtypeStruct") -> int:
    return spec.size * np.dtype(spec.dtype).itemsize


def _alignment(size: int) -> int:
    """The largest power of two, up to 64, that divides a number of bytes."""
    return min(size & -size, ALIGNMENT) if size else ALIGNMENT


def _header(specs: "Mapping[str, jax.ShapeDtypeStruct]", order: list[str], metadata: Mapping[str, str]) -> bytes:
    """The header's length and the header, padded with spaces so that the tensors begin on a 64-byte boundary."""
    header: dict = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        start, end = end, end + _size(specs[name])
        code = CODES[np.dtype(specs[name].dtype)]
        header[name] = {"dtype": code, "shape": list(specs[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
