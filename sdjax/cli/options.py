"""The options that the painting commands share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from sdjax.errors import InputError
from sdjax.limits import BATCH, CALL
from sdjax.settings.picture import CONDITIONS, PROMPT

MODEL, LOOKING, OF_FILES = "Model", "Looking inside", "Single files"

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What to paint.")]
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="A name that ends in .png, .jpg or .webp, replaced if it exists (several pictures: name-1.png, "
        "name-2.png, ...), or a folder in which PNGs are numbered and none is replaced.",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=BATCH,
        help="Pictures drawn at once; any number of pictures is drawn by the programs of one size.",
        show_default="1 for each device on a CPU, else 4",
    ),
]
Dynamic = Annotated[
    bool,
    typer.Option(
        "--dynamic",
        help="Prompts have choices, made by the seed: {red|blue}, {2$$a|b|c}, {3::often|seldom}.",
        rich_help_panel=PROMPT,
    ),
]
Wildcards = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="A folder of text files: __name__ in a prompt is one of the lines of name.txt; as --dynamic besides.",
        rich_help_panel=PROMPT,
    ),
]
Grid = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also save all pictures side by side, as one sheet of that name."),
]
Quality = Annotated[int, typer.Option(min=1, max=100, help="Of JPEG and WebP.")]
Metadata = Annotated[
    bool, typer.Option("--metadata/--no-metadata", help="Whether pictures say how they were made, for `sdjax info`.")
]
MODELS = "An embedded model, a directory, a .safetensors or .ckpt file, or a hub id."
Model = Annotated[str, typer.Option("--model", "-m", help=MODELS)]
AnyModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help=MODELS, show_default="shapes"),
]
Seed = Annotated[
    list[int] | None,
    typer.Option(
        "--seed", "-s", help="Another seed, another picture; give it once, or once per picture.", show_default="0"
    ),
]
NumImages = Annotated[int, typer.Option("--num-images", "-n", min=1, max=CALL, help="Pictures per prompt.")]


def _dtypes(text: str | None) -> str | None:
    """What `--dtype` says, if it can be followed."""
    if text is not None:
        from sdjax.models.precision import Precision  # imports JAX, which `--help` does without

        try:
            Precision.of(text)
        except InputError as error:
            raise typer.BadParameter(str(error)) from None
    return text


Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE[,COMPONENT=DTYPE,...]",
        callback=_dtypes,
        help="What the networks compute in: float32, bfloat16 or float16; float16,vae=float32 by component.",
        show_default="float32 on a CPU, else bfloat16",
        rich_help_panel=MODEL,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE",
        help="A device that need not be there: v5e-1, v5e-4, v5e-8, v6e-1, v6e-4, v6e-8, h100 or h200.",
        show_default="the devices here",
        rich_help_panel=MODEL,
    ),
]
Weights = Annotated[
    Literal["bfloat16", "float16", "int8"] | None,
    typer.Option(
        help="What the kernels of the UNet and the text encoders are kept in, to save memory.",
        show_default="as is computed",
        rich_help_panel=MODEL,
    ),
]
Vae = Annotated[
    str | None,
    typer.Option(
        help="Another VAE in the place of the model's own: a directory, or a hub id such as madebyollin/taesd.",
        rich_help_panel=MODEL,
    ),
]
Offload = Annotated[
    bool,
    typer.Option(
        "--offload",
        help="Keep text encoders and VAE on the host while they do not work, to save a device's memory.",
        rich_help_panel=MODEL,
    ),
]
ShardParameters = Annotated[
    bool,
    typer.Option(
        "--shard-parameters",
        help="Keep a part of the UNet and the text encoders on each device, where one is too small for all of them.",
        rich_help_panel=MODEL,
    ),
]
Refiner = Annotated[
    str | None,
    typer.Option(
        help="Another model that takes over where little noise is left (--denoising-end, else at 0.8).",
        rich_help_panel=MODEL,
    ),
]
VaeTiling = Annotated[
    bool | None,
    typer.Option(
        help="Whether the VAE saves memory, for more time; the picture is the same.",
        show_default="above 1024 x 1024 pixels",
        rich_help_panel=MODEL,
    ),
]
SafetyChecker = Annotated[
    bool,
    typer.Option(
        "--safety-checker/--no-safety-checker",
        help="Whether the safety checker that a model brings along withholds pictures, which are then black.",
        rich_help_panel=MODEL,
    ),
]
PreviewEvery = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="STEPS",
        help="Also save the x0 estimate after every so many steps, as name-step-05.png and so on.",
        rich_help_panel=LOOKING,
    ),
]
Animate = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Also save the x0 estimates of all steps, as an animated .webp or .gif.",
        rich_help_panel=LOOKING,
    ),
]
PreviewVae = Annotated[
    str | None,
    typer.Option(
        help="What decodes previews: a VAE, as for --vae, or `linear`, a guess that costs nothing.",
        show_default="the model's own",
        rich_help_panel=LOOKING,
    ),
]
Control = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        metavar="NET:PICTURE",
        help="A ControlNet, T2I or style adapter or IP-Adapter, and what it looks at; may be given several times. It "
        "may go on with a scale, a part of the steps and more: "
        "canny:photo.png:0.8:0-0.6:mode=prompt:fit=crop:annotator=none:mask=FILE. A judge is told a text: "
        "shapes-classifier:'red star':3.",
        rich_help_panel=CONDITIONS,
    ),
]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE:SCALE",
        help="A LoRA to add to the model, by so much (else by 1); may be given several times.",
        rich_help_panel=MODEL,
    ),
]
LoraDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="A folder of LoRAs that prompts may name: <lora:file_name:0.8>.",
        rich_help_panel=MODEL,
    ),
]
UpscalerDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="A folder of upscaling models (ESRGAN, Real-ESRGAN, SwinIR) that a second pass may name.",
        rich_help_panel=MODEL,
    ),
]
Embedding = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="A textual inversion, whose word prompts may use; may be given several times.",
        rich_help_panel=MODEL,
    ),
]
Ema = Annotated[
    bool | None,
    typer.Option(
        "--ema/--no-ema",
        help="The averaged weights, or those of the last step.",
        show_default="averaged, if there are any",
        rich_help_panel=OF_FILES,
    ),
]
PredictionType = Annotated[
    Literal["epsilon", "v_prediction"] | None,
    typer.Option(help="What the UNet predicts.", show_default="as the file says", rich_help_panel=OF_FILES),
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="A diffusers directory, whose configurations are taken and not its weights, or an original .yaml.",
        show_default="a .yaml of the same name, else found from the tensors",
        rich_help_panel=OF_FILES,
    ),
]
TokenizerFolder = Annotated[
    Path | None,
    typer.Option(
        help="A folder with vocab.json and merges.txt.",
        show_default="CLIP's, from the hub",
        rich_help_panel=OF_FILES,
    ),
]

Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="MODEL",
        help="Of a ControlNet that is differences to a model's UNet (kohya's, Control-LoRA): that model.",
        show_default=False,
        rich_help_panel=OF_FILES,
    ),
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
