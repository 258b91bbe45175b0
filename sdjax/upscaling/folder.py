"""A folder of upscaling models, from which settings name theirs: "4x-UltraSharp", or A1111's "R-ESRGAN 4x+"."""

import os
from functools import lru_cache
from pathlib import Path

from sdjax.errors import InputError, did_you_mean
from sdjax.upscaling.files import ENDINGS, Upscaler, open_upscaler

# What A1111 calls the files that it offers.
A1111 = {
    "R-ESRGAN 4x+": "RealESRGAN_x4plus",
    "R-ESRGAN 4x+ Anime6B": "RealESRGAN_x4plus_anime_6B",
    "R-ESRGAN 2x+": "RealESRGAN_x2plus",
    "R-ESRGAN General 4xV3": "realesr-general-x4v3",
    "R-ESRGAN General WDN 4xV3": "realesr-general-wdn-x4v3",
    "R-ESRGAN AnimeVideo": "realesr-animevideov3",
    "SwinIR 4x": "003_realSR_BSRGAN_DFOWMFC_s64w8_SwinIR-L_x4_GAN",
}


class UpscalerFolder:
    """Upscaling models by their files' names, with or without the ending, in a folder and those inside it.

    A name never leads out of the folder, which may also be one file. Files are read when they are used.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        """Raises InputError where there is no such folder or file."""
        self.folder = Path(folder)
        if not self.folder.exists():
            raise InputError(f"there is no folder {folder} of upscaling models")
        files = [self.folder] if self.folder.is_file() else sorted(self.folder.rglob("*"))
        self.files = [path for path in files if path.suffix in ENDINGS]
        self.find = lru_cache(256)(self._find)

    def _find(self, name: str) -> Path:
        """The file of a name. Raises InputError, with the nearest name, where there is none."""
        for path in self.files:
            if name in (path.name, path.stem) or A1111.get(name) == path.stem:
                return path
        near = did_you_mean(name, [path.stem for path in self.files])
        raise InputError(f"there is no upscaling model {name!r} in {self.folder}{near}")

    def open(self, name: str) -> Upscaler:
        """The model of a name. Raises InputError where there is none, CheckpointError where its file is no such."""
        return open_upscaler(self.find(name))
