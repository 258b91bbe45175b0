"""Networks that enlarge pictures: ESRGAN's RRDBNet, Real-ESRGAN's compact one, SwinIR.

Each maps pictures [batch, height, width, 3] in [0, 1] to [batch, height * scale, width * scale, 3], not clipped. Sides
are multiples of the config's `multiple`. Layers of equal shape are stacked: their parameters are [layers, ...].
"""

from sdjax.models.upscalers.compact import Compact, CompactConfig
from sdjax.models.upscalers.rrdb import RRDB, RRDBConfig
from sdjax.models.upscalers.swinir import SwinIR, SwinIRConfig

__all__ = ["RRDB", "Compact", "CompactConfig", "RRDBConfig", "SwinIR", "SwinIRConfig"]
