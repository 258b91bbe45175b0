"""`sdjax train classifier`."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sdjax.cli import options
from sdjax.cli.run_settings import Pictures, Run, open_model, train_in, with_settings
from sdjax.errors import InputError

if TYPE_CHECKING:
    from sdjax.training.fit import Intervals
    from sdjax.training.step import Settings


@with_settings(steps=2000, batch_size=64, learning_rate=1e-3, ema_decay=0.99)
def classifier(
    *,
    pictures: Pictures,
    run: Run,
    labels: Annotated[str, typer.Option(help="Words of the captions that it is to tell, with commas between them.")],
    model: options.Model = "shapes",
    channels: Annotated[str, typer.Option(help="Of each resolution, from the latents' own to the coarsest.")] = (
        "32,64,96"
    ),
    store: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="What the parameters are written in.", show_default="float32"),
    ] = None,
    settings: "Settings",
    intervals: "Intervals",
) -> None:
    """Train a classifier of a model's noisy latents, whose gradients draw what it is told to see.

    A word is true of the pictures whose captions hold it. In Python, `judge = sdjax.load_condition(RESULT)` opens it,
    and `conditions=[judge("red star", scale=3)]` draws by it, with a prompt or with none.

    [bold]Example[/bold]

    sdjax train classifier ./pictures ./run --labels cat,dog,indoors --model sd15
    """
    from sdjax.training.classifier import classifier_task
    from sdjax.training.data import read_examples

    words = [word.strip() for word in labels.split(",")]
    if not all(words) or len(set(words)) < len(words):
        raise InputError(f"--labels is a list of words, such as cat,dog,indoors, not {labels!r}")
    try:
        widths = [int(part) for part in channels.split(",")]
    except ValueError:
        raise InputError(f"--channels is a list of numbers, such as 32,64,96, not {channels!r}") from None
    task = classifier_task(open_model(model), read_examples(pictures, captions=True), words, widths, store)
    train_in(task, run, settings, intervals)
