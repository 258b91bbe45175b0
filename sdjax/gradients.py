"""Guidance by gradients: judges of what is drawn pull each prediction towards what they are to see.

A judge is a Flax module with a method `score(seen, timesteps [batch], target) -> [batch]`, larger where the target is
seen better. For the score's gradient g with respect to the network's sample, the noise in it is taken to be
noise - spread * strength * g: Dhariwal and Nichol (2021), arXiv:2105.05233, algorithm 2, for judges of the noisy
sample; Bansal et al. (2023), arXiv:2302.07121, equation 6, for judges of the estimate of the result. Equation 9
there is another way: the estimate itself climbs the score by some steps, and the prediction becomes the one that gives
what it comes to.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.schedulers.loop import PlanRow, RowModel

# What judges see: the sample as the network sees it; the estimate of the result, in latents; or that, decoded, in
# [-1, 1]. Those of the estimate cost the network's own gradient, some two evaluations more.
SEES = ("noisy", "estimate", "picture")


class Judge(NamedTuple):
    """A module, which of SEES it is given, and by how many steps the estimate climbs its score; 0 for its slope alone.

    Of several that climb, all climb as many steps as the one of most.
    """

    module: nn.Module
    sees: str
    climbs: int = 0


class Wish(NamedTuple):
    """What a judge is to see of each picture: any array [batch, ...], and how strongly at each row, [batch, rows].

    weights: in units of the network's prediction; where a judge climbs, of the estimate.
    """

    target: jax.Array
    weights: jax.Array


# A judge with its parameters, and what is wished of it.
Asked = tuple[Judge, Any, Wish]


def pulled(
    model: RowModel,
    judges: Sequence[Judge],
    params: Sequence[Any],
    wishes: Sequence[Wish],
    decode: Callable[[jax.Array], jax.Array],
) -> RowModel:
    """A model whose predictions judges pull. decode: from latents to pictures in [-1, 1].

    One gradient serves all judges of a kind; that of the noisy sample is skipped at rows where nothing is wished.
    """
    own = list(zip(judges, params, wishes))
    early = [each for each in own if each[0].sees == "noisy"]
    late = [each for each in own if each[0].sees != "noisy" and not each[0].climbs]
    climbing = [each for each in own if each[0].climbs]

    def estimated(x: jax.Array, row: PlanRow, memory: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        found = model(x, row, memory)
        return _score_of_estimate(late, _estimate(x, row, found[0]), row, decode), found

    def at_row(x: jax.Array, row: PlanRow, memory: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        pull = jnp.zeros_like(x)
        if late:
            pull, (output, direction, memory) = jax.grad(estimated, has_aux=True)(x, row, memory)
        else:
            output, direction, memory = model(x, row, memory)
        if early:
            gradient = jax.grad(lambda x: _score(early, {"noisy": x}, row))
            pull += jax.lax.cond(_any_wanted(early, row), gradient, jnp.zeros_like, x)
        if climbing:
            pull += _climbed(climbing, x, row, output, decode)
        return output + pull, direction + pull, memory

    return at_row if own else model


def _weights(wish: Wish, row: PlanRow) -> jax.Array:
    """[batch]."""
    return wish.weights[jnp.arange(len(wish.weights)), row.number]


def _any_wanted(asked: Sequence[Asked], row: PlanRow) -> jax.Array:
    return jnp.any(jnp.stack([_weights(wish, row) for _, _, wish in asked]) != 0)


def _score(asked: Sequence[Asked], seen: dict[str, jax.Array], row: PlanRow) -> jax.Array:
    """The weighted sum over judges and pictures; seen: by SEES."""
    total = jnp.zeros(())
    for judge, params, wish in asked:
        score = judge.module.apply(
            {"params": params}, seen[judge.sees], jnp.asarray(row.at.timesteps), wish.target, method="score"
        )
        total += jnp.sum(_weights(wish, row) * score)
    return total


def _score_of_estimate(
    asked: Sequence[Asked], estimate: jax.Array, row: PlanRow, decode: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    seen = {"estimate": estimate}
    if any(judge.sees == "picture" for judge, _, _ in asked):
        seen["picture"] = decode(estimate)
    return _score(asked, seen, row)


def _estimate(x: jax.Array, row: PlanRow, output: jax.Array) -> jax.Array:
    """The x0 estimate that a prediction means."""
    scale = jnp.asarray(row.at.estimate)[:, :, None, None, None]
    return scale[:, 0] * x + scale[:, 1] * output


def _climbed(
    asked: Sequence[Asked], x: jax.Array, row: PlanRow, output: jax.Array, decode: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """How far the prediction moves for its estimate to be where it has climbed to."""
    slope = jax.grad(lambda estimate: _score_of_estimate(asked, estimate, row, decode))
    per_output = jnp.asarray(row.at.estimate)[:, 1, None, None, None]

    def climb() -> jax.Array:
        start = _estimate(x, row, output)
        steps = max(judge.climbs for judge, _, _ in asked)
        end = jax.lax.fori_loop(0, steps, lambda _, estimate: estimate + slope(estimate), start)
        return jnp.where(per_output == 0, 0, (end - start) / jnp.where(per_output == 0, 1, per_output))

    return jax.lax.cond(_any_wanted(asked, row), climb, lambda: jnp.zeros_like(x))
