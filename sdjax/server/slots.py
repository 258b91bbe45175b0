"""Continuous batching: a batch whose pictures are replaced, between chunks of evaluations, as they are done.

A sampler is a table, and a picture's place in it is a number of its own, so pictures at any stage share the program.
Each is what `pipe(...)` draws in a batch of the same size, to the bit: no bit of it depends on what is beside it.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import schedulers
from sdjax.errors import SdjaxError
from sdjax.parallel import shard, unshard
from sdjax.pipeline import Output, Pipeline
from sdjax.pipeline.denoising import Batch
from sdjax.pipeline.drawing import checked, in_memory, settings_of
from sdjax.pipeline.images import Repaint, to_pil
from sdjax.pipeline.order import GroupKey
from sdjax.schedulers import State
from sdjax.server.refusals import Stopped, too_long
from sdjax.server.whole import Drawn
from sdjax.server.work import Unit, preview_rows

CHUNK = 4  # evaluations between two looks at what has changed


def is_continuous(key: GroupKey) -> bool:
    """Whether pictures of a group can be replaced on the way: where nothing comes from the host between two rows."""
    from_host = key.edited or len(key.guided) > 1 or key.noise.endswith("at every row")
    return not (from_host or key.adaptive or key.second_pass or key.reuse) and key.switch is None


class Arrays(NamedTuple):
    """What the program of a batch takes, on the host: trees whose leaves start with the slots."""

    plan: Any
    state: State
    conditioning: Any
    guidance: Any
    known: Any
    noise: np.ndarray  # the data of its keys

    @classmethod
    def of(cls, batch: Batch, size: int) -> "Arrays":
        """Those of a batch before its first row."""
        plan, _ = batch.arrays
        conditioning, guidance, known, keys = batch.inputs(0)
        state = schedulers.init_state(batch.order.plan, batch.first)
        there = plan, state, conditioning, guidance, known, jax.random.key_data(keys)
        return cls(*jax.tree.map(np.array, unshard(there, size)))  # copies, which can be written


class Slots:
    """A batch of `size` slots, of one group, some of which may be free."""

    def __init__(self, pipe: Pipeline, size: int, seconds: float):
        """seconds: that a request may take, for messages."""
        self.size = size
        self._pipe, self._seconds = pipe, seconds
        self._units: list[Unit | None] = [None] * size
        self._settings: dict[Unit, dict[str, Any]] = {}
        self._repaints: dict[Unit, Repaint | None] = {}
        self._arrays: Arrays | None = None
        self._placed: list[Any] | None = None  # what does not change with the rows, on the devices
        self._state: Any = None  # on the devices
        self._batch: Batch | None = None

    @property
    def units(self) -> list[Unit]:
        """The pictures that are being drawn."""
        return [unit for unit in self._units if unit]

    @property
    def free(self) -> int:
        """How many more there is room for."""
        return self._units.count(None)

    def admit(self, units: Sequence[Unit]) -> list[tuple[Unit, Drawn]]:
        """Put pictures into free slots; gives those that cannot be drawn, and why."""
        try:
            self._begin(units)
        except SdjaxError as error:
            if len(units) == 1:
                return [(units[0], error)]
            return [failed for unit in units for failed in self.admit([unit])]
        return []

    def _begin(self, units: Sequence[Unit]) -> None:
        """Encodes what they need as a batch of the slots' number, as `pipe(...)` would."""
        pictures = [unit.picture for unit in units]
        order = self._pipe.prepare([*pictures, *[pictures[-1]] * (self.size - len(pictures))])
        with in_memory(order):
            batch = self._pipe.begin(order)
            new = Arrays.of(batch, self.size)
        old, settings = self._on_host() or jax.tree.map(np.copy, new), settings_of(self._pipe, order)
        for k, unit in enumerate(units):
            slot = self._units.index(None)
            self._units[slot] = unit
            self._settings[unit], self._repaints[unit] = settings[k], batch.images[k].repaint
            for into, value in zip(jax.tree.leaves(old), jax.tree.leaves(new)):
                into[slot] = value[k]
        self._arrays, self._batch = old, batch
        self._placed = self._state = None

    def _on_host(self) -> Arrays | None:
        """All arrays, with the state as it is now."""
        if self._arrays is not None and self._state is not None:
            state = jax.tree.map(np.array, unshard(self._state, self.size))
            self._arrays = self._arrays._replace(state=state)
        return self._arrays

    def advance(self) -> list[tuple[Unit, Drawn]]:
        """Denoise a chunk; gives what is done by then, what was stopped and what took too long."""
        ended = [(unit, self._stopped(unit)) for unit in self.units if unit.stop or time.time() > unit.job.until]
        self._let_go([unit for unit, _ in ended])
        if units := self.units:
            self._denoise(min(CHUNK, *(self._left(unit) for unit in units)))
            for unit in units:
                self._show(unit)
            done = [unit for unit in units if unit.done == unit.nfe]
            ended += [(unit, self._picture(unit, schedulers.result)) for unit in done]
            self._let_go(done)
        return ended

    def _let_go(self, units: Sequence[Unit]) -> None:
        for unit in units:
            self._units[self._units.index(unit)] = None
            del self._settings[unit], self._repaints[unit]

    def _left(self, unit: Unit) -> int:
        """Evaluations until a picture has to be looked at."""
        return next(row for row in [*preview_rows(unit), unit.nfe] if row > unit.done) - unit.done

    def _denoise(self, rows: int) -> None:
        arrays, batch = self._arrays, self._batch
        assert arrays is not None and batch is not None
        if self._placed is None:
            keys = jax.random.wrap_key_data(jnp.asarray(arrays.noise))
            self._state = shard(arrays.state)
            there = arrays.plan, arrays.conditioning, arrays.guidance, arrays.known, keys
            self._placed = [shard(each) for each in there]
        plan, *inputs = self._placed
        # Every picture has a row of its own, at which it stops: its plan ends there.
        ends = np.array([unit.done + rows if unit else 0 for unit in self._units], np.int32)
        plan = plan._replace(nfe=shard(ends))
        last, guided = np.int32(arrays.plan.rows.sigmas.shape[-1]), bool(batch.order.guided[0])
        self._state = self._pipe.advance_for(batch)(guided, plan, self._state, *inputs, last)
        jax.block_until_ready(self._state)
        for unit in self.units:
            unit.done += rows

    def _show(self, unit: Unit) -> None:
        """An x0 estimate, where one is wanted."""
        rows = preview_rows(unit)
        if unit.done in rows or unit.wants_preview:
            unit.wants_preview = False
            unit.preview = self._pipe.preview(self._latents(unit, schedulers.estimate))[0]
            if unit.done in rows and unit.job.on_preview:
                unit.job.on_preview(unit, unit.preview, rows.index(unit.done))

    def _stopped(self, unit: Unit) -> Drawn:
        if not unit.stop:
            return too_long(self._seconds)
        return self._picture(unit, schedulers.estimate) if unit.keep and unit.done else Stopped()

    def _picture(self, unit: Unit, by: Any) -> Drawn:
        """The picture of a unit, from its result or its estimate."""
        try:
            drawn = self._pipe.decode(self._latents(unit, by))[0]
            whole = repaint.finish(drawn) if (repaint := self._repaints[unit]) else drawn
            output = Output(to_pil([whole]), [unit.picture.seed], unit.nfe, [self._settings[unit]], [False])
            output = checked(self._pipe, output)
        except SdjaxError as error:
            return error
        return output.images[0], output.settings[0]

    def _latents(self, unit: Unit, by: Any) -> np.ndarray:
        """The latents of a unit, [1, h, w, channels]."""
        arrays = self._on_host()
        assert arrays is not None
        return np.asarray(by(arrays.plan, arrays.state))[[self._units.index(unit)]]
