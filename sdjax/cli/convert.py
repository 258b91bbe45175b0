"""`sdjax convert`: a PyTorch checkpoint to a model directory."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sdjax.cli.progress import progress_bars


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A directory in diffusers layout, or a hub id.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The directory to make.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="What to store the parameters in.", show_default="as they are"),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Which of several sets of weights, such as fp16.", show_default="the plain one")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub id.", show_default="main")
    ] = None,
) -> None:
    """Convert a PyTorch checkpoint to a model directory, which then loads in a moment.

    Every tensor of the checkpoint must be understood and every parameter filled, or nothing is written.

    [bold]Examples[/bold]

    sdjax convert ./stable-diffusion-v1-5 ./sd15

    sdjax convert stable-diffusion-v1-5/stable-diffusion-v1-5 sd15 --variant fp16 --dtype bfloat16
    """
    import sdjax.convert

    with progress_bars(of_bytes=True) as report:
        made = sdjax.convert.convert(
            source, destination, dtype=dtype, variant=variant, revision=revision, progress=report
        )
    typer.echo(made)
