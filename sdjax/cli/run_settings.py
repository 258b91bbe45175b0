"""The options that all commands share which train: those of `Settings` and of `Intervals`."""

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, Literal

import typer

LATER = "How it is computed"

OPTIONS: dict[str, tuple[Any, Any]] = {  # the option's type and its usual default
    "steps": (Annotated[int, typer.Option(min=1, help="Steps in all.")], 10_000),
    "batch_size": (Annotated[int, typer.Option(min=1, help="Pictures per step.")], 32),
    "learning_rate": (Annotated[float, typer.Option(help="Of AdamW, reached after the warm-up.")], 1e-4),
    "warmup_steps": (Annotated[int, typer.Option(min=0, help="Steps in which the learning rate rises.")], 100),
    "cosine_decay": (
        Annotated[
            bool, typer.Option("--cosine-decay", help="Let the learning rate fall to 0 along a cosine, and not stay.")
        ],
        False,
    ),
    "weight_decay": (Annotated[float, typer.Option(min=0, help="Of AdamW, on kernels only.")], 0.0),
    "ema_decay": (
        Annotated[float, typer.Option(help="Of the average of the parameters, which is what is written; 0 for none.")],
        0.999,
    ),
    "seed": (Annotated[int, typer.Option(min=0, help="Of everything that is random.")], 0),
    "save_every": (
        Annotated[int, typer.Option(min=1, help="Steps from one checkpoint and sheet of samples to the next.")],
        1000,
    ),
    "log_every": (Annotated[int, typer.Option(min=1, help="Steps from one line of log.csv to the next.")], 50),
    "accumulate": (
        Annotated[
            int, typer.Option(min=1, help="Parts in which a batch is taken, to save memory.", rich_help_panel=LATER)
        ],
        1,
    ),
    "remat": (
        Annotated[
            bool,
            typer.Option(
                "--remat", help="Save memory: compute parts of the forward pass twice.", rich_help_panel=LATER
            ),
        ],
        False,
    ),
    "dtype": (
        Annotated[
            Literal["float32", "bfloat16"],
            typer.Option(help="What the networks compute in.", rich_help_panel=LATER),
        ],
        "float32",
    ),
}


def with_settings(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds these options to a command, after its own, and passes them as `settings` and `intervals`.

    defaults: those in which the command differs from the others.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:
            from sdjax.training.fit import Intervals
            from sdjax.training.step import Settings

            chosen = {name: given.pop(name) for name in OPTIONS}
            intervals = Intervals(chosen.pop("log_every"), chosen.pop("save_every"))
            command(**given, settings=Settings(**chosen), intervals=intervals)

        own = [value for name, value in signature(command).parameters.items() if name not in ("settings", "intervals")]
        shared = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=defaults.get(name, default), annotation=kind)
            for name, (kind, default) in OPTIONS.items()
        ]
        # Typer builds the command line from these two.
        run.__signature__ = Signature([*own, *shared])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *shared)}
        return run

    return decorate
