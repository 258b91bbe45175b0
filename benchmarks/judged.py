"""How often pictures show what a classifier is told to see, with no prompt at all."""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

import sdjax
from benchmarks.frechet import SceneSpace
from benchmarks.report import JsonOption, publish
from benchmarks.scenes import HELD_OUT, PAIRS
from benchmarks.scorer import Reading, read_picture
from benchmarks.sheets import SheetOption, drawn, numbers_of, save_sheet
from sdjax.errors import InputError
from sdjax.pipeline import JudgeNet
from sdjax.pipeline.images import to_pil

SEEN = [pair for pair in PAIRS if pair not in HELD_OUT]
ON_SHEET = 8


def judged(
    classifier: Annotated[str, typer.Argument(help="Of `sdjax train classifier`, which knows colours and shapes.")],
    model: Annotated[str, typer.Option(help="As for `sdjax generate --model`.")] = "shapes",
    scales: Annotated[str, typer.Option(help="Of the classifier's gradient, with commas between them.")] = "0,1,3,10",
    pictures: Annotated[int, typer.Option(min=16, help="Of each scale.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Of the sampler.")] = 20,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 16,
    sheet: SheetOption = None,
    json_file: JsonOption = None,
) -> None:
    """How often pictures show what a classifier is told to see, with no prompt at all.

    Each picture is told a colour and a shape. shape, colour, both: the share in which an object has them, and has both
    (colour: it, or the background). frechet: the distance of the pictures, as a set, from rendered scenes.
    """
    strengths = numbers_of(scales)
    pipe, judge, space = sdjax.load(model), sdjax.load_condition(classifier), SceneSpace()
    if not isinstance(judge, JudgeNet):
        raise InputError(f"{classifier} is no classifier")
    wanted = [SEEN[int(i)] for i in np.random.default_rng(0).integers(0, len(SEEN), pictures)]
    how: dict[str, Any] = {"sampler": "dpmpp_2m karras", "num_inference_steps": steps, "guidance_scale": 1.0}
    rows: list[dict[str, Any]] = []
    shown: list[list[Image.Image]] = []
    for scale in strengths:
        wishes = [(judge(" ".join(pair), scale=scale),) for pair in wanted]
        pixels = drawn(pipe, [""] * pictures, batch, how, f"scale {scale:g}", wishes.__getitem__)
        readings = [read_picture(picture) for picture in pixels]
        rows.append({"scale": scale, **shares(readings, wanted), "frechet": space.distance(pixels)})
        shown.append(list(to_pil(pixels[:ON_SHEET])))
    publish("judged", rows, json_file, f"{pictures} pictures each, no prompt; {steps} steps of dpmpp_2m karras")
    if sheet is not None:
        titles = [" ".join(pair) for pair in wanted[:ON_SHEET]]
        save_sheet(sheet, shown, [f"scale {row['scale']:g}" for row in rows], titles)


def shares(readings: Sequence[Reading], wanted: Sequence[tuple[str, str]]) -> dict[str, float]:
    """How many of the pictures show their shape, their colour, and an object that has both."""
    found = []
    for reading, (colour, shape) in zip(readings, wanted):
        objects = {(seen.colour, seen.shape) for seen in reading.objects}
        colours = {reading.background, *(own for own, _ in objects)}
        found.append((shape in {own for _, own in objects}, colour in colours, (colour, shape) in objects))
    return dict(zip(("shape", "colour", "both"), np.mean(found, axis=0).tolist()))
