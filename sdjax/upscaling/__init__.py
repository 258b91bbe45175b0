"""Enlarging pictures by networks made for it: reading their files, and applying them to pictures of any size."""

from sdjax.upscaling.apply import enlarge
from sdjax.upscaling.files import ENDINGS, Upscaler, open_upscaler
from sdjax.upscaling.folder import UpscalerFolder

__all__ = ["ENDINGS", "Upscaler", "UpscalerFolder", "enlarge", "open_upscaler"]
