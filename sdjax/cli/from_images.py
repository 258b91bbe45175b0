"""`sdjax img2img`, `inpaint` and `upscale`: pictures to pictures."""

from pathlib import Path
from typing import Annotated

import typer

from sdjax.cli import options
from sdjax.cli.options import files_and_scales
from sdjax.cli.painting import Loading, paint

HERE = Path(".")


def img2img(
    prompt: options.Prompt,
    image: Annotated[Path, typer.Argument(help="The picture to start from.")],
    output: options.Output = HERE,
    model: options.Model = "shapes",
    strength: options.Strength = 0.8,
    sampler: options.Sampler = None,
    spacing: options.Spacing = None,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    negative_prompt: options.NegativePrompt = None,
    seed: options.Seed = None,
    num_images: options.NumImages = 1,
    width: options.Width = None,
    height: options.Height = None,
    depth_map: Annotated[
        Path | None, typer.Option(help="For models that follow depth: a picture, brighter where nearer.")
    ] = None,
    clip_skip: options.ClipSkip = None,
    prompt_syntax: options.PromptSyntax = None,
    rng: options.Rng = None,
    embedding: options.Embedding = None,
    dtype: options.Dtype = None,
    lora: options.Loras = None,
    vae: options.Vae = None,
    vae_tiling: options.VaeTiling = None,
) -> None:
    """Paint a picture from another one, which it keeps the more of the lower the strength is.

    [bold]Example[/bold]

    sdjax img2img "a big blue heart at the top left on a yellow background" heart.png --strength 0.6 -o blue.png
    """
    images = {"image": image} if depth_map is None else {"image": image, "depth_map": depth_map}
    settings = {
        "strength": strength,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "sampler": sampler,
        "spacing": spacing,
        "height": height,
        "width": width,
        "clip_skip": clip_skip,
        "prompt_syntax": prompt_syntax,
        "rng": rng,
    }
    loading = Loading(model, dtype, vae, vae_tiling, embedding or (), files_and_scales(lora))
    paint([prompt], output, loading, num_images, seed, negative_prompt, images, settings)


def inpaint(
    prompt: options.Prompt,
    image: Annotated[Path, typer.Argument(help="The picture to change.")],
    mask: Annotated[Path, typer.Argument(help="White where to paint anew; the rest keeps every pixel.")],
    output: options.Output = HERE,
    model: options.Model = "shapes",
    strength: options.Strength = 0.8,
    mask_blur: Annotated[float, typer.Option(min=0, help="Pixels over which the mask's edge is softened.")] = 4.0,
    only_masked: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="PADDING",
            help="Work only on the mask's surroundings, so many pixels around it, enlarged to the full size.",
            show_default="on the whole picture",
        ),
    ] = None,
    sampler: options.Sampler = None,
    spacing: options.Spacing = None,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    negative_prompt: options.NegativePrompt = None,
    seed: options.Seed = None,
    num_images: options.NumImages = 1,
    width: options.Width = None,
    height: options.Height = None,
    clip_skip: options.ClipSkip = None,
    prompt_syntax: options.PromptSyntax = None,
    rng: options.Rng = None,
    embedding: options.Embedding = None,
    dtype: options.Dtype = None,
    lora: options.Loras = None,
    vae: options.Vae = None,
    vae_tiling: options.VaeTiling = None,
) -> None:
    """Paint a part of a picture anew, with any model; one made for inpainting sees what is around.

    [bold]Example[/bold]

    sdjax inpaint "a big red heart at the top left on a yellow background" scene.png mask.png --strength 1 -o new.png
    """
    settings = {
        "strength": strength,
        "mask_blur": mask_blur,
        "padding_mask_crop": only_masked,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "sampler": sampler,
        "spacing": spacing,
        "height": height,
        "width": width,
        "clip_skip": clip_skip,
        "prompt_syntax": prompt_syntax,
        "rng": rng,
    }
    images = {"image": image, "mask_image": mask}
    loading = Loading(model, dtype, vae, vae_tiling, embedding or (), files_and_scales(lora))
    paint([prompt], output, loading, num_images, seed, negative_prompt, images, settings)


def upscale(
    prompt: options.Prompt,
    image: Annotated[Path, typer.Argument(help="The picture to enlarge.")],
    output: options.Output = HERE,
    model: options.Model = "stabilityai/stable-diffusion-x4-upscaler",
    noise_level: Annotated[
        int, typer.Option(min=0, help="Noise that is put on the picture: more of it, more is invented.")
    ] = 20,
    sampler: options.Sampler = None,
    spacing: options.Spacing = None,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    negative_prompt: options.NegativePrompt = None,
    seed: options.Seed = None,
    clip_skip: options.ClipSkip = None,
    prompt_syntax: options.PromptSyntax = None,
    rng: options.Rng = None,
    embedding: options.Embedding = None,
    dtype: options.Dtype = None,
    lora: options.Loras = None,
    vae: options.Vae = None,
    vae_tiling: options.VaeTiling = None,
) -> None:
    """Enlarge a picture four times, with a model made for it, which paints in the detail.

    [bold]Example[/bold]

    sdjax upscale "a lighthouse in a storm" small.png -o large.png
    """
    settings = {
        "noise_level": noise_level,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "sampler": sampler,
        "spacing": spacing,
        "clip_skip": clip_skip,
        "prompt_syntax": prompt_syntax,
        "rng": rng,
    }
    loading = Loading(model, dtype, vae, vae_tiling, embedding or (), files_and_scales(lora), task="upscale")
    paint([prompt], output, loading, 1, seed, negative_prompt, {"image": image}, settings)
