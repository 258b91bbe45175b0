"""A plan as parameters that can be fitted: how levels, timesteps, weights and guidance are made of them, and back."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.schedulers import NoiseSchedule, Plan, Scheduler
from sdjax.schedulers.plan import Rows
from sdjax.schedulers.solvers.rows import D1, D2, D3, INPUTS, REGISTERS, SAVED, D, X
from sdjax.schedulers.tuned import ORDER, Table, TunedPlan, described
from sdjax.training.step import Tree

Numbers = Any  # an array of numpy or, traced, of JAX
TIMESTEP = 100.0  # timesteps in a parameter's unit; the others count in logarithms, in weights and in factors


class First(NamedTuple):
    """Levels to begin with, by the name of their spacing: log_levels [rows], timesteps [rows]. On the first of several,
    parameters of 0 are DDIM, arXiv:2010.02502."""

    spacing: str
    log_levels: np.ndarray
    timesteps: np.ndarray


def first_of(scheduler: Scheduler, nfe: int, spacing: str) -> First:
    """A spacing's levels."""
    plan = scheduler.with_solver("ddim", spacing).plan(nfe)
    return First(spacing, np.log(plan.sigmas), np.array(plan.timesteps))


def table_of(first: First, params: Tree, trained: int) -> Table:
    """Parameters of one guidance scale as a table.

    Levels fall because their steps in the logarithm are positive; the weights of a row add up to 1 because that of the
    present estimate is the rest.
    """
    steps = jnp.asarray(-np.diff(first.log_levels)) * jnp.exp(params["steps"])
    log_levels = first.log_levels[0] + params["start"] - jnp.concatenate([jnp.zeros(1), jnp.cumsum(steps)])
    timesteps = jnp.clip(first.timesteps + TIMESTEP * params["timesteps"], 0, trained - 1)
    exists = np.arange(1, ORDER) <= np.arange(len(first.timesteps))[:, None]
    earlier = exists * params["weights"]
    weights = jnp.concatenate([1 - earlier.sum(-1, keepdims=True), earlier], axis=-1)
    numbers: Any = (jnp.exp(log_levels), timesteps, weights, 1 + params["guidance"])
    return Table(*numbers)


def at_scale(params: Tree, number: int | jax.Array) -> Tree:
    """Those of one guidance scale."""
    return jax.tree.map(lambda leaf: leaf[number], params)


def params_of(first: First, table: Table) -> Tree:
    """The parameters that stand for a table."""
    log_levels = np.log(table.levels)
    return {
        "start": log_levels[0] - first.log_levels[0],
        "steps": np.log(np.diff(log_levels) / np.diff(first.log_levels)),
        "timesteps": (table.timesteps - first.timesteps) / TIMESTEP,
        "weights": table.weights[:, 1:],
        "guidance": table.guidance - 1,
    }


def traced_plan(table: Table, noise: NoiseSchedule, clip_range: float = np.inf) -> Plan:
    """`Table.rows` as a `Plan`, in JAX: it can be differentiated. For one picture; see `Plan.from_rows`."""
    levels: Numbers = table.levels
    targets = jnp.append(levels[1:], 0.0)
    ratio = targets / levels
    scale, next_scale = (jnp.sqrt(1 + sigmas**2) for sigmas in (levels, targets))
    x, saved, others = (int(one.argmax()) for one in (X, SAVED, D1))
    estimates = jnp.asarray(np.stack([D, D1, D2, D3]))
    matrix = jnp.zeros((len(levels), REGISTERS, INPUTS))
    matrix = matrix.at[:, x].set(((1 - ratio) / next_scale)[:, None] * (table.weights @ estimates))
    matrix = matrix.at[:, x, x].add(ratio * scale / next_scale)
    matrix = matrix.at[:, saved, saved].set(1.0).at[:, others : others + 3].set(jnp.stack([D, D1, D2]))
    matrix = matrix.at[:, REGISTERS - 1, REGISTERS - 1].set(1.0)
    estimate = {
        "epsilon": (scale, -levels),
        "v_prediction": (1 / scale, -levels / scale),
        "sample": (0 * levels, 1 + 0 * levels),
    }[noise.prediction_type]
    one: Any = jnp.float32(1)
    rows: Any = (matrix, jnp.stack(estimate, -1), table.timesteps, levels, levels > 0, jnp.zeros((len(levels), 2)))
    return Plan(
        rows=Rows(*rows),
        nfe=np.array(len(levels), np.int32),
        clip_range=one * clip_range,
        threshold=np.zeros(2),
        data_std=one,
        start_scale=one,
        latents_sigma=levels[0],
        latents_scale=one,
        result_scale=one,
    )


def plan_of(
    first: First, params: Tree, scales: Sequence[float], noise: NoiseSchedule, about: dict[str, Any]
) -> TunedPlan:
    """The plan of fitted parameters, whose leaves start with the scales."""
    found = [table_of(first, at_scale(params, number), len(noise)) for number in range(len(scales))]
    stacked = Table(*(np.stack(leaves).astype(np.float64) for leaves in zip(*found)))
    stacked.weights[..., 0] += 1 - stacked.weights.sum(-1)  # of float32
    return TunedPlan(np.array(scales, np.float64), stacked, described(noise), about)
