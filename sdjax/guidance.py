"""Guidance: how the conditional and the unconditional prediction become one. A registry, as that of the solvers.

All kinds run in one program, and every picture of a batch may have another one: `combined` picks by picture. A new kind
is a function and an entry in GUIDANCES; what it needs beside the scale is a field of `Guidance`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

AXES = (1, 2, 3)  # all but the batch


class Guidance(NamedTuple):
    """How strongly each picture follows its prompt, and in which way.

    scale: [batch, rows], at every row of the plan; at 1 the unconditional prediction plays no part.
    rescale: [batch], in [0, 1]; how far the deviation of the prediction is brought back to that of the conditional one.
    plus_plus: [batch], whether the noise direction comes from the unconditional prediction (CFG++).
    kind: [batch], the number of its entry in GUIDANCES.
    eta, norm_threshold, momentum: [batch], of adaptive projected guidance; see `projected`.
    mimic, percentile: [batch], of dynamic thresholding; see `thresholded`.
    perturbed: [batch], how far a prediction goes away from one with perturbed self-attention; see `combined`.
    image: [batch], how strongly each picture follows one that it is made from; see `combined`.
    degraded: [batch], how far a prediction goes away from that of a degraded sample (`degraded`); None for no picture.
    """

    scale: jax.Array | np.ndarray
    rescale: jax.Array | np.ndarray
    plus_plus: jax.Array | np.ndarray
    kind: jax.Array | np.ndarray
    eta: jax.Array | np.ndarray
    norm_threshold: jax.Array | np.ndarray
    momentum: jax.Array | np.ndarray
    mimic: jax.Array | np.ndarray
    percentile: jax.Array | np.ndarray
    perturbed: jax.Array | np.ndarray
    image: jax.Array | np.ndarray
    degraded: jax.Array | np.ndarray | None = None


def cfg(scale: np.ndarray) -> Guidance:
    """Classifier-free guidance and nothing else, at scales [batch, rows]."""
    zeros = np.zeros(len(scale), np.float32)
    return Guidance(scale, zeros, zeros.astype(bool), zeros.astype(np.int32), *[zeros] * 7)


class Pair(NamedTuple):
    """The two predictions of a network at a row, and what guidance keeps from row to row.

    positive, negative: [batch, h, w, channels]. scale: [batch, 1, 1, 1]. memory: as the predictions, zeros at first.
    perturbed: the conditional prediction with perturbed self-attention, where there is one. image: of models that
    change a picture, the prediction from the picture and no prompt; `negative` is then without both. degraded: the
    unconditional prediction of a degraded sample.
    """

    positive: jax.Array
    negative: jax.Array
    scale: jax.Array
    memory: jax.Array
    perturbed: jax.Array | None = None
    image: jax.Array | None = None
    degraded: jax.Array | None = None


# Maps the predictions to the guided one and the new memory.
Combine = Callable[[Pair, Guidance], tuple[jax.Array, jax.Array]]


def classifier_free(pair: Pair, guidance: Guidance) -> tuple[jax.Array, jax.Array]:
    """Ho and Salimans (2022), arXiv:2207.12598, as diffusers weighs it."""
    return pair.negative + pair.scale * (pair.positive - pair.negative), pair.memory


def projected(pair: Pair, guidance: Guidance) -> tuple[jax.Array, jax.Array]:
    """Adaptive projected guidance, Sadat et al. (2024), arXiv:2410.02416, on the network's predictions, as diffusers.

    The difference of the two predictions gets `momentum` times that of earlier rows; is shortened to the norm
    `norm_threshold`, where that is not 0; and its part parallel to the conditional prediction counts `eta` times. At
    scale 1 the conditional prediction stands, and the memory stays.
    """
    momentum, threshold, eta = (
        _over_samples(each) for each in (guidance.momentum, guidance.norm_threshold, guidance.eta)
    )
    memory = pair.positive - pair.negative + momentum * pair.memory
    norm = jnp.sqrt(jnp.sum(memory**2, AXES, keepdims=True))
    shortened = memory * jnp.where(threshold > 0, jnp.minimum(1, threshold / norm), 1)
    unit = pair.positive / jnp.sqrt(jnp.sum(pair.positive**2, AXES, keepdims=True))
    parallel = jnp.sum(shortened * unit, AXES, keepdims=True) * unit
    guided = pair.negative + pair.scale * (shortened - parallel + eta * parallel)
    is_off = pair.scale == 1
    return jnp.where(is_off, pair.positive, guided), jnp.where(is_off, pair.memory, memory)


def zero_star(pair: Pair, guidance: Guidance) -> tuple[jax.Array, jax.Array]:
    """CFG-Zero*, Fan et al. (2025), arXiv:2503.18886, equation 8, as diffusers: the unconditional prediction is scaled
    to be as near to the conditional one as it can. Without the zeros at first, which are for flow models.
    """
    products = jnp.sum(pair.positive * pair.negative, AXES, keepdims=True)
    nearest = pair.negative * (products / (jnp.sum(pair.negative**2, AXES, keepdims=True) + 1e-8))
    return nearest + pair.scale * (pair.positive - nearest), pair.memory


def thresholded(pair: Pair, guidance: Guidance) -> tuple[jax.Array, jax.Array]:
    """Dynamic thresholding of the guided prediction, as A1111's extension of that name does it by default.

    Of each channel, the distances from its mean are clipped where the guided prediction's `percentile` is (at 1,
    nowhere), and shrunk to the largest distance that the scale `mimic` would give.
    """
    guided, _ = classifier_free(pair, guidance)
    mimicked = pair.negative + _over_samples(guidance.mimic) * (pair.positive - pair.negative)
    mean = guided.mean((1, 2), keepdims=True)
    distances = guided - mean
    target = jnp.abs(mimicked - mimicked.mean((1, 2), keepdims=True)).max((1, 2), keepdims=True)

    def quantile(distances: jax.Array, percentile: jax.Array) -> jax.Array:
        return jnp.quantile(jnp.abs(distances), percentile, axis=(0, 1), keepdims=True)

    reach = jax.vmap(quantile)(distances, jnp.asarray(guidance.percentile))
    largest = jnp.maximum(target, reach)
    return mean + jnp.clip(distances, -largest, largest) / largest * target, pair.memory


GUIDANCES: dict[str, Combine] = {
    "cfg": classifier_free,
    "apg": projected,
    "cfg_zero_star": zero_star,
    "dynamic_threshold": thresholded,
    "perp_neg": classifier_free,  # of directions that `composed` has projected
}


def composed(negative: jax.Array, parts: Sequence[jax.Array], weights: jax.Array, guidance: Guidance) -> jax.Array:
    """The conditional prediction of several conditions: [batch, h, w, channels], as each of `parts` and `negative`.

    weights: [batch, parts], of their directions: Liu et al. (2022), arXiv:2206.01714, equation 11. Of pictures with
    guidance "perp_neg", directions of negative weight lose what they share with the others: Armandpour et al. (2023),
    arXiv:2304.04968.
    """
    directions, by_part = [part - negative for part in parts], weights.T[:, :, None, None, None]
    towards = sum(jnp.maximum(weight, 0) * each for weight, each in zip(by_part, directions))
    squared = jnp.sum(towards**2, AXES, keepdims=True)
    is_perpendicular = _over_samples(guidance.kind == list(GUIDANCES).index("perp_neg"))

    def kept(weight: jax.Array, each: jax.Array) -> jax.Array:
        shared = jnp.sum(each * towards, AXES, keepdims=True) / jnp.where(squared > 0, squared, 1) * towards
        return jnp.where(is_perpendicular & (weight < 0), each - shared, each)

    return negative + sum(weight * kept(weight, each) for weight, each in zip(by_part, directions))


def combined(pair: Pair, guidance: Guidance) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The guided prediction, the prediction that the noise direction comes from, and the new memory.

    With rescaling, Lin et al. (2023), arXiv:2305.08891, equations 15 and 16; with CFG++, Chung et al. (2024),
    arXiv:2406.08070, algorithm 1. Kinds after the first are computed in batches that have them. With a perturbed
    prediction, Ahn et al. (2024), arXiv:2403.17377: away from it, by `perturbed`. With that from a picture alone,
    Brooks et al. (2022), arXiv:2211.09800, equation 3: the scale goes from it to that with the prompt, `image` to it.
    """
    output, memory = classifier_free(pair, guidance)
    for number, combine in enumerate(GUIDANCES.values()):
        if combine is classifier_free:
            continue
        is_kind = guidance.kind == number

        def picked(output: jax.Array, memory: jax.Array, combine=combine, is_kind=is_kind):
            return tuple(
                jnp.where(_over_samples(is_kind), new, old)
                for new, old in zip(combine(pair, guidance), (output, memory))
            )

        output, memory = jax.lax.cond(jnp.any(is_kind), picked, lambda *both: both, output, memory)
    if pair.image is not None:
        output += (_over_samples(guidance.image) - pair.scale) * (pair.image - pair.negative)
    if pair.perturbed is not None:
        output += _over_samples(guidance.perturbed) * (pair.positive - pair.perturbed)
    if pair.degraded is not None and guidance.degraded is not None:
        output += _over_samples(guidance.degraded) * (pair.negative - pair.degraded)
    deviation = pair.positive.std(AXES, keepdims=True) / output.std(AXES, keepdims=True)
    output = output * (1 + _over_samples(guidance.rescale) * (deviation - 1))
    return output, jnp.where(_over_samples(guidance.plus_plus), pair.negative, output), memory


