"""What `sdjax info --fit` says that programs take, beside what the compiler says of them as they are run."""

import json
import sys
from typing import Annotated, Any

import jax
import typer

from benchmarks.configs import SD15, XL
from benchmarks.processes import run_python
from benchmarks.report import JsonOption, publish
from sdjax.cli.fitting import PROGRAMS, precision_of
from sdjax.fitting import Wish, held, programs_of
from sdjax.pipeline.request import pictures_of
from sdjax.targets import describe

CASES = {
    "shapes, cpu": ("shapes", "cpu"),
    "sd15, cpu": (str(SD15), "cpu"),
    "sd15, v5e": (str(SD15), "v5e-1"),
    "sdxl, v5e": (str(XL), "v5e-1"),
}
LEVELS = {"predicted": "O0", "real": "UNKNOWN"}  # which is JAX's name for the usual one


def fit(
    case: Annotated[
        list[str] | None, typer.Option(help=f"Of {'; '.join(CASES)}. Once for each.", show_default="all")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 1,
    json_file: JsonOption = None,
) -> None:
    """Bytes of text encoders, denoising and decoding: as `sdjax info --fit` compiles them, and as they are run.

    predicted: by XLA's own analysis of what it makes in little time (O0), from a model's configurations. real: the same
    of the program as it is run. held: the most of both, with the parameters that wait meanwhile. Those for a TPU v5e
    need libtpu (the extra `tpu`), not the device; that of SDXL takes five minutes.
    """
    rows = []
    for name in case or CASES:
        if name not in CASES:
            raise typer.BadParameter(f"unknown case {name!r}; known: {'; '.join(CASES)}")
        found = {
            kind: run_python("-m", "benchmarks.fit", *CASES[name], level, str(batch)) for kind, level in LEVELS.items()
        }
        for program in found["real"]:
            rows.append({"case": name, "program": PROGRAMS.get(program, program)})
            rows[-1] |= {f"{kind} MB": found[kind][program]["peak"] / 1e6 for kind in LEVELS}
            rows[-1] |= {"ratio": found["predicted"][program]["peak"] / found["real"][program]["peak"]}
            rows[-1] |= {"compiled in s": found["real"][program]["seconds"]}
    publish("fit", rows, json_file, f"{batch} at once, the models' own sizes")


def measure(model: str, target: str, level: str, batch: int) -> dict[str, dict[str, Any]]:
    """Compile a model's programs at one of XLA's levels; bytes and seconds of each, and of all while one runs."""
    devices = describe(target) if target != "cpu" else jax.local_devices()[:1]
    jax.config.update("jax_optimization_level", level)
    precision = precision_of(None, None, False, False, None if target == "cpu" else target)
    wish = Wish(model, pictures_of(["a picture"] * batch, {}), precision)
    readings = programs_of(wish, devices)
    programs = {each.name: {"peak": each.peak, "seconds": each.seconds} for each in readings}
    seconds = sum(each.seconds for each in readings)
    return {**programs, "held": {"peak": held(wish, readings), "seconds": seconds}}


if __name__ == "__main__":
    model, target, level, batch = sys.argv[1:]
    print(json.dumps(measure(model, target, level, int(batch))))
