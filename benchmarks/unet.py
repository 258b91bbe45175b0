"""One evaluation of a full-size UNet, sdjax beside PyTorch: time, memory, and whether they agree."""

import json
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress

from benchmarks.configs import SD15_UNET, ConfigOption
from benchmarks.processes import Worker
from benchmarks.report import JsonOption, publish, spread
from sdjax.checkpoint import write_json
from sdjax.convert import convert

MEASURED = ("sdjax", "sdjax", "pytorch")  # whose memory: the first process compiles, the second need not
REST = 0.3  # seconds in which the threads of one framework fall asleep before the other evaluates


def unet(
    config: ConfigOption = SD15_UNET,
    pixels: Annotated[list[int] | None, typer.Option(help="Give it once per size.", show_default="256, 512")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Evaluations of each framework at each size.")] = 7,
    json_file: JsonOption = None,
) -> None:
    """One UNet evaluation against PyTorch diffusers on the same random weights: batch 2, float32.

    Two processes hold the model and evaluate in turn. `ratio` is the median of sdjax's time over PyTorch's within each
    turn, below 1 where sdjax is faster; believe it on a quiet machine only, since PyTorch's threads wait for each
    other and lose more where others run. `GB` is the peak memory of fresh processes that evaluate at one size only:
    sdjax's when it compiles (`first`) and when it finds the program in the cache (`again`), and PyTorch's. `error` is
    how far the outputs lie apart, against their size.

    Needs PyTorch and diffusers (`make parity` installs them into .venv-parity), and at SD 1.5's size some 12 GB of
    memory, 7 GB in the folder for temporary files, and ten minutes on two cores:

    .venv-parity/bin/python -m benchmarks unet --json unet.json
    """
    if find_spec("diffusers") is None:
        raise typer.BadParameter("PyTorch's diffusers is not installed: use .venv-parity/bin/python (`make parity`)")
    sizes = pixels or [256, 512]
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as progress:
        task = progress.add_task("making weights", total=None)
        folders = write_weights(config, Path(folder))
        progress.update(task, description="measuring memory")
        memory = {size: [peak(name, folders[name], size) for name in MEASURED] for size in sizes}
        progress.update(task, description="measuring time")
        with worker("sdjax", folders["sdjax"]) as ours, worker("pytorch", folders["pytorch"]) as theirs:
            times = {size: in_turn(ours, theirs, size, repeats) for size in sizes}
        outputs = {size: [np.load(folders[name] / f"{size}.npy") for name in ("sdjax", "pytorch")] for size in sizes}
    rows = [row(size, *times[size], memory[size], relative_error(*outputs[size])) for size in sizes]
    publish("unet", rows, json_file, f"{config}, batch 2, float32")


def write_weights(config: Path, folder: Path) -> dict[str, Path]:
    """The same random weights as a checkpoint of each framework: as diffusers initialises it, and converted."""
    from diffusers import UNet2DConditionModel

    source = folder / "pytorch"
    UNet2DConditionModel.from_config(json.loads(config.read_text())).save_pretrained(source / "unet")
    write_json(source / "model_index.json", {"unet": ["diffusers", "UNet2DConditionModel"]})
    return {"pytorch": source, "sdjax": convert(source, folder / "sdjax")}


def worker(framework: str, folder: Path) -> Worker:
    """A process that evaluates when it is asked to."""
    return Worker("-m", "benchmarks.unet_worker", framework, folder, compiled=folder / "compiled")


def peak(framework: str, folder: Path, size: int) -> float:
    """The memory in GB of a fresh process that evaluates twice."""
    with worker(framework, folder) as process:
        return [process.ask(size)["peak GB"] for _ in range(2)][-1]


def in_turn(ours: Worker, theirs: Worker, size: int, repeats: int) -> tuple[list[float], list[float]]:
    """The seconds of `repeats` evaluations of each, after one that compiles and is not counted."""
    times: dict[Worker, list[float]] = {ours: [], theirs: []}
    for turn in range(repeats + 1):
        for process in (ours, theirs) if turn % 2 else (theirs, ours):
            times[process].append(process.ask(size)["seconds"])
            time.sleep(REST)
    return times[ours][1:], times[theirs][1:]


def row(size: int, ours: list[float], theirs: list[float], memory: list[float], error: float) -> dict[str, Any]:
    """A line of the table."""
    ratios = spread([mine / other for mine, other in zip(ours, theirs)])
    return {
        "px": size,
        "sdjax s": median(ours),
        "torch s": median(theirs),
        "ratio": ratios["median"],
        "range": f"{ratios['min']:.2f}-{ratios['max']:.2f}",
        "first GB": memory[0],
        "again GB": memory[1],
        "torch GB": memory[2],
        "error": error,
    }


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How far two outputs lie apart, against the size of the second."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
