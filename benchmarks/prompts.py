"""The prompts that the embedded model's plans are fitted to."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.report import in_a_folder
from benchmarks.scenes import draw_scene
from sdjax.files.atomic import replaced

SEED = 1000  # of scenes that no study draws


def prompts(
    output: Annotated[
        Path, typer.Argument(dir_okay=False, callback=in_a_folder, help="The file to write, a prompt a line.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Prompts.")] = 96,
) -> None:
    """Write captions of scenes for `sdjax tune shapes`."""
    captions = (str(draw_scene(np.random.default_rng([SEED, i])).facts) for i in range(count))
    with replaced(output) as file:
        file.write_text("\n".join(captions) + "\n")
