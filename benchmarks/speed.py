"""Networks and whole pictures at their real size, sdjax beside PyTorch: time, memory, and whether they agree."""

import itertools
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress

from benchmarks.configs import SD15
from benchmarks.plots import PlotOption, name_of, speed_bars
from benchmarks.processes import Worker
from benchmarks.recommend import load_rows
from benchmarks.report import JsonOption, console, publish, spread, table_of
from benchmarks.speed_worker import FRAMEWORKS, MATMUL, PARTS, Case
from sdjax.convert import convert
from sdjax.errors import InputError
from sdjax.files.checkpoint import TEXT_ENCODERS

REST = 0.3  # seconds in which the threads of one framework fall asleep before the other runs
PEAK = Case("matmul", 1, MATMUL)
NAMED = (
    "part",
    "batch",
    "pixels",
    "dtype",
    "beside",
    "range",
    "TFLOP/s",
    "GB so far",
)  # in a row's name, or in the JSON only


def speed(
    model: Annotated[
        Path, typer.Option(help="A folder with a diffusers repository's configs.", exists=True, file_okay=False)
    ] = SD15,
    part: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}; once for each.", show_default="all")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Once for each.", show_default="2")] = None,
    pixels: Annotated[list[int] | None, typer.Option(help="Once for each.", show_default="256, 512")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Once for each.", show_default="float32")] = None,
    framework: Annotated[
        list[str] | None, typer.Option(help=f"Beside sdjax: {', '.join(FRAMEWORKS)}.", show_default="pytorch")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Each case's memory, in processes of its own.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each case.")] = 5,
    json_file: JsonOption = None,
    plot_file: PlotOption = None,
) -> None:
    """Text encoder, UNet, VAE decoder and whole pictures, against PyTorch diffusers on the same random weights.

    Every framework has a process that holds the model; they run each case in turn, after once that is not counted.
    `ratio` is the median of sdjax's time over the other's within each turn, below 1 where sdjax is faster; believe it
    on a quiet machine only, since PyTorch's threads wait for each other and lose more where others run. Of a picture,
    all is counted from the prompt to pixels: 20 steps of DPM++ 2M Karras with guidance. `of peak` is what sdjax does of
    the arithmetic that PyTorch counts, a second, against the best that either framework multiplies two matrices
    with. `error` is how far the outputs lie apart, against their size. `GB`, where asked for, is the most that a
    process holds that runs this case only: sdjax's when it finds the program in the cache, and the other's.
    `sdjax.bfloat16` and `sdjax.int8` are sdjax again, its kernels kept so, and stand beside it as other frameworks do.

    Runs on the CPU, or on a GPU where both frameworks find one. Needs PyTorch and diffusers (`make parity` installs
    them into .venv-parity); at SD 1.5's size each framework holds 4 GB of weights, and as much lies in temporary files:

    .venv-parity/bin/python -m benchmarks speed --json speed.json
    """
    if find_spec("diffusers") is None:
        raise typer.BadParameter("PyTorch's diffusers is not installed: use .venv-parity/bin/python (`make parity`)")
    names = ["sdjax", *dict.fromkeys(framework or ["pytorch"])]
    for given, known in ((names, FRAMEWORKS), (part or [], PARTS)):
        if unknown := [name for name in given if name not in known]:
            raise typer.BadParameter(f"unknown name {unknown[0]!r}; known: {', '.join(known)}")
    cases = [Case(*each) for each in itertools.product(part or PARTS, batch or [2], pixels or [256, 512])]
    rows = []
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as progress:
        task = progress.add_task("making weights", total=None)
        source = write_weights(model, Path(folder))
        ours = convert(source, Path(folder) / "sdjax")
        for each in dtype or ["float32"]:
            progress.update(task, description=f"measuring in {each}")
            folders = {name: copied(ours if name.startswith("sdjax") else source, name) for name in names}
            rows += measure(folders, each, cases, repeats, memory)
            for file in itertools.chain(*(place.glob("*.npy") for place in folders.values())):
                file.unlink()
    publish("speed", shown(rows), json_file, f"{model}; ratios of {repeats} turns", rows)
    if plot_file is not None:
        speed_bars(rows, plot_file)


def speed_table(
    files: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, metavar="FILE...", help="What `speed` has written.")
    ],
    plot_file: PlotOption = None,
) -> None:
    """What several runs of `speed` on one model have measured, as one table and one plot.

    Of a case that several have, the last file counts.
    """
    cases: dict[str, dict[str, Any]] = {}
    for file in files:
        found = load_rows(file)
        if not found or any(row.get("part") not in PARTS for row in found):
            raise InputError(f"{file} is not what `speed` has written")
        cases |= {name_of(row): row for row in found}
    rows = sorted(
        cases.values(),
        key=lambda row: (
            PARTS.index(row["part"]),
            row["dtype"] != "float32",
            row["beside"],
            row["pixels"],
            row["batch"],
        ),
    )
    memory = [name for name in dict.fromkeys(itertools.chain(*rows)) if name.endswith(" GB")]
    console().print(table_of(shown([row | {name: row.get(name, "") for name in memory} for row in rows])))
    if plot_file is not None:
        speed_bars(rows, plot_file)


