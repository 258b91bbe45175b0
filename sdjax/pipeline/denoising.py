"""The loop from the first latents to the denoised ones, as calls of the compiled program: a generator of states."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from sdjax import schedulers
from sdjax.errors import InputError
from sdjax.halves import Composed, Conditioning
from sdjax.parallel import shard, unshard
from sdjax.pipeline.conditions import Conditions
from sdjax.pipeline.contexts import Contexts
from sdjax.pipeline.order import Order
from sdjax.pipeline.perturbing import marks
from sdjax.pipeline.reuse import with_memory
from sdjax.pipeline.start import BatchStart, ImageInputs
from sdjax.pipeline.xl import sizes_of
from sdjax.random import DeviceNoise, HostNoise, Noise
from sdjax.schedulers import Known, State
from sdjax.schedulers.solvers.rows import REGISTERS

# Called with a stage ("encode", "compile", "denoise", "decode"), how much of it is done, and out of how much.
Progress = Callable[[str, int, int], None]
# `programs.denoise` over the devices: whether the unconditional half is computed, and the arguments from `plan` on.
Advance = Callable[..., State]


def silent(stage: str, done: int, total: int) -> None:
    """A `Progress` of which nothing is seen."""


class Step(NamedTuple):
    """A batch after the first `row` rows of its plans.

    state: on the devices, padded to a multiple of them; it is gone when the next step is taken. `Batch.on_host` keeps
    it.
    """

    row: int
    state: State


@dataclass(frozen=True, eq=False)
class Batch:
    """An order with its texts and images encoded, on the devices. `noise` counts on as rows are taken.

    sizes: what is read with the prompts and with the negative prompts. unet: the parameters that it is denoised with.
    nets: that see hints.
    """

    order: Order
    images: Sequence[ImageInputs]
    contexts: Contexts
    noise: Noise
    first: np.ndarray
    known: Known
    shared: dict[str, Any]
    sizes: tuple[dict[str, Any], dict[str, Any]]
    weights: jax.Array
    arrays: tuple[Any, Any]
    unet: Any
    nets: Conditions

    @classmethod
    def of(
        cls,
        order: Order,
        images: Sequence[ImageInputs],
        contexts: Contexts,
        noise: Noise,
        start: BatchStart,
        unet: Any,
        nets: Conditions,
    ) -> "Batch":
        """Puts the arrays of a batch on the devices."""
        if not order.draws.any():
            seeds = [picture.seed for picture in order.pictures]
            noise = DeviceNoise(seeds, seeds)  # whose program serves every sampler
        read = ("channels", "class_labels", "guidance")
        known, shared = shard(start.known), shard({name: getattr(start, name) for name in read})
        sizes = shard(sizes_of(order))
        if start.edited is not None:
            edited = shard({"edited": start.edited})
            sizes = (sizes[0] | edited, sizes[1] | jax.tree.map(lambda latents: latents * 0, edited))
        weights, arrays = shard(order.weights), shard((order.plan, order.guidance))
        return cls(order, images, contexts, noise, start.x, known, shared, sizes, weights, arrays, unet, nets)

    def start(self) -> State:
        """The state before the first row."""
        state = schedulers.init_state(self.order.plan, self.first)
        if self.order.reuse is None:
            return state
        return with_memory(state, self.order.reuse, self.order.facts.unet, jax.tree.leaves(self.unet)[0].dtype)

    def on_host(self, step: Step) -> State:
        """The state [batch, ...] of the batch after a step, to keep, save or branch from."""
        return unshard(step.state, len(self.first))

    def estimate(self, step: Step) -> np.ndarray:
        """The latest x0 estimate, [batch, h, w, channels], in the scale of the result."""
        return np.asarray(schedulers.estimate(self.order.plan, self.on_host(step)))

    def latents(self, step: Step) -> np.ndarray:
        """The denoised latents [batch, h, w, channels] after the last step."""
        return np.asarray(schedulers.result(self.order.plan, self.on_host(step)))

    def inputs(self, row: int) -> tuple[Any, ...]:
        """What the program takes from `row` on, after plan and state."""
        hints = self.nets.halves
        parts = [texts[row] | self.sizes[0] | hints[0] for texts in self.contexts.parts]
        negative = self.contexts.negative[row] | self.sizes[1] | hints[1]
        image = negative | {"edited": self.sizes[0]["edited"]} if "edited" in negative else None
        perturbed = None
        if layers := self.order.perturbed_layers:
            off, on = (shard(marks(self.order.pictures, layers, each)) for each in (False, True))
            perturbed, negative = parts[0] | on, negative | off
            parts, image = [part | off for part in parts], image and image | off
        away = perturbed is not None or self.order.guidance.degraded is not None
        other = None if away and not self.order.reads_negative else negative
        positive = parts[0] if len(parts) == 1 else Composed(tuple(parts), self.weights)
        shared = self.shared | self.nets.shared
        reuse = None if self.order.reuse is None else shard(self.order.reuse)
        conditioning = Conditioning(positive, other, shared, perturbed, image, reuse)
        noise = shard(self.noise.of_row(row, self.first.shape[1:], self.order.draws))
        return conditioning, self.arrays[1], self.known, noise

    def ends_before(self, row: int) -> bool:
        """Whether a call of the program must end before a row: for another text, another program or host noise."""
        wants_noise = isinstance(self.noise, HostNoise) and bool(self.order.draws[:, row].any())
        return self.contexts.changes(row) or wants_noise or self.order.guided[row] != self.order.guided[row - 1]


def steps(
    batch: Batch, advance: Advance, stops: Collection[int] = (), state: State | None = None, until: int | None = None
) -> Iterator[Step]:
    """Yields the batch after each row in `stops`, and after the last one.

    A call of the program goes on as far as it can. At row 0 nothing has been computed but the program is compiled.
    state: of `Batch.on_host`, to go on with; of this process or another one. Settings may differ from its row on.
    until: the row to stop before, where it is not the end. Raises InputError for a state that does not fit the batch.
    """
    order, row = batch.order, 0
    last = order.nfe if until is None else until
    if state is None:
        state = batch.start()
    else:
        row = _row_of(state, batch)
    plan, _ = batch.arrays
    state, inputs = shard(state), batch.inputs(row)
    for end in sorted({stop for stop in stops if row <= stop < last} | {last}):
        for cut in [*filter(batch.ends_before, range(row + 1, end)), end]:
            state = advance(bool(order.guided[row]), plan, state, *inputs, np.int32(cut))
            if row < cut < last and batch.ends_before(cut):
                inputs = batch.inputs(cut)
            row = min(cut, order.nfe - 1)
        yield Step(end, state)


def told(taken: Iterator[Step], tell: Callable[[int], None]) -> Iterator[Step]:
    """The same steps; `tell` gets the row of each when it is computed, while the devices work on the next already."""
    before: tuple[int, Any] | None = None
    for step in taken:
        # A copy, since the state itself is gone with the call of the program that comes before the wait for this one.
        mark = step.row, jax.device_put(step.state.row, may_alias=False)
        if before is not None:
            _wait(*before, tell)
        before = mark
        yield step
    if before is not None:
        _wait(*before, tell)


def _wait(row: int, mark: Any, tell: Callable[[int], None]) -> None:
    jax.block_until_ready(mark)
    tell(row)


def compile_for(batch: Batch, advance: Advance) -> Step:
    """Compiles the programs that a batch runs, and gives it as it is before the first row."""
    (plan, _), inputs = batch.arrays, batch.inputs(0)
    for guided in sorted(set(map(bool, batch.order.guided))):
        state = shard(batch.start())
        step = Step(0, jax.block_until_ready(advance(guided, plan, state, *inputs, np.int32(0))))
    return step


def _row_of(state: State, batch: Batch) -> int:
    """The row that a batch comes to next. Raises InputError where a state belongs to another batch."""
    row = int(np.max(state.row))
    ends = np.array([int(recipe.plan.nfe) for recipe in batch.order.recipes])
    expected = (len(batch.first), REGISTERS, *batch.first.shape[1:])
    if np.shape(state.registers) != expected or not np.array_equal(state.row, np.minimum(row, ends)):
        raise InputError(
            f"the state is of another batch: its registers are {np.shape(state.registers)} after {row} rows, this "
            f"batch needs {expected} and has plans of {', '.join(map(str, ends))} rows"
        )
    if row >= batch.order.nfe:
        raise InputError(f"the state is after the last of {batch.order.nfe} rows: there is nothing to go on with")
    return row
