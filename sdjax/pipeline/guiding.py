"""Guidance of a batch, at every row of every picture's plan, as the denoising program takes it."""

from collections.abc import Sequence

import numpy as np

from sdjax.guidance import GUIDANCES, Guidance
from sdjax.pipeline.recipe import Recipe


def guidance_of(recipes: Sequence[Recipe], rows: int, adaptive: bool) -> Guidance:
    """The guidance of pictures; scales are 1 at rows of no step.

    rows: of the stacked plans. adaptive: whether rows are found on the way, so that the first row's scale is for all.
    """
    pictures = [recipe.picture for recipe in recipes]
    scales = np.ones((len(recipes), rows), np.float32)
    for scale, recipe in zip(scales, recipes):
        scale[: int(recipe.plan.nfe)] = recipe.scales_by_row
        if adaptive:
            scale[:] = recipe.scales_by_row[0]

    def of_pictures(name: str) -> np.ndarray:
        return np.array([getattr(picture, name) for picture in pictures], np.float32)

    return Guidance(
        scale=scales,
        rescale=of_pictures("guidance_rescale"),
        plus_plus=np.array([recipe.cfg_plus_plus for recipe in recipes]),
        kind=np.array([list(GUIDANCES).index(picture.guidance) for picture in pictures], np.int32),
        eta=of_pictures("apg_eta"),
        norm_threshold=of_pictures("apg_norm_threshold"),
        momentum=of_pictures("apg_momentum"),
        mimic=of_pictures("mimic_scale"),
        percentile=of_pictures("threshold_percentile"),
        perturbed=of_pictures("pag_scale"),
        image=np.array([recipe.image_scale for recipe in recipes], np.float32),
        degraded=of_pictures("sag_scale") if any(picture.sag_scale for picture in pictures) else None,
    )
