"""What all commands share which train: options, those of `Settings` and of `Intervals`, and the run itself."""

import shutil
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sdjax.cli.interrupt import much_to_save
from sdjax.cli.progress import progress_bars
from sdjax.cli.signature import extended, option
from sdjax.files.atomic import replaced

if TYPE_CHECKING:  # optax and orbax are slow to import: the commands do it
    from sdjax.files.checkpoint import Model
    from sdjax.training.fit import Intervals, Task
    from sdjax.training.step import Settings

Pictures = Annotated[
    Path,
    typer.Argument(
        metavar="PICTURES",
        help="A folder of pictures, each with its caption in a .txt or all in a .jsonl; or CIFAR-10.",
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A folder for this run; if it holds one, that goes on.")]
LATER = "How it is computed"

OPTIONS: dict[str, tuple[Any, Any]] = {  # the option's type and its usual default
    "steps": (Annotated[int, typer.Option(min=1, help="Steps in all.")], 10_000),
    "batch_size": (Annotated[int, typer.Option(min=1, help="Pictures per step.")], 32),
    "learning_rate": (Annotated[float, typer.Option(help="Reached after the warm-up.")], 1e-4),
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


def with_settings(*without: str, **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the shared training options to a command, and passes them as `settings` and `intervals`.

    without: those that mean nothing to the command. defaults: those in which it differs from the others.
    """
    options = {name: each for name, each in OPTIONS.items() if name not in without}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:
            from sdjax.training.fit import Intervals
            from sdjax.training.step import Settings

            chosen = {name: given.pop(name) for name in options}
            intervals = Intervals(chosen.pop("log_every"), chosen.pop("save_every"))
            command(**given, settings=Settings(**chosen), intervals=intervals)

        shared = [option(name, kind, defaults.get(name, default)) for name, (kind, default) in options.items()]
        return extended(run, command, {"settings", "intervals"}, shared)

    return decorate


def open_model(model: str) -> "Model":
    """The parameters and configurations of a model that may have to be downloaded or converted first."""
    import sdjax.convert
    from sdjax.files.checkpoint import read_model

    return read_model(sdjax.convert.resolve(model))


def train_in(
    task: "Task", folder: Path, settings: "Settings", intervals: "Intervals", destination: Path | None = None
) -> None:
    """Trains in a run's folder with a progress bar, copies the result if it is to be elsewhere, and prints its path."""
    from sdjax.loading import keep_compiled_programs
    from sdjax.training import fit

    keep_compiled_programs()
    with progress_bars() as report, much_to_save() as has_learned:

        def reported(stage: str, done: int, total: int, amount: str | None = None) -> None:
            has_learned()
            report(stage, done, total, amount)

        result = fit.train(task, fit.Run(folder, settings, intervals, reported))
    if destination is not None:
        with replaced(destination) as partial:
            shutil.copyfile(result, partial)
    typer.echo(destination or result)
