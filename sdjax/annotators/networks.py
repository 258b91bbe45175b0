"""Annotators that ask a network: ONNX files that the user has, run by onnxruntime. Nothing is downloaded."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdjax.annotators.depth import depth
from sdjax.annotators.extras import needed
from sdjax.errors import CheckpointError, InputError

# ImageNet's, by which Depth Anything and MiDaS read pictures.
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SHORTER_SIDE, PATCH = 518, 14  # of Depth Anything, where the file leaves its size open
MAX_SIDE = 4096


def depth_anything_v2(picture: np.ndarray, model: str | None) -> np.ndarray:
    """Depth as an ONNX file estimates it, white where nearest: Depth Anything, MiDaS 2.1, or one like these.

    That is: one input [1, 3, height, width], RGB by ImageNet's mean and deviation; one output of nearness,
    [1, height, width] or [1, 1, height, width]. Raises InputError where the file has another, CheckpointError where it
    cannot be read.
    """
    session = opened(model, "a depth network")
    height, width = _size_for(session, picture.shape[:2])
    image = Image.fromarray(picture)
    values = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    inputs = ((values - MEAN) / DEVIATION).astype(np.float32).transpose(2, 0, 1)[None]
    nearness = np.squeeze(run(session, inputs)[0])
    if nearness.ndim != 2 or not np.isfinite(nearness).all():
        raise InputError(f"{model} gives {nearness.shape}, or numbers that are not finite: that is no map of depth")
    small = Image.fromarray(nearness.astype(np.float32))
    return depth(np.asarray(small.resize(image.size, Image.Resampling.BICUBIC)))


def opened(model: str | None, what: str) -> Any:
    """An ONNX file's session on the CPU. `what` is said where no file is given."""
    if model is None:
        raise InputError(f"this asks {what}: say which ONNX file to take; sdjax downloads none")
    if not Path(model).is_file():
        raise InputError(f"there is no file {model}")
    runtime = needed("onnxruntime", "conditions")
    try:
        session = runtime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds have no common one
        raise CheckpointError(f"{model} cannot be read as ONNX: {_first_line(error)}") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[1] not in (3, None):
        raise InputError(f"{model} reads {[each.shape for each in inputs]}, not one picture [1, 3, height, width]")
    return session


def run(session: Any, inputs: np.ndarray) -> list[np.ndarray]:
    """What a network of one input gives. Raises InputError where it cannot read it."""
    try:
        return session.run(None, {session.get_inputs()[0].name: inputs})
    except Exception as error:
        raise InputError(f"the network cannot read {inputs.dtype}{inputs.shape}: {_first_line(error)}") from error


def given_size(session: Any) -> tuple[int, int] | None:
    """Height and width of what a network reads, None where its file leaves them open. Raises InputError: too large."""
    size = session.get_inputs()[0].shape[2:]
    if not all(isinstance(side, int) for side in size):
        return None
    if not all(0 < side <= MAX_SIDE for side in size):
        raise InputError(f"the network reads pictures of {size[0]} x {size[1]}, which is out of bounds")
    return size[0], size[1]


def _size_for(session: Any, picture: tuple[int, ...]) -> tuple[int, int]:
    """Height and width at which a picture is shown: the file's own, else about 518, in multiples of 14."""
    if size := given_size(session):
        return size
    scale = SHORTER_SIDE / min(picture)
    height, width = (min(MAX_SIDE // PATCH, max(1, round(side * scale / PATCH))) * PATCH for side in picture)
    return height, width


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
