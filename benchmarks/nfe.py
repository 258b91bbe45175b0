"""Evaluations of the network against error: every sampler and spacing on the model whose answer is known."""

from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any

import jax
import numpy as np
import typer
from rich.progress import track

from benchmarks.budgets import affordable
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
# Without options of their own the first two are `exponential`; the other is for another model's levels.
SAME_OR_FOREIGN = ("polyexponential", "lu", "align_your_steps_xl")
SMOOTH = "exponential"  # the spacing on which the order is fitted: even in the logarithm of sigma
PROJECTIONS = 64
FLOOR = 1e-4  # errors below it are float32's, and tell nothing of the order
AT_ONCE, TABLE = 128, 256  # plans that run side by side; rows of their tables


def nfe(
    count: Annotated[int, typer.Option(min=16, help="Samples of every run.")] = 512,
    solvers: Annotated[str | None, typer.Option(help="Only these, with commas between them.")] = None,
    spacings: Annotated[str | None, typer.Option(help="Only these, with commas between them.")] = None,
    json_file: JsonOption = None,
    plot_file: PlotOption = None,
) -> None:
    """Every sampler and spacing on a Gaussian mixture whose exact answer is known, at 4 to 200 evaluations.

    Deterministic samplers: the median distance from where the exact flow carries the same noise, relative to the
    data's deviation; and the order, fitted on the spacing `exponential`. Stochastic ones draw other samples of the same
    data: the sliced Wasserstein distance from the data, less what two samples of the data themselves are apart. Of each
    sampler the table shows the spacing that is best at 20 evaluations; the JSON holds all.
    """
    rows = measure(chosen(solvers, SOLVERS, OF_ANOTHER_KIND), chosen(spacings, SPACINGS, SAME_OR_FOREIGN), count)
    publish("nfe", table(rows), json_file, f"{len(rows)} runs of {count} samples in {DIMENSIONS} dimensions", rows)
    if plot_file is not None:
        error_curves(rows, plot_file)


def chosen(named: str | None, known: Collection[str], left_out: Collection[str]) -> list[str]:
    """The names in a list with commas; where there is none, all that are known but some."""
    if named is None:
        return [name for name in known if name not in left_out]
    names = [name.strip() for name in named.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"unknown name {unknown[0]!r}; known: {', '.join(known)}")
    return names


def measure(
    names: Sequence[str], spacings: Sequence[str], count: int, budgets: Sequence[int] = BUDGETS
) -> list[dict[str, Any]]:
    """One row for each solver, spacing and budget that there is a plan for."""
    noise = np.random.default_rng(1).standard_normal((count, DIMENSIONS))
    exact = exact_ends(noise, scheduler_for("euler", "linspace"))
    data, others = samples(count, 2), samples(count, 3)
    floor = sliced_wasserstein(others, data)
    planned = [each for name in track(names, "plans") for spacing in spacings for each in plans(name, spacing, budgets)]
    planned.sort(key=lambda each: each[0]["nfe"])  # a batch runs as long as its longest

    def measured(row: dict[str, Any], end: np.ndarray) -> dict[str, Any]:
        if row["stochastic"]:
            distance = sliced_wasserstein(end, data)
            return row | {"error": max(distance - floor, 0.0), "wasserstein": distance, "floor": floor}
        quartiles = np.quantile(np.linalg.norm(end - exact, axis=-1) / np.sqrt(DIMENSIONS), [0.25, 0.5, 0.75]).tolist()
        return row | {"error": quartiles[1], "quartiles": quartiles}

    rows = []
    for i in track(range(0, len(planned), AT_ONCE), "runs"):
        group = planned[i : i + AT_ONCE]
        rows += [measured(row, end) for (row, _), end in zip(group, ends([plan for _, plan in group], noise))]
    return sorted(rows, key=lambda row: (names.index(row["sampler"]), spacings.index(row["spacing"]), row["nfe"]))


def ends(plans: Sequence[schedulers.Plan], noise: np.ndarray) -> np.ndarray:
    """Where plans, AT_ONCE or fewer, bring standard-normal noise [count, DIMENSIONS]: [plans, count, DIMENSIONS]."""
    filled = [*plans, *plans[-1:] * (AT_ONCE - len(plans))]
    stacked = schedulers.stack([plan.padded(TABLE) for plan in filled])
    # All from sigma * noise. Some schedulers of diffusers begin with sqrt(1 + sigma^2), which is 0.2 % more.
    first = stacked.sigmas[:, 0] / np.sqrt(1 + stacked.sigmas[:, 0] ** 2)
    x = (first[:, None, None, None] * noise[None, :, None]).astype(np.float32)
    keys = jax.numpy.stack([jax.random.key(0)] * AT_ONCE)  # the same for all, whatever they run beside
    return np.asarray(run(stacked, x, keys))[: len(plans), :, 0]


def plans(name: str, spacing: str, budgets: Sequence[int]) -> Iterator[tuple[dict[str, Any], schedulers.Plan]]:
    """For every budget, the plan with as many steps as it affords; none where that is as many as for a smaller one."""
    scheduler, seen = scheduler_for(name, spacing), 0
    for budget in budgets:
        found = affordable(scheduler, budget)
        if found is not None and found[0] > seen:
            seen, plan = found
            about = {"sampler": name, "spacing": spacing, "stochastic": SOLVERS[name].stochastic, "budget": budget}
            yield about | {"steps": seen, "nfe": int(plan.nfe)}, plan


def sliced_wasserstein(some: np.ndarray, others: np.ndarray) -> float:
    """The mean distance between two sets of samples, each [count, DIMENSIONS], along random directions.

    Bonneel et al. (2015), "Sliced and Radon Wasserstein barycenters of measures", with the first power of the distance.
    """
    directions = np.random.default_rng(4).standard_normal((DIMENSIONS, PROJECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    return float(np.abs(np.sort(some @ directions, axis=0) - np.sort(others @ directions, axis=0)).mean())


def order(rows: Sequence[dict[str, Any]]) -> float | None:
    """How fast the error falls: the slope of its logarithm over that of the steps, from 10 steps on.

    Errors that are float32's own, or near where a sampler comes to rest, are left out: some end at another level than
    the exact answer does, 0.003 apart.
    """
    floor = max(FLOOR, 3 * min((row["error"] for row in rows), default=0.0))
    usable = [(row["steps"], row["error"]) for row in rows if row["steps"] >= 10 and row["error"] > floor]
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
        fitted = order([row for row in own if row["spacing"] == SMOOTH])
        shown.append(
            {"sampler": name, "spacing": best["spacing"]}
            | {f"{budget} NFE": errors.get(budget, "") for budget in SHOWN}
            | {"order": "" if fitted is None else f"{fitted:.2f}", "kind": "noise" if best["stochastic"] else ""}
        )
    return shown
