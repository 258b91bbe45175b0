"""Everything that is asked of a GPU or TPU at hand, in one command: parity, speed, memory, starts, sizes, reruns."""

import hashlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.configs import SD15
from benchmarks.processes import run_python
from benchmarks.report import console, in_a_folder, table_of, write_json
from benchmarks.speed import copied, measure, shown, write_weights
from benchmarks.speed_worker import FRAMEWORKS, PROMPT, Case
from benchmarks.start import seconds_to_picture
from sdjax.convert import convert

# Published operations a second of bfloat16 products, by what is in a device's name: of which MFU is a share.
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "TPU v5 lite": 197e12, "TPU v6 lite": 918e12}
PARITY = 1e-5  # float32, against PyTorch
Rows = list[dict[str, Any]]


def device(
    model: Annotated[
        Path, typer.Option(help="A folder with a diffusers repository's configs.", exists=True, file_okay=False)
    ] = SD15,
    pixels: Annotated[int, typer.Option(help="Height and width of a picture.")] = 512,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Once for each.", show_default="1, 4, 16")] = None,
    beside: Annotated[str, typer.Option(help=f"One of {', '.join(FRAMEWORKS)}.")] = "torch.compile",
    sizes: Annotated[int, typer.Option(min=1, help="Sizes of pictures to compile for.")] = 50,
    minutes: Annotated[float, typer.Option(min=0.1, help="What begins later than this is left out.")] = 9,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each case.")] = 5,
    json_file: Annotated[
        Path, typer.Option("--json", metavar="FILE", dir_okay=False, callback=in_a_folder, help="Written part by part.")
    ] = Path("device.json"),
) -> None:
    """Measures sdjax on the device of this machine, beside PyTorch on the same one, with the same random weights.

    In order: parity in float32 (asserted) and bfloat16; UNet and whole pictures, and the most memory that was held so
    far; whether the same picture comes out twice, and in another process; starts with an empty and with a filled cache;
    50 sizes compiled in one process (of the embedded model). A part that fails is noted, and the next begins. Ends with
    an error where parity or reruns do not hold.

    Needs PyTorch and diffusers, both for the device. On a CPU it shows that all of it works, with a small model:

    .venv-parity/bin/python -m benchmarks device --model ../shared/models/shapes-sd --pixels 128 --batch 1 --sizes 2
    """
    if find_spec("diffusers") is None:
        raise typer.BadParameter("PyTorch's diffusers is not installed: use .venv-parity/bin/python (`make parity`)")
    if beside not in FRAMEWORKS:
        raise typer.BadParameter(f"unknown framework {beside!r}; known: {', '.join(FRAMEWORKS)}")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".5")  # PyTorch has the other half
    begun, found = time.monotonic(), dict[str, Rows]()
    halfway, end = begun + 33 * minutes, begun + 60 * minutes
    kind = run_python("-m", "benchmarks.device", "kind")["kind"]
    with tempfile.TemporaryDirectory() as folder:
        source = write_weights(model, Path(folder))
        ours = convert(source, Path(folder) / "sdjax")
        plain, fast = ({"sdjax": ours, name: copied(source, name)} for name in ("pytorch", beside))
        small = [Case(part, 2, pixels) for part in ("text_encoder", "unet", "vae")]
        cases = [Case(part, count, pixels) for count in sorted(batch or [1, 4, 16]) for part in ("unet", "picture")]
        parts: dict[str, Callable[[], Rows]] = {
            "parity": lambda: [*measured(plain, "float32", small, 1, end), *measured(plain, "bfloat16", small, 1, end)],
            "speed": lambda: with_mfu(measured(fast, "bfloat16", cases, repeats, halfway), found["parity"], kind),
            "reruns": lambda: reruns(ours, pixels),
            "start": lambda: starts(ours),
            "sizes": lambda: [run_python("-m", "benchmarks.device", "sizes", str(sizes), str(end - time.monotonic()))],
        }
        for name, part in parts.items():
            found[name] = tried(part) if time.monotonic() < end else [{"failed": "no time was left"}]
            console().print(table_of(in_short(found[name]), f"\n{name}"))
            write_json(json_file, "device", {"device": kind, **found})
    agree = all(row.get("dtype") != "float32" or row["error"] <= PARITY for row in found["parity"])
    if "failed" in found["parity"][0] or not agree or not all(row.get("equal") for row in found["reruns"]):
        raise typer.Exit(1)


