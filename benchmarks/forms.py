"""Forms of guidance on the embedded model: which facts hold, and how far the pictures are from rendered scenes."""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

import sdjax
from benchmarks.readings import of_scenes
from benchmarks.report import JsonOption, publish
from benchmarks.scenes import PALETTE, Scene, draw_scene
from benchmarks.sheets import SheetOption, drawn, numbers_of, save_sheet
from sdjax.pipeline.images import to_pil

ON_SHEET = 8
BESIDE = 3.0  # the guidance scale beside which predictions also go away from worse ones

# A form's settings at a scale; it is the guidance scale, or how far a prediction goes away from a worse one.
GUIDED: dict[str, Callable[[float], dict[str, Any]]] = {
    "cfg": lambda scale: {"guidance_scale": scale},
    "cfg, rescaled 0.7": lambda scale: {"guidance_scale": scale, "guidance_rescale": 0.7},
    "apg": lambda scale: {"guidance_scale": scale, "guidance": "apg", "apg_eta": 0.0, "apg_momentum": -0.5},
    "cfg_zero_star": lambda scale: {"guidance_scale": scale, "guidance": "cfg_zero_star"},
    "dynamic_threshold": lambda scale: {
        "guidance_scale": scale,
        "guidance": "dynamic_threshold",
        "mimic_scale": BESIDE,
    },
}
# With a negative prompt that shares the shape with the prompt.
NEGATIVE: dict[str, Callable[[float], dict[str, Any]]] = {
    "cfg, negative": lambda scale: {"guidance_scale": scale},
    "perp_neg, negative": lambda scale: {"guidance_scale": scale, "guidance": "perp_neg"},
}
AWAY: dict[str, Callable[[float], dict[str, Any]]] = {
    "pag alone": lambda scale: {"guidance_scale": 1.0, "pag_scale": scale},
    "cfg 3 + pag": lambda scale: {"guidance_scale": BESIDE, "pag_scale": scale},
    "cfg 3 + seg": lambda scale: {"guidance_scale": BESIDE, "pag_scale": scale, "seg_blur": 9999.0},
    "cfg 3 + sag": lambda scale: {"guidance_scale": BESIDE, "sag_scale": scale},
}


def forms(
    model: Annotated[str, typer.Option(help="As for `sdjax generate --model`.")] = "shapes",
    scales: Annotated[str, typer.Option(help="Of guidance, with commas between them.")] = "3,7.5,15",
    away: Annotated[str, typer.Option(help="Scales of the forms that go away from worse predictions.")] = "1,3",
    pictures: Annotated[int, typer.Option(min=16, help="Of each form and scale.")] = 48,
    steps: Annotated[int, typer.Option(min=1, help="Of the sampler.")] = 20,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 16,
    sheet: SheetOption = None,
    json_file: JsonOption = None,
) -> None:
    """Forms of guidance over scales: the share of captions all of whose facts hold, and the Fréchet distance.

    all: the captions of which everything holds in the picture. frechet: how far the pictures are, as a set, from
    rendered scenes. The negative prompt of a picture is its first thing in another colour.
    """
    scenes = [draw_scene(np.random.default_rng([0, i])) for i in range(pictures)]
    captions, read = [str(scene.facts) for scene in scenes], of_scenes(scenes)
    pipe = sdjax.load(model)
    rows: list[dict[str, Any]] = []
    shown: list[list[Image.Image]] = []
    for known, tried in ((GUIDED | NEGATIVE, numbers_of(scales)), (AWAY, numbers_of(away))):
        for name, settings_of in known.items():
            negatives = [unwanted(scene) for scene in scenes] if name in NEGATIVE else None
            for scale in tried:
                how = {"sampler": "dpmpp_2m karras", "num_inference_steps": steps, **settings_of(scale)}
                pixels = drawn(pipe, captions, batch, how, f"{name}, {scale:g}", negatives=negatives)
                rows.append({"form": name, "scale": scale, **read(pixels)})
            shown.append(list(to_pil(pixels[:ON_SHEET])))
    lines = [{"form": row["form"], "scale": row["scale"], "all": row["all"], "frechet": row["frechet"]} for row in rows]
    publish("forms", lines, json_file, f"{model}: {pictures} pictures each, {steps} steps of dpmpp_2m karras", rows)
    if sheet is not None:
        firsts = [scene.facts.things[0] for scene in scenes[:ON_SHEET]]  # captions are wider than pictures
        save_sheet(sheet, shown, [*(GUIDED | NEGATIVE | AWAY)], [f"{one.colour} {one.shape}" for one in firsts])


def unwanted(scene: Scene) -> str:
    """The first thing of a scene in a colour that the scene does not have."""
    first = scene.facts.things[0]
    taken = {scene.facts.background, *(thing.colour for thing in scene.facts.things)}
    return f"a {next(colour for colour in PALETTE if colour not in taken)} {first.shape}"
