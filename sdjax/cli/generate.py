"""`sdjax generate`: prompts to pictures."""

from pathlib import Path
from typing import Annotated

import typer

from sdjax.cli import options
from sdjax.cli.like import read_like
from sdjax.cli.options import files_and_scales
from sdjax.cli.painting import Loading, paint
from sdjax.cli.watching import Watching

HERE = Path(".")
WHOLE = (0.0, 1.0)


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to paint; one picture per prompt.")
    ] = None,
    output: options.Output = HERE,
    like: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Paint this picture again, of sdjax or A1111; other options change it."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="An embedded model, a directory, or a hub id.", show_default="shapes")
    ] = None,
    sampler: options.Sampler = None,
    spacing: options.Spacing = None,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    guidance_interval: options.GuidanceInterval = WHOLE,
    guidance_rescale: options.GuidanceRescale = 0.0,
    eta: options.Eta = None,
    negative_prompt: options.NegativePrompt = None,
    seed: options.Seed = None,
    num_images: options.NumImages = 1,
    width: options.Width = None,
    height: options.Height = None,
    depth_map: Annotated[
        Path | None, typer.Option(help="For models that follow depth: a picture, brighter where nearer.")
    ] = None,
    hires_scale: options.HiresScale = None,
    hires_upscaler: options.HiresUpscaler = None,
    hires_strength: options.HiresStrength = None,
    hires_steps: options.HiresSteps = None,
    clip_skip: options.ClipSkip = None,
    prompt_syntax: options.PromptSyntax = None,
    rng: options.Rng = None,
    embedding: options.Embedding = None,
    dtype: options.Dtype = None,
    lora: options.Loras = None,
    vae: options.Vae = None,
    vae_tiling: options.VaeTiling = None,
    preview_every: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="STEPS", help="Also save the picture as it is seen coming, as name-step-05.png and so on."
        ),
    ] = None,
    preview_vae: options.PreviewVae = None,
    animate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also save how the picture came, as an animated .webp or .gif."),
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

    How a picture comes, step by step:

    sdjax generate "a purple ring on a yellow background" -o ring.png --animate ring.webp

    A picture again, with another seed:

    sdjax generate --like heart.png --seed 7 -o other.png
    """
    images = {} if depth_map is None else {"depth_map": depth_map}
    settings = {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "guidance_interval": guidance_interval,
        "guidance_rescale": guidance_rescale,
        "sampler": sampler,
        "spacing": spacing,
        "eta": eta,
        "height": height,
        "width": width,
        "hires_scale": hires_scale,
        "hires_upscaler": hires_upscaler,
        "hires_strength": hires_strength,
        "hires_steps": hires_steps,
        "clip_skip": clip_skip,
        "prompt_syntax": prompt_syntax,
        "rng": rng,
    }
    watching = Watching(output, preview_every, animate)
    if like is None:
        if not prompts:
            raise typer.BadParameter("say what to paint, or give --like", param_hint="PROMPT")
        loading = Loading(
            model or "shapes", dtype, vae, vae_tiling, embedding or (), files_and_scales(lora), preview_vae
        )
        paint(prompts, output, loading, num_images, seed, negative_prompt, images, settings, watching)
        return
    told = read_like(like, model, settings)
    loading = Loading(
        told.model,
        dtype or told.dtype,
        vae or told.vae,
        vae_tiling,
        embedding or told.embeddings,
        files_and_scales(lora or told.loras),
        preview_vae,
    )
    paint(
        prompts or [told.prompt],
        output,
        loading,
        num_images,
        seed or [told.seed],
        told.negative_prompt if negative_prompt is None else negative_prompt,
        told.images | images,
        told.settings,
        watching,
    )
