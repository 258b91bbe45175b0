"""Drawing with a UNet of pixels, without prompts: what `sdjax train ddpm` makes, and diffusers' DDPMPipeline."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from os import PathLike
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdjax import schedulers
from sdjax.errors import CheckpointError, InputError
from sdjax.files.checkpoint import read_component
from sdjax.files.layout import SCHEDULER, component_classes, read_index, read_json
from sdjax.files.plans import read_plan
from sdjax.parallel import compiled
from sdjax.random import image_keys, normal

UNET, SAMPLER, STEPS = "UNet2DModel", "ddim", 50


@dataclass(frozen=True)
class PixelModel:
    """A UNet2DModel, its parameters, and the scheduler_config.json of what it was trained on."""

    unet: nn.Module
    params: Any
    scheduler: dict[str, Any]

    def sample(
        self,
        seeds: range,
        steps: int = STEPS,
        sampler: str = SAMPLER,
        spacing: str | None = None,
        image: np.ndarray | None = None,
        strength: float = 1.0,
    ) -> np.ndarray:
        """Draws a picture for each seed: [count, size, size, channels] in [0, 1].

        sampler: a name, or a file of `sdjax tune`, whose evaluations are then the steps.
        image: what to start from, [size, size, channels] in [0, 1], of which `strength` is lost to noise, or None.
        Raises InputError for what is no sampler, a plan that cannot be made, and an image of another shape.
        """
        size, channels = self.unet.config.sample_size, self.unet.config.in_channels
        if image is not None and image.shape != (size, size, channels):
            raise InputError(f"the image should be of shape {(size, size, channels)}, not {image.shape}")
        plan = self.plan(steps, sampler, spacing, 1.0 if image is None else strength)
        keys = image_keys(list(seeds))
        noise = normal(keys.start, (size, size, channels))
        x = plan.start(noise, None if image is None else jnp.broadcast_to(2 * image - 1, noise.shape))
        drawn = _drawing(self.unet)(plan.padded(), self.params, x, keys.step)
        return np.clip(np.asarray(drawn) / 2 + 0.5, 0, 1)

    def plan(self, steps: int, sampler: str, spacing: str | None = None, strength: float = 1.0) -> schedulers.Plan:
        """What `sample` runs."""
        scheduler = schedulers.from_config(self.scheduler)
        if not sampler.endswith(".json"):
            return scheduler.with_solver(sampler, spacing).plan(steps, strength)
        if spacing is not None:
            raise InputError(f"spacing does not suit the sampler {sampler!r}: a tuned plan has levels of its own")
        tuned = read_plan(sampler)
        return scheduler.with_table(tuned, 1.0).plan(strength=strength, sigmas=(*tuned.at(1.0).levels, 0.0))


def read_pixel_model(directory: str | PathLike[str]) -> PixelModel:
    """Opens an sdjax model directory that holds a UNet2DModel. Errors are those of `checkpoint.read_model`."""
    path = Path(directory)
    classes = component_classes(read_index(path), path)
    if classes.get("unet") != UNET or "scheduler" not in classes:
        raise CheckpointError(f"{path} holds no {UNET} with its scheduler: draw with it by `sdjax generate`")
    unet = read_component(path / "unet", UNET)
    if not unet.module.config.sample_size:
        raise InputError(f"{path}: the UNet's config does not say its sample_size")
    return PixelModel(unet.module, jax.device_put(unet.params), read_json(path / "scheduler" / SCHEDULER))


@lru_cache
def _drawing(unet: nn.Module) -> Callable[..., jax.Array]:
    def draw(plan: schedulers.Plan, params: Any, x: jax.Array, keys: jax.Array) -> jax.Array:
        return schedulers.denoise(plan, partial(unet.apply, {"params": params}), x, keys)

    return compiled(draw)
