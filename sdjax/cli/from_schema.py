"""Options of the command line, read off the schema of the settings."""

from collections.abc import Callable, Collection, Iterator
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sdjax.settings import SETTINGS, Setting

TYPES: dict[str, Any] = {
    "text": str,
    "flag": bool,
    "whole": int,
    "number": float,
    "interval": tuple[float, float],
    "pair": tuple[int, int],
    "image": Path,
}


LETTERS = {"width": "-W", "height": "-H"}


def _samplers(incomplete: str) -> list[str]:
    from sdjax.schedulers import SOLVERS

    return [name for name in ("tuned", *SOLVERS) if name.startswith(incomplete)]


def _spacings(incomplete: str) -> list[str]:
    from sdjax.schedulers import SPACINGS

    return [name for name in SPACINGS if name.startswith(incomplete)]


COMPLETIONS = {"sampler": _samplers, "spacing": _spacings}


def setting_options(there: Collection[str], without: Collection[str] = ()) -> list[Parameter]:
    """The options of the settings that have an effect in a command, None where they are not set.

    there: what else a command has, of `Setting.needs`: arguments with images, a model that makes pictures larger.
    without: settings, or panels of settings, that it leaves out, and so all that need these.
    """

    def has_effect(setting: Setting) -> bool:
        if not setting.option or setting.name in without or setting.panel in without:
            return False
        return (
            not setting.needs
            or setting.needs in there
            or (setting.needs in SETTINGS and has_effect(SETTINGS[setting.needs]))
        )

    return list(_parameters(filter(has_effect, SETTINGS.values())))


def _parameters(settings: Iterator[Setting]) -> Iterator[Parameter]:
    for setting in settings:
        kind: Any = Literal[setting.choices] if setting.choices else TYPES.get(setting.kind, str)
        is_numbers = setting.kind in PARSERS
        option = typer.Option(
            f"{setting.option}/--no-{setting.option[2:]}" if setting.kind == "flag" else setting.option,
            *([LETTERS[setting.name]] if setting.name in LETTERS else []),
            autocompletion=COMPLETIONS.get(setting.name),
            help=setting.help,
            min=setting.low if setting.above is None else None,
            max=setting.high if setting.above is None else None,
            show_default=setting.unset or _shown(setting.default),
            rich_help_panel=setting.panel,
            parser=PARSERS.get(setting.kind),
            metavar="NUMBER[,NUMBER,...]" if is_numbers else None,
        )
        yield Parameter(setting.name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])


def _shown(default: Any) -> str | bool:
    """A default as `--help` shows it."""
    if default is None or isinstance(default, bool):
        return False
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def levels(text: str) -> tuple[float, ...]:
    """Numbers with commas between them, as an option has them."""
    values = numbers(text)
    return values if isinstance(values, tuple) else (values,)


def numbers(text: str) -> float | tuple[float, ...]:
    """A number, or several with commas between them, as an option has them."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number, or several with commas between them") from None
    return values if len(values) > 1 else values[0]


PARSERS: dict[str, Callable[[str], Any]] = {"numbers": numbers, "levels": levels}
