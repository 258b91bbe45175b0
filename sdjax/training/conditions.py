"""Training networks that see hints, for a Stable Diffusion that stays as it is.

ControlNet: Zhang, Rao and Agrawala (2023), arXiv:2302.05543. T2I adapters: Mou et al. (2023), arXiv:2302.08453.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
from PIL import Image

from sdjax import schedulers
from sdjax.annotators import annotate
from sdjax.errors import InputError
from sdjax.files.checkpoint import Component, Model
from sdjax.models import UNetConfig, build
from sdjax.models.unet import Residuals
from sdjax.models.unet_config import EncoderConfig
from sdjax.pipeline.hints import ConditionNet
from sdjax.pipeline.images import middle_square, read_image, to_array
from sdjax.prompts import load_tokenizer, one_chunk
from sdjax.training.data import Example
from sdjax.training.figures import save_sheet
from sdjax.training.fit import Run, Task
from sdjax.training.forward import ForwardProcess
from sdjax.training.losses import Denoising, TextToImage
from sdjax.training.models import fresh, write_model
from sdjax.training.step import TrainState, Tree
from sdjax.training.text_to_image import SEEDS, Samples, check_trainable, open_latents

HINT_WIDTHS = (16, 32, 96, 256)  # of ControlNet, as many as halvings from pixels to latents, and one
# What a ControlNet has in common with the UNet that it is a copy of.
ENCODER = ("conv_in", "time_embedding", "class_embedding", "add_embedding", "down_blocks_", "mid_block")
HINT, GAIN = "controlnet_cond_embedding", 1.8  # five SiLUs would leave little of a hint: each takes about so much
ZEROS = ("controlnet_down_blocks_", "controlnet_mid_block")


@dataclass(frozen=True)
class Choices:
    """What is trained. annotator: what makes the hints from the pictures, where they have none of their own.

    caption_dropout: the share of the captions that are left out, so that the net reads in the hint what is there.
    store: the dtype in which the net is written, if not in float32.
    """

    kind: Literal["controlnet", "adapter"] = "controlnet"
    annotator: str | None = None
    caption_dropout: float = 0.5
    min_snr_gamma: float | None = 5.0
    store: str | None = None


def condition_task(model: Model, examples: list[Example], choices: Choices) -> Task:
    """Trains a net on captioned pictures with hints; the result is a directory for `sdjax.load_condition`.

    A ControlNet begins as a copy of the UNet's encoder that adds nothing. Raises InputError for a model that cannot be
    trained on captions, and for pictures without a hint.
    """
    check_trainable(model)
    if choices.annotator is None and (without := [each.picture for each in examples if each.hint is None]):
        raise InputError(
            f'{without[0]} has no hint: name it in a .jsonl ("conditioning_image"), or give its folder or an annotator'
        )
    class_name, config = net_config(model, choices.kind)
    module = build(class_name, config)
    tokenizer = load_tokenizer(model.tokenizers[0])
    ids = np.stack([one_chunk(tokenizer, example.caption or "", {}).ids[0] for example in examples])
    loss = Controlled(
        model.unet.module,
        model.components["text_encoder"].module,
        Denoising(ForwardProcess(schedulers.from_config(model.scheduler_config).noise), choices.min_snr_gamma),
        tuple(map(int, one_chunk(tokenizer, "", {}).ids[0])),
        choices.caption_dropout,
        module,
    )

    def write(state: TrainState, path: Path) -> None:
        trained = Component(module, jax.device_get(state.ema["condition"]))
        index = model.index | {"condition": ["diffusers", class_name]}
        own = replace(model, components={"unet": model.unet, "condition": trained}, index=index, defaults={})
        write_model(path, own, ["condition"], str(path.parent), {"condition": config}, choices.store)

    return Task(
        about={"model": str(model.path), "pictures": len(examples)} | asdict(choices),
        init=lambda seed: {"condition": begin_net(module, model.unet.params, seed)},
        frozen={name: model.components[name].params for name in ("unet", "text_encoder")},
        loss=loss,
        count=len(examples),
        open=partial(_open, model, examples, ids, choices.annotator),
        show=HintSamples(model, module, examples, choices.annotator),
        result=f"{choices.kind}-{{step}}",
        write=write,
    )


def net_config(model: Model, kind: str) -> tuple[str, dict[str, Any]]:
    """The class and the config.json of a net for a model."""
    unet: UNetConfig = model.unet.module.config
    factor = model.vae.module.config.factor
    if kind == "adapter":
        channels = list(unet.block_out_channels)
        return "T2IAdapter", {"_class_name": "T2IAdapter", "channels": channels, "downscale_factor": factor}
    halvings = factor.bit_length() - 1
    if halvings >= len(HINT_WIDTHS):
        raise InputError(f"{model.path}: a latent is {factor} pixels wide, ControlNets are for up to 8")
    shared = {field.name: getattr(unet, field.name) for field in fields(EncoderConfig)}
    own = {"_class_name": "ControlNetModel", "conditioning_embedding_out_channels": HINT_WIDTHS[: halvings + 1]}
    return "ControlNetModel", {name: list(v) if isinstance(v, tuple) else v for name, v in (shared | own).items()}


def begin_net(module: nn.Module, unet: Mapping[str, Any], seed: int) -> Tree:
    """A net's parameters before training: of a ControlNet those of the UNet's encoder, and 0 where it adds to it."""

    def value(path: tuple[Any, ...], leaf: np.ndarray) -> np.ndarray:
        names = [str(key.key) for key in path]
        name = "/".join(names)
        if name.startswith(ZEROS):
            return np.zeros_like(leaf)
        if name.startswith(HINT) and name.endswith("/kernel"):
            return GAIN * leaf
        if not name.startswith(ENCODER):
            return leaf
        found: Any = unet
        for part in names:
            found = found[part]
        return np.asarray(found, np.float32)

    return jax.tree_util.tree_map_with_path(value, fresh(module, seed))


@dataclass(frozen=True, eq=False)
class Controlled(TextToImage):
    """Denoising latents with a caption and a hint. Parameters are those of "condition"; the model itself is frozen."""

    net: nn.Module

    def predict(self, params: Tree, sample: jax.Array, times: jax.Array, context: jax.Array, batch: Tree) -> jax.Array:
        """batch: also "hint" [batch, height, width, channels], from 0 to 1."""
        variables, hint = {"params": params["condition"]}, batch["hint"].astype(sample.dtype)
        features = self.net.apply(variables, hint, method="encode")
        residuals: Residuals = self.net.apply(variables, features, sample, times, context, method="residuals")
        return self.unet.apply({"params": params["unet"]}, sample, times, context, residuals=residuals)


def hint_of(example: Example, annotator: str | None, side: int) -> np.ndarray:
    """A hint as training reads it, [side, side, 3] float32 from 0 to 1: its middle square."""
    image = read_image("the hint", example.picture if example.hint is None else example.hint)
    assert isinstance(image, Image.Image)  # only arrays are read as latents
    if example.hint is None and annotator:
        image = Image.fromarray(annotate(annotator, np.asarray(image)))
    return to_array(middle_square(image, side))


def _open(
    model: Model, examples: list[Example], ids: np.ndarray, annotator: str | None, run: Run
) -> Callable[[int], dict[str, np.ndarray]]:
    """As `open_latents`, and beside it each example's "hint"."""
    latents = open_latents(model, examples, ids, run)
    side = model.unet.module.config.sample_size * model.vae.module.config.factor
    return lambda i: latents(i) | {"hint": hint_of(examples[i], annotator, side)}


class HintSamples(Samples):
    """Sheets of what is painted with the hints of the first pictures: each hint, then a picture for each seed."""

    def __init__(self, model: Model, module: nn.Module, examples: list[Example], annotator: str | None):
        super().__init__(model, lambda ema: {}, [])
        side = model.unet.module.config.sample_size * model.vae.module.config.factor
        shown = examples[: len(SEEDS)]
        self.module, self.captions = module, [example.caption or "" for example in shown]
        self.hints = [hint_of(example, annotator, side) for example in shown]

    def __call__(self, state: TrainState, folder: Path) -> None:
        """Writes the sheet of a state into a folder, its name the number of steps."""
        net = ConditionNet("the net in training", self.module, jax.device_get(state.ema["condition"]))
        conditions = [(net(hint),) for hint in self.hints for _ in SEEDS]
        images = self.drawn({}, {"conditions": conditions})
        rows = [
            [Image.fromarray((255 * hint).astype(np.uint8)), *images[i : i + len(SEEDS)]]
            for hint, i in zip(self.hints, range(0, len(images), len(SEEDS)))
        ]
        columns = ["hint", *(f"seed {seed}" for seed in SEEDS)]
        save_sheet(folder, int(state.step), rows, [caption[:60] for caption in self.captions], columns)
