"""`sdjax cache`: the contents of the cache, its limit, and clearing it."""

import time
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdjax.cli.safe import safe
from sdjax.errors import InputError
from sdjax.files.cache import cache_directory
from sdjax.files.eviction import KINDS, Entry, drop, entries, format_size, keep_to_limit, limit, set_limit


def cache(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KIND]...", help=f"{', '.join(KINDS)}; all of them if none is named."),
    ] = None,
    set_to: Annotated[
        str | None,
        typer.Option(
            "--limit",
            metavar="SIZE",
            help="The most that the cache may hold from now on, such as 500MB or 20GB, or none for no limit.",
        ),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove the entries of these kinds.")] = False,
) -> None:
    """Show what is in the cache, limit its size, or clear it.

    Converted models, traced and compiled programs are cached, so that a command is quick from its second run on. All of
    it is made again when it is missing. Where the cache grows beyond its limit (50 GB, or the environment variable
    SDJAX_CACHE_LIMIT), the entries that were used least recently are dropped; a model that a running process has open
    stays.

    [bold]Examples[/bold]

    sdjax cache

    sdjax cache --limit 10GB

    sdjax cache --clear programs compiled
    """
    if unknown := [kind for kind in kinds or () if kind not in KINDS]:
        raise InputError(f"the cache has no {unknown[0]!r}; it has {', '.join(KINDS)}")
    chosen = kinds or list(KINDS)
    if set_to is not None:
        set_limit(set_to)
        _say_removed(keep_to_limit())
    if clear:
        present = entries(chosen)
        removed = [entry for entry in present if drop(entry)]
        _say_removed(removed)
        for entry in present:
            if entry not in removed:
                typer.echo(f"{entry.path} stays: a running process has it open, or it cannot be removed")
    _show(entries(chosen), chosen)


def _say_removed(removed: Sequence[Entry]) -> None:
    typer.echo(f"removed {len(removed)} entries, {format_size(sum(entry.size for entry in removed))}")


def _show(present: Sequence[Entry], kinds: Sequence[str]) -> None:
    console = Console(highlight=False)
    most = limit()
    held = "no limit" if most is None else f"at most {format_size(most)}"
    console.print(Text(f"{cache_directory()} ({held})"), soft_wrap=True)
    table = _table("kind", "entries", "size", "last used", "what it holds")
    for kind in kinds:
        table.add_row(kind, *_totals([entry for entry in present if entry.kind == kind]), KINDS[kind])
    table.add_row("total", *_totals(present), "", style="bold")
    console.print(table)
    if models := [entry for entry in present if entry.kind == "models"]:
        console.print()
        table = _table("model", "size", "last used")
        for model in models:
            table.add_row(Text(safe(model.path.name)), *_totals([model])[1:])
        console.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        is_number = column in ("entries", "size")
        table.add_column(column, justify="right" if is_number else "left", no_wrap=column != "what it holds")
    return table


def _totals(of: Sequence[Entry]) -> tuple[str, str, str]:
    """The number of entries, their size, and when one of them was last used."""
    last = max((entry.last_used for entry in of), default=None)
    when = "" if last is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(last))
    return f"{len(of):,}", format_size(sum(entry.size for entry in of)), when
