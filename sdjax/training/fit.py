"""Training runs, each in a folder of its own: the steps, a log, and checkpoints from which a stopped run goes on.

- `settings.json`: what the run was begun with; a second run in the same folder goes on with the first
- `samples/`: sheets of samples, one for each checkpoint
- `log.csv`: the means of the metrics since the line before, pictures per second, and the share of the time in which
  the devices waited for pictures to be read
- `loss.png`: a plot of that
- `checkpoints/STEP/`: all that is needed to go on, by orbax; the last two are kept
- at the end, what was trained: a model directory, or a file to add to a model
"""

import csv
import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import PartitionSpec

from sdjax.errors import InputError, TrainingError
from sdjax.files.atomic import replaced
from sdjax.files.layout import read_json, write_json
from sdjax.parallel import sharding
from sdjax.training.data import batches
from sdjax.training.figures import save_loss_curve
from sdjax.training.step import ADAMW, Descent, Loss, Metrics, Settings, TrainState, Tree, begin, make_step, place

KEPT = 2
NOTED = 0.05  # share of the time spent waiting for pictures from which on the progress line shows it
MAY_CHANGE = {"steps", "learning_rate", "store"}  # between a run and its continuation

# Called as report("train", steps done, steps in all, text); text None: the two numbers.
Report = Callable[[str, int, int, str | None], None]


@dataclass(frozen=True, eq=False)
class Task:
    """What is trained, and what it becomes.

    about   what the parameters depend on besides the settings, such as the data: JSON, kept in settings.json
    init    from a seed to the parameters to begin with; called after `open`
    frozen  other parameters that the loss reads
    loss    see `Loss`
    count   number of examples
    open    called once the run's folder is there; returns the function from a number below count to an example, a tree
            of arrays
    show    show(state, folder), called after each checkpoint: draws samples into the folder
    result  name of the result in the run's folder, such as "model-{step}"
    write   write(state, path): writes the result
    descent how the loss is made small
    """

    about: dict[str, Any]
    init: Callable[[int], Tree]
    frozen: Tree
    loss: Loss
    count: int
    open: Callable[["Run"], Callable[[int], Any]]
    show: Callable[[TrainState, Path], None]
    result: str
    write: Callable[[TrainState, Path], None]
    descent: Descent = ADAMW


@dataclass(frozen=True)
class Intervals:
    """After how many steps a line is logged, and a checkpoint saved."""

    log: int = 50
    save: int = 1000


@dataclass(frozen=True)
class Run:
    """Where, how and how long a task is trained."""

    folder: Path
    settings: Settings
    intervals: Intervals
    report: Report


def train(task: Task, run: Run) -> Path:
    """Trains as `fit` does, and writes the result, which may be there already; returns its path."""
    state = fit(task, run)
    destination = run.folder / task.result.format(step=int(state.step))
    if not destination.exists():
        task.write(state, destination)
    return destination


def _open_folder(folder: Path, settings: Settings, about: dict[str, Any]) -> None:
    """Makes a run's folder, or checks that it is this run's. Raises InputError for a folder that holds another run."""
    wanted = json.loads(json.dumps({**about, **asdict(settings)}))
    path = folder / "settings.json"
    if path.is_file():
        found = read_json(path)
        for name in sorted({*wanted, *found} - MAY_CHANGE):
            if wanted.get(name) != found.get(name):
                raise InputError(
                    f"{folder} holds a run with {name} = {found.get(name)!r}, not {wanted.get(name)!r}: go on with "
                    "that, or choose another folder"
                )
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} holds something that is no run of sdjax: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with replaced(path) as partial:
        write_json(partial, wanted)