def degraded(x: jax.Array, estimate: jax.Array, signal: jax.Array, attention: jax.Array) -> jax.Array:
    """A sample whose estimate is blurred where it is looked at: Hong et al. (2022), arXiv:2210.00939, equation 25.

    x, estimate: [batch, h, w, channels], of the result in the estimate. signal: [batch], the share of it in x.
    attention: [batch, tokens] that each token of the coarsest level gets from all; above 1 it is looked at.
    """
    height, width = x.shape[1:3]
    sides = ((-(-height // 2**i), -(-width // 2**i)) for i in range(height.bit_length()))
    small = next(side for side in sides if side[0] * side[1] == attention.shape[1])
    rows, columns = (np.arange(whole) * part // whole for whole, part in zip((height, width), small))
    seen = (attention > 1).reshape(-1, *small)[:, rows][:, :, columns, None]
    return x + _over_samples(signal) * jnp.where(seen, _blurred(estimate) - estimate, 0)


def _blurred(x: jax.Array) -> jax.Array:
    """Under a Gaussian of deviation 1, nine wide, the borders mirrored; [batch, h, w, channels]."""
    weights = np.exp(-0.5 * np.arange(-4, 5) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (1, 2):
        padded = jnp.pad(x, [(4, 4) if i == axis else (0, 0) for i in range(4)], mode="reflect")
        x = sum(w * jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i, w in enumerate(weights))
    return x


def _over_samples(values: jax.Array | np.ndarray) -> jax.Array:
    return jnp.asarray(values)[:, None, None, None]
