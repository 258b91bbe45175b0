"""`sdjax generate`: prompts to pictures."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sdjax.cli.interrupt import nothing_to_tidy
from sdjax.cli.output import check_output, picture_paths
from sdjax.cli.progress import progress_bars
from sdjax.images import save_png


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT", help="What to paint; one picture per prompt.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="A name that ends in .png, replaced if it exists (several pictures: name-1.png, name-2.png, ...), "
            "or a folder in which pictures are numbered and none is replaced.",
        ),
    ] = Path("."),
    model: Annotated[str, typer.Option(help="An embedded model, a directory, or a hub id.")] = "shapes",
    sampler: Annotated[
        str | None, typer.Option(help="One of those that `sdjax samplers` lists.", show_default="the model's own")
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="Which noise levels are visited.", show_default="the model's own")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampler steps.", show_default="the model's own, else 50")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="How much the prompt matters; 1 is no guidance.", show_default="the model's own, else 7.5"),
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float], typer.Option(help="The part of the steps that is guided, from 0 to 1.")
    ] = (0.0, 1.0),
    guidance_rescale: Annotated[
        float, typer.Option(help="How far the spread of guided predictions is brought back, from 0 to 1.")
    ] = 0.0,
    eta: Annotated[float | None, typer.Option(help="Share of fresh noise.", show_default="the sampler's own")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to paint.", show_default="nothing")] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Another seed, another picture; give it once, or once per picture.", show_default="0"),
    ] = None,
    num_images: Annotated[int, typer.Option(min=1, help="Pictures per prompt.")] = 1,
    width: Annotated[int | None, typer.Option(min=1, help="In pixels.", show_default="the model's own")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="In pixels.", show_default="the model's own")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="What the networks compute in.", show_default="float32 on a CPU, else bfloat16"),
    ] = None,
) -> None:
    """Paint pictures. Their names are printed; how each was made is written into its PNG.

    [bold]Examples[/bold]

    The embedded model, which paints shapes:

    sdjax generate "a big red heart at the top left on a yellow background" -o heart.png

    Any Stable Diffusion 1.x or 2.x, downloaded and converted once:

    sdjax generate "a lighthouse in a storm" --model stable-diffusion-v1-5/stable-diffusion-v1-5 --dtype bfloat16

    Eight pictures into a folder, with another sampler:

    sdjax generate "a green star on a blue background" -o stars --num-images 8 --sampler dpmpp_2m --spacing karras
    """
    check_output(output)

    import sdjax
    from sdjax.arguments import check_arguments

    seeds = seed or [0]
    asked: dict[str, Any] = {
        "negative_prompt": negative_prompt,
        "height": height,
        "width": width,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "guidance_interval": guidance_interval,
        "guidance_rescale": guidance_rescale,
        "eta": eta,
        "sampler": sampler,
        "spacing": spacing,
        "num_images_per_prompt": num_images,
        "seed": seeds[0] if len(seeds) == 1 else seeds,
    }
    check_arguments(prompts, **asked)
    with progress_bars(of_bytes=True) as report:
        pipe = sdjax.load(model, dtype=dtype, progress=report)
    with progress_bars() as report, nothing_to_tidy():
        result = pipe(prompts, **asked, progress=report)
    for image, settings, path in zip(result.images, result.settings, picture_paths(output, len(result.images))):
        save_png(image, path, {"model": model, **settings, "version": sdjax.__version__})
        typer.echo(path)
