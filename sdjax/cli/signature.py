"""Commands that take the options of several commands: their signature is put together, and Typer reads it."""

from collections.abc import Callable, Collection, Sequence
from inspect import Parameter, Signature, signature
from typing import Any


def option(name: str, annotation: Any, default: Any) -> Parameter:
    """An option, as a parameter of a command."""
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def extended(
    run: Callable[..., None], command: Callable[..., None], replaced: Collection[str], added: Sequence[Parameter]
) -> Callable[..., None]:
    """`run` with the signature of `command`, where `added` take the place of the parameters named in `replaced`."""
    own = [parameter for name, parameter in signature(command).parameters.items() if name not in replaced]
    run.__signature__ = Signature([*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
    return run
