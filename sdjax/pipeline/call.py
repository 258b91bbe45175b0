"""The signature and the documentation of a pipeline's call, from the schema of the settings."""

import textwrap
from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, TypeVar

from sdjax.settings import SETTINGS, Setting

Call = TypeVar("Call", bound=Callable[..., Any])
OWN = ("prompt", "seed")  # settings that the call itself has


def documented(call: Call) -> Call:
    """A call whose `**settings` are in its signature by name, and in its docstring in the place of `{settings}`."""
    own = signature(call)
    parameters = [each for each in own.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    settings = [setting for name, setting in SETTINGS.items() if name not in OWN]
    parameters += [Parameter(each.name, Parameter.KEYWORD_ONLY, default=each.default) for each in settings]
    call.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    lines = "\n".join(map(_line, settings))
    call.__doc__ = (call.__doc__ or "").replace("{settings}", lines.strip())
    return call


def _line(setting: Setting) -> str:
    """A setting as an entry of a docstring."""
    unset = f" Where None: {setting.unset}." if setting.unset and setting.default is None else ""
    range_ = (
        f" {setting.allowed[0].upper()}{setting.allowed[1:]}." if setting.kind in ("choice", "whole", "number") else ""
    )
    text = f"{setting.name}: {setting.help}{range_}{unset}"
    return textwrap.fill(text, 120, initial_indent=" " * 8, subsequent_indent=" " * 12)
