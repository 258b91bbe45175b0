"""Batches drawn by a Ray cluster: Ray Data maps them over actors that hold the model.

A batch is one block of data, so that it stays full, its pictures come back as soon as they are drawn, and Ray draws it
again, and nothing else, where its worker dies. The pictures' files come back through Ray's object store; the process
that asked for them writes them and keeps the journal, so that a folder need not be shared, and a run may go on with
another engine.
"""

import logging
import os
import pickle
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from sdjax.batch.drawing import Encode, Keep, Made, Meter, draw_batch, read
from sdjax.batch.groups import Batch
from sdjax.batch.identity import versions
from sdjax.errors import InputError
from sdjax.loading import default_dtype
from sdjax.pipeline import Pipeline


class Machine(NamedTuple):
    """What a worker is: its versions and platform (see `identity.versions`), dtype of its own, and how many devices."""

    versions: dict[str, str]
    dtype: str
    devices: int


class Cluster:
    """`workers` processes of a Ray cluster, each with a GPU to itself where there are any; see `drawing.Engine`.

    workers: where None, one for each GPU, else for each machine.
    """

    def __init__(self, workers: int | None, batch_size: int, open_pipe: Callable[[], Pipeline]):
        """open_pipe: opens the model in a worker. Raises InputError for more workers than there is room for."""
        import ray

        there = ray.cluster_resources()
        self._gpus = int(there.get("GPU", 0) > 0)
        machines = sum(node["Alive"] for node in ray.nodes())
        room = int(there["GPU" if self._gpus else "CPU"])
        self._workers = workers or (room if self._gpus else machines)
        if self._workers > room:
            raise InputError(f"the Ray cluster has room for {room} workers, not for {workers}")
        self.machine: Machine = ray.get(ray.remote(num_gpus=self._gpus)(this_machine).remote())
        self.slots = batch_size * self.machine.devices
        self.meter = Meter()
        self._open_pipe = open_pipe

    def run(self, batches: Iterable[Batch], encode: Encode, keep: Keep, on_batch: Callable[[Meter], None]) -> None:
        """See `Engine`. Raises InputError where a worker cannot work."""
        import ray
        from ray.data import ActorPoolStrategy, from_items

        rows = [{"batch": pickle.dumps(batch)} for batch in batches]
        self.meter = Meter()
        if not rows:
            return
        workers = min(self._workers, len(rows))
        drawn = from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker,
            fn_constructor_args=(self._open_pipe, os.getcwd(), self.machine, self.slots, encode),
            batch_size=1,
            num_cpus=1,
            num_gpus=self._gpus,
            compute=ActorPoolStrategy(size=workers),
        )
        try:
            for row in drawn.iter_rows():
                batch, made, when, seconds = pickle.loads(row["drawn"])
                for item, each in zip(batch.items, made):
                    keep(item, each, when, seconds)
                self.meter.add(batch, made, seconds, share=1 / workers)
                on_batch(self.meter)
        except ray.exceptions.RayError as error:
            raise InputError(f"Ray's workers cannot draw: {_cause(error)}") from error
        self.meter.ended = time.perf_counter()


class Worker:
    """Holds the model in an actor of Ray, and draws batches."""

    def __init__(self, open_pipe: Callable[[], Pipeline], folder: str, machine: Machine, slots: int, encode: Encode):
        """folder: what relative paths start from. machine: what this one has to be like."""
        os.chdir(folder)
        if (ours := this_machine()) != machine:
            raise InputError(f"the machines of a run must be alike, but one is {ours}, and one {machine}")
        self._pipe, self._slots, self._encode = open_pipe(), slots, encode

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[bytes]]:
        """A batch, and what became of it."""
        batch: Batch = pickle.loads(rows["batch"][0])
        drawn, when, seconds = draw_batch(self._pipe, read(batch.items), self._slots)
        made: list[Made] = [self._encode(item, each) for item, each in zip(batch.items, drawn)]
        return {"drawn": [pickle.dumps((batch, made, when, seconds))]}


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """Connected to a Ray cluster while the block runs: that at an address, "auto", or where None one of this machine.

    This process then leaves the accelerators to the workers. Raises InputError where Ray or the cluster is not there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody was asked whether they are to be sent
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError("--engine ray needs Ray: pip install 'sdjax[ray]'") from None
    jax.config.update("jax_platforms", "cpu")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised too
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    own = False if address is None else None
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=own)
    except Exception as error:  # what Ray raises is no more special than that
        first, _, _ = str(error).partition("\n")
        raise InputError(f"no Ray cluster at {address or 'this machine'}: {first}") from error
    try:
        yield
    finally:
        ray.shutdown()


def this_machine() -> Machine:
    """What a process is."""
    return Machine(versions(), default_dtype(), jax.local_device_count())


def _cause(error: BaseException) -> str:
    """What went wrong in a worker: the last error that is not Ray's, in its text of traces."""
    message = str(error)
    named = re.findall(r"^(?!ray\.)[\w.]*(?:Error|Exception): (.+)$", message, re.MULTILINE)
    return (named or message.splitlines() or ["?"])[-1]
