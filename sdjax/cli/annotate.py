"""`sdjax annotate`: what a condition's network will see of a picture."""

from collections.abc import Callable
from functools import wraps
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdjax.annotators import ANNOTATORS, Annotator, annotate, annotator
from sdjax.annotators.table import RESOLUTION, Option
from sdjax.cli.output import check_file, picture_paths
from sdjax.cli.signature import extended
from sdjax.files.pictures import save_picture

Users = dict[str, list[tuple[Annotator, Option]]]


def _users() -> Users:
    """The annotators that have each option, by its name; what it is, all of them say alike."""
    found: Users = {}
    for each in ANNOTATORS.values():
        for option in each.options:
            found.setdefault(option.name, []).append((each, option))
    return found


def _parameter(name: str, users: list[tuple[Annotator, Option]]) -> Parameter:
    option = users[0][1]
    differ = len({own.default for _, own in users}) > 1
    names = ", ".join(f"{each.name} ({own.default:g})" if differ else each.name for each, own in users)
    flag = f"--{name.replace('_', '-')}"
    shown = False if differ or option.default is None else f"{option.default:g}"
    spec = typer.Option(
        f"{flag}/--no-{flag[2:]}" if option.kind is bool else flag,
        help=f"{option.help} Of {names}.",
        metavar="FILE" if option.kind is str else None,
        show_default="yes" if option.kind is bool else shown,
        rich_help_panel="Settings of annotators",
    )
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[option.kind | None, spec])


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Adds all annotators' settings to a command, which takes those that are given as one argument `settings`."""
    users = _users()

    @wraps(command)
    def run(**values: Any) -> None:
        given = {name: value for name in users if (value := values.pop(name)) is not None}
        command(**values, settings=given)

    return extended(run, command, {"settings"}, [_parameter(name, own) for name, own in users.items()])


@with_settings
def annotate_picture(
    *,
    name: Annotated[str | None, typer.Argument(metavar="ANNOTATOR", help="One of those that --list shows.")] = None,
    picture: Annotated[
        Path | None,
        typer.Argument(metavar="PICTURE", help="A picture; for depth and normals a map, brighter where nearer."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A name that ends in .png, .jpg or .webp, replaced if it exists.",
            show_default="PICTURE-ANNOTATOR.png",
        ),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the annotators and their settings.")] = False,
    resolution: Annotated[int | None, typer.Option(help=RESOLUTION.help, show_default="the picture's own")] = None,
    settings: dict[str, Any],
) -> None:
    """Show what a condition's network will see of a picture: its edges, lines, depth, colours, poses.

    Names are A1111's. None of it needs PyTorch; some need an extra, which --list names.

    [bold]Examples[/bold]

    sdjax annotate canny photo.png -o edges.png

    sdjax annotate lineart_standard photo.png -o lines.png --sigma 4

    sdjax annotate --list
    """
    if show_list:
        _show()
        return
    if name is None or picture is None:
        raise typer.BadParameter("say which annotator, and of which picture, or --list", param_hint="ANNOTATOR PICTURE")
    chosen = annotator(name)
    chosen.checked(settings)
    output = output or picture.with_name(f"{picture.stem}-{name}.png")
    check_file(output)
    import numpy as np
    from PIL import Image

    from sdjax.pipeline.images import read_depth, read_image

    read = read_depth if chosen.reads == "depth" else read_image
    made = annotate(name, np.asarray(read("the picture", picture)), resolution, **settings)
    [path] = picture_paths(output, 1)
    save_picture(Image.fromarray(made), path, None)
    typer.echo(path)


def _show() -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("annotator", "what it makes", "settings"):
        table.add_column(column, no_wrap=column == "annotator")
    for each in ANNOTATORS.values():
        own = ", ".join(
            option.name if option.default is None else f"{option.name} {option.default:g}" for option in each.options
        )
        needs = f" Needs 'sdjax[{each.extra}]'." if each.extra else ""
        table.add_row(each.name, Text(each.help + needs), own)
    Console(highlight=False).print(table)
