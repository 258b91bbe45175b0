"""How often pictures follow a sketch in place and shape, and their caption in colours; where both agree, and not."""

import itertools
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from PIL import Image

import sdjax
from benchmarks.report import JsonOption, publish
from benchmarks.scenes import Facts, Scene, draw_scene, sketch
from benchmarks.scorer import Reading, read_picture
from benchmarks.sheets import SheetOption, drawn, numbers_of, save_sheet
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
    sheet: SheetOption = None,
    json_file: JsonOption = None,
) -> None:
    """How often pictures by a sketch and a caption follow the sketch in place and shape, and the caption in colours.

    In agreement the caption tells the scene that is sketched, of pairs of colour and shape that no training showed. In
    conflict it tells another scene, with another shape at another place, and its colours. place: there is an object
    within 4 pixels of each sketched one. shape: it has that one's shape. colours: those of the caption's objects and
    background. all: all three.
    """
    scales = numbers_of(weights)
    pipe, opened = sdjax.load(model), sdjax.load_condition(net)
    cases = {"agreement": agreeing(pictures), "conflict": conflicting(pictures)}
    how = {"num_inference_steps": steps, "guidance_scale": guidance, "sampler": "dpmpp_2m karras"}
    rows: list[dict[str, Any]] = []
    shown: list[list[Image.Image]] = []
    labels: list[str] = []
    for kind, own in cases.items():
        seen = [sketched(case.scene, seed) for seed, case in enumerate(own)]
        shown.append(seen[:ON_SHEET])
        labels.append("sketch")
        for scale in scales:
            hints = [(opened(each, scale=scale),) for each in seen]
            captions = [str(case.caption) for case in own]
            pixels = drawn(pipe, captions, batch, how, f"{kind}, weight {scale:g}", hints.__getitem__)
            held = [followed(case, read_picture(picture)) for case, picture in zip(own, pixels)]
            shares = {name: float(np.mean([each[name] for each in held])) for name in held[0]}
            rows.append({"caption and sketch": kind, "weight": scale, **shares})
            shown.append(list(to_pil(pixels[:ON_SHEET])))
            labels.append(f"{kind}, {scale:g}")
    note = f"{net} on {model}: {pictures} pictures each, {steps} steps, guidance {guidance:g}"
    publish("sketches", rows, json_file, note)
    if sheet is not None:
        save_sheet(sheet, shown, labels)


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
