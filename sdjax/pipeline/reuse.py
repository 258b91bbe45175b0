"""Which rows of a picture take parts of the network from earlier ones: DeepCache and T-GATE as settings."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdjax.errors import InputError
from sdjax.models.reuse import Kept, kept_shapes
from sdjax.models.unet_config import UNetConfig
from sdjax.pipeline.recipe import Recipe
from sdjax.reusing import blank
from sdjax.schedulers import SOLVERS, State


def reuse_of(recipes: Sequence[Recipe], rows: int) -> np.ndarray | None:
    """[pictures, rows, 2], whether a row takes what is deep, and what is attended; None where no row does.

    What is deep is computed at every `cache_interval`-th row, and where guidance begins, whose other half is new.
    """
    table = np.zeros((len(recipes), rows, 2), bool)
    for own, recipe in zip(table, recipes):
        nfe = int(recipe.plan.nfe)
        begins = recipe.guided & ~np.append(True, recipe.guided[:-1])
        own[:nfe, 0] = (np.arange(nfe) % recipe.picture.cache_interval != 0) & ~begins
        own[:nfe, 1] = recipe.is_gated
    return table if table.any() else None


def check_reuse(recipe: Recipe) -> None:
    """Raises InputError for settings that do not go with rows that take parts from earlier ones."""
    picture = recipe.picture
    if picture.cache_interval == 1 and picture.gate_step is None:
        return
    others = {
        "AND or perp_neg": len(recipe.conditions) > 1,
        "pag_scale": picture.pag_scale,
        "sag_scale": picture.sag_scale,
        "cfg_plus_plus": recipe.cfg_plus_plus,
        "a picture to change by instruction": recipe.edits,
        "a refiner": recipe.switch is not None,
        "dpm_adaptive, which finds its steps on the way": SOLVERS[recipe.scheduler.solver].adaptive,
    }
    if unfit := [name for name, is_there in others.items() if is_there]:
        raise InputError(f"cache_interval and gate_step do not go with {', '.join(unfit)}: leave one out")


def with_memory(state: State, reuse: np.ndarray, config: UNetConfig, dtype: Any) -> State:
    """A state before the first row, with room for what rows take from earlier ones.

    reuse: of `reuse_of`. config: of the UNet. dtype: that is computed in.
    """
    shapes = kept_shapes(config, *state.denoised.shape[1:3])
    kept = Kept(shapes.deep if reuse[..., 0].any() else None, shapes.attended if reuse[..., 1].any() else {})
    return state._replace(memory=blank(kept, jnp.asarray(state.memory), dtype))
