"""Scores of pictures that are there: how they fit their texts, whether edits went where texts say, how they please."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from benchmarks.aesthetics import aesthetic_scores, read_aesthetic
from benchmarks.report import JsonOption, publish
from sdjax.convert import open_clip
from sdjax.errors import InputError
from sdjax.pipeline.images import read_image


def judge(
    pictures: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            help='Lines of JSON: {"picture": FILE, "text": ...}; of an edit also "before": FILE and "before_text".',
        ),
    ],
    clip: Annotated[
        Path, typer.Option(metavar="DIR", exists=True, file_okay=False, help="A folder of transformers' CLIPModel.")
    ],
    aesthetic: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="LAION's predictor for this CLIP: sac+logos+ava1-l14-linearMSE.pth, or its tensors as safetensors.",
        ),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Scores of pictures, without PyTorch.

    clip: 100 times the cosine between a picture and its text. direction: the cosine between how the picture and its
    text changed, of edits. aesthetic: LAION's, about 1 to 10.
    """
    lines = lines_of(pictures)
    layers, model = aesthetic and read_aesthetic(aesthetic), open_clip(clip)
    seen = [opened(pictures.parent, line["picture"]) for line in lines]
    rows: list[dict[str, Any]] = [{"picture": line["picture"]} for line in lines]
    texts = [line.get("text", "") for line in lines]
    for row, text, score in zip(rows, texts, model.scores(seen, texts)):
        row["clip"] = float(score) if text else ""
        row["direction"] = row["aesthetic"] = ""
    edits = [k for k, line in enumerate(lines) if "before" in line]
    if edits:
        before = [opened(pictures.parent, lines[k]["before"]) for k in edits]
        found = model.directions(
            before, [seen[k] for k in edits], [lines[k]["before_text"] for k in edits], [texts[k] for k in edits]
        )
        for k, direction in zip(edits, found):
            rows[k]["direction"] = float(direction)
    if layers:
        for row, score in zip(rows, aesthetic_scores(layers, model.pictures(seen))):
            row["aesthetic"] = float(score)
    numbers = {name: [row[name] for row in rows if row[name] != ""] for name in ("clip", "direction", "aesthetic")}
    rows.append({"picture": "mean"} | {name: float(np.mean(own)) if own else "" for name, own in numbers.items()})
    publish("judge", rows, json_file, f"{len(lines)} pictures, {clip}")


def lines_of(file: Path) -> list[dict[str, str]]:
    """The lines of a file of pictures. Raises InputError, with its number, for one that says something else."""
    found = []
    for number, text in enumerate(file.read_text().splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{file}, line {number}: no JSON ({error})") from None
        known = isinstance(line, dict) and all(isinstance(value, str) for value in line.values())
        if not known or "picture" not in line or ("before" in line and not {"before_text", "text"} <= line.keys()):
            raise InputError(
                f'{file}, line {number}: say "picture" and "text", of an edit "before" and "before_text" too, all texts'
            )
        found.append(line)
    if not found:
        raise InputError(f"{file} names no picture")
    return found


def opened(folder: Path, name: str) -> Image.Image:
    """A picture of a file, named from the folder of the list."""
    image = read_image(name, folder / name)
    assert isinstance(image, Image.Image)
    return image
