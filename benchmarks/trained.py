"""Evaluations of the network against quality, on a trained model: the embedded one, or any other with prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track

import sdjax
from benchmarks.budgets import affordable
from benchmarks.frechet import SceneSpace
from benchmarks.plots import PlotOption, quality_curves
from benchmarks.report import JsonOption, console, publish, table_of
from benchmarks.scenes import Scene, draw_scene, render
from benchmarks.scorer import facts_that_hold, read_picture
from sdjax.arguments import Picture
from sdjax.errors import InputError
from sdjax.pipeline import Pipeline
from sdjax.schedulers import SOLVERS
from sdjax.schedulers.names import parse_sampler

SAMPLERS = (
    "ddim leading,ddim trailing,heun trailing,dpmpp_2m karras,dpmpp_2m trailing,unipc trailing,dpmpp_2m_sde trailing"
)
REFERENCE = "dpmpp_2m", "trailing"


@dataclass(frozen=True)
class Run:
    """A sampler's way of making pictures with so many evaluations of the network."""

    sampler: str
    spacing: str
    guidance: float
    budget: int
    steps: int
    nfe: int

    @property
    def stochastic(self) -> bool:
        return SOLVERS[self.sampler].stochastic

    def picture(self, prompt: str, seed: int) -> Picture:
        return Picture(
            prompt,
            seed=seed,
            sampler=self.sampler,
            spacing=self.spacing,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
        )


def trained(
    model: Annotated[str, typer.Option(help="As for `sdjax generate`; facts are read of the embedded one alone.")] = "",
    prompts: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="For a model of your own: a prompt in each line.")
    ] = None,
    samplers: Annotated[str, typer.Option(help="Samplers with their spacings, with commas between them.")] = SAMPLERS,
    budgets: Annotated[str, typer.Option(help="Evaluations that a picture may take.")] = "5,10,20,50",
    guidance: Annotated[str, typer.Option(help="The scales at which errors are measured.")] = "1,3,7.5",
    read_at: Annotated[float, typer.Option(help="The scale at which the facts of pictures are read.")] = 3.0,
    pictures: Annotated[int, typer.Option(min=16, help="How many are read, of each sampler and budget.")] = 48,
    references: Annotated[int, typer.Option(min=1, help="How many are compared with converged ones.")] = 4,
    reference_steps: Annotated[int, typer.Option(min=100, max=999, help="Evaluations of the converged ones.")] = 999,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 16,
    json_file: JsonOption = None,
    plot_file: PlotOption = None,
) -> None:
    """Samplers and numbers of evaluations on a trained model.

    RMSE: how far latents are from those of a converged run from the same noise, the median over pictures, in units of
    the latents; of samplers that draw no noise. Facts: the share of captions all of whose facts hold in the picture.
    Fréchet: the distance of the pictures, as a set, from rendered scenes; what as many rendered ones have is its floor.

    With --pictures 24 --reference-steps 500 it took 14 minutes of processor time; the default is about twice as much.
    For a model of your own, RMSE alone: --model DIR --prompts FILE.
    """
    if bool(model) != (prompts is not None):
        raise InputError(
            "a model of your own needs --prompts too, and the embedded one has captions: give both, or none"
        )
    scales, sizes = numbers("--guidance", guidance), [int(budget) for budget in numbers("--budgets", budgets)]
    kinds = [parse_sampler(name.strip()) for name in samplers.split(",")]
    if prompts is not None:
        texts, scenes = lines_of(prompts), None
    else:
        scenes = [draw_scene(np.random.default_rng([0, i])) for i in range(pictures)]
        texts = [str(scene.facts) for scene in scenes]
        scales = sorted({*scales, read_at})
    pipe = sdjax.load(model or "shapes")
    runs = planned(pipe, kinds, sizes, scales, read_at if scenes else None)
    count = {run: len(texts) if scenes and run.guidance == read_at else min(references, len(texts)) for run in runs}
    latents = latents_of(pipe, count, texts, batch)
    first = min(references, len(texts))
    # They have a program of their own, since their tables are longer; so its batch can be as large as they are many.
    converged = [Run(*REFERENCE, scale, reference_steps, reference_steps, reference_steps) for scale in scales]
    latents |= latents_of(pipe, dict.fromkeys(converged, first), texts, first)
    rows = [errors(run, latents[run], latents[converged[scales.index(run.guidance)]]) for run in runs]
    note = f"{model or 'shapes'}; errors: {first} pictures, against {reference_steps} evaluations"
    if scenes is not None:
        rows = with_facts(pipe, runs, rows, latents, scenes, read_at, batch)
        for title, what in (("Captions all of whose facts hold", "all"), ("Fréchet distance", "frechet")):
            console().print(table_of(table(rows, what), title))
        note += (
            f"; of rendered scenes {rows[-1]['all']:.0%} hold, and their Fréchet distance is {rows[-1]['frechet']:.1f}"
        )
    publish("trained", table(rows, "rmse") or table(rows, "all"), json_file, note, rows)
    if plot_file is not None:
        quality_curves(rows, plot_file)


def numbers(option: str, named: str) -> list[float]:
    """The numbers in a list with commas. Raises InputError for what is none."""
    try:
        found = [float(part) for part in named.split(",")]
    except ValueError:
        raise InputError(f"{option} is a list of numbers with commas between them, not {named!r}") from None
    if not all(number > 0 for number in found):
        raise InputError(f"{option} has numbers above 0, not {named!r}")
    return found


