"""Descent along the natural gradient, for the few parameters of a plan: some of them are a thousand times steeper.

Amari (1998), doi:10.1162/089976698300017746, by the empirical Fisher matrix: the mean product of an example's gradient
with itself. The plans of several guidance scales have nothing in common, so each has a matrix of its own.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from sdjax.training.step import Descent, Metrics, Settings, Tree, learning_rate

OF_MEANS, OF_FISHER = 0.9, 0.95  # decay of their moving averages, per step
RIDGE = 1e-3  # of the matrix's diagonal
FARTHEST = 0.15  # that a parameter moves in a step
TINY = 1e-12  # what is divided by is no less


class Seen(NamedTuple):
    """Of the examples of each scale: their share [scales], gradients [scales, numbers], and the products of those
    [scales, numbers, numbers], all over the size of the batch."""

    share: jax.Array
    gradient: jax.Array
    fisher: jax.Array


class Moments(NamedTuple):
    """The number of the step; moving averages of gradients and of their products, each with the share in its memory."""

    step: jax.Array
    means: tuple[jax.Array, jax.Array]
    fisher: tuple[jax.Array, jax.Array]


def gradients(each: Callable[..., Metrics], params: Tree, batch: Tree, keys: jax.Array) -> tuple[Seen, Metrics]:
    """What is seen in a batch, whose "knot" tells an example's scale; and the means of the metrics.

    params: leaves that begin with the scales. An example gets a copy of its own, so that one pass backwards gives the
    gradient of each.
    """
    knot, scales = batch["knot"], len(jax.tree.leaves(params)[0])
    copies = jax.tree.map(lambda leaf: leaf[knot], params)

    def total(copies: Tree) -> tuple[jax.Array, Metrics]:
        found = each(copies, batch | {"knot": jnp.arange(len(knot))}, keys)
        return found["loss"].sum(), {name: values.mean() for name, values in found.items()}

    own, means = jax.grad(total, has_aux=True)(copies)
    flat, chosen = _flat(own), jax.nn.one_hot(knot, scales) / len(knot)
    return Seen(chosen.sum(0), chosen.T @ flat, jnp.einsum("bs,bi,bj->sij", chosen, flat, flat)), means


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """From `Seen` to updates of the parameters: the inverse of the averaged matrix times the averaged gradient."""

    def init(params: Tree) -> Moments:
        flat = _flat(params)
        scales, numbers = flat.shape
        share, products = jnp.zeros(scales), jnp.zeros((scales, numbers, numbers))
        return Moments(jnp.int32(0), (share, flat * 0), (share, products))

    def update(seen: Seen, moments: Moments, params: Tree | None = None) -> tuple[Tree, Moments]:
        means = optax.incremental_update((seen.share, seen.gradient), moments.means, 1 - OF_MEANS)
        fisher = optax.incremental_update((seen.share, seen.fisher), moments.fisher, 1 - OF_FISHER)
        # A scale of which nothing was seen yet has sums of 0, and stays where it is.
        mean, matrix = (jax.vmap(jnp.divide)(part, jnp.maximum(share, TINY)) for share, part in (means, fisher))
        way = jax.vmap(_solved)(matrix, mean)
        moved = jnp.clip(-learning_rate(settings)(moments.step) * way, -FARTHEST, FARTHEST)
        one = jax.tree.map(lambda leaf: leaf[0], params)
        updates = jax.vmap(ravel_pytree(one)[1])(moved)
        return updates, Moments(moments.step + 1, means, fisher)

    return optax.GradientTransformation(init, update)


def _flat(params: Tree) -> jax.Array:
    """Leaves that begin with the scales, or the examples, as rows of numbers."""
    return jax.vmap(lambda tree: ravel_pytree(tree)[0])(params)


def _solved(fisher: jax.Array, gradient: jax.Array) -> jax.Array:
    """The natural gradient, in units in which the matrix has a diagonal of 1; 0 for numbers that nothing depends on."""
    deviation = jnp.sqrt(jnp.diag(fisher))
    unit = jnp.where(deviation > 0, 1 / jnp.maximum(deviation, TINY), 0.0)
    ridged = fisher * unit * unit[:, None] + RIDGE * jnp.eye(len(unit))
    return unit * jnp.linalg.solve(ridged, unit * gradient)


NATURAL = Descent(gradients, optimizer)
