"""The one loop that runs every plan: a state machine of three pure functions, and a scan over it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import InputError
from sdjax.schedulers.plan import Plan, Rows
from sdjax.schedulers.solvers.rows import INPUTS, REGISTERS
from sdjax.shards import anywhere

Model = Callable[[jax.Array, jax.Array], jax.Array]


class State(NamedTuple):
    """A run that can be cut anywhere and gone on with.

    registers: [batch, registers, height, width, channels] float32; the first is the sample.
    row: [batch] int32, the row of its plan that each image comes to next.
    denoised: [batch, h, w, channels] float32, the latest x0 estimate (see `estimate`).
    memory: [batch, h, w, channels] float32, what the model keeps from row to row (such as momentum of guidance); or a
        tree of more than that, each leaf starting with the batch (`reusing.Memory`).
    """

    registers: jax.Array
    row: jax.Array
    denoised: jax.Array
    memory: Any


class Known(NamedTuple):
    """The known part of the result, as in inpainting: it is put back, with new noise, after each row.

    latents: [batch, height, width, channels], in the result's scale. noise: the same shape, standard normal.
    keep: [batch, height, width, 1], 1 where the latents are known and 0 where they are to be found.
    """

    latents: jax.Array | np.ndarray
    noise: jax.Array | np.ndarray
    keep: jax.Array | np.ndarray


class PlanRow(NamedTuple):
    """One row for every image of a batch, each field with a leading batch axis.

    at: the fields of `Rows` at the row. clip_range, threshold: of the plan. number: the row's, from 0. live: False past
    the plan's end.
    """

    at: Rows
    clip_range: jax.Array
    threshold: jax.Array
    number: jax.Array
    live: jax.Array


# Maps a sample [batch, h, w, channels], its row and the model's memory to the network's prediction, to the one that the
# direction of the noise is taken from (`RAW`), mostly the same, and to the new memory.
RowModel = Callable[[jax.Array, PlanRow, Any], tuple[jax.Array, jax.Array, Any]]


def init_state(plan: Plan, x: jax.Array | np.ndarray) -> State:
    """The state before the first row, from the first sample `x` (see `Plan.start`)."""
    registers = jnp.zeros((x.shape[0], REGISTERS, *x.shape[1:]), jnp.float32).at[:, 0].set(x)
    return State(registers, jnp.zeros(x.shape[0], jnp.int32), *(jnp.zeros(x.shape, jnp.float32) for _ in range(2)))


def step(row: PlanRow, state: State, model: RowModel, noise: jax.Array, known: Known | None = None) -> State:
    """Ask the network once and move every register. Images past their plan's end stay as they are."""
    x = state.registers[:, 0]
    prediction, direction, memory = model(x, row, state.memory)
    scale = _over_samples(row.at.estimate, x)
    denoised, raw = (scale[:, 0] * x + scale[:, 1] * output.astype(jnp.float32) for output in (prediction, direction))
    denoised = clipped(denoised, row.clip_range, row.threshold)
    inputs = jnp.concatenate([state.registers, *(x[:, None] for x in (denoised, raw, noise))], axis=1)
    weights = jnp.where(row.live[:, None, None], row.at.weights, jnp.eye(REGISTERS, INPUTS))
    # Multiply and sum: a dot would run in bfloat16 on a TPU and in TF32 on a GPU.
    registers = jnp.sum(_over_samples(weights, x) * inputs[:, None], axis=2)
    if known is not None:
        given = _over_samples(row.at.known, x)
        given = given[:, 0] * known.latents + given[:, 1] * known.noise
        put_back = known.keep * _over_samples(row.live, x)
        registers = registers.at[:, 0].add(put_back * (given - registers[:, 0]))
    live = _over_samples(row.live, x)
    denoised = jnp.where(live, denoised, state.denoised)
    memory = jax.tree.map(lambda new, old: jnp.where(_over_samples(row.live, new), new, old), memory, state.memory)
    return State(registers, state.row + row.live, denoised, memory)


def clipped(denoised: jax.Array, clip_range: jax.Array, threshold: jax.Array) -> jax.Array:
    """Estimates of x0 within their range. Dynamic thresholding is Saharia et al. (2022), arXiv:2205.11487, sec. 2.3."""
    quantile, largest = threshold[:, 0], threshold[:, 1]

    def thresholded(denoised: jax.Array) -> jax.Array:
        sizes = jnp.sort(jnp.abs(denoised.reshape(denoised.shape[0], -1)), axis=1)
        place = quantile * (sizes.shape[1] - 1)
        low = jnp.floor(place).astype(jnp.int32)[:, None]
        below, above = (jnp.take_along_axis(sizes, jnp.minimum(low + k, sizes.shape[1] - 1), 1)[:, 0] for k in (0, 1))
        limit = jnp.minimum(jnp.maximum(below + (place - low[:, 0]) * (above - below), 1), largest)
        limit = _over_samples(jnp.where(quantile > 0, limit, 1), denoised)
        return jnp.where(_over_samples(quantile > 0, denoised), jnp.clip(denoised, -limit, limit) / limit, denoised)

    denoised = jax.lax.cond(jnp.any(quantile > 0), thresholded, lambda denoised: denoised, denoised)
    limit = _over_samples(clip_range, denoised)
    return jnp.clip(denoised, -limit, limit)


