"""From starting the process to the PNG: with an empty cache, with parts of it, and behind `sdjax compile`."""

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
    model: Annotated[str, typer.Option(help="As for `sdjax generate`; one that is converted already.")] = "shapes",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampler steps.", show_default="the model's own, else 50")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Starts of each kind.")] = 3,
    json_file: JsonOption = None,
) -> None:
    """`sdjax generate`, from starting the process to its end; the embedded model, unless another is named.

    Cold: the cache is empty and everything is compiled. Compiled: a process finds what JAX has compiled, and traces the
    networks to know that it is what it wants. Exported: it finds the traced programs too, as every second start does.
    Ahead: the first picture behind `sdjax compile`, whose own time stands above it.
    """
    times: dict[str, list[float]] = {"cold": [], "compiled": [], "exported": [], "sdjax compile": [], "ahead": []}
    chosen = ["--model", model] + (["--steps", str(steps)] if steps else [])
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            times["cold"].append(seconds_to_picture(Path(folder), chosen))
            for kind in ("programs", "shapes", "tokenizers"):
                shutil.rmtree(Path(folder) / "cache" / kind)
            times["compiled"].append(seconds_to_picture(Path(folder), chosen))
            times["exported"].append(seconds_to_picture(Path(folder), chosen))
        with tempfile.TemporaryDirectory() as folder:
            times["sdjax compile"].append(seconds_of(Path(folder), ["compile", model]))
            times["ahead"].append(seconds_to_picture(Path(folder), chosen))
    rows = [{"start": name, "runs": repeats, **spread(seconds)} for name, seconds in times.items()]
    publish("start", rows, json_file, "seconds from starting the process to its end, the PNG being written")


def seconds_to_picture(folder: Path, chosen: list[str]) -> float:
    """How long a picture takes with the cache in this folder."""
    picture = folder / "picture.png"
    seconds = seconds_of(folder, ["generate", PROMPT, "-o", str(picture), *chosen])
    picture.unlink()  # and fails where there is none
    return seconds


def seconds_of(folder: Path, arguments: list[str]) -> float:
    """How long a command takes with the cache in this folder."""
    environment = {**os.environ, "SDJAX_CACHE": str(folder / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # would be used instead
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", SDJAX, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin
