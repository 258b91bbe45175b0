"""How well a model draws in a few steps, as it is and with a LoRA that it was distilled into."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

import sdjax
from benchmarks.accuracy import FACTS, ON_SHEET, captions_of
from benchmarks.frechet import SceneSpace
from benchmarks.readings import shown
from benchmarks.report import JsonOption, publish
from benchmarks.scenes import draw_scene
from benchmarks.sheets import SheetOption, drawn, save_sheet
from sdjax.pipeline.images import to_pil

WITHOUT = {"sampler": "dpmpp_2m", "spacing": "karras", "guidance_scale": 3.0}


def few_steps(
    loras: Annotated[list[Path], typer.Argument(metavar="LORA...", exists=True, dir_okay=False)],
    model: Annotated[str, typer.Option(help="As for `sdjax generate`.")] = "shapes",
    steps: Annotated[list[int] | None, typer.Option(min=1, help="Once for each.", show_default="1, 2, 4, 8")] = None,
    reference: Annotated[int, typer.Option(min=1, help="Steps of the model alone to compare with.")] = 20,
    pictures: Annotated[int, typer.Option(min=16, help="How many of each.")] = 200,
    sheet: SheetOption = None,
    json_file: JsonOption = None,
) -> None:
    """How often pictures show what captions of scenes say: the model alone, and with LoRAs of `sdjax train lcm`.

    The model alone draws with DPM++ 2M Karras and guidance 3, which is two evaluations a step; with a LoRA it draws as
    `sdjax generate` does. All draw the same captions from the same seeds. all: the share of captions all of whose facts
    hold; behind it those of single facts, and the Fréchet distance of the pictures from rendered scenes.
    """
    space = SceneSpace()
    scenes = [draw_scene(np.random.default_rng([0, i]), False) for i in range(pictures)]
    counts = steps or [1, 2, 4, 8]
    runs: list[tuple[str, Path | None, int]] = [("alone", None, n) for n in [reference, *counts]]
    runs += [(lora.stem, lora, n) for lora in loras for n in counts]
    rows: list[dict[str, Any]] = []
    shows: list[list[Image.Image]] = []
    pipes = {lora: sdjax.load(model, loras=[(lora, 1.0)] if lora else []) for lora in (None, *loras)}
    for name, lora, count in runs:
        how = {"num_inference_steps": count} | ({} if lora else WITHOUT)
        pixels = drawn(pipes[lora], captions_of(scenes), 20, how, f"{name}, {count}")
        found = shown(pixels, scenes, space)
        shares = {fact: found["facts"].get(fact, "") for fact in FACTS}
        evaluations = count * (1 if lora else 2)
        rows.append({"model": name, "steps": count, "evaluations": evaluations, "all": found["all"], **shares})
        rows[-1]["frechet"] = found["frechet"]
        shows.append(list(to_pil(pixels[:ON_SHEET])))
    publish("few-steps", rows, json_file, f"{model}, {pictures} captions")
    if sheet is not None:
        save_sheet(sheet, shows, [f"{name}, {count} steps" for name, _, count in runs])
