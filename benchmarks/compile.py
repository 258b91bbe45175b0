"""What compiling the denoising programs costs: the one with guidance, and the one without."""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import typer

from benchmarks.configs import SD15_UNET, ConfigOption
from benchmarks.denoising import inputs
from benchmarks.processes import peak_memory, run_python
from benchmarks.report import JsonOption, publish
from sdjax import programs
from sdjax.files.layout import read_json
from sdjax.models import abstract_params, build

FACTOR = 8  # pixels of a latent's side


def compile_program(
    config: ConfigOption = SD15_UNET,
    pixels: Annotated[int, typer.Option(help="Height and width of the picture.")] = 512,
    json_file: JsonOption = None,
) -> None:
    """Seconds to trace, lower and compile the denoising programs for one picture, and the memory that takes.

    A run with guidance at all steps needs the first, one without the second, and one with a guidance interval both.
    Each is compiled in a process of its own. No weights are needed.

    At SD 1.5's size this takes two minutes on two cores.
    """
    rows = [run_python("-m", "benchmarks.compile", guided, config, pixels) for guided in FORMS]
    publish("compile", rows, json_file, f"{config}, {pixels} px, one picture, float32; seconds")


FORMS = {"guided": True, "without guidance": False}


def measure(form: str, config: Path, pixels: int) -> dict[str, str | float]:
    """Compile one of FORMS in this process."""
    unet = build("UNet2DConditionModel", read_json(config))
    params = abstract_params(unet)
    program = jax.jit(partial(programs.denoise, unet, guided=FORMS[form]), donate_argnums=(2,))
    side = pixels // FACTOR
    arguments = inputs(1, (side, side, unet.config.in_channels), unet.config.cross_attention_dim)
    laps = [time.perf_counter()]
    traced = program.trace(params, *arguments)
    laps.append(time.perf_counter())
    lowered = traced.lower()
    laps.append(time.perf_counter())
    lowered.compile()
    laps.append(time.perf_counter())
    trace, lower, compiling = np.diff(laps).tolist()
    seconds = {"trace": trace, "lower": lower, "compile": compiling, "sum": laps[-1] - laps[0]}
    return {"program": form, **seconds, "peak GB": peak_memory() / 1e9}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
