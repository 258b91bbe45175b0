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
    "a yellow star above a pink heart on a black background",
    "a white star on a cyan background",
    "a purple ring on a yellow background",
    "a green triangle at the bottom on an orange background",
    "a blue circle left of a red cross on a white background",
)
FEW = 5  # evaluations of the plan that was fitted for so many
ON_THE_WAY, STEPS = "a big orange square on a black background", (1, 4, 8, 12, 16)
START, OVER, STRENGTHS = (
    "a green star on a blue background",
    "a pink star on a blue background",
    (0.3, 0.5, 0.6, 0.7, 0.8),
)
SCENE = "a pink star above a purple star on a black background"
IN_ITS_PLACE = ("yellow heart", "green circle", "red square", "cyan triangle")
MASK = (12, 28, 54, 62)  # left, top, right and bottom of what is painted anew
SKETCH, SKETCHED = Path("docs/sketch.png"), "a {} heart left of a {} ring on a {} background"
COLOURS = (
    ("red", "blue", "white"),
    ("yellow", "pink", "black"),
    ("white", "red", "green"),
    ("blue", "purple", "yellow"),
    ("pink", "white", "blue"),
)


def showcase(
    output: Annotated[Path, typer.Argument(metavar="FILE", help="PNG, JPEG or WebP.")] = Path("showcase.webp"),
) -> None:
    """Draw a sheet with the embedded model: prompts, few steps, from pictures, parts of them, and from a drawing.

    To be started in a checkout, whose drawing it takes.
    """
    import sdjax

    pipe = sdjax.load()
    outline = sdjax.load_condition("outline")

    def draw(prompts: list[str], steps: int = 20, sampler: str = "dpmpp_2m", **settings) -> list[Image.Image]:
        spacing = None if sampler == "tuned" else "karras"
        return list(
            pipe(prompts, seed=0, sampler=sampler, spacing=spacing, num_inference_steps=steps, **settings).images
        )

    seen: dict[int, list[Image.Image]] = {}
    whole = draw([ON_THE_WAY] * COLUMNS, preview_every=1, on_preview=seen.__setitem__)
    start, scene, *_ = draw([START, SCENE] * (COLUMNS // 2))
    mask = Image.new("L", scene.size)
    ImageDraw.Draw(mask).rectangle(MASK, fill=255)
    over = [draw([OVER], image=start, strength=strength)[0] for strength in STRENGTHS]
    others = [f"a pink star above a {other} on a black background" for other in IN_ITS_PLACE]
    changed = draw(others, image=scene, mask_image=mask, strength=1.0)
    assert all(np.array_equal(np.asarray(each)[:20], np.asarray(scene)[:20]) for each in changed)  # outside the mask
    drawn = draw([SKETCHED.format(*colours) for colours in COLOURS], conditions=[outline(SKETCH)])
    rows = {
        "20 steps": draw(list(PROMPTS)),
        f"{FEW} steps, fitted": draw(list(PROMPTS), FEW, "tuned"),
        "step 1, 4, 8, 12, 16, 20": [*(seen[step][0] for step in STEPS), whole[0]],
        "painted over, 0.3 to 0.8": [start, *over],
        "inpainted": [scene, mask.convert("RGB"), *changed],
        "from a drawing": [Image.open(SKETCH).convert("RGB"), *drawn],
    }
    cells = [[image.resize((CELL, CELL), Image.Resampling.BICUBIC) for image in row] for row in rows.values()]
    save_picture(grid(cells, list(rows), [""] * COLUMNS), output, None)
    typer.echo(output)
