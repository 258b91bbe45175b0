"""The settings of a picture, each of which is written down once: in `picture`, with the words of `setting`.

The call of a pipeline and its documentation, the options of the commands, the columns of `sdjax batch`, `--like`, the
settings in PNGs and the JSON Schema are read off them. Nothing here imports JAX, so that `--help` answers at once.
"""

from sdjax.settings.picture import EDIT, RNGS, SETTINGS, SHORT, UPSCALE, VARY, Picture, json_schema
from sdjax.settings.setting import Setting, is_finite, is_whole

__all__ = [
    "EDIT",
    "RNGS",
    "SETTINGS",
    "SHORT",
    "UPSCALE",
    "VARY",
    "Picture",
    "Setting",
    "is_finite",
    "is_whole",
    "json_schema",
]