def shown(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as a table has them."""
    return [{"case": name_of(row), **{key: value for key, value in row.items() if key not in NAMED}} for row in rows]


def write_weights(model: Path, folder: Path) -> Path:
    """A checkpoint in diffusers layout with random weights, as the libraries initialise them."""
    import transformers
    from diffusers import AutoencoderKL, UNet2DConditionModel

    source = folder / "pytorch"
    index = json.loads((model / "model_index.json").read_text())
    for name, network in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        config = json.loads((model / name / "config.json").read_text())
        network.from_config(config).save_pretrained(source / name)
    for name in [each for each in TEXT_ENCODERS if each in index]:
        config = transformers.CLIPTextConfig.from_pretrained(model / name)
        getattr(transformers, index[name][1])(config).save_pretrained(source / name)
        shutil.copytree(model / TEXT_ENCODERS[name], source / TEXT_ENCODERS[name])
    shutil.copytree(model / "scheduler", source / "scheduler")
    left_out = ("safety_checker", "feature_extractor")
    index |= {name: [None, None] for name in left_out}
    (source / "model_index.json").write_text(json.dumps(index))
    return source


def copied(source: Path, name: str) -> Path:
    """The same checkpoint in a folder for another framework's outputs."""
    folder = source.with_name(name)
    if not folder.exists():
        shutil.copytree(source, folder, copy_function=os.link)
    return folder


def measure(
    folders: Mapping[str, Path],
    dtype: str,
    cases: Sequence[Case],
    repeats: int,
    memory: bool,
    end: float = math.inf,
) -> list[dict[str, Any]]:
    """A row for each case and each framework beside sdjax; end: the time from which on none begins."""
    rows = []
    with ExitStack() as stack:
        workers = {name: stack.enter_context(worker(name, folder, dtype)) for name, folder in folders.items()}
        answers = {
            case: in_turn(workers, case, repeats) for case in (PEAK, *cases) if case is PEAK or time.monotonic() < end
        }
    peak = 2 * MATMUL**3 / min(answer["seconds"] for each in answers[PEAK].values() for answer in each)
    for case, other in itertools.product(list(answers)[1:], list(folders)[1:]):
        ours, theirs = ([answer["seconds"] for answer in answers[case][name][1:]] for name in ("sdjax", other))
        ratios = spread([mine / their for mine, their in zip(ours, theirs)])
        outputs = [np.load(folders[name] / case.file) for name in ("sdjax", other)]
        counted = max((answer.get("flops", 0) for each in answers[case].values() for answer in each), default=0)
        rows.append(
            {**case._asdict(), "dtype": dtype, "beside": other, "sdjax s": median(ours), "other s": median(theirs)}
            | {"ratio": ratios["median"], "range": f"{ratios['min']:.2f}-{ratios['max']:.2f}"}
            | {"TFLOP/s": counted / median(ours) / 1e12, "of peak": counted / median(ours) / peak}
            | {"error": relative_error(*outputs)}
            | {"GB so far": {name: answers[case][name][-1]["GB"] for name in ("sdjax", other)}}
        )
        if memory:
            rows[-1] |= {f"{name} GB": alone(name, folders[name], dtype, case) for name in ("sdjax", other)}
    return rows


def worker(framework: str, folder: Path, dtype: str) -> Worker:
    """A process that runs what it is told."""
    return Worker("-m", "benchmarks.speed_worker", framework, folder, dtype, compiled=folder / "compiled")


def in_turn(workers: Mapping[str, Worker], case: Case, repeats: int) -> dict[str, list[dict[str, float]]]:
    """The answers of every framework, the first of them from a run that compiles."""
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for turn in range(repeats + 1):
        for name in list(workers) if turn % 2 else reversed(list(workers)):
            answers[name].append(workers[name].ask(json.dumps(case)))
            time.sleep(REST)
    return answers


def alone(framework: str, folder: Path, dtype: str, case: Case) -> float:
    """The memory in GB of a fresh process that runs a case twice."""
    with worker(framework, folder, dtype) as process:
        return [process.ask(json.dumps(case))["GB"] for _ in range(2)][-1]


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How far two outputs lie apart, against the size of the second."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
