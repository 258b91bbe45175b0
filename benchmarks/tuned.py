"""A plan that is fitted, beside every sampler on every spacing, on the model whose answer is known."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from rich.progress import Progress

from benchmarks.mixture import DIMENSIONS, denoised, exact_ends, exact_way, scheduler_for
from benchmarks.nfe import OF_ANOTHER_KIND, SAME_OR_FOREIGN, chosen, measure
from benchmarks.report import JsonOption, publish
from benchmarks.trained import numbers
from sdjax.files.plans import read_plan
from sdjax.schedulers import SOLVERS, SPACINGS, of_timesteps
from sdjax.schedulers.tuned import TunedPlan
from sdjax.training.fit import Intervals, Run, train
from sdjax.training.following import Way, root_mean_square
from sdjax.training.plans import First
from sdjax.training.step import Settings
from sdjax.training.teacher import Taught
from sdjax.training.tuning import Tuning, fitting_task

TAUGHT, HELD_OUT = 100, 1  # seeds; the second is that of `benchmarks nfe`
BATCH = 256


def tuned(
    count: Annotated[
        int, typer.Option(min=BATCH, help="Samples that are fitted to, and others that are judged.")
    ] = 512,
    budgets: Annotated[str, typer.Option(help="Evaluations that a sample may take.")] = "4,5,6,8,10",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the fit.")] = 2000,
    json_file: JsonOption = None,
) -> None:
    """Plans fitted to a Gaussian mixture, beside the best of all samplers and spacings at as many evaluations.

    Error: the median distance from where the exact flow carries the same noise, relative to the data's deviation, of
    samples that nothing was fitted to. `benchmarks trained --samplers tuned,...` is the same for a trained model.
    """
    sizes = sorted(map(int, numbers("--budgets", budgets)))
    rows = measure(chosen(None, SOLVERS, OF_ANOTHER_KIND), chosen(None, SPACINGS, SAME_OR_FOREIGN), count, sizes)
    exact = scheduler_for("euler", "linspace")
    noise, others = (np.random.default_rng(seed).standard_normal((count, DIMENSIONS)) for seed in (TAUGHT, HELD_OUT))
    way = _way(noise)
    taught = Taught(_examples(noise, way.samples[-1, :, 0, 0]), way)
    held_out = _examples(others, exact_ends(others, exact))
    found = []
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as progress:
        for budget in sizes:
            known = [row for row in rows if row["nfe"] <= budget and not row["stochastic"]]
            known.sort(key=lambda row: row["error"], reverse=True)  # with fewer evaluations some are better
            by_hand = {f"{row['sampler']} {row['spacing']}": row["error"] for row in known}
            task = progress.add_task(f"{budget} evaluations", total=steps)
            tuning = Tuning(_mixture, exact.noise, (_first(budget),))

            def report(stage: str, done: int, total: int, text: str | None, task=task) -> None:
                progress.update(task, completed=done)

            fitted = fitting_task(tuning, (), [1.0], {"nfe": budget}, lambda run: taught, count)
            settings = Settings(steps, BATCH, 0.1, 20, ema_decay=0, cosine_decay=True)
            path = train(fitted, Run(Path(folder) / str(budget), settings, Intervals(100, steps), report))
            found.append(compared(budget, by_hand, _error(read_plan(path), held_out)))
    publish("tuned", found, json_file, f"{count} samples in {DIMENSIONS} dimensions; {len(rows)} runs by hand")


def compared(budget: int, by_hand: Mapping[str, float], tuned: float) -> dict[str, Any]:
    """A row of the table: errors of samplers by their names, and of a tuned plan."""
    best = min(by_hand, key=by_hand.__getitem__)
    row = {"NFE": budget, "best by hand": best, "its error": by_hand[best], "tuned": tuned}
    return row | {"tuned over best": tuned / by_hand[best]}


def _first(rows: int) -> First:
    levels = np.geomspace(scheduler_for("euler", "linspace").noise.sigmas[-1], 0.1, rows)
    return First("geometric", np.log(levels), scheduler_for("euler", "linspace").noise.timestep(levels))


def _examples(noise: np.ndarray, ends: np.ndarray) -> list[dict[str, Any]]:
    pairs = zip(noise[:, None, None].astype(np.float32), ends[:, None, None].astype(np.float32))
    return [{"noise": first, "target": end, "knot": np.int32(0)} for first, end in pairs]


def _way(noise: np.ndarray) -> Way:
    exact = scheduler_for("euler", "linspace")
    levels = np.geomspace(*exact.noise.sigmas[[-1, 0]], 60)
    samples = exact_way(noise, exact, levels)
    ends = denoised(samples[-1], levels[-1], np)
    return Way(levels, np.concatenate([samples, ends[None]])[:, :, None, None])


def _mixture(frozen: Any, batch: Any, factors: Any) -> Any:
    sigmas = jnp.asarray(scheduler_for("euler", "linspace").noise.sigmas, jnp.float32)

    def model(x: jax.Array, timesteps: jax.Array) -> jax.Array:
        sigma = jnp.interp(timesteps, jnp.arange(len(sigmas)), sigmas)[:, None, None, None]
        return denoised(x * jnp.sqrt(1 + sigma**2), sigma)

    return of_timesteps(model)


def _error(plan: TunedPlan, examples: list[dict[str, Any]]) -> float:
    """The median error of a plan, through the loop that draws."""
    from sdjax import schedulers

    table = plan.at(1.0)
    scheduler = scheduler_for("euler", "linspace").with_table(plan, 1.0)
    written = scheduler.plan(sigmas=[*table.levels, 0.0])
    stacked = {name: np.stack([example[name] for example in examples]) for name in ("noise", "target")}
    model = _mixture((), None, None)
    noise = schedulers.noise_source(stacked["noise"].shape, None)
    state = schedulers.init_state(written, stacked["noise"])
    ends = schedulers.result(written, schedulers.advance(written, state, model, noise, len(table.levels)))
    return float(np.median(root_mean_square(np.asarray(ends) - stacked["target"])))
