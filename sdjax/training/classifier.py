"""Training a classifier of noisy latents, to guide by: Dhariwal and Nichol (2021), arXiv:2105.05233."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from sdjax import schedulers
from sdjax.errors import InputError
from sdjax.files.atomic import new_directory
from sdjax.files.checkpoint import Model, flat_specs, write_component, write_index
from sdjax.models import LatentClassifier, LatentClassifierConfig
from sdjax.training.data import Example
from sdjax.training.fit import Task
from sdjax.training.forward import ForwardProcess
from sdjax.training.losses import normal, use
from sdjax.training.models import fresh
from sdjax.training.step import Metrics, TrainState, Tree
from sdjax.training.text_to_image import check_trainable, open_latents

JUDGE = "judge"


@dataclass(frozen=True, eq=False)
class Classifying:
    """Binary cross-entropy of every label, at a random timestep of each example. accuracy: of all labels."""

    module: nn.Module
    process: ForwardProcess

    def __call__(self, params: Tree, frozen: Tree, batch: Tree, keys: jax.Array) -> Metrics:
        """batch: "mean" and "deviation" of the latents, scaled for the UNet, and "ids" [batch, labels], 0 or 1."""
        shape = batch["mean"].shape[1:]
        x0 = batch["mean"] + batch["deviation"] * normal(keys, "latents", shape)
        levels = len(self.process.schedule)
        timesteps = jax.vmap(lambda key: jax.random.randint(use(key, "time"), (), 0, levels))(keys)
        sample = self.process.add_noise(x0, normal(keys, "noise", shape), timesteps)
        dtype = jax.tree.leaves(params)[0].dtype
        logits = self.module.apply({"params": params}, sample.astype(dtype), self.process.times(timesteps))
        target = batch["ids"]
        loss = -(target * nn.log_sigmoid(logits) + (1 - target) * nn.log_sigmoid(-logits)).mean(-1)
        return {"loss": loss, "accuracy": jnp.mean((logits > 0) == (target > 0.5), axis=-1, dtype=jnp.float32)}


def classifier_task(
    model: Model, examples: list[Example], labels: Sequence[str], channels: Sequence[int], store: str | None
) -> Task:
    """Trains a classifier of a model's latents; the result is a directory for `sdjax.load_condition`.

    labels: words; one is true of the pictures whose captions hold it. channels: of each resolution, from the finest.
    store: what the parameters are written in, float32 where None. Raises InputError for a model that cannot be trained
    on captions, and for labels that no caption, or every one, holds.
    """
    check_trainable(model)
    targets = targets_of(examples, labels)
    config: dict[str, Any] = {
        "in_channels": model.vae.module.config.latent_channels,
        "block_out_channels": list(channels),
        "labels": ",".join(labels),
    }
    module = LatentClassifier(LatentClassifierConfig.from_dict(config))
    process = ForwardProcess(schedulers.from_config(model.scheduler_config).noise)

    def write(state: TrainState, path: Path) -> None:
        arrays = flatten_dict(jax.device_get(state.ema), sep="/")
        specs = {
            name: jax.ShapeDtypeStruct(spec.shape, jnp.dtype(store or jnp.float32))
            for name, spec in flat_specs(module).items()
        }
        with new_directory(path) as folder:
            produce = lambda name: arrays[name].astype(specs[name].dtype)  # noqa: E731
            write_component(folder / JUDGE, config, specs, produce, str(path.parent))
            write_index(folder, {JUDGE: ["sdjax", "LatentClassifier"]}, str(path.parent), {})

    return Task(
        about={"kind": "classifier", "model": str(model.path), "pictures": len(examples), "store": store, **config},
        init=partial(fresh, module),
        frozen={},
        loss=Classifying(module, process),
        count=len(examples),
        open=partial(open_latents, model, examples, targets),
        show=lambda state, folder: None,
        result="classifier-{step}",
        write=write,
    )


def targets_of(examples: Sequence[Example], labels: Sequence[str]) -> np.ndarray:
    """Whether each caption holds each label, [examples, labels], 0 or 1. InputError for labels that say nothing."""
    words = [set(re.findall(r"\w+", (example.caption or "").lower())) for example in examples]
    targets = np.array([[label.lower() in own for label in labels] for own in words], np.float32)
    for label, share in zip(labels, targets.mean(0)):
        if share in (0, 1):
            raise InputError(f"{'every' if share else 'no'} caption says {label!r}: there is nothing to learn")
    return targets
