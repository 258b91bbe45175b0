"""PyTorch checkpoints into sdjax model directories.

`convert` writes a directory of one's own; `resolve` finds any model by name and converts it into the cache if need be.
"""

from sdjax.convert.clip_models import is_clip, open_clip
from sdjax.convert.hub import download_file
from sdjax.convert.inspect_file import inspect_file
from sdjax.convert.ip_adapters import OnHub, encoder_for, read_picture_adapter
from sdjax.convert.keys import fill
from sdjax.convert.outline import outline
from sdjax.convert.run import convert, export, resolve, verify
from sdjax.convert.single_file import Choices
from sdjax.convert.write import Progress

__all__ = [
    "Choices",
    "OnHub",
    "Progress",
    "convert",
    "download_file",
    "encoder_for",
    "export",
    "fill",
    "inspect_file",
    "is_clip",
    "open_clip",
    "outline",
    "read_picture_adapter",
    "resolve",
    "verify",
]
