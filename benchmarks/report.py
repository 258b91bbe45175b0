"""How every benchmark tells its results: a table for people, and the same numbers as JSON with what they depend on."""

import datetime
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

PACKAGES = ("sdjax", "jax", "jaxlib", "flax", "numpy", "transformers", "torch", "diffusers")

LOAD = os.getloadavg()[0]  # before the benchmark adds its own


def in_a_folder(file: Path | None) -> Path | None:
    if file is not None and not file.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {file.parent}")
    return file


JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", dir_okay=False, callback=in_a_folder, help="Also write the numbers to a file."
    ),
]


def publish(
    benchmark: str,
    rows: Sequence[dict[str, Any]],
    json_file: Path | None,
    note: str = "",
    all_rows: Sequence[dict[str, Any]] | None = None,
) -> None:
    """Prints `rows`, which have the same keys, as a table with `note` below it; writes them where a file is named.

    all_rows: what is written instead, where the table shows a part only.
    """
    out = console()
    out.print(table_of(rows))
    if note:
        out.print(f"\n{note}", markup=False, highlight=False, soft_wrap=True)
    if LOAD > 0.5:
        out.print(f"\nThe machine was busy before (load {LOAD:.1f}): on a quiet one, the numbers may be others.")
    if json_file is not None:
        write_json(json_file, benchmark, {"rows": all_rows or rows, "note": note})
        out.print(f"\nwritten to {json_file}", markup=False, highlight=False, soft_wrap=True)


def write_json(file: Path, benchmark: str, found: dict[str, Any]) -> None:
    """Writes what a benchmark has found, with what it depends on."""
    about = {"benchmark": benchmark, "command": _command(), "date": _now(), "machine": machine()}
    file.write_text(json.dumps({**about, "versions": versions(), **found}, indent=2) + "\n")


def console() -> Console:
    """Where results are printed; into a file, lines are as long as they need to be."""
    return Console(width=None if sys.stdout.isatty() else 120)


def table_of(rows: Sequence[dict[str, Any]], title: str | None = None) -> Table:
    """Rows that have the same keys, as a table for a terminal."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    return table


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median of repeated measurements, and the least and the largest of them."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def machine() -> dict[str, Any]:
    """What the numbers were measured on; `load` is how many processes wanted to run in the minute before."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return {"cpu": _cpu_name(), "cores": len(usable), "system": platform.platform(), "load": LOAD}


def versions() -> dict[str, str]:
    """Python's version and those of the packages that matter, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # only Linux has it
        return platform.processor()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def _command() -> str:
    return shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
