"""From starting the process to the PNG, with the embedded model."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.report import JsonOption, publish, spread

PROMPT = "a big red heart at the top left on a yellow background"
SDJAX = "import sys, sdjax.cli; sys.exit(sdjax.cli.main())"  # what the console script does


def start(
    repeats: Annotated[int, typer.Option(min=1, help="Starts of each kind.")] = 3,
    json_file: JsonOption = None,
) -> None:
    """`sdjax generate` with the embedded model, from starting the process to its end.

    Cold: the cache is empty and everything is compiled. Compiled: a process finds what JAX has compiled, and traces the
    networks to know that it is what it wants. Exported: it finds the traced programs too, as every second start does.
    """
    times: dict[str, list[float]] = {"cold": [], "compiled": [], "exported": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            times["cold"].append(seconds_to_picture(Path(folder)))
            shutil.rmtree(Path(folder) / "cache" / "kept")
            times["compiled"].append(seconds_to_picture(Path(folder)))
            times["exported"].append(seconds_to_picture(Path(folder)))
    rows = [{"start": name, "runs": repeats, **spread(seconds)} for name, seconds in times.items()]
    publish("start", rows, json_file, "seconds from starting the process to its end, the PNG being written")


def seconds_to_picture(folder: Path) -> float:
    """How long the command takes with the cache in this folder."""
    environment = {**os.environ, "SDJAX_CACHE": str(folder / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # would be used instead
    picture = folder / "picture.png"
    begin = time.perf_counter()
    command = [sys.executable, "-c", SDJAX, "generate", PROMPT, "-o", str(picture)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    picture.unlink()  # and fails where there is none
    return seconds
