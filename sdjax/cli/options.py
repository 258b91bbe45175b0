"""The options that the painting commands share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

Prompts = Annotated[list[str], typer.Argument(metavar="PROMPT", help="What to paint; one picture per prompt.")]
Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What to paint.")]
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="A name that ends in .png, replaced if it exists (several pictures: name-1.png, name-2.png, ...), "
        "or a folder in which pictures are numbered and none is replaced.",
    ),
]
Model = Annotated[str, typer.Option(help="An embedded model, a directory, a file, or a hub id.")]
Sampler = Annotated[
    str | None, typer.Option(help="One of those that `sdjax samplers` lists.", show_default="the model's own")
]
Spacing = Annotated[str | None, typer.Option(help="Which noise levels are visited.", show_default="the model's own")]
Steps = Annotated[int | None, typer.Option(min=1, help="Sampler steps.", show_default="the model's own, else 50")]
GuidanceScale = Annotated[
    float | None,
    typer.Option(help="How much the prompt matters; 1 is no guidance.", show_default="the model's own, else 7.5"),
]
GuidanceInterval = Annotated[
    tuple[float, float], typer.Option(help="The part of the steps that is guided, from 0 to 1.")
]
GuidanceRescale = Annotated[
    float, typer.Option(help="How far the spread of guided predictions is brought back, from 0 to 1.")
]
Eta = Annotated[float | None, typer.Option(help="Share of fresh noise.", show_default="the sampler's own")]
NegativePrompt = Annotated[str | None, typer.Option(help="What not to paint.", show_default="nothing")]
Seed = Annotated[
    list[int] | None,
    typer.Option(help="Another seed, another picture; give it once, or once per picture.", show_default="0"),
]
NumImages = Annotated[int, typer.Option(min=1, help="Pictures per prompt.")]
Width = Annotated[int | None, typer.Option(min=1, help="In pixels.", show_default="the image's or the model's own")]
Height = Annotated[int | None, typer.Option(min=1, help="In pixels.", show_default="the image's or the model's own")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="What the networks compute in.", show_default="float32 on a CPU, else bfloat16"),
]
Vae = Annotated[
    str | None,
    typer.Option(
        help="Another VAE in the place of the model's own: a directory, or a hub id such as madebyollin/taesd."
    ),
]
VaeTiling = Annotated[
    bool | None,
    typer.Option(
        help="Whether the VAE saves memory, for more time; the picture is the same.",
        show_default="above 1024 x 1024 pixels",
    ),
]
PreviewVae = Annotated[
    str | None,
    typer.Option(
        help="What decodes previews: a VAE, as for --vae, or `linear`, a guess that costs nothing.",
        show_default="the model's own",
    ),
]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE:SCALE",
        help="A LoRA to add to the model, by so much (else by 1); may be given several times.",
    ),
]
Strength = Annotated[float, typer.Option(help="How much of the image is lost: from just above 0 to 1, all of it.")]
HiresScale = Annotated[
    float | None,
    typer.Option(
        metavar="TIMES", help="Paint over the picture, enlarged so many times.", show_default="no second pass"
    ),
]
HiresUpscaler = Annotated[
    Literal["latent", "lanczos"] | None,
    typer.Option(help="What is enlarged before the second pass: latents, or pixels.", show_default="latent"),
]
HiresStrength = Annotated[
    float | None, typer.Option(help="How much of the enlarged picture is lost.", show_default="0.7")
]
HiresSteps = Annotated[
    int | None, typer.Option(min=1, help="Sampler steps of the second pass.", show_default="as the first")
]
ClipSkip = Annotated[
    int | None,
    typer.Option(min=0, help="Leave out so many last layers of the text encoder.", show_default="the model's own"),
]
PromptSyntax = Annotated[
    Literal["a1111", "plain"] | None,
    typer.Option(help="a1111: weights, edits, any length; plain: letters as they are.", show_default="a1111"),
]
Rng = Annotated[
    Literal["jax", "torch", "philox"] | None,
    typer.Option(help="Whose noise: torch is diffusers' on a CPU, philox a CUDA device's.", show_default="jax"),
]
Embedding = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="A textual inversion, whose word prompts may use; may be given several times."),
]


def files_and_scales(loras: Sequence[str] | None) -> list[tuple[str, float]]:
    """What `--lora` says, `FILE:0.7`, as `sdjax.load` takes it; the scale is 1 where there is none."""
    pairs = []
    for text in loras or ():
        path, _, scale = text.rpartition(":")
        try:
            pairs.append((path, float(scale)))
        except ValueError:  # the colon, if there is one, belongs to the name
            pairs.append((text, 1.0))
    return pairs
