"""Ctrl-C and SIGTERM in the middle of long commands: nothing that was done is lost, and nothing half-done is left."""

import csv
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from safetensors.numpy import load_file

from benchmarks.report import JsonOption, publish
from benchmarks.scenes import scenes
from benchmarks.start import PROMPT, SDJAX

SIGNALS = {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}
LAST_LINE = "sdjax: interrupted"
PATIENCE = 600.0  # seconds, for what is waited for
COLD = "cold"  # the folder of the cache of commands that compile everything
QUICKLY = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


@dataclass(frozen=True)
class Task:
    """A command that is killed, again and again in the same folder.

    arguments: of `sdjax`, given the folder. progress: a number that grows, given the folder and what the command has
    written; when it has grown, the moment has come, and the signal is sent within so many seconds. lost: what is wrong
    after a kill, "" for nothing, given the same. result: what the command is for, given the folder, to compare with
    that of a run that nobody disturbed; None for a command that begins anew each time. cold: whether every run has a
    cache of its own, so that everything is compiled.
    """

    name: str
    arguments: Callable[[Path], Sequence[str | Path]]
    progress: Callable[[Path, str], int]
    lost: Callable[[Path, str], str]
    result: Callable[[Path], object] | None = None
    within: float = 1.0
    cold: bool = False


