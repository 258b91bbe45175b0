"""Training a UNet on pixels, without captions: Ho et al. (2020), arXiv:2006.11239."""

from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict

from sdjax import schedulers
from sdjax.errors import InputError
from sdjax.files.atomic import new_directory
from sdjax.files.checkpoint import flat_specs, write_component, write_index
from sdjax.files.layout import SCHEDULER, write_json
from sdjax.models import build
from sdjax.pipeline.images import read_square, to_pil
from sdjax.pipeline.unconditional import UNET, PixelModel
from sdjax.training.data import Example
from sdjax.training.figures import save_sheet
from sdjax.training.fit import Task
from sdjax.training.forward import ForwardProcess
from sdjax.training.losses import Denoising
from sdjax.training.models import fresh
from sdjax.training.step import Metrics, TrainState, Tree

SHOWN = 16  # pictures on a sheet of samples


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


def ddpm_task(examples: list[Example], config: dict[str, Any], scheduler: dict[str, Any]) -> Task:
    """Trains a UNet from scratch; the result is a model directory for `sdjax ddpm`.

    config, scheduler: see `config_of` and `scheduler_of`.
    """
    unet = build(UNET, config)
    denoising = Denoising(ForwardProcess(schedulers.from_config(scheduler).noise), None)

    def loss(params: Tree, frozen: Tree, batch: Tree, keys: jax.Array) -> Metrics:
        def predict(sample: jax.Array, times: jax.Array) -> jax.Array:
            return unet.apply({"params": params}, sample, times)

        return denoising.loss(predict, batch, keys, jax.tree.leaves(params)[0].dtype)

    def show(state: TrainState, folder: Path) -> None:
        pictures = to_pil(PixelModel(unet, state.ema, scheduler).sample(range(SHOWN)))
        rows = [pictures[i : i + 8] for i in range(0, SHOWN, 8)]
        save_sheet(folder, int(state.step), rows, [""] * len(rows), [""] * 8)

    def write(state: TrainState, path: Path) -> None:
        write_pixel_model(path, unet, state.ema, config, scheduler, str(path.parent))

    return Task(
        about={"kind": "ddpm", "pictures": len(examples), **config, **scheduler},
        init=partial(fresh, unet),
        frozen={},
        loss=loss,
        count=len(examples),
        open=lambda run: lambda i: read_square(examples[i].picture, config["sample_size"]),
        show=show,
        result="model-{step}",
        write=write,
    )


def write_pixel_model(
    destination: Path, unet: nn.Module, params: Tree, config: dict[str, Any], scheduler: dict[str, Any], source: str
) -> Path:
    """Writes a model directory for `sdjax ddpm`, complete or not at all, and returns its path."""
    with new_directory(destination) as folder:
        arrays = flatten_dict(jax.device_get(params), sep="/")
        write_component(folder / "unet", config, flat_specs(unet), arrays.__getitem__, source)
        (folder / "scheduler").mkdir()
        write_json(folder / "scheduler" / SCHEDULER, scheduler)
        classes = {"unet": ["diffusers", UNET], "scheduler": ["diffusers", scheduler["_class_name"]]}
        write_index(folder, {"_class_name": "DDPMPipeline", **classes}, source, {})
    return destination
