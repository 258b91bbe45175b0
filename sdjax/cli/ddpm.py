"""`sdjax ddpm`: pictures of a pixel model, without prompts."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sdjax.cli.output import check_output, names_file, picture_paths
from sdjax.cli.progress import progress_bars
from sdjax.limits import CALL, STEPS
from sdjax.settings import SETTINGS

AT_ONCE, COLUMNS = 16, 8


def ddpm(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A directory, or a hub id.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="A name that ends in .png, of a sheet of all pictures; or a folder."),
    ] = Path("ddpm.png"),
    count: Annotated[int, typer.Option(min=1, max=CALL, help="Pictures.")] = 16,
    seed: Annotated[
        int, typer.Option("--seed", "-s", min=0, help="Of the first one; those of the others follow it.")
    ] = 0,
    steps: Annotated[int, typer.Option(min=1, max=STEPS, help="Sampler steps.")] = 50,
    sampler: Annotated[str, typer.Option(help=SETTINGS["sampler"].help)] = "ddim",
    spacing: Annotated[
        str | None, typer.Option(help=SETTINGS["spacing"].help, show_default=SETTINGS["spacing"].unset)
    ] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A picture to start from.", show_default="noise alone")
    ] = None,
    strength: Annotated[float, typer.Option(help=SETTINGS["strength"].help)] = 0.5,
) -> None:
    """Draw with a UNet of pixels, which knows no prompts: what `sdjax train ddpm` made, or diffusers' DDPMPipeline.

    [bold]Examples[/bold]

    sdjax ddpm ./run/model-20000 -o sheet.png

    sdjax ddpm ./run/model-20000 -o pictures --count 64 --sampler dpmpp_2m --steps 20

    sdjax ddpm ./run/model-20000 --image half.png --strength 0.5

    sdjax ddpm ./run/model-20000 --sampler ddpm-6.json
    """
    check_output(output)

    import numpy as np

    import sdjax.convert
    from sdjax.files.pictures import grid, save_picture
    from sdjax.files.plans import read_plan, use_plan
    from sdjax.loading import keep_compiled_programs
    from sdjax.pipeline.images import read_square, to_pil
    from sdjax.pipeline.unconditional import read_pixel_model
    from sdjax.version import __version__

    SETTINGS["strength"].check(strength)
    keep_compiled_programs()
    opened = read_pixel_model(sdjax.convert.resolve(model))
    start = None if image is None else (read_square(image, opened.unet.config.sample_size) + 1) / 2
    drawn: list[Any] = []
    with progress_bars() as report:
        for first in range(0, count, AT_ONCE):
            report("pictures", first, count)
            seeds = range(seed + first, seed + first + min(AT_ONCE, count))  # all batches are one program's
            drawn += to_pil(np.asarray(opened.sample(seeds, steps, sampler, spacing, start, strength)))
        report("pictures", count, count)
    drawn = drawn[:count]
    if sampler.endswith(".json"):
        steps, sampler = read_plan(sampler).nfe, use_plan(sampler)
    how = {"model": model, "steps": steps, "sampler": sampler, "version": __version__}
    how |= {"spacing": spacing} if spacing else {}
    how |= {"image": str(image), "strength": strength} if image else {}
    if names_file(output):
        blank = [drawn[0].point(lambda _: 255)] * (-count % COLUMNS if count > COLUMNS else 0)
        cells = [*drawn, *blank]
        rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
        labels = [f"seed {seed + i * COLUMNS}" for i in range(len(rows))]
        save_picture(grid(rows, labels, [""] * len(rows[0])), output, {**how, "seed": seed})
        typer.echo(output)
        return
    for number, (picture, path) in enumerate(zip(drawn, picture_paths(output, count))):
        save_picture(picture, path, {**how, "seed": seed + number})
        typer.echo(path)