def lines_of(file: Path) -> list[str]:
    """The lines of a file that hold anything."""
    lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{file} holds no prompt: write one in each line")
    return lines


def planned(
    pipe: Pipeline,
    kinds: Sequence[tuple[str, str | None]],
    budgets: Sequence[int],
    scales: Sequence[float],
    read_at: float | None,
) -> list[Run]:
    """The runs that there is a plan for; of samplers that draw noise, only those whose pictures are read."""
    runs = []
    for sampler, spacing in kinds:
        scheduler = pipe.scheduler.with_solver(sampler, spacing or "leading")
        taken = set()
        for budget in budgets:
            found = affordable(scheduler, budget)
            if found is None or found[0] in taken:
                continue
            taken.add(found[0])
            told = [scale for scale in scales if scale == read_at or not SOLVERS[sampler].stochastic]
            runs += [Run(sampler, spacing or "leading", scale, budget, found[0], int(found[1].nfe)) for scale in told]
    if not runs:
        raise InputError(
            "these samplers draw noise at every step, or none of them has a plan for such budgets: name others"
        )
    return runs


def latents_of(pipe: Pipeline, count: dict[Run, int], texts: Sequence[str], batch: int) -> dict[Run, np.ndarray]:
    """Of each run the latents [pictures, height, width, channels] of its first pictures, seeds 0, 1, ...

    Pictures of many samplers make up a batch: one program draws them all. Those with as many evaluations run together,
    since a batch takes as long as its longest.
    """
    jobs = [(run, i) for run, pictures in count.items() for i in range(pictures)]
    jobs.sort(key=lambda job: (job[0].guidance == 1, job[0].nfe))
    found: dict[tuple[Run, int], np.ndarray] = {}
    for start in track(range(0, len(jobs), batch), "pictures"):
        group = jobs[start : start + batch]
        filled = group + group[-1:] * (batch - len(group))
        drawn = pipe.draw([run.picture(texts[i], i) for run, i in filled], output_type="latent").images
        found |= dict(zip(group, np.asarray(drawn)))
    return {run: np.stack([found[run, i] for i in range(pictures)]) for run, pictures in count.items()}


def errors(run: Run, latents: np.ndarray, converged: np.ndarray) -> dict[str, Any]:
    """The row of a run: what it is, and how far its latents are from the converged ones."""
    row = {
        name: getattr(run, name) for name in ("sampler", "spacing", "stochastic", "guidance", "budget", "steps", "nfe")
    }
    if run.stochastic:
        return row
    apart = np.sqrt(((latents[: len(converged)] - converged) ** 2).mean((1, 2, 3)))
    quartiles = np.quantile(apart, [0.25, 0.5, 0.75]).tolist()
    return row | {"rmse": quartiles[1], "quartiles": quartiles}


def with_facts(
    pipe: Pipeline,
    runs: Sequence[Run],
    rows: Sequence[dict[str, Any]],
    latents: dict[Run, np.ndarray],
    scenes: Sequence[Scene],
    read_at: float,
    batch: int,
) -> list[dict[str, Any]]:
    """Rows with what the pictures show; behind them a row of the same scenes, rendered."""
    space = SceneSpace()
    rendered = [np.asarray(render(scene, np.random.default_rng(i))) / 255 for i, scene in enumerate(scenes)]
    read = {"sampler": "rendered", "spacing": "", "budget": 0} | shown(np.stack(rendered), scenes, space)
    found = []
    for run, row in track(list(zip(runs, rows)), "reading"):
        if run.guidance != read_at:
            found.append(row)
            continue
        pixels = []
        for start in range(0, len(scenes), batch):
            group = latents[run][start : start + batch]
            filled = np.concatenate([group, np.zeros((batch - len(group), *group.shape[1:]), group.dtype)])
            pixels.append(np.asarray(pipe.autoencoder.decode(filled))[: len(group)])
        found.append(row | shown(np.concatenate(pixels), scenes, space))
    return [*found, read]


def shown(pixels: np.ndarray, scenes: Sequence[Scene], space: SceneSpace) -> dict[str, Any]:
    """What pictures [n, 64, 64, 3] in [0, 1] show of their scenes: the share of each fact that holds, and of all."""
    held = [facts_that_hold(scene.facts, read_picture(picture)) for scene, picture in zip(scenes, pixels)]
    names = dict.fromkeys(fact for facts in held for fact in facts)
    shares = {fact: float(np.mean([facts[fact] for facts in held if fact in facts])) for fact in names}
    whole = float(np.mean([all(facts.values()) for facts in held]))
    return {"pictures": len(held), "all": whole, "facts": shares, "frechet": space.distance(pixels)}


def table(rows: Sequence[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    """A line for each sampler and scale, with a column for each budget."""
    rows = [row for row in rows if what in row and "guidance" in row]
    budgets = sorted({row["budget"] for row in rows})
    lines: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        key = (row["sampler"], row["spacing"], row["guidance"])
        empty = dict(zip(("sampler", "spacing", "guidance"), key)) | {f"{budget} NFE": "" for budget in budgets}
        lines.setdefault(key, empty)[f"{row['budget']} NFE"] = row[what]
    return list(lines.values())
