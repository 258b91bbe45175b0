"""How far a batch run is, and how fast: on a bar, in lines where there is no terminal, and at the end."""

import logging
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sdjax.cli.progress import Report

if TYPE_CHECKING:
    from sdjax.batch.drawing import Meter
    from sdjax.batch.runner import Summary

log = logging.getLogger("sdjax")

SOME_FAILED = 3  # the exit code
RECENT = 20  # batches
SECONDS_OF_SILENCE = 30  # where there is no terminal to draw bars on


class Showing:
    """Shows how far a run is, after each batch: on its bar, or where there is no terminal, in a line now and then.

    Speed and time left are those of the last batches: the first one compiles.
    """

    def __init__(self, report: Report):
        self._report = report
        self._told = time.monotonic()
        self._last: deque[tuple[float, int, int]] = deque(maxlen=RECENT)

    def __call__(self, meter: "Meter", total: int) -> None:
        done = meter.drawn + meter.failed
        self._last.append((meter.seconds, done, meter.nfe))
        amount = f"{done}/{total}"
        if len(self._last) > 1:
            seconds, pictures, nfe = (last - first for first, last in zip(self._last[0], self._last[-1]))
            left = seconds / pictures * (total - done)
            time_left = f"{left // 3600:.0f}:{left % 3600 // 60:02.0f}:{left % 60:02.0f} left"
            amount += f"  {_rates(pictures / seconds, nfe / seconds, meter.waiting)}  {time_left}"
        self._report("draw", done, total, amount)
        if not sys.stderr.isatty() and time.monotonic() - self._told > SECONDS_OF_SILENCE:
            self._told = time.monotonic()
            log.info("%s", amount)


def _rates(pictures: float, nfe: float, waiting: float) -> str:
    return f"{pictures:.3g} pictures/s, {nfe:.3g} NFE/s, devices waited {waiting:.1%}"


def summarise(summary: "Summary", output: Path) -> None:
    """The summary. Raises Exit where pictures failed."""
    meter = summary.meter
    said = f"{output}: {meter.drawn} pictures drawn"
    if meter.drawn or meter.failed:
        rates = _rates((meter.drawn + meter.failed) / meter.seconds, meter.nfe / meter.seconds, meter.waiting)
        said += f" in {meter.seconds:.1f} s ({rates}; the first batch, which compiles, took {meter.first:.1f} s)"
    if summary.already:
        said += f", {summary.already} were there"
    typer.echo(said)
    if summary.failed:
        from sdjax.batch.rows import Problem, complain

        problems = [Problem(row, reason) for row, reason in summary.failed.items()]
        log.warning("%d rows failed: %s", len(problems), complain(problems))
        raise typer.Exit(SOME_FAILED)
