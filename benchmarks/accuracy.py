"""How often models draw what captions of scenes say, one model beside the other."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

import sdjax
from benchmarks import sheets
from benchmarks.frechet import SceneSpace
from benchmarks.readings import rendered, shown
from benchmarks.report import JsonOption, publish
from benchmarks.scenes import Scene, draw_scene
from benchmarks.sheets import SheetOption
from sdjax.models.precision import Precision
from sdjax.pipeline.images import to_pil

FACTS = ("background", "count", "colour", "shape", "size", "place", "relation")
ON_SHEET = 12  # pictures of each model


def accuracy(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Each as for `sdjax generate --model`.")],
    pictures: Annotated[int, typer.Option(min=16, help="How many each draws, of seen and of held-out pairs.")] = 200,
    steps: Annotated[int, typer.Option(min=1, help="Of the sampler.")] = 20,
    guidance: Annotated[float, typer.Option(min=0, help="The scale of guidance.")] = 3.0,
    sampler: Annotated[str, typer.Option(help="With its spacing.")] = "dpmpp_2m karras",
    weights: Annotated[
        list[str] | None, typer.Option(help="As for `sdjax generate`: the models also in these. Once for each.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 20,
    sheet: SheetOption = None,
    json_file: JsonOption = None,
) -> None:
    """How often models draw what captions of scenes say. All of them draw the same captions from the same seeds.

    all: the share of captions all of whose facts hold in the picture; behind it the shares of single facts. pairs: of a
    colour and a shape, such as models were trained on, or such as were held out. frechet: the distance of the pictures,
    as a set, from rendered scenes (of seen pairs). apart: the mean difference of a picture's colours, out of 255, from
    those of the first model. Rendered scenes themselves come last: the best there is.
    """
    for form in weights or ():
        Precision.of("float32", form)  # refuses an unknown one before anything is drawn
    space = SceneSpace()
    kinds = {
        name: [draw_scene(np.random.default_rng([held_out, i]), bool(held_out)) for i in range(pictures)]
        for held_out, name in enumerate(("seen", "held out"))
    }
    how = {"sampler": sampler, "num_inference_steps": steps, "guidance_scale": guidance}
    drawn: dict[tuple[str, str], np.ndarray] = {}
    for model, form in itertools.product(models, (None, *(weights or ()))):
        pipe = sdjax.load(model, weights=form)
        label = f"{model}, {form}" if form else model
        for name, scenes in kinds.items():
            drawn[label, name] = sheets.drawn(pipe, captions_of(scenes), batch, how, f"{Path(label).name}, {name}")
    for name, scenes in kinds.items():
        drawn["rendered", name] = rendered(scenes)
    rows = []
    for (label, name), pixels in drawn.items():
        apart = 255 * float(np.abs(pixels - drawn[models[0], name]).mean())
        is_other = label not in (models[0], "rendered")
        rows.append(row(label, name, pixels, kinds[name], space) | {"apart": apart if is_other else ""})
    note = f"{pictures} captions each; {steps} steps of {sampler}, guidance {guidance:g}"
    publish("accuracy", rows, json_file, note)
    if sheet is not None:
        save_sheet(sheet, drawn, kinds)


def captions_of(scenes: Sequence[Scene]) -> list[str]:
    """What is said of each scene."""
    return [str(scene.facts) for scene in scenes]


def row(label: str, name: str, pixels: np.ndarray, scenes: Sequence[Scene], space: SceneSpace) -> dict[str, Any]:
    """A line of the table."""
    found = shown(pixels, scenes, space)
    shares = {"all": found["all"], **{fact: found["facts"].get(fact, "") for fact in FACTS}}
    return {"model": Path(label).name, "pairs": name, **shares, "frechet": found["frechet"] if name == "seen" else ""}


def save_sheet(path: Path, drawn: dict[tuple[str, str], np.ndarray], kinds: dict[str, Sequence[Scene]]) -> None:
    """For each kind of pairs a row of pictures of every model, below one another the same caption; then rendered."""
    rows: list[list[Image.Image]] = []
    labels = []
    for name in kinds:
        for (label, of), pixels in drawn.items():
            if of == name:
                rows.append(list(to_pil(pixels[:ON_SHEET])))
                labels.append(f"{Path(label).name}, {name}")
    sheets.save_sheet(path, rows, labels)
