"""`--help` as plain text: groups of options in 80 columns, no name cut, and examples that can be copied."""

import inspect
import re
from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

WIDEST = 24  # columns that the names of options take; the help of longer ones begins on the next line
EXAMPLE = re.compile(r"(sdjax|printf|curl|python) ")  # how a paragraph begins that is a command and is not wrapped
WORD = re.compile(r"""(?:--?[\w-]+ (?!-))?(?:"[^"]*"|'[^']*'|\S+)""")  # with the option that it is the value of
# What values are called, where Typer says their Python type.
TYPES = {
    "<int range>": "N", "<float range>": "X", "<float>": "X", "<str>": "TEXT", "<path>": "PATH", "<list[int]>": "N",
    "<list[str]>": "TEXT", "<list[path]>": "PATH", "<int,int>...": "N N", "<float,float>...": "X X", "<int>": "N",
}  # fmt: skip
HEADING = re.compile(r"\[bold\](.+?)\[/bold\]")


class Command(TyperCommand):
    """A command whose options are listed in their groups."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        _write_text(formatter, self.help)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_options(formatter, ctx, self.get_params(ctx))


class Group(TyperGroup):
    """A group of commands, in groups."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        _write_text(formatter, self.help)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            panel = getattr(command, "rich_help_panel", None)
            first = inspect.cleandoc(getattr(command, "help", None) or "").partition("\n\n")[0]
            panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append(
                (name, " ".join(first.split()))
            )
        _write_sections(formatter, panels)
        _write_options(formatter, ctx, self.get_params(ctx))


def _write_text(formatter: Any, text: str | None) -> None:
    """A command's description: paragraphs wrapped, headings without their marks, examples as they are."""
    for paragraph in inspect.cleandoc(text or "").split("\n\n"):
        formatter.write_paragraph()
        with formatter.indentation():
            if EXAMPLE.match(paragraph):
                formatter.write("\n".join(_lines(paragraph, formatter.width)) + "\n")
            elif heading := HEADING.fullmatch(paragraph):
                formatter.write(f"  {typer.style(heading[1], bold=True)}\n")
            else:
                formatter.write_text(HEADING.sub(r"\1", paragraph))


def _lines(command: str, width: int) -> list[str]:
    """A command, indented, in lines that a shell takes together."""
    lines = ["   "]
    for word in WORD.findall(command):
        if len(lines[-1]) + len(word) + 3 > width and len(lines[-1].strip()) > 0:
            lines[-1] += " \\"
            lines.append("       ")
        lines[-1] += f" {word}"
    return lines


def _write_options(formatter: Any, ctx: Any, parameters: Iterable[Any]) -> None:
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in parameters:
        if record := parameter.get_help_record(ctx):
            usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panel = getattr(parameter, "rich_help_panel", None)
            names, words = record
            for python, plain in TYPES.items():
                names = names.replace(python, plain)
            words = re.sub(r"\[default: \((.+?)\)([;\]])", r"[default: \1\2", words)
            panels.setdefault(panel if isinstance(panel, str) else usual, []).append((names, words))
    _write_sections(formatter, panels)


def _write_sections(formatter: Any, panels: dict[str, list[tuple[str, str]]]) -> None:
    for panel, records in panels.items():
        formatter.write_paragraph()
        formatter.write(f"{typer.style(panel, bold=True)}\n")
        with formatter.indentation():
            formatter.write_dl(records, col_max=WIDEST)
