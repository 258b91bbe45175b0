"""What has become worse since a benchmark was run before: ratios that hold on a noisy machine."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.recommend import load_rows
from benchmarks.report import console, table_of
from sdjax.errors import InputError

# By how much a number may grow: a factor, and what is added to that.
ALLOWED = {
    "ratio": (1.1, 0.0),  # ours over PyTorch's, measured in turns: no machine's speed is in it
    "error": (1.1, 1e-5),
    "wasserstein": (1.1, 0.0),
    "rmse": (1.1, 1e-3),
    "frechet": (1.1, 0.5),
    "fid": (1.1, 0.5),
    "clip missed": (1.02, 0.0),  # how far CLIP scores are below 100
    "difference": (2.0, 1e-3),
    "missed": (1.0, 0.05),  # the share of captions of which not all facts hold
    "peak GB": (1.1, 0.05),
    "temporary GB": (1.1, 0.05),
    "sdjax GB": (1.1, 0.05),
    "output GB": (1.01, 0.0),
}
# Times are compared with the other times of their file, so that a slower machine, or a busier one, is no regression.
# Of repeated ones the least: what else the machine does only adds to it.
TIMES = ("min", "seconds", "CPU seconds", "trace", "lower", "compile", "sdjax s")
TIME = 1.3
# What says which row it is, words first.
WORDS = ("what", "program", "how", "start", "framework", "sampler", "spacing", "part", "dtype", "beside")
NUMBERS = ("guidance", "budget", "batch", "px", "pixels")


def check(
    new: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What a benchmark has written now.")],
    old: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What it had written before.")],
) -> None:
    """Name what got worse between two runs of a benchmark; exits with 1 where anything did.

    Errors, memory and ratios are compared as they are; times with the other times of their run, so that neither a
    slower nor a busier machine counts: a row has got slower where it did so by 30 % more than the file as a whole.
    """
    before, now = by_name(load_rows(old)), by_name(load_rows(new))
    if not before.keys() & now.keys():
        raise InputError(f"{new} and {old} have no row in common: are they of one benchmark?")
    missing = [name for name in before if name not in now]
    worse = list(compared(before, now))
    tell = console().print
    if missing:
        tell(f"{len(missing)} of {len(before)} rows are missing: {'; '.join(missing[:5])}{' ...' * (len(missing) > 5)}")
    if worse:
        tell(table_of(worse))
    pace = pace_of(before, now)
    if pace is not None:
        tell(f"all times together: {pace:.2f} of what they were")
    if missing or worse:
        raise typer.Exit(1)
    tell(f"nothing got worse in {len(before)} rows")


def by_name(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows by what they are of."""
    named = {}
    for row in rows:
        said = [str(row[key]) for key in WORDS if row.get(key)] + [f"{key} {row[key]}" for key in NUMBERS if key in row]
        missed = {"missed": 1 - row["all"]} if "all" in row else {}
        missed |= {"clip missed": 100 - row["clip"]} if "clip" in row else {}
        named[", ".join(said)] = row | missed
    return named


def compared(before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A line for everything that got worse."""
    pace = pace_of(before, now)
    for name in (name for name in before if name in now):
        then, after = before[name], now[name]
        for what, (factor, slack) in ALLOWED.items():
            # Of a sampler that draws noise the error is what is left of two distances: those are compared.
            if what not in then or what not in after or (what == "error" and "wasserstein" in then):
                continue
            if after[what] > (limit := then[what] * factor + slack):
                yield line(name, what, then[what], after[what], limit)
        for what in times_of(then, after):
            if after[what] > (limit := TIME * (pace or 1.0) * then[what]):
                yield line(name, what, then[what], after[what], limit)


def line(name: str, what: str, then: float, after: float, limit: float) -> dict[str, Any]:
    return {"row": name, "what": what, "before": then, "now": after, "allowed": limit}


def times_of(then: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The times that both rows tell."""
    return [what for what in TIMES if then.get(what) and what in after]


def pace_of(before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> float | None:
    """How long all takes now against then: the median of the ratios; None where there are no times."""
    common = [(before[name], now[name]) for name in before if name in now]
    ratios = [after[what] / then[what] for then, after in common for what in times_of(then, after)]
    return statistics.median(ratios) if ratios else None