def tried(part: Callable[[], Rows]) -> Rows:
    """A part's rows, or why there are none: a device is rare, and the other parts are wanted all the same."""
    try:
        return part() or [{"failed": "no time was left"}]
    except (Exception, typer.Exit) as error:
        return [{"failed": f"{type(error).__name__}: {error}"[:300]}]


def measured(folders: dict[str, Path], dtype: str, cases: list[Case], repeats: int, end: float) -> Rows:
    """The rows of `speed`, of the cases that begin in time; its outputs are not left to others."""
    rows = measure(folders, dtype, cases, repeats, memory=False, end=end)
    for file in itertools.chain(*(place.glob("*.npy") for place in folders.values())):
        file.unlink()
    return rows


def with_mfu(rows: Rows, counted: Rows, kind: str) -> Rows:
    """Of UNets, what is done of a device's published peak, by the arithmetic that PyTorch has counted of a sample."""
    peak = next((peak for name, peak in PEAKS.items() if name in kind), None)
    flops = next(
        (1e12 * row["TFLOP/s"] * row["sdjax s"] / row["batch"] for row in counted if row.get("part") == "unet"), 0
    )

    def mfu(row: dict[str, Any]) -> float | str:
        return row["batch"] * flops / row["sdjax s"] / peak if peak and row["part"] == "unet" else ""

    return [row | {"MFU": mfu(row)} for row in rows]


def in_short(rows: Rows) -> Rows:
    """The rows as a table has them."""
    if "part" not in rows[0]:
        return rows
    held = [{f"{name} GB": size for name, size in row["GB so far"].items()} for row in rows]
    return [short | own for short, own in zip(shown(rows), held)]


def starts(model: Path) -> Rows:
    """From starting `sdjax generate` to the PNG, and the same again."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = ["--model", str(model), "--steps", "20", "--dtype", "bfloat16"]
        return [{"cache": cache, "seconds": seconds_to_picture(Path(folder), chosen)} for cache in ("empty", "filled")]


def reruns(model: Path, pixels: int) -> Rows:
    """Whether a picture has the same bits when it is drawn again, and in another process."""
    found = [run_python("-m", "benchmarks.device", "reruns", str(model), str(pixels))["hashes"] for _ in range(2)]
    return [
        {"drawn": "again", "equal": all(len(set(own)) == 1 for own in found)},
        {"drawn": "by another process", "equal": found[0][0] == found[1][0]},
    ]


def compiled_sizes(count: int, seconds: float) -> dict[str, Any]:
    """Compiles for so many sizes of pictures, one after the other, as long as there is time."""
    import sdjax
    from sdjax.pipeline.request import pictures_of

    end, pipe, taken = time.monotonic() + seconds, sdjax.load("shapes"), list[float]()
    before = _held()
    for i in range(count):
        if time.monotonic() > end:
            break
        begun = time.monotonic()
        pipe.compile(pictures_of(["a star"], {"width": 64 + 8 * (i % 8), "height": 64 + 8 * (i // 8)}))
        taken.append(time.monotonic() - begun)
    return {"sizes": len(taken), "median s": median(taken), "last s": taken[-1], "grew GB": _held() - before}


def _held() -> float:
    import jax

    from benchmarks.processes import memory

    stats = jax.local_devices()[0].memory_stats()  # None on a CPU
    return (stats["bytes_in_use"] if stats else memory()) / 1e9


def drawn_twice(model: Path, pixels: int) -> dict[str, Any]:
    """Hashes of the same picture, drawn twice, of 8 steps."""
    import numpy as np

    import sdjax

    pipe = sdjax.load(model, "bfloat16")
    settings = {"seed": 7, "num_inference_steps": 8, "width": pixels, "height": pixels, "output_type": "np"}
    pictures = [np.asarray(pipe(PROMPT, **settings).images) for _ in range(2)]
    return {"hashes": [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]}


def name_of_device() -> dict[str, Any]:
    import jax

    return {"kind": jax.local_devices()[0].device_kind}


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "kind":
        answer = name_of_device()
    elif what == "sizes":
        answer = compiled_sizes(int(arguments[0]), float(arguments[1]))
    else:
        answer = drawn_twice(Path(arguments[0]), int(arguments[1]))
    print(json.dumps(answer))