def fit(task: Task, run: Run) -> TrainState:
    """Trains until `settings.steps` are done, from the last checkpoint in the folder if there is one.

    Stopped at any moment and begun again, it ends with the same parameters, bit for bit, on the same machine. Raises
    InputError for a folder that holds another run, TrainingError where the gradient is not finite; the state before
    that step is the last checkpoint then.
    """
    folder, settings, intervals = run.folder, run.settings, run.intervals
    _open_folder(folder, settings, task.about)
    read = task.open(run)
    with checkpoints(folder) as manager:
        state = _restored(manager, task, settings)
        first, step = int(state.step), make_step(task.loss, settings, task.descent)
        log = Log(folder / "log.csv", first, settings.batch_size)
        frozen = jax.device_put(task.frozen, sharding(PartitionSpec()))
        source = batches(read, task.count, settings.batch_size, settings.seed, first)
        note = ""
        with closing(source):
            for number in range(first, settings.steps):
                batch = log.timed(lambda: next(source))
                state, metrics = step(state, frozen, place(batch), number)
                log.add(number, metrics)
                log.keep_pace()
                saves = (number + 1) % intervals.save == 0 or number + 1 == settings.steps
                try:
                    if saves or (number + 1) % intervals.log == 0:
                        note = log.write()
                    run.report("train", number + 1, settings.steps, f"{number + 1}/{settings.steps}{note}")
                except (TrainingError, KeyboardInterrupt):
                    _save(manager, state)
                    raise
                if saves:
                    _save(manager, state)
                    save_loss_curve(log.path)
                    task.show(state, folder / "samples")
                    log.restart()
    return state


def checkpoints(folder: Path) -> ocp.CheckpointManager:
    """The checkpoints of a run; each appears when it is complete."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options)


def _restored(manager: ocp.CheckpointManager, task: Task, settings: Settings) -> TrainState:
    """The state of the last checkpoint, or the one before the first step."""
    if (last := manager.latest_step()) is None:
        return begin(task.init(settings.seed), settings, task.descent)
    everywhere = sharding(PartitionSpec())
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        jax.eval_shape(lambda: begin(task.init(settings.seed), settings, task.descent)),
    )
    return manager.restore(last, args=ocp.args.StandardRestore(shapes))


def _save(manager: ocp.CheckpointManager, state: TrainState) -> None:
    if int(state.step) != manager.latest_step():
        manager.save(int(state.step), args=ocp.args.StandardSave(state))


class Log:
    """The file log.csv. Lines that a stopped run wrote after its last checkpoint are removed first."""

    def __init__(self, path: Path, first: int, batch_size: int):
        self.path, self.batch_size = path, batch_size
        self.pending: list[tuple[int, Metrics]] = []
        self.restart()
        rows = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
        kept = [row for row in rows if row["step"].isdecimal() and int(row["step"]) <= first]
        with replaced(path) as partial:
            partial.touch()
            for row in kept:
                _append(partial, row)

    def restart(self) -> None:
        """Starts the clock of the next line anew, so that its speed does not count the drawing of samples."""
        self.since, self.waited = time.perf_counter(), 0.0

    def timed(self, read: Callable[[], Any]) -> Any:
        """Returns read(); the time that it takes counts as waiting if the devices have done all their work by then."""
        start = time.perf_counter()
        result = read()
        if not self.pending or self.pending[-1][1]["loss"].is_ready():  # type: ignore[attr-defined]
            self.waited += time.perf_counter() - start
        return result

    def add(self, number: int, metrics: Metrics) -> None:
        """Take down a step, without waiting for it."""
        self.pending.append((number, metrics))

    def keep_pace(self) -> None:
        """Wait for the last step but one: who reports hears a signal after two steps, and devices never wait."""
        if len(self.pending) > 1:
            jax.block_until_ready(self.pending[-2][1])

    def write(self) -> str:
        """Write a line, the means since the last one; returns it in short. Raises TrainingError, see `fit`."""
        values = [(number, jax.device_get(metrics)) for number, metrics in self.pending]
        for number, metrics in values:
            if not np.isfinite(metrics["gradient_norm"]):
                raise TrainingError(
                    f"step {number + 1}: the gradient is not finite; the state before it is kept in "
                    f"{self.path.parent}: go on from there with a lower learning rate"
                )
        means = {name: float(np.mean([metrics[name] for _, metrics in values])) for name in values[0][1]}
        elapsed = time.perf_counter() - self.since
        speed, waiting = len(values) * self.batch_size / elapsed, self.waited / elapsed
        timing = {"pictures_per_second": round(speed, 2), "waiting": round(waiting, 3)}
        _append(self.path, {"step": values[-1][0] + 1, **means, **timing})
        self.pending = []
        self.restart()
        note = f", {waiting:.0%} of it waiting for pictures" if waiting > NOTED else ""
        return f", loss {means['loss']:.4g}, {speed:.3g} pictures/s{note}"


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if not file.tell():
            writer.writeheader()
        writer.writerow(row)
