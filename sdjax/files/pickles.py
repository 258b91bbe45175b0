"""PyTorch's pickles, opened in the one way that runs none of their code."""

import re
import zipfile
from pathlib import Path
from typing import Any

from sdjax.errors import CheckpointError

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
        # Only the zip files of PyTorch 1.6 and later can be mapped.
        with torch.serialization.safe_globals([(_Callback, CALLBACK)]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # damaged pickles raise nearly anything
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {forbidden[1]}" if forbidden else f"it is damaged ({type(error).__name__})"
        raise CheckpointError(f"{path} is refused: {reason}, and only tensors are read from a pickle") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds something else than a dict of tensors")
    return content
