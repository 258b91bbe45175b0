"""Plans that are fitted to a model of pixels, without prompts and guidance, beside samplers by hand."""

import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import Progress

from benchmarks.report import JsonOption, publish
from benchmarks.runs import REFERENCE, Kind
from benchmarks.trained import numbers
from benchmarks.tuned import compared
from sdjax.pipeline.unconditional import PixelModel, read_pixel_model
from sdjax.training.fit import Intervals, Run, train
from sdjax.training.following import root_mean_square
from sdjax.training.pixels import PixelLesson, pixel_tuning_task
from sdjax.training.step import Settings
from sdjax.training.usual import BEGUN_ON, PACE

BY_HAND = (
    "ddim trailing,ddim leading,ddim kl_optimal,dpmpp_2m trailing,dpmpp_2m karras,dpmpp_2m leading,dpmpp_2m kl_optimal,"
    "dpmpp_3m trailing,dpmpp_3m karras,dpmpp_3m kl_optimal,unipc trailing,unipc karras,unipc kl_optimal,ipndm trailing,"
    "ipndm karras,ipndm kl_optimal,deis trailing,deis karras,deis kl_optimal,euler karras"
)
AT_ONCE = 16


def pixels(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", exists=True, file_okay=False, help="A model of `sdjax train ddpm`.")
    ],
    budgets: Annotated[str, typer.Option(help="Evaluations that a picture may take.")] = "4,5,6,8,10",
    samplers: Annotated[str, typer.Option(help="By hand: with their spacings, with commas between them.")] = BY_HAND,
    pictures: Annotated[int, typer.Option(min=PACE["batch_size"], help="Pictures that are fitted to.")] = 96,
    held_out: Annotated[int, typer.Option(min=AT_ONCE, help="Others, that are judged.")] = 64,
    teacher: Annotated[int, typer.Option(min=20, max=999, help="Evaluations of the pictures fitted to.")] = 100,
    reference_steps: Annotated[int, typer.Option(min=50, max=999, help="Evaluations of those judged by.")] = 300,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the fit.")] = PACE["steps"],
    json_file: JsonOption = None,
) -> None:
    """The table of `tuned` for a model that `sdjax train ddpm` made, such as one of CIFAR-10.

    Error: the median root mean square, in pixels from 0 to 1, of how far pictures are from those that many evaluations
    draw from the same noise.
    """
    sizes, kinds = sorted(map(int, numbers("--budgets", budgets))), [Kind.of(name) for name in samplers.split(",")]
    opened, found = read_pixel_model(model), []
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as progress:
        task = progress.add_task("converged", total=len(sizes))
        sampler, spacing = REFERENCE
        endless = _drawn(opened, held_out, reference_steps, sampler, spacing)

        def error(budget: int, sampler: str, spacing: str | None) -> float:
            return float(np.median(root_mean_square(_drawn(opened, held_out, budget, sampler, spacing) - endless)))

        def report(stage: str, done: int, total: int, text: str | None) -> None:
            progress.update(task, description=f"{budget} evaluations: {text or stage} {done}/{total}")

        for number, budget in enumerate(sizes):
            progress.update(task, completed=number, description=f"{budget} evaluations by hand")
            by_hand = {f"{kind.sampler} {kind.spacing}": error(budget, kind.sampler, kind.spacing) for kind in kinds}
            fitted = pixel_tuning_task(opened, PixelLesson(pictures, teacher), budget, BEGUN_ON.split(","))
            settings = Settings(**PACE | {"steps": steps})
            path = train(fitted, Run(Path(folder) / str(budget), settings, Intervals(100, steps), report))
            found.append(compared(budget, by_hand, error(budget, str(path), None)))
    publish("pixels", found, json_file, f"{model}; {held_out} pictures, against {reference_steps} evaluations")


def _drawn(model: PixelModel, count: int, steps: int, sampler: str, spacing: str | None) -> np.ndarray:
    starts = range(0, count, AT_ONCE)
    return np.concatenate([model.sample(range(i, i + AT_ONCE), steps, sampler, spacing) for i in starts])[:count]
