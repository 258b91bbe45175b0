"""`sdjax tune`: a sampler fitted to a model, for few evaluations."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sdjax.cli.progress import progress_bars
from sdjax.cli.run_settings import train_in, with_settings
from sdjax.errors import InputError
from sdjax.training.usual import BEGUN_ON, PACE

if TYPE_CHECKING:
    from sdjax.training.fit import Intervals, Task
    from sdjax.training.step import Settings
    from sdjax.training.teacher import Lesson


@with_settings("weight_decay", **PACE, save_every=10, log_every=5)
def tune(
    *,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for --model of `sdjax generate`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The plan's file, its name ends in .json.")],
    prompts: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="A prompt in each line, as pictures will be asked for; for models that read prompts.",
        ),
    ] = None,
    nfe: Annotated[int, typer.Option(min=2, max=64, help="Evaluations of the network that a picture may take.")] = 5,
    guidance: Annotated[str, typer.Option(help="Guidance scales to fit, rising; what lies between is fitted too.")] = (
        "1,3,7.5"
    ),
    pictures: Annotated[int, typer.Option(min=1, help="Pictures of the teacher, from the prompts in turn.")] = 96,
    teacher: Annotated[int, typer.Option(min=20, max=999, help="Evaluations that each of them takes.")] = 100,
    spacing: Annotated[
        str,
        typer.Option(
            help="The levels to begin with; of several, with commas between them, at each scale those that do best."
        ),
    ] = BEGUN_ON,
    method: Annotated[
        Literal["fit", "gits"],
        typer.Option(help="By gradient; or GITS (arXiv:2405.11326), which finds levels alone, in the teacher's time."),
    ] = "fit",
    objective: Annotated[
        Literal["latents", "relaxed", "decoded"],
        typer.Option(
            help="What is made small: the distance of the latents; that from noise nearby, as S4S; or that which the "
            "VAE's decoder sees, as LPIPS."
        ),
    ] = "latents",
    gas: Annotated[
        Path | None,
        typer.Option(
            "--gas",
            exists=True,
            dir_okay=False,
            metavar="FILE",
            help="Fit nothing: write the solver in a checkpoint of GAS (arXiv:2510.17699) as a plan.",
        ),
    ] = None,
    settings: "Settings",
    intervals: "Intervals",
) -> None:
    """Fit a sampler to a model: its noise levels, time inputs, weights and guidance, for so many evaluations.

    A teacher draws pictures with many evaluations; a plan is laid along its way, and by natural gradient learns to draw
    the same from the same noise. It is then a sampler like others: --sampler FILE.json; in the model's folder `plans`,
    --sampler tuned finds it. A model of pixels (`sdjax train ddpm`) needs no prompts.

    Stopped and begun again it goes on; log and curve are in a folder beside the file.

    [bold]Examples[/bold]

    sdjax tune sd15 --nfe 6 --prompts prompts.txt -o sd15-6.json

    sdjax tune ./run/model-20000 --nfe 6 -o ddpm-6.json
    """
    from sdjax import load
    from sdjax.files.gas import read_gas
    from sdjax.files.plans import write_plan
    from sdjax.schedulers.names import parse_spacing
    from sdjax.training.gits import gits_plan
    from sdjax.training.tuning import tuning_task

    if output.suffix != ".json":
        raise InputError(f"{output}: a plan's file has a name that ends in .json")
    if gas is not None:
        write_plan(read_gas(gas, load(model, safety_checker=None).facts.scheduler.noise), output)
        typer.echo(output)
        return
    if nfe >= teacher:
        raise InputError(f"the teacher takes more evaluations than the plan: --teacher above {nfe}")
    spacings = [parse_spacing(name) for name in spacing.split(",")]
    if prompts is None:
        if method == "gits" or objective != "latents":
            raise InputError("--method and --objective are for models that read prompts: give --prompts, or neither")
        task = _of_pixels(model, nfe, spacings, pictures, teacher)
    else:
        lesson = _lesson(prompts, guidance, pictures, teacher)
        pipe = load(model, safety_checker=None)
        if method == "gits":
            with progress_bars() as report:
                write_plan(gits_plan(pipe, lesson, nfe, settings.batch_size, report), output)
            typer.echo(output)
            return
        task = tuning_task(pipe, lesson, nfe, spacings, objective)
    train_in(task, output.with_suffix(""), settings, intervals, output)


def _lesson(prompts: Path, guidance: str, pictures: int, teacher: int) -> "Lesson":
    """What the teacher draws. Refuses what cannot be drawn, before a model is opened."""
    from sdjax.batch.formats import read_rows
    from sdjax.training.teacher import Lesson

    lines = tuple(row["prompt"].strip() for row in read_rows(prompts, "txt") if isinstance(row, dict))
    if not lines:
        raise InputError(f"{prompts} holds no prompt: write one in each line")
    try:
        scales = tuple(float(part) for part in guidance.split(","))
    except ValueError:
        raise InputError(f"--guidance is a list of numbers, such as 1,3,7.5, not {guidance!r}") from None
    if not all(1 <= scale <= 100 for scale in scales) or list(scales) != sorted(set(scales)):
        raise InputError(f"--guidance has scales from 1 to 100 that rise, not {guidance!r}")
    if pictures < len(scales):
        raise InputError(f"--pictures {pictures} are fewer than the guidance scales: give {len(scales)} or more")
    lesson = Lesson(lines, scales, pictures, teacher)
    lesson.drawn()
    return lesson


def _of_pixels(model: str, nfe: int, spacings: list[str], pictures: int, teacher: int) -> "Task":
    """For a model of pixels. Raises InputError for one that reads prompts."""
    from sdjax.convert import resolve
    from sdjax.files.layout import component_classes, read_index
    from sdjax.pipeline.unconditional import UNET, read_pixel_model
    from sdjax.training.pixels import PixelLesson, pixel_tuning_task

    folder = resolve(model)
    if component_classes(read_index(folder), folder).get("unet") != UNET:
        raise InputError(f"{model} reads prompts: give some, one in each line of a file (--prompts FILE)")
    return pixel_tuning_task(read_pixel_model(folder), PixelLesson(pictures, teacher), nfe, spacings)
