"""`sdjax models` and `sdjax loras`: what is there to draw with."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdjax.errors import InputError
from sdjax.files.eviction import format_size
from sdjax.files.found import Found, loras_in, models_here, models_in


def models(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR]...", help="Folders that have models in them.")
    ] = None,
) -> None:
    """List the models on this machine: embedded, downloaded and converted ones, and those in folders.

    What is in the first column is for `--model`. Files are told by their names and headers; `sdjax info` says more.

    [bold]Examples[/bold]

    sdjax models

    sdjax models ~/models .
    """
    _check(folders or [])
    _show([*models_here(), *(found for folder in folders or [] for found in models_in(folder))], "model")


def loras(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="A folder, as for `--lora-dir`.")] = Path("."),
) -> None:
    """List the LoRAs in a folder and those inside it, by the names that prompts have for them: <lora:name:0.8>.

    [bold]Example[/bold]

    sdjax loras ~/loras
    """
    _check([folder])
    listed = list(loras_in(folder))
    if not listed:
        typer.echo(f"there are no LoRAs in {folder}", err=True)
        return
    _show(listed, "LoRA")


def _check(folders: Iterable[Path]) -> None:
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}")


def _show(listed: Iterable[Found], what: str) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (what, "kind", *(["rank"] if what == "LoRA" else []), "size"):
        table.add_column(column, justify="right" if column in ("rank", "size") else "left", overflow="fold")
    for found in listed:
        rank = [str(found.rank or "")] if what == "LoRA" else []
        table.add_row(Text(_printable(found.name)), found.kind, *rank, format_size(found.size))
    Console(highlight=False).print(table)


def _printable(text: str) -> str:
    """A file's name as a terminal may show it: control characters escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
