"""`sdjax train controlnet` and `sdjax train adapter`: one command for two kinds of nets."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sdjax.cli import options
from sdjax.cli.run_settings import Pictures, Run, open_model, train_in, with_settings

if TYPE_CHECKING:  # optax and orbax are slow to import: the commands do it
    from sdjax.training.fit import Intervals
    from sdjax.training.step import Settings

Hints = Annotated[
    Path | None,
    typer.Option(
        "--hints",
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="A folder of hints, each with the name of its picture; else a .jsonl names them (conditioning_image).",
    ),
]
Annotator = Annotated[
    str | None, typer.Option("--annotator", help="Make the hints from the pictures: one of `sdjax annotate --list`.")
]
CaptionDropout = Annotated[
    float, typer.Option("--caption-dropout", min=0, max=1, help="Share of the captions that are left out.")
]
Store = Annotated[
    Literal["float32", "float16", "bfloat16"] | None, typer.Option("--store", help="What the result is written in.")
]


def _command(kind: Literal["controlnet", "adapter"], about: str) -> Callable[..., None]:
    """The command that trains a kind of net; about: its help."""

    def command(
        *,
        pictures: Pictures,
        run: Run,
        model: options.Model = "shapes",
        hints: Hints = None,
        annotator: Annotator = None,
        caption_dropout: CaptionDropout = 0.5,
        store: Store = None,
        settings: "Settings",
        intervals: "Intervals",
    ) -> None:
        from sdjax.annotators import annotator as known
        from sdjax.training.conditions import Choices, condition_task
        from sdjax.training.data import read_examples, with_hints

        if annotator is not None:
            known(annotator)
        examples = read_examples(pictures, captions=True)
        if hints is not None:
            examples = with_hints(examples, hints)
        choices = Choices(kind, annotator, caption_dropout, store=store)
        train_in(condition_task(open_model(model), examples, choices), run, settings, intervals)

    command.__name__, command.__doc__ = kind, about
    return with_settings(steps=5000, batch_size=16, learning_rate=1e-4)(command)


controlnet = _command(
    "controlnet",
    """Train a ControlNet (arXiv:2302.05543): a copy of the UNet's encoder that sees a hint. The model stays as it is.

    [bold]Example[/bold]

    sdjax train controlnet ./pictures ./run --annotator canny --model sd15 --learning-rate 1e-5

    sdjax generate "a lighthouse" --model sd15 --control ./run/controlnet-5000:edges.png
    """,
)
adapter = _command(
    "adapter",
    """Train a T2I adapter (arXiv:2302.08453): a small net that sees a hint once a picture. The model stays as it is.

    [bold]Example[/bold]

    sdjax train adapter ./pictures ./run --annotator t2ia_color_grid --model sd15
    """,
)