@dataclass
class Seen:
    """What came of the kills of a task by one signal."""

    hit: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def kills(
    count: Annotated[int, typer.Option("--kills", min=1, help="Of each command by each signal.")] = 5,
    only: Annotated[str | None, typer.Option(metavar="COMMAND", help="One of them.", show_default="all")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the moments.")] = 0,
    json_file: JsonOption = None,
) -> None:
    """Ctrl-C and SIGTERM while sdjax compiles, draws, writes shards, trains and converts.

    After each: the exit code (130, 143), one last line and no traceback, nothing half-written, and nothing lost that
    was done: what was printed is there and whole, training has kept its steps, and a run that is gone on with ends in
    the bits of one that was not disturbed.
    """
    moments = random.Random(seed)
    rows, faults = [], []
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        root = Path(name)
        scenes(root / "scenes", count=8)
        _finish(root, ["convert", "shapes", root / "of-diffusers", "--to", "diffusers"])
        for task in tasks(root):
            if only not in (None, task.name):
                continue
            expected = _result(task, root, "undisturbed") if task.result else None
            for by, number in SIGNALS.items():
                folder, seen = root / f"{task.name}-{by}", Seen()
                folder.mkdir()
                for _ in range(count):
                    _kill(task, folder, root, number, moments, seen)
                if task.result and _result(task, root, by) != expected:
                    seen.faults.append("gone on with, it ended in other bits")
                faults += [f"{task.name}, {by}: {fault}" for fault in seen.faults]
                row = {"while": task.name, "by": by, "kills": count, "in the middle": seen.hit}
                rows.append({**row, "slowest s": round(seen.seconds, 1), "faults": len(seen.faults)})
                print(rows[-1], file=sys.stderr, flush=True)
    for fault in faults:
        print(fault, file=sys.stderr)
    publish("kills", rows, json_file, "slowest s: from the signal to the end of the process")
    if faults:
        raise typer.Exit(1)


def tasks(root: Path) -> list[Task]:
    """The commands. root: has pictures to train on, and a checkpoint to convert."""
    prompts = root / "prompts.txt"
    prompts.write_text("".join(f"a {colour} star\n" for colour in ("red", "blue", "green", "pink") for _ in range(6)))
    training = ["--batch-size", "2", "--steps", "40", "--log-every", "4", "--save-every", "1000"]
    shards = ["--container", "tar", "--shard-size", "2", "--batch-size", "2", "--steps", "20"]
    return [
        Task(
            "compiling",
            lambda folder: ["generate", PROMPT, "-o", folder / "heart.png"],
            lambda _, said: said.count("compiling the denoising loop"),
            lambda folder, _: _left(folder) + _left(root / COLD),
            within=3.0,
            cold=True,
        ),
        Task(
            "drawing",
            lambda folder: ["generate", PROMPT, "-n", "64", "--steps", "10", "-o", folder],
            lambda _, said: said.count(".png"),
            _pictures_lost,
        ),
        Task(
            "writing shards",
            lambda folder: ["batch", prompts, "-o", folder, *shards],
            lambda folder, _: len(list(folder.rglob("*.*g"))) + 10 * len(list(folder.glob("*.tar"))),
            lambda folder, _: "",
            lambda folder: {path.name: _hash(path) for path in sorted(folder.glob("*.tar"))},
        ),
        Task(
            "training",
            lambda folder: ["train", "text-to-image", root / "scenes", folder, *training],
            lambda folder, _: _logged(folder),
            _steps_lost,
            lambda folder: _parameters(folder / "model-40"),
        ),
        Task(
            "converting",
            lambda folder: ["convert", root / "of-diffusers", folder / "made"],
            lambda folder, _: len(list(folder.iterdir())),
            lambda folder, _: _left(folder),
            lambda folder: _hashes(folder / "made"),
            within=0.0,
        ),
    ]


def _kill(task: Task, folder: Path, root: Path, number: int, moments: random.Random, seen: Seen) -> None:
    """One run of a command, with a signal in the middle."""
    if task.name == "converting":
        shutil.rmtree(folder / "made", ignore_errors=True)  # where the last one was quicker than the signal
    before = task.progress(folder, "")
    process = _start(root, task.arguments(folder), cold=task.cold)
    end = time.monotonic() + PATIENCE
    while process.poll() is None and task.progress(folder, _said(root)) <= before and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(moments.uniform(0, task.within))
    process.send_signal(number)
    begun = time.monotonic()
    code = process.wait(PATIENCE)
    seen.seconds = max(seen.seconds, time.monotonic() - begun)
    said = _said(root)
    if code != 0:  # else it was done before it heard
        seen.hit += 1
        if code != 128 + number or not said.endswith(f"{LAST_LINE}\n"):
            seen.faults.append(f"exit code {code}, and last {said[-300:]!r}")
    if "Traceback" in said:
        seen.faults.append(said[-3000:])
    if lost := task.lost(folder, said):
        seen.faults.append(lost)


def _result(task: Task, root: Path, name: str) -> object:
    """What a command comes to that runs to its end, in a folder that may hold a part of it."""
    folder = root / f"{task.name}-{name}"
    folder.mkdir(exist_ok=True)
    if task.name == "converting" and (folder / "made").exists():
        return task.result(folder)
    return task.result(folder) if _finish(root, task.arguments(folder)) == 0 else None


def _start(root: Path, arguments: Sequence[str | Path], cold: bool = False) -> subprocess.Popen:
    """A process of `sdjax` that writes into files, without XLA's optimisations."""
    if cold:
        shutil.rmtree(root / COLD, ignore_errors=True)
    environment = {**os.environ, "XLA_FLAGS": QUICKLY, "SDJAX_CACHE": str(root / (COLD if cold else "cache"))}
    with (root / "stdout").open("wb") as out, (root / "stderr").open("wb") as err:
        return subprocess.Popen([sys.executable, "-c", SDJAX, *arguments], stdout=out, stderr=err, env=environment)


def _finish(root: Path, arguments: Sequence[str | Path]) -> int:
    """The exit code of a process that nobody disturbs."""
    code = _start(root, arguments).wait()
    if code:
        print(_said(root), file=sys.stderr)
    return code


def _said(root: Path) -> str:
    """What the last process has written so far, errors last."""
    return (root / "stdout").read_text() + (root / "stderr").read_text()


def _left(folder: Path) -> str:
    """What is left of things that were never finished."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.startswith(".")]
    return f"left behind: {names}" if names else ""


def _pictures_lost(folder: Path, said: str) -> str:
    for name in re.findall(r"^.+\.png$", said, re.MULTILINE):
        try:
            with Image.open(name) as image:
                image.load()
        except OSError as error:
            return f"was printed, and is not there: {error}"
    return _left(folder)


def _logged(folder: Path) -> int:
    """The last step in the log of a training run."""
    with suppress(OSError, ValueError, IndexError, KeyError), (folder / "log.csv").open() as file:
        return int(list(csv.DictReader(file))[-1]["step"])
    return 0


def _steps_lost(folder: Path, _: str) -> str:
    kept = max((int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")), default=0)
    return f"step {_logged(folder)} was done, and {kept} is the last that was kept" if kept < _logged(folder) else ""


def _parameters(folder: Path) -> dict[str, str]:
    """Those of a model, apart from what its files say of where they come from."""
    files = sorted(folder.rglob("*.safetensors"))
    return {
        f"{path.parent.name}/{name}": hashlib.sha256(array.tobytes()).hexdigest()
        for path in files
        for name, array in load_file(path).items()
    }


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): _hash(path) for path in sorted(folder.rglob("*")) if path.is_file()}
