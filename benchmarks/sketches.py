"""How often pictures follow a sketch in place and shape, and their caption in colours; where both agree, and not."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from PIL import Image
from rich.progress import track

import sdjax
from benchmarks.report import JsonOption, in_a_folder, publish
from benchmarks.scenes import Facts, Scene, draw_scene, sketch
from benchmarks.scorer import Reading, read_picture
from sdjax.files.atomic import replaced
from sdjax.files.pictures import grid
from sdjax.pipeline.images import to_pil

NEAR = 4.0  # pixels that an object may lie beside the sketched one
ON_SHEET = 10


class Case(NamedTuple):
    """A picture by a caption and the sketch of a scene: the caption's own, or another where they are in conflict."""

    caption: Facts
    scene: Scene


def sketches(
    net: Annotated[str, typer.Argument(help="A ControlNet or a T2I adapter, as for `--control`.")] = "outline",
    model: Annotated[str, typer.Option(help="As for `sdjax generate --model`.")] = "shapes",
    pictures: Annotated[int, typer.Option(min=10, help="How many in agreement, and how many in conflict.")] = 200,
    weights: Annotated[str, typer.Option(help="Of the net, with commas between; 0 is without it.")] = "0,0.5,1,1.5",
    steps: Annotated[int, typer.Option(min=1, help="Of the sampler.")] = 20,
    guidance: Annotated[float, typer.Option(min=0, help="The scale of guidance.")] = 3.0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 20,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", dir_okay=False, callback=in_a_folder, help="Also show the first pictures."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """How often pictures by a sketch and a caption follow the sketch in place and shape, and the caption in colours.

    In agreement the caption tells the scene that is sketched, of pairs of colour and shape that no training showed. In
    conflict it tells another scene, with another shape at another place, and its colours. place: there is an object
    within 4 pixels of each sketched one. shape: it has that one's shape. colours: those of the caption's objects and
    background. all: all three.
    """
    pipe, opened = sdjax.load(model), sdjax.load_condition(net)
    scales = [float(weight) for weight in weights.split(",")]
    cases = {"agreement": agreeing(pictures), "conflict": conflicting(pictures)}
    rows, shown = [], []
    for kind, scale in itertools.product(cases, scales):
        drawn = []
        for start in track(range(0, pictures, batch), f"{kind}, weight {scale:g}"):
            seeds = [min(i, pictures - 1) for i in range(start, start + batch)]  # all batches are one program's
            chosen = [cases[kind][i] for i in seeds]
            hints = [(opened(sketched(case.scene, seed), scale=scale),) for seed, case in zip(seeds, chosen)]
            told = {"num_inference_steps": steps, "guidance_scale": guidance, "sampler": "dpmpp_2m karras"}
            captions = [str(case.caption) for case in chosen]
            drawn.append(np.asarray(pipe(captions, seed=seeds, conditions=hints, output_type="np", **told).images))
        pixels = np.concatenate(drawn)[:pictures]
        held = [followed(case, read_picture(picture)) for case, picture in zip(cases[kind], pixels)]
        shares = {name: float(np.mean([each[name] for each in held])) for name in held[0]}
        rows.append({"caption and sketch": kind, "weight": scale, **shares})
        shown.append((f"{kind}, {scale:g}", to_pil(pixels[:ON_SHEET])))
    publish(
        "sketches", rows, json_file, f"{net} on {model}: {pictures} pictures each, {steps} steps, guidance {guidance:g}"
    )
    if sheet is not None:
        save_sheet(sheet, cases, shown)


def agreeing(count: int) -> list[Case]:
    """Sketches and captions of one scene."""
    scenes = [draw_scene(np.random.default_rng([31, i]), held_out=True) for i in range(count)]
    return [Case(scene.facts, scene) for scene in scenes]


def conflicting(count: int) -> list[Case]:
    """Captions of one thing, and sketches of another that has another shape at another place."""
    found: list[Case] = []
    for i in itertools.count():
        if len(found) == count:
            break
        random = np.random.default_rng([32, i])
        told, drawn = draw_scene(random), draw_scene(random)
        if len(told.circles) == len(drawn.circles) == 1:
            (one,), (other,) = told.circles, drawn.circles
            far = np.hypot(one.x - other.x, one.y - other.y) > 2 * NEAR
            if far and told.facts.things[0].shape != drawn.facts.things[0].shape:
                found.append(Case(told.facts, drawn))
    return found


def sketched(scene: Scene, seed: int) -> Image.Image:
    """A sketch of a scene, the same at every weight."""
    return sketch(scene, np.random.default_rng([33, seed])).convert("RGB")


def followed(case: Case, reading: Reading) -> dict[str, bool]:
    """What of a sketch and a caption a picture follows."""
    places, shapes = [], []
    for thing, circle in zip(case.scene.facts.things, case.scene.circles):
        near = [
            seen for seen in reading.objects if np.hypot(seen.circle.x - circle.x, seen.circle.y - circle.y) <= NEAR
        ]
        places.append(bool(near))
        shapes.append(any(seen.shape == thing.shape for seen in near))
    wanted = sorted(thing.colour for thing in case.caption.things)
    colours = sorted(seen.colour for seen in reading.objects[: len(wanted)])
    held = {"place": all(places), "shape": all(shapes)}
    held["colours"] = colours == wanted and reading.background == case.caption.background
    return held | {"all": all(held.values())}


def save_sheet(path: Path, cases: dict[str, list[Case]], shown: Sequence[tuple[str, Sequence[Image.Image]]]) -> None:
    """The sketches of each kind, and below them the pictures at each weight."""
    rows: list[list[Image.Image]] = []
    labels: list[str] = []
    for kind, own in cases.items():
        rows.append([sketched(case.scene, i) for i, case in enumerate(own[:ON_SHEET])])
        labels.append("sketch")
        for label, images in shown:
            if label.startswith(kind):
                rows.append(list(images))
                labels.append(label)
    with replaced(path) as partial:
        grid(rows, labels, [str(i + 1) for i in range(ON_SHEET)]).save(partial, format="PNG")
