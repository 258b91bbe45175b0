"""CLIP as a judge: pictures are drawn towards a text or towards another picture, by the gradient of their likeness."""

from typing import Any

import numpy as np
from PIL import Image

from sdjax.errors import InputError
from sdjax.pipeline.wishes import JudgeNet
from sdjax.sight.clip import Clip, CLIPLikeness


def clip_judge(name: str, clip: Clip, climbs: int = 0) -> JudgeNet:
    """A judge whose targets are texts, and pictures of PIL; see `CLIPLikeness` for its scores.

    climbs: as of `JudgeNet`. Called with anything else the judge raises InputError.
    """

    def understands(target: Any) -> np.ndarray:
        if isinstance(target, str):
            return clip.texts([target])[0]
        if isinstance(target, Image.Image):
            return clip.pictures([target])[0]
        raise InputError(f"{name} is to see a text or a picture (PIL.Image), not {target!r}")

    towers = ("vision_model", "visual_projection")
    look = clip.processor
    module = CLIPLikeness(clip.module.vision, clip.module.projection_dim, look.mean, look.std)
    params = {tower: clip.params[tower] for tower in towers}
    return JudgeNet(name, module, params, "picture", climbs, understands)
