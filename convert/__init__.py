"""PyTorch checkpoints into sdjax model directories.

`convert` writes a directory of one's own; `resolve` finds any model by name and converts it into the cache if need be.
"""

from sdjax.convert.directory import Progress
from sdjax.convert.keys import fill
from sdjax.convert.run import convert, resolve

__all__ = ["Progress", "convert", "fill", "resolve"]
