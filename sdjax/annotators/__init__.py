"""What a condition's network will see of a picture: edges, lines, tones, depth, poses. None of it needs PyTorch.

`ANNOTATORS` is the table, by A1111's names; `annotate` runs one. A picture is uint8 [height, width, 3], RGB.
"""

from sdjax.annotators.table import ANNOTATORS, Annotator, annotate, annotator

__all__ = ["ANNOTATORS", "Annotator", "annotate", "annotator"]