def result(plan: Plan, state: State) -> jax.Array:
    """The final sample, in the scale of images or of VAE latents."""
    return _scaled(state.registers[:, 0], plan.result_scale)


def estimate(plan: Plan, state: State) -> jax.Array:
    """The latest x0 estimate, in the result's scale; zeros before the first row."""
    return _scaled(state.denoised, plan.data_std)


def advance(
    plan: Plan,
    state: State,
    model: RowModel,
    noise: Callable[[jax.Array], jax.Array],
    stop,
    known: Known | None = None,
) -> State:
    """Run every image's plan up to its row `stop` ([batch] or a number) or its end: one scan over the plan's length.

    noise: maps rows [batch] to fresh noise of the sample's shape.
    known: what of the result is given already; none of it where None.
    """
    batch = state.row.shape[0]

    def for_batch(leaf) -> jax.Array:
        leaf = jnp.asarray(leaf, jnp.float32)
        return leaf if jnp.ndim(plan.nfe) else jnp.broadcast_to(leaf, (batch, *leaf.shape))  # one plan for all images

    rows = jax.tree.map(for_batch, plan.rows)
    clip_range, threshold = for_batch(plan.clip_range), for_batch(plan.threshold)
    stop = jnp.minimum(stop, jnp.asarray(plan.nfe))

    def body(state: State, _: None) -> tuple[State, None]:
        live = jnp.broadcast_to(state.row < stop, (batch,))

        def run(state: State) -> State:
            at = jax.tree.map(lambda field: field[jnp.arange(batch), state.row], rows)
            row = PlanRow(at, clip_range, threshold, state.row, live)
            return step(row, state, model, noise(state.row), known)

        return jax.lax.cond(anywhere(live), run, lambda state: state, state), None

    return jax.lax.scan(body, state, None, length=plan.sigmas.shape[-1])[0]


def denoise(plan: Plan, model: Model, x: jax.Array, key: jax.Array | None = None, step_noise=None) -> jax.Array:
    """Run a plan from its first sample to its result, inside or outside of compiled code.

    plan: one for all images, or stacked with a leading batch axis (`stack`).
    model: maps (x_in [batch, ...] as the network expects it, timesteps [batch]) to the network's raw prediction, of the
        shape of x_in.
    x: [batch, height, width, channels], from `plan.start`; or with any other axes after the batch.
    key: one key, split over the images, or [batch] keys; the noise of image i in row k is drawn from
        `fold_in(key[i], k)`, whatever else is in the batch.
    step_noise: [nfe, *x.shape] standard normal, to be used instead.
    Returns the final sample in the scale of images or of VAE latents. Raises InputError for a stochastic plan without
    a key or step_noise.
    """
    if key is None and step_noise is None and isinstance(plan.sigmas, np.ndarray) and plan.draws_noise:
        raise InputError("this sampler draws noise at every step: pass a key (or step_noise) to denoise")
    plan = plan.padded()
    noise = noise_source(x.shape, key, step_noise)
    state = advance(plan, init_state(plan, x), of_timesteps(model), noise, plan.sigmas.shape[-1])
    return result(plan, state)


def of_timesteps(model: Model) -> RowModel:
    """A network that asks for the timestep alone, as `advance` wants one."""

    def at_row(x: jax.Array, row: PlanRow, memory: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        output = model(x, jnp.asarray(row.at.timesteps))
        return output, output, memory

    return at_row


def noise_source(shape: tuple[int, ...], key: jax.Array | None, step_noise=None) -> Callable[[jax.Array], jax.Array]:
    """A function from rows [batch] to noise of `shape` [batch, ...]: given, drawn from keys, or none at all."""
    if step_noise is not None:
        given = jnp.asarray(step_noise, jnp.float32)
        return lambda rows: given[jnp.minimum(rows, len(given) - 1), jnp.arange(shape[0])]
    if key is None:
        return lambda rows: jnp.zeros(shape, jnp.float32)
    keys = jax.random.split(key, shape[0]) if jnp.ndim(key) == 0 else key
    draw = jax.vmap(lambda key, row: jax.random.normal(jax.random.fold_in(key, row), shape[1:], jnp.float32))
    return lambda rows: draw(keys, rows)


def _scaled(x: jax.Array, scale) -> jax.Array:
    return _over_samples(jnp.broadcast_to(jnp.asarray(scale, jnp.float32), x.shape[:1]), x) * x


def _over_samples(coefficients: jax.Array | np.ndarray, x: jax.Array) -> jax.Array:
    """Coefficients [batch, ...] with trailing axes, so that they multiply samples."""
    return jnp.asarray(coefficients).reshape(coefficients.shape + (1,) * (x.ndim - 1))
