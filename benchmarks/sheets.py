"""Pictures that a benchmark draws in batches of one size, and a sheet of the first of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.progress import track

from benchmarks.report import in_a_folder
from sdjax.errors import InputError
from sdjax.files.atomic import replaced
from sdjax.files.pictures import grid
from sdjax.pipeline import Pipeline

SheetOption = Annotated[
    Path | None,
    typer.Option(
        "--sheet", metavar="FILE.png", dir_okay=False, callback=in_a_folder, help="Also show the first pictures."
    ),
]


def numbers_of(text: str) -> list[float]:
    """Numbers from a text with commas between them. Raises InputError for anything else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{text!r} is no list of numbers with commas between them, such as 0,0.5,1") from None


def drawn(
    pipe: Pipeline,
    captions: Sequence[str],
    batch: int,
    how: dict[str, Any],
    title: str,
    conditions_of: Callable[[int], Sequence[Any]] = lambda i: (),
    negatives: Sequence[str] | None = None,
) -> np.ndarray:
    """A picture of each caption, [count, height, width, 3] in [0, 1], of seeds 0, 1, ...

    conditions_of: maps the number of a picture to its conditions. negatives: a negative prompt for each caption. All
    batches are one program's: the last one is filled up with the last picture.
    """
    parts, last = [], len(captions) - 1
    for start in track(range(0, len(captions), batch), title):
        seeds = [min(i, last) for i in range(start, start + batch)]
        own = [conditions_of(i) for i in seeds]
        more: dict[str, Any] = {} if negatives is None else {"negative_prompt": [negatives[i] for i in seeds]}
        images = pipe([captions[i] for i in seeds], seed=seeds, conditions=own, output_type="np", **how, **more).images
        parts.append(np.asarray(images))
    return np.concatenate(parts)[: len(captions)]


def save_sheet(
    path: Path, rows: Sequence[Sequence[Image.Image]], labels: Sequence[str], columns: Sequence[str] | None = None
) -> None:
    """Writes labelled rows of pictures as a PNG; columns: 1, 2, ... where None."""
    titles = [str(i + 1) for i in range(len(rows[0]))] if columns is None else columns
    with replaced(path) as partial:
        grid(rows, labels, titles).save(partial, format="PNG")
