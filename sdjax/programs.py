"""The programs of a picture, as pure functions of parameters and arrays: encode the text, denoise, decode; and encode
pictures, where some are given.

Each works on the pictures of one device; `sdjax.pipeline` spreads them over devices. The dtype of the parameters is
the dtype that is computed in.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from sdjax import schedulers
from sdjax.denoisers import Params, unet_denoiser
from sdjax.gradients import Judge, Wish, pulled
from sdjax.guidance import Guidance
from sdjax.halves import ByRow, Composed, Conditioning, denoiser
from sdjax.models import AutoencoderKL
from sdjax.models.bands import decode_in_bands, encode_in_bands
from sdjax.models.reuse import Kept
from sdjax.models.transformer import Perturb
from sdjax.reusing import Memory, reusing
from sdjax.schedulers import Plan
from sdjax.schedulers.loop import Known, State
from sdjax.schedulers.plan import Rows
from sdjax.shards import together

# Pixels above which the autoencoder works in bands of rows, for less memory and more computing: at so many, decoding
# in float32 with that of Stable Diffusion holds 3.8 GB in one go and 1.1 GB in bands (`python -m benchmarks vae`).
WHOLE_PICTURE = 1024 * 1024


# Programs are kept on disk with the structure of their arguments.
for _structure in (ByRow, Conditioning, Composed, Perturb, Guidance, Known, State, Plan, Rows, Wish, Memory, Kept):
    jax.export.register_namedtuple_serialization(_structure, serialized_name=f"sdjax.{_structure.__name__}")


def full_precision_matmul(program: Callable) -> Callable:
    """Gives float32 parameters products in float32: a TPU's default is bfloat16, a GPU's may be TF32."""

    @wraps(program)
    def traced(module: nn.Module, params: Params, *inputs, **options):
        exact = jax.tree.leaves(params)[0].dtype == jnp.float32
        with jax.default_matmul_precision("highest" if exact else "default"):
            return program(module, params, *inputs, **options)

    return traced


@full_precision_matmul
def encode_text(
    encoders: Sequence[nn.Module],
    params: Sequence[Params],
    ids: jax.Array,
    weights: jax.Array,
    skip: jax.Array,
    absent: jax.Array,
    *,
    is_xl: bool,
) -> dict[str, jax.Array]:
    """Token ids [batch, chunks, encoders, tokens] to what the UNet reads of a prompt.

    That is "context", [batch, chunks * tokens, features], of all encoders side by side; and with `is_xl`, where it is
    what comes before the last layer and its norm, "pooled", [batch, features], the last encoder's of the first chunk.
    weights: of each token. skip: [batch], the last layers that are left out. absent: [batch], whether there is no
    prompt at all, so that all is 0.
    """
    contexts, pooled = [], None
    for k, encoder in enumerate(encoders):
        own = ids[:, :, k].reshape(-1, ids.shape[-1])
        skips = jnp.repeat(skip, ids.shape[1])
        encoding = encoder.apply({"params": params[k]}, own, skips + 1 if is_xl else skips)
        contexts.append(_emphasised(encoding.hidden if is_xl else encoding.context, weights[:, :, k]))
        pooled = encoding.pooled.reshape(*ids.shape[:2], -1)[:, 0]
    texts = {"context": jnp.concatenate(contexts, axis=-1), **({"pooled": pooled} if is_xl else {})}
    return jax.tree.map(lambda leaf: jnp.where(absent.reshape(-1, *[1] * (leaf.ndim - 1)), 0, leaf), texts)


def _emphasised(states: jax.Array, weights: jax.Array) -> jax.Array:
    """States [batch * chunks, tokens, features] times weights [batch, chunks, tokens], side by side.

    They are then multiplied by a number that brings the mean of the chunk back, as in A1111 ("Original" emphasis).
    Returns [batch, chunks * tokens, features].
    """
    batch, chunks, tokens = weights.shape
    plain = states.astype(jnp.float32).reshape(batch, chunks, tokens, -1)
    weighted = plain * weights[..., None]
    restored = plain.mean((2, 3), keepdims=True) / weighted.mean((2, 3), keepdims=True)
    is_weighted = (weights != 1).any(-1)[..., None, None]
    context = jnp.where(is_weighted, weighted * restored, plain)
    return context.reshape(batch, chunks * tokens, -1).astype(states.dtype)


@full_precision_matmul
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
    net_params: Sequence[Params] = (),
    judge_params: Sequence[Params] = (),
    wishes: Sequence[Wish] = (),
    *,
    guided: bool,
    halves: str | None = None,
    nets: Sequence[nn.Module] = (),
    judges: Sequence[Judge] = (),
    decoder: nn.Module | None = None,
) -> State:
    """Run every picture's plan up to its row `stop`.

    plan: stacked, a leading batch axis on every leaf. stop: a number.
    noise: [batch] keys, from which every row draws its own; or the noise of all rows, [batch, h, w, channels].
    guided: whether the unconditional half is computed. Two programs, for one with both forms takes twice as long to
        compile (`python -m benchmarks compile`), and most runs need one of them.
    halves: the axis of devices that all have the same pictures, and share out the halves of guidance.
    nets: ControlNets and T2I adapters, which see hints, with their parameters in net_params.
    judges, judge_params, wishes: see `sdjax.gradients`. decoder: the VAE, whose parameters come last in judge_params,
        where any of them sees pictures.
    """
    predict = unet_denoiser(unet, params, list(zip(nets, net_params)))

    def decoded(latents: jax.Array) -> jax.Array:
        assert decoder is not None
        return raw_pictures(decoder, judge_params[-1], latents)

    if conditioning.reuse is None:
        model = denoiser(predict, conditioning, guidance, guided, halves)
    else:
        model = reusing(predict, conditioning, guidance, guided)
    model = pulled(model, judges, judge_params[: len(judges)], wishes, decoded)
    if jnp.issubdtype(noise.dtype, jax.dtypes.prng_key):
        source = schedulers.noise_source(state.denoised.shape, noise)
    else:
        source = schedulers.noise_source(state.denoised.shape, None, noise[None])
    with together((params, net_params)):
        return schedulers.advance(plan, state, model, source, stop, known)


@full_precision_matmul
def encode_hint(net: nn.Module, params: Params, hints: jax.Array, *kinds: jax.Array) -> Any:
    """Hints [batch, height, width, channels] from 0 to 1 as the features that a net reads at every row.

    kinds: of a ControlNet-Union, [batch], what each hint is.
    """
    return net.apply({"params": params}, hints.astype(jax.tree.leaves(params)[0].dtype), *kinds, method="encode")


@full_precision_matmul
def encode_look(
    modules: tuple[nn.Module, nn.Module], params: Params, pixels: jax.Array, blank: jax.Array, *, reads: str
) -> Any:
    """Pictures to keys and values [batch, layers, tokens, channels] for the cross-attention of a UNet's layers, by
    their names; or of a style adapter, which has no layers, to tokens [batch, tokens, width] beside the prompt's.

    modules: CLIP's vision tower and an adapter's projection. pixels: [batch, size, size, 3], as the tower reads them.
    blank: [batch], where there is no picture: the pixels are then 0, and the embedding too. reads: what the projection
    does, the embedding ("embeds"), or all tokens of the tower's last layer but one ("penultimate") or last ("hidden").
    """
    encoder, projection = modules
    found = encoder.apply({"params": params["encoder"]}, pixels)
    embeds = jnp.where(blank[:, None], 0, found.embeds)
    seen = embeds if reads == "embeds" else getattr(found.encoding, reads)
    tokens = projection.apply({"params": params["projection"]}, seen)
    if "layers" not in params:
        return tokens

    def project(kernels: jax.Array) -> jax.Array:
        return jnp.einsum("btw,lwc->bltc", tokens, kernels)

    return {
        name.replace(".", "/"): (project(own["keys"]), project(own["values"])) for name, own in params["layers"].items()
    }


def works_in_bands(vae: nn.Module, pixels: int, tiling: bool | None) -> bool:
    """Whether the autoencoder saves memory: as `tiling` says, or where that is None, for large pictures.

    One that is not an AutoencoderKL takes little memory, and always works in one go.
    """
    return isinstance(vae, AutoencoderKL) and (pixels > WHOLE_PICTURE if tiling is None else tiling)


@full_precision_matmul
def encode(vae: nn.Module, params: Params, pictures: jax.Array, tiling: bool | None) -> tuple[jax.Array, jax.Array]:
    """Pictures [batch, height, width, 3] in [-1, 1] to the mean and the deviation of their latents, float32.

    Each [batch, h, w, channels], in the scale that the UNet works in. tiling: see `works_in_bands`.
    """
    pictures = pictures.astype(jax.tree.leaves(params)[0].dtype)
    if works_in_bands(vae, pictures.shape[1] * pictures.shape[2], tiling):
        mean, logvar = encode_in_bands(vae, params, pictures)
    else:
        mean, logvar = vae.apply({"params": params}, pictures, method="encode")
    shift, scale = units_of_latents(vae)
    return (mean.astype(jnp.float32) - shift) * scale, jnp.exp(logvar.astype(jnp.float32) / 2) * scale


def units_of_latents(vae: nn.Module) -> tuple[Any, Any]:
    """What is taken from a VAE's latents, and what they are multiplied by then, so that they have unit variance."""
    mean, std = (getattr(vae.config, f"latents_{name}", None) for name in ("mean", "std"))
    shift = 0.0 if mean is None else np.array(mean, np.float32)
    return shift, vae.config.scaling_factor if std is None else vae.config.scaling_factor / np.array(std, np.float32)


