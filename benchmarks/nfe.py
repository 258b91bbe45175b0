"""Evaluations of the network against error: every sampler and spacing on the model whose answer is known."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import jax
import numpy as np
import typer

from benchmarks.mixture import DIMENSIONS, exact_ends, run, samples, scheduler_for
from benchmarks.plots import PlotOption, error_curves
from benchmarks.report import JsonOption, publish
from sdjax import schedulers
from sdjax.errors import InputError
from sdjax.schedulers import SOLVERS, SPACINGS

BUDGETS = (4, 5, 6, 8, 10, 12, 15, 20, 25, 50, 100, 200)
SHOWN = (5, 10, 20, 50, 200)
# An inversion goes the other way; the two others are for networks that were distilled to jump.
OF_ANOTHER_KIND = ("ddim_inverse", "lcm", "tcd")
PROJECTIONS = 128
FLOOR = 1e-4  # errors below it are float32's, and tell nothing of the order
AT_ONCE = 128  # plans that run side by side


def nfe(
    count: Annotated[int, typer.Option(min=16, help="Samples of every run.")] = 512,
    solvers: Annotated[str | None, typer.Option(help="Only these, with commas between them.")] = None,
    json_file: JsonOption = None,
    plot_file: PlotOption = None,
) -> None:
    """Every sampler and spacing on a Gaussian mixture whose exact answer is known, at 4 to 200 evaluations.

    Deterministic samplers: the median distance from where the exact flow carries the same noise, relative to the
    data's deviation, and the fitted order. Stochastic ones draw other samples of the same data: the sliced Wasserstein
    distance from the data, less what two samples of the data themselves are apart. Of each sampler the table shows the
    spacing that is best at 20 evaluations; the JSON holds all.
    """
    names = solvers.split(",") if solvers else [name for name in SOLVERS if name not in OF_ANOTHER_KIND]
    rows = measure(names, count)
    publish("nfe", table(rows), json_file, f"{len(rows)} runs of {count} samples in {DIMENSIONS} dimensions", rows)
    if plot_file is not None:
        error_curves(rows, plot_file)


def measure(names: Sequence[str], count: int) -> list[dict[str, Any]]:
    """One row for each solver, spacing and budget that there is a plan for."""
    noise = np.random.default_rng(1).standard_normal((count, DIMENSIONS))
    exact = exact_ends(noise, scheduler_for("euler", "linspace"))
    data, others = samples(count, 2), samples(count, 3)
    floor = sliced_wasserstein(data[None], others)[0]
    planned = [(row, plan) for name in names for spacing in SPACINGS for row, plan in plans(name, spacing)]
    rows = []
    for i in range(0, len(planned), AT_ONCE):
        group = planned[i : i + AT_ONCE]
        stacked = schedulers.stack([plan.padded(256) for _, plan in group + group[-1:] * (AT_ONCE - len(group))])
        # All from sigma * noise. Some schedulers of diffusers begin with sqrt(1 + sigma^2), which is 0.2 % more.
        first = stacked.sigmas[:, 0] / np.sqrt(1 + stacked.sigmas[:, 0] ** 2)
        x = (first[:, None, None, None] * noise[None, :, None]).astype(np.float32)
        ends = np.asarray(run(stacked, x, jax.random.split(jax.random.key(i), AT_ONCE)))[:, :, 0]
        apart = sliced_wasserstein(ends[: len(group)], data)
        for (row, _), end, distance in zip(group, ends, apart):
            error = np.linalg.norm(end - exact, axis=-1) / np.sqrt(DIMENSIONS)
            quartiles = np.quantile(error, [0.25, 0.5, 0.75])
            value = max(distance - floor, 0.0) if row["stochastic"] else quartiles[1]
            rows.append(row | {"error": float(value), "quartiles": quartiles.tolist(), "wasserstein": float(distance)})
    return rows


def plans(name: str, spacing: str) -> Iterator[tuple[dict[str, Any], schedulers.Plan]]:
    """For every budget, the plan with as many steps as it affords; none where that is as many as for a smaller one."""
    scheduler, seen = scheduler_for(name, spacing), 0
    cost = int(scheduler.plan(20).nfe) / 20  # of a step, about
    for budget in BUDGETS:
        plan, steps = None, 0
        for candidate in range(min(budget, int(budget / cost) + 2), 0, -1):
            try:
                plan, steps = scheduler.plan(candidate), candidate
            except InputError:  # this solver takes no such number of steps
                continue
            if plan.nfe <= budget:
                break
        if plan is not None and plan.nfe <= budget and steps > seen:
            seen = steps
            about = {"sampler": name, "spacing": spacing, "stochastic": SOLVERS[name].stochastic, "budget": budget}
            yield about | {"steps": steps, "nfe": int(plan.nfe)}, plan


def sliced_wasserstein(ends: np.ndarray, data: np.ndarray) -> np.ndarray:
    """The mean distance [runs] between samples [runs, count, d] and data [count, d] along random directions.

    Bonneel et al. (2015), "Sliced and Radon Wasserstein barycenters of measures", with the first power of the distance.
    """
    directions = np.random.default_rng(4).standard_normal((DIMENSIONS, PROJECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    return np.abs(np.sort(ends @ directions, axis=1) - np.sort(data @ directions, axis=0)).mean((1, 2))


def order(rows: Sequence[dict[str, Any]]) -> float | None:
    """How fast the error falls: the slope of its logarithm over that of the steps, where it is not float32's yet."""
    usable = [(row["steps"], row["error"]) for row in rows if row["steps"] >= 20 and row["error"] > FLOOR]
    if len(usable) < 3 or rows[0]["stochastic"]:
        return None
    steps, errors = np.log(np.array(usable)).T
    return float(-np.polyfit(steps, errors, 1)[0])


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each sampler the spacing that is best at 20 evaluations."""
    shown = []
    for name in dict.fromkeys(row["sampler"] for row in rows):
        own = [row for row in rows if row["sampler"] == name]
        best = min((row for row in own if row["budget"] == 20), key=lambda row: row["error"], default=own[-1])
        line = [row for row in own if row["spacing"] == best["spacing"]]
        errors = {row["budget"]: row["error"] for row in line}
        fitted = order(line)
        shown.append(
            {"sampler": name, "spacing": best["spacing"]}
            | {f"{budget} NFE": errors.get(budget, "") for budget in SHOWN}
            | {"order": "" if fitted is None else f"{fitted:.2f}", "kind": "noise" if best["stochastic"] else ""}
        )
    return shown
