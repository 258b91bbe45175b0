"""The programs of a picture, as pure functions of parameters and arrays: encode the text, denoise, decode; and encode
pictures, where some are given.

Each works on the pictures of one device; `sdjax.pipeline` spreads them over devices. The dtype of the parameters is
the dtype that is computed in.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from sdjax import schedulers
from sdjax.models import AutoencoderKL
from sdjax.models.bands import decode_in_bands, encode_in_bands
from sdjax.schedulers import Plan
from sdjax.schedulers.loop import Known, PlanRow, RowModel, State

Params = dict[str, Any]

# Pixels above which the autoencoder works in bands of rows, for less memory and more computing: at so many, decoding
# in float32 with that of Stable Diffusion holds 3.8 GB in one go and 1.1 GB in bands (`python -m benchmarks vae`).
WHOLE_PICTURE = 1024 * 1024


class Conditioning(NamedTuple):
    """What the UNet is told besides the sample and the time.

    context, negative_context: [batch, tokens, features], the encoded prompts.
    channels: [batch, height, width, extra], put behind those of the sample (masks, depth, a small picture); most
        models take none.
    class_labels: [batch], for the models that have them, else None.
    """

    context: jax.Array
    negative_context: jax.Array
    channels: jax.Array | np.ndarray
    class_labels: jax.Array | np.ndarray | None


class Guidance(NamedTuple):
    """How strongly each picture follows its prompt.

    scale: [batch, rows], at every row of the plan; at 1 the unconditional half plays no part.
    rescale: [batch], in [0, 1]; how far the spread of the prediction is brought back to that of the conditional one.
    plus_plus: [batch], whether the noise is told by the unconditional half (CFG++).
    """

    scale: jax.Array | np.ndarray
    rescale: jax.Array | np.ndarray
    plus_plus: jax.Array | np.ndarray


# Programs are kept on disk with the structure of their arguments.
for _structure in (Conditioning, Guidance, Known, State):
    jax.export.register_namedtuple_serialization(_structure, serialized_name=f"sdjax.{_structure.__name__}")
jax.export.register_pytree_node_serialization(
    Plan, serialized_name="sdjax.Plan", serialize_auxdata=lambda _: b"", deserialize_auxdata=lambda _: ()
)


def precisely(program: Callable) -> Callable:
    """Products of float32 as float32: a TPU's default is bfloat16, a GPU's may be TF32."""

    @wraps(program)
    def traced(module: nn.Module, params: Params, *inputs, **options):
        exact = jax.tree.leaves(params)[0].dtype == jnp.float32
        with jax.default_matmul_precision("highest" if exact else "default"):
            return program(module, params, *inputs, **options)

    return traced


@precisely
def encode_text(
    text_encoder: nn.Module, params: Params, ids: jax.Array, weights: jax.Array, skip: jax.Array
) -> jax.Array:
    """Token ids [batch, chunks, tokens] to the context [batch, chunks * tokens, features] that the UNet reads.

    weights: of each token. A chunk's states are multiplied by them, and then by a number that brings the mean of the
    chunk back, as in A1111 ("Original" emphasis). skip: [batch], the last layers that are left out.
    """
    batch, chunks, tokens = ids.shape
    states = text_encoder.apply({"params": params}, ids.reshape(-1, tokens), jnp.repeat(skip, chunks))
    plain = states.astype(jnp.float32).reshape(batch, chunks, tokens, -1)
    weighted = plain * weights[..., None]
    restored = plain.mean((2, 3), keepdims=True) / weighted.mean((2, 3), keepdims=True)
    is_weighted = (weights != 1).any(-1)[..., None, None]
    context = jnp.where(is_weighted, weighted * restored, plain)
    return context.reshape(batch, chunks * tokens, -1).astype(states.dtype)


@precisely
def denoise(
    unet: nn.Module,
    params: Params,
    plan: Plan,
    state: State,
    conditioning: Conditioning,
    guidance: Guidance,
    known: Known,
    noise: jax.Array,
    stop: jax.Array,
    *,
    halves: str | None = None,
) -> State:
    """Run every picture's plan up to its row `stop`.

    halves: the axis of devices that all have the same pictures, and share out the halves of guidance; see `guided`.
    plan: stacked, a leading batch axis on every leaf. stop: a number.
    noise: [batch] keys, from which every row draws its own; or the noise of all rows, [batch, height, width, channels].
    """
    model = guided(unet, params, conditioning, guidance, halves)
    if jnp.issubdtype(noise.dtype, jax.dtypes.prng_key):
        source = schedulers.noise_source(state.denoised.shape, noise)
    else:
        source = schedulers.noise_source(state.denoised.shape, None, noise[None])
    return schedulers.advance(plan, state, model, source, stop, known)


def guided(
    unet: nn.Module, params: Params, conditioning: Conditioning, guidance: Guidance, halves: str | None = None
) -> RowModel:
    """Classifier-free guidance, Ho and Salimans (2022), arXiv:2207.12598, as diffusers weighs it.

    With rescaling, Lin et al. (2023), arXiv:2305.08891, equations 15 and 16; with CFG++, Chung et al. (2024),
    arXiv:2406.08070, algorithm 1. In a row in which no picture needs the unconditional half it is not computed.
    halves: an axis of devices that all have the same pictures: the even ones compute the unconditional half.
    """

    context, negative_context, channels, class_labels = conditioning

    def predict(x: jax.Array, timesteps: jax.Array, context: jax.Array) -> jax.Array:
        halves = x.shape[0] // channels.shape[0]
        sample = jnp.concatenate([x, jnp.tile(channels, (halves, 1, 1, 1))], axis=-1).astype(context.dtype)
        labels = None if class_labels is None else jnp.tile(class_labels, halves)
        return unet.apply({"params": params}, sample, timesteps, context, labels).astype(jnp.float32)

    def alone(x: jax.Array, timesteps: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        output = predict(x, timesteps, context)
        return output, output

    def against_negative(x: jax.Array, timesteps: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        if halves:
            is_negative = jax.lax.axis_index(halves) % 2 == 0
            half = predict(x, timesteps, jnp.where(is_negative, negative_context, context))
            negative, positive = jax.lax.all_gather(half, halves)[:2]
        else:
            both = jnp.concatenate([negative_context, context])
            negative, positive = jnp.split(predict(jnp.tile(x, (2, 1, 1, 1)), jnp.tile(timesteps, 2), both), 2)
        output = negative + scale[:, None, None, None] * (positive - negative)
        spread = positive.std((1, 2, 3), keepdims=True) / output.std((1, 2, 3), keepdims=True)
        output = output * (1 + guidance.rescale[:, None, None, None] * (spread - 1))
        return output, jnp.where(guidance.plus_plus[:, None, None, None], negative, output)

    def model(x: jax.Array, row: PlanRow) -> tuple[jax.Array, jax.Array]:
        scale = jnp.asarray(guidance.scale)[jnp.arange(x.shape[0]), row.number]
        needed = jnp.any(row.live & ((scale != 1) | guidance.plus_plus))
        return jax.lax.cond(needed, against_negative, alone, x, row.timesteps, scale)

    return model


def works_in_bands(vae: nn.Module, pixels: int, tiling: bool | None) -> bool:
    """Whether the autoencoder saves memory: as `tiling` says, or where that is None, for large pictures.

    One that is not an AutoencoderKL takes little memory, and always works in one go.
    """
    return isinstance(vae, AutoencoderKL) and (pixels > WHOLE_PICTURE if tiling is None else tiling)


@precisely
def encode(vae: nn.Module, params: Params, pictures: jax.Array, tiling: bool | None) -> tuple[jax.Array, jax.Array]:
    """Pictures [batch, height, width, 3] in [-1, 1] to the mean and the deviation of their latents, float32.

    Each [batch, h, w, channels], in the scale that the UNet works in. tiling: see `works_in_bands`.
    """
    pictures = pictures.astype(jax.tree.leaves(params)[0].dtype)
    if works_in_bands(vae, pictures.shape[1] * pictures.shape[2], tiling):
        mean, logvar = encode_in_bands(vae, params, pictures)
    else:
        mean, logvar = vae.apply({"params": params}, pictures, method="encode")
    moments = (mean.astype(jnp.float32), jnp.exp(logvar.astype(jnp.float32) / 2))
    return jax.tree.map(lambda moment: moment * vae.config.scaling_factor, moments)


@precisely
def decode(vae: nn.Module, params: Params, latents: jax.Array, tiling: bool | None) -> jax.Array:
    """Latents [batch, h, w, channels] to pictures [batch, height, width, 3], float32 in [0, 1].

    One picture after another: a decoder's memory is large, and one picture fills a device. tiling: see
    `works_in_bands`.
    """
    dtype = jax.tree.leaves(params)[0].dtype
    in_bands = works_in_bands(vae, latents.shape[1] * latents.shape[2] * vae.config.factor**2, tiling)

    def one(latents: jax.Array) -> jax.Array:
        scaled = (latents / vae.config.scaling_factor).astype(dtype)[None]
        if in_bands:
            return decode_in_bands(vae, params, scaled)[0].astype(jnp.float32)
        return vae.apply({"params": params}, scaled, method="decode")[0].astype(jnp.float32)

    return jnp.clip(jax.lax.map(one, latents) / 2 + 0.5, 0, 1)
