"""`sdjax train`: the commands that train, and one that shows what is trained against."""

from pathlib import Path
from typing import Annotated

import typer

from sdjax.errors import InputError


def noise(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Any picture.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A name that ends in .png or .webp.")] = Path(
        "noise.png"
    ),
) -> None:
    """Show a picture under growing noise, as the linear, scaled-linear and cosine schedules put it there.

    [bold]Example[/bold]

    sdjax train noise heart.png -o noise.png
    """
    from sdjax.training.data import read_picture
    from sdjax.training.figures import noise_sheet

    if output.suffix.lower() not in (".png", ".webp"):
        raise InputError(f"{output}: give a name that ends in .png or .webp")
    noise_sheet(read_picture(image)).save(output)
    typer.echo(output)


train = typer.Typer(help="Train networks, and look at what they are trained on.", no_args_is_help=True)
train.command()(noise)
