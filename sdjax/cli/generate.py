"""The painting commands: `sdjax generate`, `img2img`, `inpaint`, `edit`, `variations` and `upscale`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sdjax.cli import options
from sdjax.cli.like import like_picture
from sdjax.cli.painting import Painting, paint, painting
from sdjax.settings import EDIT, SETTINGS, UPSCALE, VARY
from sdjax.settings.picture import XL


@painting(model=None)
def generate(
    *,
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to paint; one picture per prompt.")
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(metavar="PICTURE", help="Paint this picture again, of sdjax or A1111; other options change it."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Download and open what the picture of --like names, without asking.")
    ] = False,
    painting: Painting,
) -> None:
    """Paint pictures. Their names are printed; how each was made is written into its file.

    [bold]Examples[/bold]

    The embedded model, which paints shapes:

    sdjax generate "a big red heart at the top left on a yellow background" -o heart.png

    Any Stable Diffusion 1.x, 2.x or XL, downloaded and converted once:

    sdjax generate "a lighthouse in a storm" --model stable-diffusion-v1-5/stable-diffusion-v1-5 --dtype bfloat16

    Eight pictures into a folder, with another sampler:

    sdjax generate "a green star on a blue background" -o stars --num-images 8 --sampler dpmpp_2m --spacing karras

    How a picture comes, step by step:

    sdjax generate "a purple ring on a yellow background" -o ring.png --animate ring.webp

    A picture again, with another seed:

    sdjax generate --like heart.png --seed 7 -o other.png
    """
    if like is not None:
        prompts, painting = like_picture(like, prompts, painting, yes)
    if not prompts:
        raise typer.BadParameter("say what to paint, or give --like", param_hint="PROMPT")
    loading = replace(painting.loading, model=painting.loading.model or "shapes")
    paint(prompts, replace(painting, loading=loading), {})


@painting("image")
def img2img(
    *,
    prompt: options.Prompt,
    image: Annotated[Path, typer.Argument(help="The picture to start from.")],
    painting: Painting,
) -> None:
    """Paint a picture from another one, which it keeps the more of the lower the strength is.

    [bold]Example[/bold]

    sdjax img2img "a big blue heart at the top left on a yellow background" heart.png --strength 0.6 -o blue.png
    """
    paint([prompt], painting, {"image": image})


@painting("image", "mask_image")
def inpaint(
    *,
    prompt: options.Prompt,
    image: Annotated[Path, typer.Argument(help="The picture to change.")],
    mask: Annotated[Path, typer.Argument(help=SETTINGS["mask_image"].help)],
    painting: Painting,
) -> None:
    """Paint a part of a picture anew, with any model; one made for inpainting sees what is around.

    [bold]Example[/bold]

    sdjax inpaint "a big red heart at the top left on a yellow background" scene.png mask.png --strength 1 -o new.png
    """
    paint([prompt], painting, {"image": image, "mask_image": mask})


@painting(EDIT, without=("depth_map", "hires_scale", XL), model="timbrooks/instruct-pix2pix", task=EDIT)
def edit(
    *,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to do with the picture.")],
    image: Annotated[Path, typer.Argument(help="The picture to change.")],
    painting: Painting,
) -> None:
    """Change a picture as you say, with a model made for it (InstructPix2Pix).

    More --guidance-scale follows the words more, more --image-guidance-scale the picture.

    [bold]Example[/bold]

    sdjax edit "make it winter" photo.png -o winter.png
    """
    paint([prompt], painting, {"image": image})


NO_PROMPT = ("depth_map", "hires_scale", "negative_prompt", "clip_skip", "prompt_syntax", XL)


@painting(without=NO_PROMPT, model="lambdalabs/sd-image-variations-diffusers", task=VARY)
def variations(
    *,
    image: Annotated[Path, typer.Argument(help="The picture to vary: its middle square is looked at.")],
    painting: Painting,
) -> None:
    """Draw variations of a picture, of the same things in the same style, with a model made for it and no prompt.

    More --guidance-scale keeps nearer to it. The size is the model's, or --width and --height.

    [bold]Example[/bold]

    sdjax variations photo.png -o variations --num-images 4 --guidance-scale 3
    """
    paint([""], painting, {"image": image})


UPSCALING = "stabilityai/stable-diffusion-x4-upscaler"


@painting(UPSCALE, without=("depth_map", "hires_scale", XL), model=UPSCALING, task=UPSCALE)
def upscale(
    *,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="What the picture shows; leave it out for ESRGAN and the like.")
    ],
    image: Annotated[Path | None, typer.Argument(metavar="PICTURE", help="The picture to enlarge.")] = None,
    painting: Painting,
) -> None:
    """Enlarge a picture, by a Stable Diffusion made for it and a prompt, or by ESRGAN, Real-ESRGAN or SwinIR without.

    The first makes it four times larger, and paints in the detail that the prompt says. The others are files (--model),
    which say how many times.

    [bold]Examples[/bold]

    sdjax upscale "a lighthouse in a storm" small.png -o large.png

    sdjax upscale small.png --model RealESRGAN_x4plus.pth -o large.png
    """
    if image is None:
        from sdjax.cli.enlarging import enlarge_picture

        enlarge_picture(Path(prompt), painting, [UPSCALING])
    else:
        paint([prompt], painting, {"image": image})
