"""A model compiled for TPUs and GPUs that are not there: bytes, kernels, collectives, and estimates of time on TPUs."""

import itertools
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.configs import SD15
from benchmarks.processes import run_python
from benchmarks.recommend import load_rows
from benchmarks.report import JsonOption, publish
from sdjax.errors import InputError

STEPS = 20  # evaluations of a whole picture
PROGRAMS = {"encode_text": "text", "denoise": "a step", "decode": "one decoded", "scores": "one checked"}
PICTURE = "whole pictures"


def devices(
    target: Annotated[list[str], typer.Option(help="Of `sdjax compile --target`; once for each.")],
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Pictures; once for each.", show_default="1")] = None,
    model: Annotated[
        Path, typer.Option(help="A folder with a diffusers repository's configs.", exists=True, file_okay=False)
    ] = SD15,
    pixels: Annotated[int, typer.Option(help="Height and width of a picture.")] = 512,
    json_file: JsonOption = None,
) -> None:
    """Compiles what pictures take, in bfloat16, and prints what it holds of one device, and how long a TPU would take.

    Times are the compiler's estimates, of nothing that ran: by what they are spent on, with attention's kernels at the
    chip's peak. `a step` is one evaluation with guidance, of which whole pictures take 20. Sizes are of one device.

    Minutes of processor time for each, at XLA's own level of optimisation (JAX_OPTIMIZATION_LEVEL=O0: a fifth).
    `make devices-full` installs the compilers and runs all.
    """
    from sdjax.targets import check_target  # slow to import

    rows: list[dict[str, Any]] = []
    for name in target:
        check_target(name)
    for name in target:
        for count in batch or [1]:
            rows += run_python("-m", "benchmarks.devices", name, str(count), model, str(pixels))["rows"]
    publish("devices", rows, json_file, f"{model.name}, {pixels} px, bfloat16; estimates, not measurements")


def devices_table(
    files: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, metavar="FILE...", help="What `devices` has written.")
    ],
) -> None:
    """What several runs of `devices` have found, as one table; in Markdown, for docs/devices.md."""
    rows = [row for file in files for row in load_rows(file)]
    if any("target" not in row for row in rows):
        raise InputError("these files are not what `devices` has written")
    names = list(dict.fromkeys(itertools.chain(*rows)))
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for row in rows:
        print("| " + " | ".join(_cell(row.get(name, "")) for name in names) + " |")


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def measure(name: str, count: int, model: Path, pixels: int) -> list[dict[str, Any]]:
    """Compile for one target in this process: a row for each program, and one for all of them."""
    from sdjax.fitting import Wish, programs_of
    from sdjax.models.precision import Precision
    from sdjax.pipeline.request import pictures_of
    from sdjax.reading import most_held
    from sdjax.targets import TARGETS, describe

    target, chips = TARGETS[name], describe(name)
    wish = Wish(model, pictures_of(["a star"] * count, {"width": pixels, "height": pixels}), Precision("bfloat16"))
    readings = programs_of(wish, chips)
    share = -(-count // len(chips))  # pictures of a device, which are decoded and checked one after the other
    turns = {"encode_text": 1, "denoise": STEPS, "decode": share, "scores": share}

    def row(program: str, seconds: float, peak: int, kernels: Any, collectives: Any, spent: dict[str, float]) -> dict:
        times = {"attention" if kind == "kernels" else kind: 1000 * time for kind, time in spent.items()}
        found = {"target": name, "pictures": count, "program": program, "compiled s": seconds, "peak GB": peak / 1e9}
        counted = {"kernels": kernels, "collectives": collectives}
        return found | counted | times | ({"est. ms": sum(times.values())} if times else {})

    spent = [each.seconds_on(target) if target.clock else {} for each in readings]
    rows = [
        row(PROGRAMS[each.name], each.seconds, each.peak, each.kernels, each.collectives, own)
        for each, own in zip(readings, spent)
    ]
    total = {kind: sum(turns[each.name] * own[kind] for each, own in zip(readings, spent)) for kind in spent[0]}
    held = most_held(readings)[1]
    return [*rows, row(PICTURE, sum(each.seconds for each in readings), held, "", "", total)]


if __name__ == "__main__":
    print(json.dumps({"rows": measure(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))}))
