"""Rows that are cheaper: parts of the network, and a half of guidance, are taken from earlier rows (`models.reuse`)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdjax.denoisers import Predict
from sdjax.guidance import Guidance, Pair, combined
from sdjax.halves import Conditioning, at_row
from sdjax.models.reuse import Kept, Reuse
from sdjax.schedulers.loop import PlanRow, RowModel
from sdjax.shards import anywhere

NEGATIVE, POSITIVE = 0, 1  # places of the halves


class Memory(NamedTuple):
    """What is kept from row to row.

    guidance: see `State.memory`. kept: of both halves, [batch, 2, ...], what is deep; of attention the mean of them, as
    T-GATE has it.
    """

    guidance: jax.Array
    kept: Kept


def reusing(predict: Predict, conditioning: Conditioning, guidance: Guidance, guided: bool) -> RowModel:
    """What the loop asks at each row of pictures that take parts of rows from earlier ones; see `halves.denoiser`.

    conditioning.reuse: [batch, rows, 2], whether a row takes what is deep, and what is attended. What every picture of
    the batch takes is not computed.
    """
    halves = {NEGATIVE: conditioning.negative, POSITIVE: conditioning.positive}
    places = [NEGATIVE, POSITIVE] if guided else [POSITIVE]

    def of_halves(leaf: jax.Array) -> jax.Array:
        return jnp.concatenate([leaf] * len(places))

    def asked(x: jax.Array, row: PlanRow, before: Kept) -> tuple[jax.Array, Kept]:
        """The predictions of the halves, one after the other, and what is kept of them."""
        stacked = [(x, jnp.asarray(row.at.timesteps), at_row(halves[k], row), conditioning.shared) for k in places]
        inputs = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *stacked)
        deep = None if before.deep is None else jnp.concatenate([before.deep[:, k] for k in places])
        kept = Kept(deep, jax.tree.map(of_halves, before.attended))
        takes = conditioning.reuse[jnp.arange(len(x)), row.number] | ~row.live[:, None]
        takes_deep, takes_attended = (of_halves(takes[:, k]) for k in range(2))
        if deep is None:
            return predict(*inputs, reuse=Reuse(kept, takes_deep, takes_attended))
        return jax.lax.cond(
            anywhere(~takes_deep),
            lambda: predict(*inputs, reuse=Reuse(kept, takes_deep, takes_attended)),
            lambda: predict(*inputs, reuse=Reuse(kept, True, takes_attended)),
        )

    def updated(before: Kept, new: Kept) -> Kept:
        deep = before.deep
        if deep is not None and new.deep is not None:
            for k, own in zip(places, jnp.split(new.deep, len(places))):
                deep = deep.at[:, k].set(own.astype(deep.dtype))
        means = jax.tree.map(lambda leaf: sum(jnp.split(leaf, len(places))) / len(places), new.attended)
        return Kept(deep, jax.tree.map(lambda mean, old: mean.astype(old.dtype), means, before.attended))

    def model(x: jax.Array, row: PlanRow, memory: Any) -> tuple[jax.Array, jax.Array, Any]:
        output, new = asked(x, row, memory.kept)
        kept = updated(memory.kept, new)
        if not guided:
            return output, output, Memory(memory.guidance, kept)
        unconditional, conditional = jnp.split(output, 2)
        scale = jnp.asarray(guidance.scale)[jnp.arange(len(x)), row.number][:, None, None, None]
        output, direction, of_guidance = combined(Pair(conditional, unconditional, scale, memory.guidance), guidance)
        return output, direction, Memory(of_guidance, kept)

    return model


def blank(shapes: Kept, guidance: jax.Array, dtype: Any) -> Memory:
    """The memory before the first row, of zeros; shapes: of `models.reuse.kept_shapes`, of what is to be kept."""
    batch = len(guidance)
    deep = None if shapes.deep is None else jnp.zeros((batch, 2, *shapes.deep), dtype)
    attended = {name: jnp.zeros((batch, *own), dtype) for name, own in shapes.attended.items()}
    return Memory(guidance, Kept(deep, attended))
