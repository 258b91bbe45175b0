"""Training a UNet on pixels, without captions: Ho et al. (2020), arXiv:2006.11239."""

from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from sdjax import schedulers
from sdjax.checkpoint import SCHEDULER, flat_specs, write_component, write_index, write_json
from sdjax.errors import InputError
from sdjax.folders import new_directory
from sdjax.inputs import to_pil
from sdjax.models import build
from sdjax.random import image_keys, normal
from sdjax.training.data import Example, read_square
from sdjax.training.figures import save_sheet
from sdjax.training.fit import Intervals, Report, Task, fit, open_run
from sdjax.training.forward import ForwardProcess
from sdjax.training.losses import Denoising
from sdjax.training.models import fresh
from sdjax.training.step import Metrics, Settings, TrainState, Tree

UNET, SAMPLER = "UNet2DModel", "ddim"
SHOWN, STEPS = 16, 50  # of a sheet of samples


def config_of(size: int, channels: int) -> dict[str, Any]:
    """A UNet for pictures of so many pixels, as wide as `channels` at the finest of its levels, the coarsest of which
    has 4 to 7 pixels; with attention at 16 pixels, as in the paper. Raises InputError where this does not divide."""
    levels = size.bit_length() - 2
    if levels < 1 or size % 2 ** (levels - 1) or channels % 8:
        raise InputError(
            f"{size} pixels and {channels} channels: take 8, 16, 32, ... pixels, and a multiple of 8 channels"
        )
    attends = [size >> i == 16 for i in range(levels)]
    return {
        "sample_size": size,
        "block_out_channels": [channels, *[2 * channels] * (levels - 1)],
        "down_block_types": ["AttnDownBlock2D" if here else "DownBlock2D" for here in attends],
        "up_block_types": ["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)],
        "attention_head_dim": None,
        "norm_num_groups": 8,
    }


def scheduler_of(beta_schedule: str, prediction_type: str) -> dict[str, Any]:
    """The scheduler_config.json of the trained model, which samples like the paper unless another sampler is chosen."""
    return {
        "_class_name": "DDPMScheduler",
        "beta_schedule": beta_schedule,
        "prediction_type": prediction_type,
        "clip_sample": True,
    }


def train_ddpm(
    examples: list[Example],
    config: dict[str, Any],
    scheduler: dict[str, Any],
    folder: Path,
    settings: Settings,
    intervals: Intervals,
    report: Report,
) -> Path:
    """Trains from scratch in a run's folder (see `fit`), and writes UNet and scheduler into a directory; returns it.

    config, scheduler: see `config_of` and `scheduler_of`. Sheets of samples are drawn into samples/.
    """
    unet = build(UNET, config)
    open_run(folder, settings, {"kind": "ddpm", "pictures": len(examples), **config, **scheduler})
    denoising = Denoising(ForwardProcess(schedulers.from_config(scheduler).noise), None)

    def loss(params: Tree, frozen: Tree, batch: Tree, keys: jax.Array) -> Metrics:
        def predict(sample: jax.Array, times: jax.Array) -> jax.Array:
            return unet.apply({"params": params}, sample, times)

        return denoising.loss(predict, batch, keys, jax.tree.leaves(params)[0].dtype)

    def show(state: TrainState) -> None:
        pictures = to_pil(sample(unet, state.ema, scheduler, range(SHOWN), STEPS))
        rows = [pictures[i : i + 8] for i in range(0, SHOWN, 8)]
        save_sheet(folder / "samples", int(state.step), rows, [""] * len(rows), [""] * 8)

    task = Task(
        partial(fresh, unet, settings.seed),
        {},
        loss,
        lambda i: read_square(examples[i].picture, config["sample_size"]),
        len(examples),
        show,
    )
    state = fit(task, settings, folder, intervals, report)
    destination = folder / f"model-{int(state.step)}"
    if not destination.exists():
        with new_directory(destination) as made:
            arrays = flatten_dict(jax.device_get(state.ema), sep="/")
            write_component(made / "unet", config, flat_specs(unet), arrays.__getitem__, str(folder))
            (made / "scheduler").mkdir()
            write_json(made / "scheduler" / SCHEDULER, scheduler)
            classes = {"unet": ["diffusers", UNET], "scheduler": ["diffusers", scheduler["_class_name"]]}
            write_index(made, {"_class_name": "DDPMPipeline", **classes}, str(folder), {})
    return destination


def sample(
    unet: nn.Module,
    params: Tree,
    scheduler: dict[str, Any],
    seeds: range,
    steps: int,
    sampler: str = SAMPLER,
    image: np.ndarray | None = None,
    strength: float = 1.0,
) -> np.ndarray:
    """Draws a picture for each seed: [count, size, size, channels] in [0, 1].

    image: what to start from, [size, size, channels] in [0, 1], of which `strength` is lost to noise, or None.
    """
    size, channels = unet.config.sample_size, unet.config.in_channels
    plan = schedulers.from_config(scheduler).with_solver(sampler).plan(steps, strength)
    keys = image_keys(list(seeds))
    noise = normal(keys.start, (size, size, channels))
    x = plan.start(noise, None if image is None else jnp.broadcast_to(2 * image - 1, noise.shape))

    drawn = _draw(unet, plan.padded(), params, x, keys.step)
    return np.clip(np.asarray(drawn) / 2 + 0.5, 0, 1)


@partial(jax.jit, static_argnums=0)
def _draw(unet: nn.Module, plan: schedulers.Plan, params: Tree, x: jax.Array, keys: jax.Array) -> jax.Array:
    return schedulers.denoise(plan, partial(unet.apply, {"params": params}), x, keys)
