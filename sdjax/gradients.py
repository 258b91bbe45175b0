"""Guidance by gradients: judges of what is drawn pull each prediction towards what they are to see.

A judge is a Flax module with a method `score(seen, timesteps [batch], target) -> [batch]`, larger where the target is
seen better. For the score's gradient g with respect to the network's sample, the noise in it is taken to be
noise - spread * strength * g: Dhariwal and Nichol (2021), arXiv:2105.05233, algorithm 2, for judges of the noisy
sample; Bansal et al. (2023), arXiv:2302.07121, equation 6, for judges of the estimate of the result.
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
    """A module, and which of SEES it is given."""

    module: nn.Module
    sees: str


class Wish(NamedTuple):
    """What a judge is to see of each picture: any array [batch, ...], and how strongly at each row, [batch, rows].

    weights: in units of the network's prediction; see `prediction_weights`.
    """

    target: jax.Array
    weights: jax.Array


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
    late = [each for each in own if each[0].sees != "noisy"]

    def weight_of(wish: Wish, row: PlanRow) -> jax.Array:
        return wish.weights[jnp.arange(len(wish.weights)), row.number]

    def scored(some: Sequence[tuple[Judge, Any, Wish]], seen: dict[str, jax.Array], row: PlanRow) -> jax.Array:
        total = jnp.zeros(())
        for judge, judge_params, wish in some:
            score = judge.module.apply(
                {"params": judge_params}, seen[judge.sees], jnp.asarray(row.at.timesteps), wish.target, method="score"
            )
            total += jnp.sum(weight_of(wish, row) * score)
        return total

    def estimated(x: jax.Array, row: PlanRow, memory: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        found = model(x, row, memory)
        scale = jnp.asarray(row.at.estimate)[:, :, None, None, None]
        seen = {"estimate": scale[:, 0] * x + scale[:, 1] * found[0]}
        if any(judge.sees == "picture" for judge, _, _ in late):
            seen["picture"] = decode(seen["estimate"])
        return scored(late, seen, row), found

    def early_pull(x: jax.Array, row: PlanRow) -> jax.Array:
        wanted = jnp.any(jnp.stack([weight_of(wish, row) for _, _, wish in early]) != 0)
        gradient = jax.grad(lambda x: scored(early, {"noisy": x}, row))
        return jax.lax.cond(wanted, gradient, jnp.zeros_like, x)

    def at_row(x: jax.Array, row: PlanRow, memory: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        pull = jnp.zeros_like(x)
        if late:
            pull, (output, direction, memory) = jax.grad(estimated, has_aux=True)(x, row, memory)
        else:
            output, direction, memory = model(x, row, memory)
        if early:
            pull += early_pull(x, row)
        return output + pull, direction + pull, memory

    return at_row if own else model
