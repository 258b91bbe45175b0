"""The prompts that the embedded model's plans are fitted to."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.report import in_a_folder
from benchmarks.scenes import Facts, draw_scene
from sdjax.files.atomic import replaced

SEED = 1000  # of scenes that no study draws
SHORT = 7  # one of so many says no more than a colour and a shape; no multiple of the guidance scales, which take turns


def prompts(
    output: Annotated[
        Path, typer.Argument(dir_okay=False, callback=in_a_folder, help="The file to write, a prompt a line.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Prompts.")] = 96,
) -> None:
    """Write prompts for `sdjax tune shapes`: captions of scenes, and between them short ones such as "a red star"."""
    facts = (draw_scene(np.random.default_rng([SEED, i])).facts for i in range(count))
    lines = [short(each) if i % SHORT == 0 else str(each) for i, each in enumerate(facts)]
    with replaced(output) as file:
        file.write_text("\n".join(lines) + "\n")


def short(facts: Facts) -> str:
    """What a hurried person would ask for: "a red star"."""
    return f"a {facts.things[0].colour} {facts.things[0].shape}"
