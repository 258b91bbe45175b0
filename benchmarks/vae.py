"""The autoencoder run whole and in bands of rows: time, memory, and whether both give the same."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import typer

from benchmarks.configs import SD15
from benchmarks.processes import peak_memory, run_python
from benchmarks.report import JsonOption, publish
from sdjax.models import AutoencoderKL, abstract_params, build
from sdjax.models.bands import decode_in_bands, encode_in_bands
from sdjax.parallel import compiler_options

SD15_VAE = SD15 / "vae" / "config.json"


def vae(
    config: Annotated[
        Path, typer.Option(help="An AutoencoderKL's config.json.", exists=True, dir_okay=False)
    ] = SD15_VAE,
    pixels: Annotated[int, typer.Option(help="Height and width of the picture.")] = 1024,
    json_file: JsonOption = None,
) -> None:
    """Encoding and decoding one picture with random float32 weights, whole and in bands, each in its own process.

    `temporary GB` is what XLA sets aside for what the program holds between its input and its output, `peak GB` the
    most that the process ever held, `difference` the largest between the two, against 1/255 for pictures (which are
    clipped) and against the spread for latents. At 1024 pixels: 5 GB of memory and some minutes.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what in ("decode", "encode"):
            files = [Path(folder) / f"{what}-{how}.npy" for how in ("whole", "bands")]
            for how, file in zip(("whole", "bands"), files):
                row = run_python("-m", "benchmarks.vae", config, what, how, pixels, file)
                rows.append({"program": what, "how": how, **row})
            whole, bands = map(np.load, files)
            unit = 1 / 255 if what == "decode" else float(whole.std())
            rows[-1]["difference"] = float(np.abs(whole - bands).max()) / unit
            rows[-2]["difference"] = 0.0
    publish("vae", rows, json_file, f"{config}, one picture of {pixels} pixels, float32")


def random_params(module: AutoencoderKL) -> dict:
    """Random parameters, such that activations keep their size."""
    random = np.random.default_rng(0)

    def values(path, leaf):
        noise = random.standard_normal(leaf.shape, np.float32)
        if len(leaf.shape) == 1:
            return 0.3 * noise + (path[-1].key == "scale")
        return noise / np.sqrt(np.prod(leaf.shape[:-1]))

    return jax.tree_util.tree_map_with_path(values, abstract_params(module))


def measure(config: Path, what: str, how: str, pixels: int, file: Path) -> dict[str, float]:
    """Run one program once after compiling it, and save what it gives."""
    module = build("AutoencoderKL", json.loads(config.read_text()))
    random, side = np.random.default_rng(1), pixels // module.config.factor
    if what == "decode":
        x = random.standard_normal((1, side, side, module.config.latent_channels), np.float32)
    else:
        x = random.uniform(-1, 1, (1, pixels, pixels, 3)).astype(np.float32)

    def program(params, x):
        if how == "whole":
            result = module.apply({"params": params}, x, method=what)
        else:
            result = (decode_in_bands if what == "decode" else encode_in_bands)(module, params, x)
        return result if what == "encode" else jax.numpy.clip(result / 2 + 0.5, 0, 1)

    params = jax.device_put(random_params(module))
    compiled = jax.jit(program, compiler_options=compiler_options()).lower(params, x).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    start = time.perf_counter()
    result = jax.block_until_ready(compiled(params, x))
    seconds = time.perf_counter() - start
    np.save(file, result if what == "decode" else result[0])
    return {"seconds": seconds, "temporary GB": temporary / 1e9, "peak GB": peak_memory() / 1e9}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5]))))
