"""The halves of guidance: what a network predicts of a sample under each condition, brought together at every row."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdjax.denoisers import Predict
from sdjax.guidance import Guidance, Pair, combined, composed, degraded
from sdjax.schedulers.loop import PlanRow, RowModel
from sdjax.shards import anywhere


class Conditioning(NamedTuple):
    """What a network reads beside the sample and the time: trees, whose leaves start with the batch.

    positive, negative: one tree each, of the conditional and of the unconditional half: the context, and whatever else
        differs between them. negative is None where guidance only goes away from what is perturbed. shared: alike in
        both halves: channels, class labels, hints. Only the denoiser of a kind of model (`unet_denoiser`) knows what is
        in them.
    perturbed: as positive (of several conditions, the first), with self-attention perturbed; None where none is.
    image: as negative, with the picture that a model is told to change; None for other models.
    reuse: [batch, rows, 2], whether a row takes what is deep, and what is attended, from earlier ones (`reusing`).
    """

    positive: Any
    negative: Any
    shared: Any
    perturbed: Any = None
    image: Any = None
    reuse: Any = None


class Composed(NamedTuple):
    """Several conditions of each picture in the place of one, Liu et al. (2022), arXiv:2206.01714, equation 11.

    parts: a tree each, as `Conditioning.positive`. weights: [batch, parts], of their directions; 0 for no part.
    """

    parts: tuple[Any, ...]
    weights: jax.Array


class ByRow(NamedTuple):
    """Part of a `Conditioning` that changes on the way: [batch, rows, ...], of which a network reads one row."""

    table: Any


def at_row(own: Any, row: PlanRow) -> Any:
    """One half's tree as a network reads it at a row."""

    def picked(leaf: Any) -> Any:
        return leaf.table[jnp.arange(len(leaf.table)), row.number] if isinstance(leaf, ByRow) else leaf

    return jax.tree.map(picked, own, is_leaf=lambda leaf: isinstance(leaf, ByRow))


def denoiser(
    predict: Predict, conditioning: Conditioning, guidance: Guidance, guided: bool, halves: str | None = None
) -> RowModel:
    """What the loop asks at each row: the conditional prediction, or with `guided` both, combined.

    halves: an axis of devices that all have the same pictures: the even ones compute the unconditional half.
    """
    positive, negative, shared, perturbed, image, _ = conditioning
    parts = positive.parts if isinstance(positive, Composed) else (positive,)

    def alone(x: jax.Array, row: PlanRow, memory: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        # A conditional keeps XLA from fusing the network's end with the loop's arithmetic, which rounds differently.
        timesteps, none, own = jnp.asarray(row.at.timesteps), jnp.zeros_like(x), at_row(positive, row)
        output = jax.lax.cond(anywhere(row.live), lambda: predict(x, timesteps, own, shared), lambda: none)
        return output, output, memory

    watch = guidance.degraded is not None

    def predicted(x: jax.Array, timesteps: jax.Array, conditions: list[Any]) -> tuple[list[jax.Array], jax.Array]:
        stacked = [(x, timesteps, own, shared) for own in conditions]
        together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *stacked)
        output, attention = predict(*together, watch=True) if watch else (predict(*together), x)
        return jnp.split(output, len(conditions)), attention[: len(x)]

    def all_of_them(x: jax.Array, row: PlanRow) -> tuple[list[jax.Array], jax.Array]:
        """The unconditional prediction, that of every part, and where there are any the perturbed and the image's; and
        where it is watched, what the first attends to."""
        each_of = [each for each in (negative, *parts, perturbed, image) if each is not None]
        timesteps, conditions = jnp.asarray(row.at.timesteps), [at_row(each, row) for each in each_of]
        if not halves:
            return predicted(x, timesteps, conditions)
        # Every device takes part in every row: they all have the same pictures, so their rows are live together.
        is_first = jax.lax.axis_index(halves) % 2 == 0
        conditions += [conditions[-1]] * (len(conditions) % 2)
        pairs = zip(conditions[::2], conditions[1::2])
        own = [jax.tree.map(lambda a, b: jnp.where(is_first, a, b), *pair) for pair in pairs]
        outputs, attention = predicted(x, timesteps, own)
        return [part for output in outputs for part in jax.lax.all_gather(output, halves)[:2]], attention

    def of_degraded(x: jax.Array, row: PlanRow, output: jax.Array, attention: jax.Array) -> jax.Array:
        scale = jnp.asarray(row.at.estimate)[:, :, None, None, None]
        signal = (1 + jnp.asarray(row.at.sigmas) ** 2) ** -0.5
        worse = degraded(x, scale[:, 0] * x + scale[:, 1] * output, signal, attention)
        own = at_row(parts[0] if negative is None else negative, row)
        return predict(worse, jnp.asarray(row.at.timesteps), own, shared)

    def against_negative(x: jax.Array, row: PlanRow, memory: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        scale = jnp.asarray(guidance.scale)[jnp.arange(x.shape[0]), row.number]
        outputs, attention = all_of_them(x, row)
        unconditional = outputs[0] if negative is None else outputs.pop(0)
        conditional, others = outputs[0], outputs[len(parts) :]
        away_from = None if perturbed is None else others[0]
        of_image = None if image is None else others[perturbed is not None]
        if isinstance(positive, Composed):
            conditional = composed(unconditional, outputs[: len(parts)], positive.weights, guidance)
        scale = scale[:, None, None, None]
        worse = of_degraded(x, row, unconditional, attention) if watch else None
        return combined(Pair(conditional, unconditional, scale, memory, away_from, of_image, worse), guidance)

    return against_negative if guided else alone
