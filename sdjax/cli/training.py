"""`sdjax train`: the commands that train, and one that shows what is trained against."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sdjax.cli import options
from sdjax.cli.help import Command, Group
from sdjax.cli.run_settings import Pictures, Run, open_model, train_in, with_settings
from sdjax.cli.training_conditions import adapter, controlnet
from sdjax.cli.training_judges import classifier
from sdjax.errors import InputError

if TYPE_CHECKING:  # optax and orbax are slow to import: the commands do it
    from sdjax.training.fit import Intervals
    from sdjax.training.step import Settings

PlainPictures = Annotated[
    Path, typer.Argument(metavar="PICTURES", help="A folder of pictures, or cifar-10-binary.tar.gz.")
]
FromScratch = Annotated[bool, typer.Option("--from-scratch", help="Begin with random parameters, not the model's.")]


def noise(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Any picture.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A name that ends in .png or .webp.")] = Path(
        "noise.png"
    ),
) -> None:
    """Show a picture under growing noise, as the linear, scaled-linear and cosine schedules put it there.

    [bold]Example[/bold]

    sdjax train noise heart.png -o noise.png
    """
    from sdjax.training.data import read_picture
    from sdjax.training.figures import noise_sheet

    if output.suffix.lower() not in (".png", ".webp"):
        raise InputError(f"{output}: give a name that ends in .png or .webp")
    noise_sheet(read_picture(image)).save(output)
    typer.echo(output)


@with_settings(batch_size=16)
def vae(
    *,
    pictures: PlainPictures,
    run: Run,
    model: options.Model = "shapes",
    from_scratch: FromScratch = False,
    decoder_only: Annotated[
        bool, typer.Option("--decoder-only", help="Leave the encoder as it is, so that UNets still suit.")
    ] = False,
    size: Annotated[int | None, typer.Option(min=8, help="Of the pictures.", show_default="the model's own")] = None,
    kl_weight: Annotated[float, typer.Option(min=0, help="How much the latents' distance from noise counts.")] = 1e-6,
    settings: "Settings",
    intervals: "Intervals",
) -> None:
    """Train the autoencoder of a model, from its parameters or from scratch.

    Latents change with it, and their scaling factor, which is measured at the end: a UNet must be trained on them anew,
    unless only the decoder is trained.

    [bold]Examples[/bold]

    sdjax train vae ./pictures ./run --from-scratch --steps 20000

    sdjax train vae ./pictures ./run --model sd15 --decoder-only --size 512 --batch-size 4 --learning-rate 1e-5
    """
    from sdjax.training.autoencoder import Choices, vae_task
    from sdjax.training.data import read_examples

    choices = Choices(size, from_scratch, decoder_only, kl_weight)
    examples = read_examples(pictures, captions=False)
    train_in(vae_task(open_model(model), examples, choices), run, settings, intervals)


@with_settings(steps=20_000, batch_size=64, learning_rate=2e-4, warmup_steps=500)
def ddpm(
    *,
    pictures: PlainPictures,
    run: Run,
    size: Annotated[int, typer.Option(min=8, help="Of the pictures.")] = 32,
    channels: Annotated[int, typer.Option(min=8, help="Width of the UNet at its finest level.")] = 64,
    beta_schedule: Annotated[
        Literal["linear", "scaled_linear", "squaredcos_cap_v2"], typer.Option(help="How noise grows.")
    ] = "linear",
    prediction_type: Annotated[
        Literal["epsilon", "v_prediction", "sample"], typer.Option(help="What the UNet is to predict.")
    ] = "epsilon",
    settings: "Settings",
    intervals: "Intervals",
) -> None:
    """Train a UNet on the pixels of small pictures, from scratch and without captions.

    [bold]Example[/bold]

    sdjax train ddpm ./pictures ./run --size 32 --steps 20000
    """
    from sdjax.training.data import read_examples
    from sdjax.training.ddpm import config_of, ddpm_task, scheduler_of

    config, scheduler = config_of(size, channels), scheduler_of(beta_schedule, prediction_type)
    examples = read_examples(pictures, captions=False)
    train_in(ddpm_task(examples, config, scheduler), run, settings, intervals)


@with_settings(weight_decay=0.01)
def text_to_image(
    *,
    pictures: Pictures,
    run: Run,
    model: options.Model = "shapes",
    vae: options.Vae = None,
    from_scratch: FromScratch = False,
    text_encoder: Annotated[
        bool, typer.Option("--text-encoder/--no-text-encoder", help="Whether the text encoder is trained too.")
    ] = True,
    prediction_type: Annotated[
        Literal["epsilon", "v_prediction"] | None,
        typer.Option(help="What the UNet is to predict.", show_default="as the model says"),
    ] = None,
    min_snr_gamma: Annotated[float, typer.Option(min=0, help="Of min-SNR weights; 0 for plain squared errors.")] = 5.0,
    caption_dropout: Annotated[
        float, typer.Option(min=0, max=1, help="The share of captions that are left out, for guidance.")
    ] = 0.1,
    lora_rank: Annotated[
        int | None, typer.Option(min=1, help="Train a LoRA of this rank, and not the model.", show_default="the model")
    ] = None,
    store: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(
            help="What the model's parameters are written in.", show_default="float32, where they were trained"
        ),
    ] = None,
    settings: "Settings",
    intervals: "Intervals",
) -> None:
    """Train the UNet and the text encoder of a model on captioned pictures, from its parameters or from scratch.

    The folder RUN gets log.csv, sheets of samples, checkpoints, and at the end a model, which `sdjax generate --model`
    draws with, or a LoRA, for `--lora`. The same command after an interruption goes on where the last checkpoint was.

    [bold]Examples[/bold]

    sdjax train text-to-image ./pictures ./run --steps 2000

    sdjax train text-to-image ./pictures ./run --model sd15 --lora-rank 8 --steps 500

    sdjax train text-to-image ./pictures ./run --from-scratch --vae ./vae-run/vae-20000 --prediction-type v_prediction
    """
    import sdjax.convert
    from sdjax.training.data import read_examples
    from sdjax.training.text_to_image import Choices, text_to_image_task

    own_vae = None if vae is None else sdjax.convert.resolve(vae)
    choices = Choices(
        from_scratch, text_encoder, prediction_type, min_snr_gamma or None, caption_dropout, own_vae, lora_rank, store
    )
    examples = read_examples(pictures, captions=True)
    train_in(text_to_image_task(open_model(model), examples, choices), run, settings, intervals)


@with_settings(steps=1000, batch_size=4, learning_rate=5e-3, warmup_steps=0, ema_decay=0.0)
def textual_inversion(
    *,
    pictures: Pictures,
    run: Run,
    word: Annotated[str, typer.Option(help="What prompts will call it; no word that the model knows.")],
    model: options.Model = "shapes",
    vectors: Annotated[int, typer.Option(min=1, help="How many of them stand for the word.")] = 1,
    begin_with: Annotated[
        str | None, typer.Option(help="A word of the model to begin with.", show_default="random vectors")
    ] = None,
    caption: Annotated[
        str | None,
        typer.Option(
            help="One for all pictures, such as 'a photo of <mine>'.", show_default="each has its own, as above"
        ),
    ] = None,
    settings: "Settings",
    intervals: "Intervals",
) -> None:
    """Learn a word for what some pictures show. The model stays as it is: the word's file is for `--embedding`.

    [bold]Example[/bold]

    sdjax train textual-inversion ./pictures ./run --word "<mine>" --begin-with star --caption "a <mine>"

    sdjax generate "a small <mine> on a white background" --embedding ./run/mine-1000.safetensors
    """
    from sdjax.training.data import read_examples
    from sdjax.training.inversion import Word, word_task

    examples = read_examples(pictures, captions=caption is None)
    if caption is not None:
        examples = [example._replace(caption=caption) for example in examples]
    train_in(word_task(open_model(model), examples, Word(word, vectors, begin_with)), run, settings, intervals)


@with_settings(steps=1000, batch_size=16, learning_rate=1e-3, ema_decay=0.95)
def lcm(
    *,
    pictures: Pictures,
    run: Run,
    model: options.Model = "shapes",
    rank: Annotated[int, typer.Option(min=1, help="Of the LoRA.")] = 16,
    guidance: Annotated[
        float | None,
        typer.Option(min=0, help="The guidance scale that is built in.", show_default="the model's own, else 7.5"),
    ] = None,
    solver_steps: Annotated[int, typer.Option(min=2, help="Timesteps that are learned.")] = 50,
    settings: "Settings",
    intervals: "Intervals",
) -> None:
    """Distil a model into few steps (latent consistency, arXiv:2310.04378): a LoRA for `--lora`.

    Captions are those of the pictures. A model with the LoRA draws with the sampler lcm in two to eight steps, and
    needs no guidance: the scale is built in.

    [bold]Example[/bold]

    sdjax train lcm ./pictures ./run --guidance 3 --steps 1000

    sdjax generate "a small star on a white background" --lora ./run/lcm-lora-1000.safetensors
    """
    from sdjax.training.consistency import Choices, consistency_task
    from sdjax.training.data import read_examples

    examples = read_examples(pictures, captions=True)
    opened = open_model(model)
    if guidance is None:
        guidance = float(opened.defaults.get("guidance_scale", Choices.guidance))
    task = consistency_task(opened, examples, Choices(rank, guidance, solver_steps))
    train_in(task, run, settings, intervals)


train = typer.Typer(cls=Group, help="Train networks, and look at what they are trained on.", no_args_is_help=True)
for command in (text_to_image, textual_inversion, lcm, controlnet, adapter, classifier, vae, ddpm, noise):
    train.command(cls=Command)(command)
