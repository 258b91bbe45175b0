"""One step of training, compiled once: gradients on every device, their average, and what an optimizer makes of them.

What is random follows from the seed, the number of the step and the place of the example in the batch, so that neither
the number of devices nor an interruption changes what is drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from sdjax.errors import InputError
from sdjax.parallel import AXIS, compiler_options, sharding

Tree = Any
Metrics = dict[str, jax.Array]
# Maps trained parameters, frozen ones, a batch and a key per example to values [batch] each, "loss" among them.
Loss = Callable[[Tree, Tree, Tree, jax.Array], Metrics]

KEPT = {"dot_general", "conv_general_dilated"}  # what rematerialisation does not compute again


@dataclass(frozen=True)
class Settings:
    """How to train. `batch_size` is that of a step; it is taken in `accumulate` parts, one after another.

    remat: keep only the products of the forward pass, and compute again what lies between them. dtype: what the
    networks compute in; parameters and their averages are float32. ema_decay: 0 for no average. cosine_decay: the
    learning rate falls after the warm-up, along half a cosine, to 0 at the last step (arXiv:1608.03983). weight_decay,
    gradient_clip: of AdamW.
    """

    steps: int = 10_000
    batch_size: int = 32
    learning_rate: float = 1e-4
    warmup_steps: int = 100
    weight_decay: float = 0.0
    ema_decay: float = 0.999
    accumulate: int = 1
    remat: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    cosine_decay: bool = False
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        parts = self.accumulate * jax.local_device_count()
        if self.batch_size % parts:
            raise InputError(
                f"batch_size {self.batch_size} does not divide into {self.accumulate} parts on each of "
                f"{jax.local_device_count()} devices: take a multiple of {parts}"
            )
        if not self.learning_rate > 0 or not 0 <= self.ema_decay < 1:
            raise InputError("learning_rate must be above 0, and ema_decay from 0 to just below 1")


# Maps a loss without its frozen parameters, parameters, a batch and keys to gradients for an optimizer, and to means of
# the metrics. Averages of gradients over parts of a batch are those of the whole.
Gradients = Callable[[Callable[..., Metrics], Tree, Tree, jax.Array], tuple[Tree, Metrics]]


class Descent(NamedTuple):
    """How a step goes down: which gradients it takes, and what an optimizer makes of them."""

    gradients: Gradients
    optimizer: Callable[[Settings], optax.GradientTransformation]


class TrainState(NamedTuple):
    """All that a step changes: its number, parameters, their moving average, and the optimizer's moments."""

    step: jax.Array
    params: Tree
    ema: Tree
    optimizer: Tree


def mean_gradients(each: Callable[..., Metrics], params: Tree, batch: Tree, keys: jax.Array) -> tuple[Tree, Metrics]:
    """Those of the mean loss."""

    def mean_loss(params: Tree) -> tuple[jax.Array, Metrics]:
        means = {name: values.mean() for name, values in each(params, batch, keys).items()}
        return means["loss"], means

    gradients, means = jax.grad(mean_loss, has_aux=True)(params)
    return gradients, means


def adamw(settings: Settings) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101) after a clip of the gradient; only kernels decay."""

    def kernels(params: Tree) -> Tree:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    adam = optax.adamw(learning_rate(settings), weight_decay=settings.weight_decay, mask=kernels)
    return optax.chain(optax.clip_by_global_norm(settings.gradient_clip), adam)


ADAMW = Descent(mean_gradients, adamw)


def learning_rate(settings: Settings) -> optax.Schedule:
    """From the number of a step, counted from 0, to its learning rate."""
    highest, warmup = settings.learning_rate, max(settings.warmup_steps, 1)
    rise = optax.linear_schedule(highest / warmup, highest, warmup)
    if not settings.cosine_decay:
        return rise
    fall = optax.cosine_decay_schedule(highest, max(settings.steps - warmup, 1))
    return optax.join_schedules([rise, fall], [warmup])


def begin(params: Tree, settings: Settings, descent: Descent = ADAMW) -> TrainState:
    """The state before the first step, on every device; it owns its arrays, since steps overwrite them."""

    def make(params: Tree) -> TrainState:
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        moments = descent.optimizer(settings).init(params)
        return TrainState(jnp.int32(0), params, jax.tree.map(jnp.copy, params), moments)

    return jax.jit(make, out_shardings=sharding(PartitionSpec()))(params)


def make_step(
    loss: Loss, settings: Settings, descent: Descent = ADAMW
) -> Callable[[TrainState, Tree, Tree, int], tuple[TrainState, Metrics]]:
    """The compiled step, `step(state, frozen, batch, number)`, which gives the next state and the means of the metrics.

    The batch is sharded along its first axis, see `place`. The old state is donated. Where the gradient is not finite,
    or `number` is not the state's own (after such a step), the state stays as it is.
    """
    everywhere, split = PartitionSpec(), PartitionSpec(AXIS)
    average = jax.shard_map(
        partial(_averaged_gradients, loss, settings, descent.gradients),
        mesh=sharding(everywhere).mesh,
        in_specs=(everywhere, everywhere, split, split),
        out_specs=everywhere,
        check_vma=False,  # means over the devices are equal everywhere; Pallas kernels take no part in the proof of it
    )

    @partial(jax.jit, donate_argnums=0, compiler_options=compiler_options())
    def step(state: TrainState, frozen: Tree, batch: Tree, number: int) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(settings.batch_size))
        gradients, metrics = average(state.params, frozen, batch, keys)
        norm = optax.tree.norm(gradients)
        updates, moments = descent.optimizer(settings).update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        # In the first steps the average follows quickly: there is little to average yet.
        decay = jnp.minimum(settings.ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda old, new: new + decay * (old - new), state.ema, params)
        good = jnp.isfinite(norm) & (state.step == number)
        after = TrainState(state.step + 1, params, ema, moments)
        after = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, state)
        return after, metrics | {"gradient_norm": norm}

    return step


def place(batch: Tree) -> Tree:
    """A batch on the devices, its first axis shared out between them."""
    return jax.device_put(batch, sharding(PartitionSpec(AXIS)))


def cast(tree: Tree, dtype: jnp.dtype) -> Tree:
    """The arrays of floats in another dtype, the others as they are."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def _averaged_gradients(
    loss: Loss, settings: Settings, gradients: Gradients, params: Tree, frozen: Tree, batch: Tree, keys: jax.Array
) -> tuple[Tree, Metrics]:
    """Gradients and metrics of one device's share of the batch, averaged over its parts and over the devices."""
    dtype = jnp.dtype(settings.dtype)

    def each(params: Tree, batch: Tree, keys: jax.Array) -> Metrics:
        with jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default"):
            return loss(cast(params, dtype), cast(frozen, dtype), batch, keys)

    if settings.remat:
        each = jax.checkpoint(each, policy=lambda primitive, *_, **__: primitive.name in KEPT)
    part = partial(gradients, each, params)
    if settings.accumulate == 1:
        total = part(batch, keys)
    else:
        parts = jax.tree.map(lambda x: x.reshape(settings.accumulate, -1, *x.shape[1:]), (batch, keys))
        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part, *first))
        total, _ = jax.lax.scan(lambda sums, one: (jax.tree.map(jnp.add, sums, part(*one)), None), zeros, parts)
        total = jax.tree.map(lambda x: x / settings.accumulate, total)
    return jax.lax.pmean(total, AXIS)
