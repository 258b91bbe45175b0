"""Latent consistency distillation: a LoRA with which a model draws in a few steps. Luo et al. (2023), arXiv:2310.04378.

What the student says of a sample must be what it says a little further along the way to the picture, where the model
itself, with guidance, leads by a step of DDIM. arXiv:2311.05556 has the student's changes in a LoRA.
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdjax import schedulers
from sdjax.errors import InputError
from sdjax.files.checkpoint import Model
from sdjax.prompts import load_tokenizer, one_chunk
from sdjax.training.data import Example
from sdjax.training.fit import Task
from sdjax.training.forward import ForwardProcess
from sdjax.training.lora import LINEAR, adapted, begin_factors, merged, write_lora
from sdjax.training.losses import example_mean, normal, use
from sdjax.training.step import Metrics, TrainState, Tree
from sdjax.training.text_to_image import Samples, check_trainable, open_latents

TIMESTEP_SCALING, SIGMA_DATA = 10.0, 0.5  # of the boundary condition, as LCM's sampler has them
HUBER = 0.001  # below which the loss is a square


@dataclass(frozen=True)
class Choices:
    """What is distilled. rank: of the LoRA. guidance: the scale that is built in. solver_steps: the timesteps that are
    learned, out of which the sampler chooses its own."""

    rank: int = 16
    guidance: float = 7.5
    solver_steps: int = 50


def consistency_task(model: Model, examples: list[Example], choices: Choices) -> Task:
    """Distils a model; the result is a LoRA for the UNet, in kohya's layout. Sample sheets are drawn in four steps.

    Raises InputError for a model that cannot be trained on captions, and for numbers of steps that it does not have.
    """
    check_trainable(model)
    noise = schedulers.from_config(model.scheduler_config).noise
    if not 2 <= choices.solver_steps <= len(noise) or len(noise) % choices.solver_steps:
        raise InputError(f"solver_steps {choices.solver_steps} does not divide the {len(noise)} trained timesteps")
    params = {name: model.components[name].params for name in ("unet", "text_encoder")}
    tokenizer = load_tokenizer(model.tokenizers[0])
    ids = np.stack([one_chunk(tokenizer, example.caption or "", {}).ids[0] for example in examples])
    unet, text_encoder = (model.components[name].module for name in ("unet", "text_encoder"))
    empty = tuple(map(int, one_chunk(tokenizer, "", {}).ids[0]))
    how = {"sampler": "lcm", "num_inference_steps": 4, "guidance_scale": 1.0}

    def write(state: TrainState, path: Path) -> None:
        write_lora(path, state.ema, str(path.parent))

    return Task(
        about={"kind": "lcm", "model": str(model.path), "pictures": len(examples)} | asdict(choices),
        init=lambda seed: begin_factors({"unet": params["unet"]}, choices.rank, seed, LINEAR),
        frozen=params,
        loss=Consistency(unet, text_encoder, ForwardProcess(noise), empty, choices.guidance, choices.solver_steps),
        count=len(examples),
        open=partial(open_latents, model, examples, ids),
        show=Samples(model, partial(merged, params), [example.caption or "" for example in examples], how=how),
        result="lcm-lora-{step}.safetensors",
        write=write,
    )


@dataclass(frozen=True, eq=False)
class Consistency:
    """The loss. Parameters are the factors of the student's LoRA; the model itself is frozen."""

    unet: nn.Module
    text_encoder: nn.Module
    process: ForwardProcess
    empty: tuple[int, ...]  # the ids of no caption
    guidance: float
    solver_steps: int

    def __call__(self, factors: Tree, frozen: Tree, batch: Tree, keys: jax.Array) -> Metrics:
        """batch: "mean" and "deviation" of the latents, scaled for the UNet, and "ids" [batch, tokens]."""
        shape = batch["mean"].shape[1:]
        x0 = batch["mean"] + batch["deviation"] * normal(keys, "latents", shape)
        both = jnp.concatenate([batch["ids"], jnp.broadcast_to(jnp.array(self.empty), batch["ids"].shape)])
        contexts = self.text_encoder.apply({"params": frozen["text_encoder"]}, both).context
        conditional = contexts[: len(x0)]
        stride = len(self.process.schedule) // self.solver_steps
        index = jax.vmap(lambda key: jax.random.randint(use(key, "time"), (), 0, self.solver_steps))(keys)
        later = (index + 1) * stride - 1
        earlier = jnp.maximum(later - stride, 0)
        sample = jnp.asarray(self.process.add_noise(x0, normal(keys, "noise", shape), later))

        def predict(x: jax.Array, timesteps: jax.Array, context: jax.Array) -> jax.Array:
            times = self.process.times(timesteps)
            output = self.unet.apply({"params": frozen["unet"]}, x.astype(context.dtype), times, context)
            return output.astype(jnp.float32)

        def student(x: jax.Array, timesteps: jax.Array) -> jax.Array:
            with adapted(factors):
                output = predict(x, timesteps, conditional)
            estimate, _ = self.process.estimates(x, output, timesteps)
            return at_the_boundary(x, jnp.asarray(estimate), timesteps)

        twice = (jnp.concatenate([sample, sample]), jnp.concatenate([later, later]))
        positive, negative = jnp.split(predict(*twice, contexts), 2)
        guided = negative + self.guidance * (positive - negative)
        estimate, noise = self.process.estimates(sample, guided, later)
        before = jnp.asarray(self.process.add_noise(estimate, noise, earlier))  # a step of DDIM
        target = jax.lax.stop_gradient(student(before, earlier))
        error = jnp.square(student(sample, later) - target)
        return {"loss": example_mean(jnp.sqrt(error + HUBER**2) - HUBER), "error": example_mean(error)}


def at_the_boundary(x: jax.Array, estimate: jax.Array, timesteps: jax.Array) -> jax.Array:
    """What a consistency model says: the sample itself at timestep 0, the x0 estimate elsewhere (arXiv:2303.01469)."""
    scaled = TIMESTEP_SCALING * timesteps.astype(jnp.float32)[:, None, None, None]
    skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    return skip * x + scaled / jnp.sqrt(scaled**2 + SIGMA_DATA**2) * estimate
