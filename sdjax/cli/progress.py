"""Progress bars on standard error, where that is a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from sdjax.cli import interrupt


class Report(Protocol):
    """Called with a stage, how much of it is done, out of how much, and how to say that where it is no count."""

    def __call__(self, stage: str, done: int, total: int, amount: str | None = None, /) -> None: ...


_shown: list[Progress] = []  # what is on the terminal now


@contextmanager
def progress_bars(*, of_bytes: bool = False) -> Iterator[Report]:
    """Yields `report(stage, done, total)`, which draws one bar per stage, in the order in which stages come.

    `done` and `total` count steps, or bytes with `of_bytes`. At Ctrl-C, `report` raises KeyboardInterrupt.
    """
    tasks: dict[str, TaskID] = {}
    console = Console(stderr=True)
    # New ones each time: bars that were stopped and start again draw over the lines that they left.
    bars = Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )

    def report(stage: str, done: int, total: int, amount: str | None = None, /) -> None:
        interrupt.check()
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, amount="")
        if amount is None:
            amount = f"{done / 1e6:,.0f}/{total / 1e6:,.0f} MB" if of_bytes else f"{done}/{total}"
        bars.update(tasks[stage], completed=done, total=total, amount=amount)

    _shown.append(bars)
    bars.start()
    try:
        yield report
    finally:
        bars.stop()
        _shown.remove(bars)


def end_bars() -> None:
    """Leave the bars as they stand and give the terminal back. May be called twice, and from another thread."""
    for bars in _shown:
        bars.stop()
