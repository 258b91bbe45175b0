"""A sheet of what the library does with the embedded model, for a first look."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageDraw

from sdjax.files.pictures import grid, save_picture

COLUMNS = 6
CELL = 128  # pixels of a picture on the sheet
PROMPTS = (
    "a big red heart at the top left on a yellow background",
    "a purple ring on a yellow background",
    "a white star on a cyan background",
    "a yellow star above a pink heart on a black background",
    "a green triangle at the bottom on an orange background",
    "a blue circle left of a red cross on a white background",
)
SEEDS = "a small yellow star on a purple background"
ON_THE_WAY = "a big orange square on a black background"
STEPS = (1, 4, 8, 12, 16)
START, OVER = "a green star on a blue background", "a pink star on a blue background"
STRENGTHS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
SCENE = "a pink star above a purple star on a black background"
IN_ITS_PLACE = ("yellow heart", "green circle", "red square", "cyan triangle")
MASK = (12, 28, 54, 62)  # left, top, right and bottom of what is painted anew


def showcase(
    output: Annotated[Path, typer.Argument(metavar="FILE", help="A name that ends in .png.")] = Path("showcase.png"),
) -> None:
    """Draw a sheet with the embedded model: prompts, seeds, steps, pictures from pictures, and parts of them."""
    import sdjax

    pipe = sdjax.load()

    def draw(prompts: list[str], **settings) -> list[Image.Image]:
        return list(pipe(prompts, sampler="dpmpp_2m", num_inference_steps=20, **settings).images)

    seen: dict[int, list[Image.Image]] = {}
    whole = draw([ON_THE_WAY] * COLUMNS, preview_every=1, on_preview=seen.__setitem__)
    start, scene, *_ = draw([START, SCENE] * (COLUMNS // 2))
    mask = Image.new("L", scene.size)
    ImageDraw.Draw(mask).rectangle(MASK, fill=255)
    over = draw([OVER] * COLUMNS, image=start, strength=list(STRENGTHS))
    others = [f"a pink star above a {other} on a black background" for other in IN_ITS_PLACE]
    changed = draw([*others, *others[:2]], image=scene, mask_image=mask, strength=1.0)
    assert all(np.array_equal(np.asarray(each)[:20], np.asarray(scene)[:20]) for each in changed)  # outside the mask
    rows = {
        "prompts": draw(list(PROMPTS)),
        "seeds": draw([SEEDS] * COLUMNS),
        "steps 1, 4, 8, 12, 16, 20": [*(seen[step][0] for step in STEPS), whole[0]],
        "img2img, strength 0.5 to 0.9": [start, *over[1:]],
        "inpaint": [scene, mask.convert("RGB"), *changed[: len(IN_ITS_PLACE)]],
    }
    cells = [[image.resize((CELL, CELL), Image.Resampling.BICUBIC) for image in row] for row in rows.values()]
    save_picture(grid(cells, list(rows), [""] * COLUMNS), output, None)
    typer.echo(output)
