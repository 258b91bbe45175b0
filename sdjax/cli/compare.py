"""`sdjax compare`: what samplers have made of a picture after so many steps, or pictures by any two settings."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from sdjax.cli import options
from sdjax.cli.axes import LORA, NOTHING, axis_of, cells_of, draw_sheet
from sdjax.cli.interrupt import nothing_to_tidy
from sdjax.cli.output import check_file
from sdjax.cli.painting import Loading, configured
from sdjax.cli.progress import progress_bars
from sdjax.errors import InputError
from sdjax.files.pictures import grid, save_picture
from sdjax.limits import STEPS

SAMPLERS = "euler,euler_ancestral,heun,ddim,dpmpp_2m,unipc"
COLUMNS = (1, 2, 5, 10, 20, 50)


@configured(without=("sampler", "num_inference_steps", "timesteps", "sigmas", "hires_scale"))
def compare(
    *,
    prompt: options.Prompt,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The picture to make: a name that ends in .png, .jpg or .webp.")
    ],
    x: Annotated[
        str | None,
        typer.Option("--x", metavar="NAME=VALUES", help="What the columns differ in, instead of steps."),
    ] = None,
    y: Annotated[
        str | None,
        typer.Option("--y", metavar="NAME=VALUES", help="What the rows differ in, instead of samplers."),
    ] = None,
    samplers: Annotated[
        str | None,
        typer.Option(
            help="A row of the picture for each, with commas between them; with --x or --y the one to use.",
            show_default=f"{SAMPLERS}; with --x or --y the model's own",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, max=STEPS, help="Sampler steps of every run.", show_default="100; with --x or --y the model's own"
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(help="A column after each of these steps, with commas between them.", show_default="1,2,5,10,..."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", "-s", help="The same for all.")] = 0,
    preview_vae: options.PreviewVae = None,
    settings: dict[str, Any],
    loading: Loading,
) -> None:
    """Draw a sheet: the same picture by samplers and steps, or by any two settings.

    Without --x and --y, all samplers start from the same noise, in one batch, and a column shows what they have after
    so many steps. The last one, if it is the last step, is what `sdjax generate` gives.

    With them, an axis is a setting and its values (guidance_scale, steps, sampler, spacing, seed, ...), `lora` and
    scales of the LoRA that --lora loads (`lora:NAME` of several), `control` and scales of the conditions of --control
    (`control:NET`), or `prompt` and texts: the first is searched for in the prompt, and each takes its place in turn.
    Text with commas stands in double quotes.

    [bold]Examples[/bold]

    sdjax compare "a purple ring on a yellow background" --samplers euler,heun,dpmpp_2m --steps 20 -o grid.png

    sdjax compare "a red ring" --x guidance_scale=1,3,7 --y prompt=red,blue,green -o grid.png
    """
    check_file(output)
    if x or y:
        _draw_axes(prompt, output, x, y, seed, settings, loading, samplers, steps, at)
        return
    steps = steps or 100
    columns = _columns(at, steps)
    names = [name.strip() for name in (samplers or SAMPLERS).split(",") if name.strip()]
    if not names:
        raise InputError("there are no samplers to compare")

    from sdjax.pipeline.previews import Previews
    from sdjax.pipeline.request import pictures_of
    from sdjax.version import __version__

    runs = {"sampler": names, "num_inference_steps": steps}
    pictures = pictures_of(prompt, settings | runs, len(names), [seed] * len(names))
    with progress_bars(of_bytes=True) as report:
        pipe = replace(loading, preview_vae=preview_vae).open(report)
    seen: dict[int, list[Image.Image]] = {}
    with progress_bars() as report, nothing_to_tidy():
        result = pipe.draw(pictures, previews=Previews(columns, seen.__setitem__), progress=report)
    finished = list(result.images)
    seen[steps] = finished
    # Some samplers make fewer steps of their own than requested: then they are done.
    sheet = grid(
        list(zip(*(seen.get(step, finished) for step in columns))), names, [f"step {step}" for step in columns]
    )
    how = {**loading.settings(), **result.settings[0], "samplers": names, "at": columns, "version": __version__}
    save_picture(sheet, output, how)
    typer.echo(output)


def _draw_axes(
    prompt: str,
    output: Path,
    x: str | None,
    y: str | None,
    seed: int,
    settings: dict[str, Any],
    loading: Loading,
    sampler: str | None,
    steps: int | None,
    at: str | None,
) -> None:
    """The sheet of --x and --y."""
    if at is not None or "," in (sampler or ""):
        raise InputError("with --x or --y, --at has no place, and --samplers is one sampler: others are an axis")
    columns, rows = (NOTHING if axis is None else axis_of(axis) for axis in (x, y))
    chosen = {"sampler": sampler, "num_inference_steps": steps}
    cells = cells_of(
        prompt, seed, settings | {name: each for name, each in chosen.items() if each is not None}, columns, rows
    )
    if not loading.loras and any(axis.name.partition(":")[0] == LORA for axis in (columns, rows)):
        raise InputError("there is no LoRA to scale: --lora FILE loads one")
    from sdjax.version import __version__

    with progress_bars(of_bytes=True) as report:
        pipe = loading.open(report)
    with progress_bars() as report, nothing_to_tidy():
        sheet, how = draw_sheet(pipe, cells, columns, rows, report)
    said = {key: axis for key, axis in (("x", x), ("y", y)) if axis}
    save_picture(sheet, output, {**loading.settings(), **how, **said, "version": __version__})
    typer.echo(output)


def _columns(at: str | None, steps: int) -> list[int]:
    """The steps of the columns. Raises InputError for what is no step of a run of so many."""
    if at is None:
        return [step for step in COLUMNS if step < steps] + [steps]
    parts = at.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"--at is a list of steps with commas between them, such as 1,5,10, not {at!r}")
    columns = sorted({int(part) for part in parts})
    if columns[0] < 1 or columns[-1] > steps:
        raise InputError(f"--at {at}: a run of {steps} steps has the steps 1 to {steps}")
    return columns
