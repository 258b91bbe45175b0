"""Hostile input at every door: an error of one line and nothing left, or a right result, in bounded time and memory."""

import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.processes import forget_peak, memory, peak_memory
from benchmarks.report import JsonOption, publish
from sdjax.errors import SdjaxError

SECONDS, MEGABYTES = 5.0, 500.0  # of a case
LONGEST_LINE = 3000
SHARE = {"tokenizer": 0.05, "networks": 0.05, "model": 0.1}  # of the cases, of doors where one takes long


@dataclass
class Door:
    """A door: what comes to it (a hypothesis strategy), and what is done with that in an empty folder.

    work raises SdjaxError or OSError for what it refuses, and AssertionError for a wrong result.
    """

    name: str
    comes: Any
    work: Callable[[Any, Path], None]


@dataclass
class Found:
    """What came of the cases at a door: how they ended, those that are faults, and the worst of them."""

    ends: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    megabytes: float = 0.0


def knock(door: Door, cases: int, seed: int = 0) -> Found:
    """So many cases at a door, in this process."""
    import hypothesis
    from hypothesis import HealthCheck

    found = Found()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=cases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(door.comes)
    def case(value: Any) -> None:
        _try(door, value, found)

    usual = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="doors-") as root:
        tempfile.tempdir = root  # whatever appears beside a case's folder is of that case
        try:
            case()
        finally:
            tempfile.tempdir = usual
    return found


def _try(door: Door, value: Any, found: Found) -> None:
    folder = Path(tempfile.mkdtemp(prefix="door-"))
    forget_peak()
    held, start = memory(), time.process_time()
    fault = ""
    try:
        door.work(value, folder)
        found.ends["right"] += 1
    except (SdjaxError, OSError) as error:
        found.ends["refused"] += 1
        said = str(error)
        if "\n" in said.strip() or len(said) > LONGEST_LINE:
            fault = f"not one line: {said[:300]!r}"
        elif left := [path.name for path in folder.rglob("*") if path.name.startswith(".") or "new" in path.parts]:
            fault = f"left behind: {left}"
    except Exception as error:
        kind = "wrong result" if isinstance(error, AssertionError) else "traceback"
        found.ends[kind] += 1
        frame = traceback.extract_tb(error.__traceback__)[-1]
        fault = f"{kind}: {type(error).__name__}: {str(error)[:200]} ({Path(frame.filename).name}:{frame.lineno})"
    seconds, megabytes = time.process_time() - start, (peak_memory() - held) / 1e6
    found.seconds, found.megabytes = max(found.seconds, seconds), max(found.megabytes, megabytes)
    if seconds > SECONDS or megabytes > MEGABYTES:
        found.ends["slow or large"] += 1
        fault = fault or f"{seconds:.1f} s of processor time, {megabytes:.0f} MB"
    shutil.rmtree(folder, ignore_errors=True)
    if strays := os.listdir(folder.parent):
        found.ends["left behind"] += 1
        fault = fault or f"left behind: {sorted(strays)}"
        for name in strays:
            (folder.parent / name).unlink()
    if fault:
        found.faults.append(f"{door.name}: {fault}; from {str(value)[:300]!r}")


def fuzz(
    cases: Annotated[int, typer.Option(min=1, help="Over all doors.")] = 10_000,
    only: Annotated[str | None, typer.Option(metavar="DOOR", help="One of them.", show_default="all")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what comes.")] = 0,
    json_file: JsonOption = None,
) -> None:
    """Hostile texts, pictures, rows, names, configurations and files: each is read rightly, or refused in one line.

    Counts tracebacks, wrong results, what is left behind, and cases beyond 5 s of processor time or 500 MB.
    """
    from benchmarks.doors import doors

    os.environ["SDJAX_CACHE"] = tempfile.mkdtemp(prefix="fuzz-cache-")
    os.environ["HF_HUB_OFFLINE"] = "1"
    chosen = [door for door in doors() if only in (None, door.name)]
    each = cases / sum(SHARE.get(door.name, 1) for door in chosen)
    rows, faults = [], []
    for door in chosen:
        found = knock(door, max(1, round(each * SHARE.get(door.name, 1))), seed)
        bad = {kind: found.ends[kind] for kind in ("traceback", "wrong result", "left behind", "slow or large")}
        rows.append(
            {
                "door": door.name,
                "cases": found.ends["right"] + found.ends["refused"] + bad["traceback"] + bad["wrong result"],
                "right": found.ends["right"],
                "refused": found.ends["refused"],
                **bad,
                "worst s": round(found.seconds, 2),
                "worst MB": round(found.megabytes),
            }
        )
        faults += found.faults
        print(rows[-1], file=sys.stderr, flush=True)
    for fault in dict.fromkeys(faults):
        print(fault, file=sys.stderr)
    shutil.rmtree(os.environ["SDJAX_CACHE"], ignore_errors=True)
    publish(
        "fuzz", rows, json_file, f"seed {seed}; at most {SECONDS:g} s of processor time and {MEGABYTES:g} MB a case"
    )
    if faults:
        raise typer.Exit(1)
