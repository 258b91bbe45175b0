"""The loop of `dpm_adaptive`, which finds the lengths of its steps on the way: each step is tried, then judged.

It runs the program of all other samplers, three rows at a time. The host reads the error of each picture, and tells the
next step; a picture does not depend on those beside it.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import schedulers
from sdjax.errors import InputError
from sdjax.parallel import shard
from sdjax.pipeline.denoising import Advance, Batch, Step
from sdjax.pipeline.recipe import Recipe
from sdjax.random import DeviceNoise, normal
from sdjax.schedulers import State
from sdjax.schedulers.adaptive import ATOL, EVALUATIONS, RTOL, TOO_MANY, Controller
from sdjax.schedulers.solvers.rows import D2, D3, NOISE1, SAVED, X

SAMPLE, START, LOW, HIGH, LAST = (int(register.argmax()) for register in (X, SAVED, D2, D3, NOISE1))


def adaptive_steps(batch: Batch, advance: Advance) -> Iterator[Step]:
    """Yields the batch after each step that was tried; `Step.row` counts evaluations.

    Raises InputError where no end is in sight.
    """
    order = batch.order
    controllers = [_controller(recipe) for recipe in order.recipes]
    state = schedulers.init_state(order.plan, batch.first)
    scales = np.array([each.noise.scale(each.level) for each in controllers], np.float32)[:, None, None, None]
    state = shard(state._replace(registers=state.registers.at[:, LAST].set(batch.first * scales)))
    conditioning, guidance, known, keys = batch.inputs(0)
    guided, kept, evaluations = bool(order.guided[0]), np.zeros(len(controllers), int), 0
    for _ in range(TOO_MANY):
        trying = np.array([not each.done for each in controllers])
        plan = shard(schedulers.stack([each.plan() for each in controllers]))
        state = advance(guided, plan, state, conditioning, guidance, known, keys, np.int32(EVALUATIONS))
        errors = np.asarray(_errors(state.registers))[: len(controllers)]
        accepted = np.array([each.judge(error) if go else True for each, error, go in zip(controllers, errors, trying)])
        fresh = _noise(batch, controllers, kept, accepted & trying)
        kept += accepted
        state = _settled(state, shard(accepted), shard(fresh))
        evaluations += EVALUATIONS
        yield Step(evaluations, state)
        if all(each.done for each in controllers):
            return
    raise InputError(f"dpm_adaptive has tried {TOO_MANY} steps and is not done: take another sampler")


def _controller(recipe: Recipe) -> Controller:
    scheduler, plan = recipe.scheduler, recipe.plan
    final = float(np.sqrt(np.maximum(plan.result_scale**2 - 1, 0)))
    eta = float(scheduler.all_options["eta"])
    return Controller(scheduler.noise, float(plan.sigmas[0]), final, eta, scheduler.laid_by.nearest)


def _noise(batch: Batch, controllers: list[Controller], kept: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """What the steps that are kept add to the samples, as the registers hold them."""
    wanted = wanted & np.array([each.up > 0 for each in controllers])
    shape = batch.first.shape[1:]
    if not wanted.any():
        return np.zeros(batch.first.shape, np.float32)
    if isinstance(batch.noise, DeviceNoise):
        keys = jax.vmap(jax.random.fold_in)(batch.noise.later, kept)
        fresh = np.asarray(normal(keys, shape))
    else:
        fresh = np.asarray(batch.noise.next_draw(shape, wanted))
    ups = [each.up / each.noise.scale(each.final if each.done else each.level) for each in controllers]
    return np.where(wanted, ups, 0).astype(np.float32)[:, None, None, None] * fresh


@jax.jit
def _errors(registers: jax.Array) -> jax.Array:
    """[batch], how far the steps of both orders are apart, in units of what is tolerated."""
    low, high, last = registers[:, LOW], registers[:, HIGH], registers[:, LAST]
    tolerated = jnp.maximum(ATOL, RTOL * jnp.maximum(jnp.abs(low), jnp.abs(last)))
    return jnp.sqrt(jnp.mean(((low - high) / tolerated) ** 2, axis=(1, 2, 3)))


@jax.jit
def _settled(state: State, accepted: jax.Array, fresh: jax.Array) -> State:
    """The state after a step that was kept, with its noise, or before one that was not; its plan begins anew."""
    registers, kept = state.registers, accepted[:, None, None, None]
    x = jnp.where(kept, registers[:, SAMPLE] + fresh, registers[:, START])
    last = jnp.where(kept, registers[:, LOW], registers[:, LAST])
    registers = registers.at[:, SAMPLE].set(x).at[:, LAST].set(last)
    return state._replace(registers=registers, row=jnp.zeros_like(state.row))
