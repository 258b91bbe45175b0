"""Several processes that do one run, on one machine or on many, by `jax.distributed`."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from sdjax.batch.groups import Placed
from sdjax.errors import InputError


@dataclass(frozen=True)
class Hosts:
    """Which of how many processes this one is. Each draws on its own devices, and all write into one folder."""

    process: int = 0
    count: int = 1

    def wait(self, what: str) -> None:
        """Go on when every process is here."""
        if self.count > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(what)

    def share(self, placed: Sequence[Placed], unit: int) -> list[Placed]:
        """The pictures of this process: neighbours in units of so many indices, about as many for each process."""
        ordered = sorted(placed, key=lambda each: each.item.index)
        units: dict[int, list[Placed]] = {}
        for each in ordered:
            units.setdefault(each.item.index // unit, []).append(each)
        mine, before = [], 0
        for members in units.values():
            middle = before + len(members) / 2
            if int(middle * self.count / len(ordered)) == self.process:
                mine += members
            before += len(members)
        return mine


def connect(coordinator: str | None, processes: int | None, process: int | None) -> Hosts:
    """Join the other processes of a run; to be called before JAX does anything else.

    coordinator: "host:port" of process 0; or "auto", where the cluster announces it (Cloud TPU, Slurm); None for one
    process alone. Raises InputError where the others are not found.
    """
    if coordinator is None:
        if processes is not None or process is not None:
            raise InputError("several processes need --coordinator, the address of the first")
        return Hosts()
    try:
        if coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"the processes of the run do not find each other: {error}") from error
    return Hosts(jax.process_index(), jax.process_count())
