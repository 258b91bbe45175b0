"""PyTorch's pickles, opened in the one way that runs none of their code."""

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdjax.errors import CheckpointError
from sdjax.limits import COMPRESSION

CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"


class _Callback:
    """Stands for a class of PyTorch Lightning that the first releases of Stable Diffusion name, and do nothing with."""


def read_pickle(path: Path) -> dict[Any, Any]:
    """What a pickle holds, a dict, through torch.load, which here builds tensors and plain values and nothing else.

    Raises CheckpointError when torch is not installed, and when the file cannot be read, is damaged, holds something
    else or asks for more.
    """
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(f"{path} is a PyTorch pickle: pip install 'sdjax[torch]' to read it") from error
    try:
        records = _records(path) if zipfile.is_zipfile(path) else {}
        with torch.serialization.safe_globals([(_Callback, CALLBACK)]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=bool(records))
        storages = dict(_storages(content))
        if records and storages:
            _check_places(storages, records)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is refused: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # damaged pickles raise nearly anything
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {forbidden[1]}" if forbidden else f"it is damaged ({type(error).__name__})"
        raise CheckpointError(f"{path} is refused: {reason}, and only tensors are read from a pickle") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds something else than a dict of tensors")
    return content


def _records(path: Path) -> dict[int, int]:
    """The bytes of each record of a zip file as PyTorch 1.6 and later write it, by the place where they begin.

    Empty where a record is compressed: then the file cannot be mapped, and PyTorch reads it into memory. Raises
    CheckpointError for names that are there twice, and for compressed records that are damaged or grow beyond measure.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = archive.infolist()
        if len({entry.filename for entry in entries}) < len(entries):
            raise CheckpointError("it holds two records of one name")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            if sum(entry.file_size for entry in entries) > COMPRESSION * path.stat().st_size:
                raise CheckpointError(f"what is compressed in it is more than {COMPRESSION} times as large")
            if damaged := archive.testzip():  # of which PyTorch would read what comes out
                raise CheckpointError(f"its record {damaged!r} is damaged")
            return {}
        places = {}
        for entry in entries:
            file.seek(entry.header_offset + 26)  # of the lengths of the name and of the extra field in the record
            name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
            places[entry.header_offset + 30 + name + extra] = entry.file_size
        return places


def _check_places(storages: Mapping[int, int], records: Mapping[int, int]) -> None:
    """Raises CheckpointError unless every mapped storage is a record, whole: PyTorch itself does not look."""
    first = min(storages)
    begins = (first - place for place in records)  # where the file may begin in memory
    if not any(all(records.get(at - begin) == size for at, size in storages.items()) for begin in begins):
        raise CheckpointError("its tensors are of other sizes than the records that hold them")


def _storages(content: Any) -> Iterator[tuple[int, int]]:
    """Where the storages of all tensors lie in memory, and their bytes; empty ones lie nowhere.

    Raises CheckpointError for a tensor that is larger than its storage, whose numbers are there again and again.
    """
    import torch

    pending, seen = [content], set()
    while pending:
        value = pending.pop()
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu":
            storage = value.untyped_storage()
            if value.numel() * value.element_size() > storage.nbytes():
                raise CheckpointError(f"a tensor of shape {tuple(value.shape)} is larger than what holds it")
            if storage.nbytes():
                yield storage.data_ptr(), storage.nbytes()
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            pending += value.values() if isinstance(value, dict) else value