@full_precision_matmul
def decode(vae: nn.Module, params: Params, latents: jax.Array, tiling: bool | None) -> jax.Array:
    """Latents [batch, h, w, channels] to pictures [batch, height, width, 3], float32 in [0, 1].

    One picture after another: a decoder's memory is large, and one picture fills a device. tiling: see
    `works_in_bands`.
    """
    dtype = jax.tree.leaves(params)[0].dtype
    shift, scale = units_of_latents(vae)
    in_bands = works_in_bands(vae, latents.shape[1] * latents.shape[2] * vae.config.factor**2, tiling)

    def one(latents: jax.Array) -> jax.Array:
        scaled = (latents / scale + shift).astype(dtype)[None]
        if in_bands:
            return decode_in_bands(vae, params, scaled)[0].astype(jnp.float32)
        return vae.apply({"params": params}, scaled, method="decode")[0].astype(jnp.float32)

    return jnp.clip(jax.lax.map(one, latents) / 2 + 0.5, 0, 1)


def raw_pictures(vae: nn.Module, params: Params, latents: jax.Array) -> jax.Array:
    """Latents [batch, h, w, channels] as a VAE decodes them, all at once: around [-1, 1], float32, for judges."""
    shift, scale = units_of_latents(vae)
    scaled = (latents / scale + shift).astype(jax.tree.leaves(params)[0].dtype)
    return vae.apply({"params": params}, scaled, method="decode").astype(jnp.float32)
