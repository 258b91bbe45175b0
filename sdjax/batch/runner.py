"""A run: finds what is done already, draws the rest, and leaves a manifest of all of it."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from sdjax.batch.drawing import Engine, Made, Meter, encode
from sdjax.batch.groups import Batch, Placed, batches_of
from sdjax.batch.hosts import Hosts
from sdjax.batch.identity import check_vacant_or_ours, claim
from sdjax.batch.journal import Journal, State, lock, merge, read_state
from sdjax.batch.output import Output
from sdjax.batch.rows import Item
from sdjax.files.identity import hash_of

log = logging.getLogger("sdjax")

TRACED = 3  # batches in a profile
Report = Callable[[str, int, int], None]  # (stage, done, total)


@dataclass(frozen=True)
class Summary:
    """How a run ended, for this process: `meter` is what it drew, `already` how many pictures were there.

    failed: why pictures could not be drawn, by their row.
    """

    meter: Meter
    already: int
    failed: Mapping[int, str]


@dataclass(frozen=True)
class Run:
    """A run.

    placed: its pictures. left_out: why, by row, for rows of which none is made. identity: what its bits depend on, as
    `run.json` keeps it. of_model: settings of the model, for every picture.
    """

    placed: Sequence[Placed]
    left_out: Mapping[int, str]
    output: Output
    identity: dict[str, Any]
    of_model: dict[str, Any]


def run(
    engine: Engine,
    this: Run,
    report: Report,
    on_batch: Callable[[Meter, int], None],
    hosts: Hosts,
    profile: Path | None = None,
) -> Summary:
    """Draw what is not done, this process's share of it.

    report: called while files are checked, and before the first batch. on_batch: after each batch, with what was done
    and how many pictures there are to do. profile: where a trace of a few batches goes.
    Raises InputError where the output folder is not ours and OSError where it cannot be written; what was drawn until
    then is kept.
    """
    output = this.output
    if hosts.process == 0:
        check_vacant_or_ours(output.folder)
        claim(output.folder, this.identity)
    hosts.wait("claimed")
    claim(output.folder, this.identity)  # every process asks for the same
    with locked(output.folder, hosts.process):
        if hosts.process == 0:
            output.sweep()
        state = read_state(output.folder)
        packed = _packed(this, state, hosts)
        done = _done(this, packed, state.made("index"), report)
        hosts.wait("read")  # nobody writes before all know what is done
        open_ = [each for each in this.placed if output.shard_of(each.item) not in packed]
        if not output.packs:
            open_ = [each for each in open_ if each.item.index not in done]
        mine = hosts.share(open_, output.shard_size if output.packs else 1)
        todo = [each for each in mine if each.item.index not in done]
        keeper = Keeper(this, Journal(output.folder, state.starts + 1, hosts.process), mine, done)
        files = partial(encode, output, this.of_model)
        try:
            keeper.pack_what_is_done()
            report("draw", 0, len(todo))
            batches = _traced(batches_of(todo, engine.slots), profile)
            engine.run(batches, files, keeper.keep, lambda meter: on_batch(meter, len(todo)))
        finally:
            keeper.close()
        hosts.wait("drawn")
        if hosts.process == 0:
            output.finish()
            merge(output.folder, this.left_out)
    return Summary(engine.meter, len(this.placed) - len(open_) + len(mine) - len(todo), keeper.failed)


class Keeper:
    """Writes pictures, packs shards when their last picture is done, and keeps the journal."""

    def __init__(self, this: Run, journal: Journal, mine: Sequence[Placed], done: set[int]):
        self._run, self._output, self._journal = this, this.output, journal
        self._lock = threading.Lock()
        self._shards: dict[int, list[Item]] = {}
        self._missing: dict[int, int] = {}
        for item in (each.item for each in mine) if self._output.packs else ():
            shard = self._output.shard_of(item)
            self._shards.setdefault(shard, []).append(item)
            self._missing[shard] = self._missing.get(shard, 0) + (item.index not in done)
        self._failed: set[int] = set()
        self.failed: dict[int, str] = {}

    def pack_what_is_done(self) -> None:
        """Pack the shards whose pictures are all there."""
        for shard in [shard for shard, missing in self._missing.items() if not missing]:
            self._pack(shard)

    def keep(self, item: Item, made: Made, when: str, seconds: float) -> None:
        """Write a picture, or why there is none; see `drawing.Keep`."""
        entry: dict[str, Any] = {"index": item.index, "row": item.row, "name": item.name}
        if isinstance(made, str):
            entry |= {"status": "failed", "reason": made}
            with self._lock:
                self._failed.add(item.index)
                self.failed[item.row] = made
        else:
            data, settings = made
            entry |= {"status": "made", **self._output.write(item, data), "settings": settings}
        self._journal.add(entry | {"model_hash": self._run.identity["model_hash"], "time": when, "seconds": seconds})
        if self._output.packs:
            with self._lock:
                shard = self._output.shard_of(item)
                self._missing[shard] -= 1
                is_whole = self._missing[shard] == 0
            if is_whole:
                self._pack(shard)

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _pack(self, shard: int) -> None:
        items = [item for item in self._shards[shard] if item.index not in self._failed]
        self._journal.add(self._output.pack(shard, items))
        self._output.clear(shard)


@contextmanager
def locked(folder: Path, process: int) -> Iterator[None]:
    """No other process may do this process's part of the run meanwhile."""
    descriptor = lock(folder, process)
    try:
        yield
    finally:
        os.close(descriptor)


def _packed(this: Run, state: State, hosts: Hosts) -> set[int]:
    """The shards that are there with the hash that they were written with, and lack no picture.

    Those with a picture that failed are taken apart again, so that no other picture is drawn twice.
    """
    output = this.output
    packed = {
        number
        for number, digest in state.made("shard").items()
        if hash_of(output.folder / output.shard_file(number)) == digest
    }
    lacking = {output.shard_of(each.item) for each in this.placed if each.item.index in state.failed} & packed
    hosts.wait("compared")  # before any is replaced
    if hosts.process == 0:
        for number in packed - lacking:
            output.clear(number)  # it was killed before it did
        for number in lacking:
            output.unpack(number)
    hosts.wait("unpacked")
    return packed - lacking


def _done(this: Run, packed: set[int], pictures: Mapping[int, str], report: Report) -> set[int]:
    """The pictures outside of packed shards that are there with the hash that they had when they were written."""
    output = this.output
    items = [
        each.item
        for each in this.placed
        if each.item.index in pictures and not (output.packs and output.shard_of(each.item) in packed)
    ]
    done: set[int] = set()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for k, (item, digest) in enumerate(zip(items, pool.map(lambda item: hash_of(output.path_of(item)), items)), 1):
            if digest == pictures[item.index]:
                done.add(item.index)
            if k % 100 == 0 or k == len(items):
                report("check files", k, len(items))
    return done


def _traced(batches: Iterator[Batch], profile: Path | None) -> Iterator[Batch]:
    """The same batches; some after the first, which compiles, are traced."""
    if profile is None:
        yield from batches
        return
    k, is_tracing = 0, False
    try:
        for k, batch in enumerate(batches, start=1):
            if k == 3:  # the second is drawn now, since reading is one batch ahead
                jax.profiler.start_trace(str(profile))
                is_tracing = True
            if k == 3 + TRACED and is_tracing:
                jax.profiler.stop_trace()
                is_tracing = False
            yield batch
    finally:
        if is_tracing:
            jax.profiler.stop_trace()
    if k < 3:
        log.warning("%d batches are too few for a profile: the first compiles, and is left out", k)
