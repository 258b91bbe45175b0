"""`sdjax convert`: a PyTorch checkpoint to a model directory."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sdjax.cli.progress import progress_bars

OF_FILES = "Single files"


def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="A directory in diffusers layout, a .safetensors or .ckpt, or a hub id."),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The directory to make.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="What to store the parameters in.", show_default="as they are"),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Which of several sets of weights, such as fp16.", show_default="the plain one")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub id.", show_default="main")
    ] = None,
    ema: Annotated[
        bool | None,
        typer.Option(
            "--ema/--no-ema",
            help="The averaged weights, or those of the last step.",
            show_default="averaged, if there are any",
            rich_help_panel=OF_FILES,
        ),
    ] = None,
    prediction_type: Annotated[
        Literal["epsilon", "v_prediction"] | None,
        typer.Option(help="What the UNet predicts.", show_default="as the file says", rich_help_panel=OF_FILES),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A diffusers directory: its configurations are taken, not its weights.",
            show_default="told from the tensors",
            rich_help_panel=OF_FILES,
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="A folder with vocab.json and merges.txt.",
            show_default="CLIP's, from the hub",
            rich_help_panel=OF_FILES,
        ),
    ] = None,
) -> None:
    """Convert a PyTorch checkpoint to a model directory, which then loads in a moment.

    Every tensor of the checkpoint must be understood and every parameter filled, or nothing is written.

    [bold]Examples[/bold]

    sdjax convert ./stable-diffusion-v1-5 ./sd15

    sdjax convert stable-diffusion-v1-5/stable-diffusion-v1-5 sd15 --variant fp16 --dtype bfloat16

    sdjax convert v2-1_768-ema-pruned.safetensors ./sd21 --prediction-type v_prediction
    """
    import sdjax.convert

    choices = sdjax.convert.Choices(ema, prediction_type, config, tokenizer)
    with progress_bars(of_bytes=True) as report:
        made = sdjax.convert.convert(
            source, destination, dtype=dtype, variant=variant, revision=revision, single_file=choices, progress=report
        )
    typer.echo(made)
