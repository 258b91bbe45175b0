"""`sdjax convert`: a PyTorch checkpoint to a model directory."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sdjax.cli import options
from sdjax.cli.progress import progress_bars
from sdjax.errors import InputError


def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="A directory in diffusers layout, a .safetensors or .ckpt, or a hub id."),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="What to make.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="What to store the parameters in.", show_default="as they are"),
    ] = None,
    to: Annotated[
        Literal["sdjax", "diffusers", "single-file"],
        typer.Option(help="The layout to write; all but sdjax's own are PyTorch's."),
    ] = "sdjax",
    variant: Annotated[
        str | None, typer.Option(help="Which of several sets of weights, such as fp16.", show_default="the plain one")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub id.", show_default="main")
    ] = None,
    lora: options.Loras = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare with PyTorch on random input; needs torch and diffusers.")
    ] = False,
    ema: options.Ema = None,
    prediction_type: options.PredictionType = None,
    config: options.Config = None,
    tokenizer: options.TokenizerFolder = None,
    base: options.Base = None,
) -> None:
    """Convert a PyTorch checkpoint to a model directory, which then loads in a moment; or back.

    Every tensor of the checkpoint must be understood and every parameter filled, or nothing is written.

    [bold]Examples[/bold]

    sdjax convert ./stable-diffusion-v1-5 ./sd15

    sdjax convert stable-diffusion-v1-5/stable-diffusion-v1-5 sd15 --variant fp16 --dtype bfloat16

    sdjax convert v2-1_768-ema-pruned.safetensors ./sd21 --prediction-type v_prediction

    sdjax convert ./sd21 sd21.safetensors --to single-file --dtype float16

    sdjax convert control-lora-canny.safetensors ./canny --base sd15
    """
    import sdjax.convert

    if verify and lora:
        raise InputError("--verify compares with the source, which has no LoRA in it: leave one of the two out")
    with progress_bars(of_bytes=True) as report:
        unet_of = None if base is None else sdjax.convert.resolve(base, progress=report)
        choices = sdjax.convert.Choices(ema, prediction_type, config, tokenizer, unet_of)
        if to != "sdjax":
            if choices != sdjax.convert.Choices() or variant or revision or verify or lora:
                raise InputError(f"with --to {to}, convert to sdjax first: then the other options have their place")
            typer.echo(sdjax.convert.export(source, destination, to=to, dtype=dtype, progress=report))
            return
        made = sdjax.convert.convert(
            source,
            destination,
            dtype=dtype,
            variant=variant,
            revision=revision,
            single_file=choices,
            loras=options.files_and_scales(lora),
            progress=report,
        )
    typer.echo(made)
    if verify:
        differences = sdjax.convert.verify(source, made, variant=variant, revision=revision, single_file=choices)
        for component, difference in differences.items():
            typer.echo(f"{component} differs from PyTorch's by {difference:.1e} of the largest value")
