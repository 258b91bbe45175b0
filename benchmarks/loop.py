"""What the sampling loop itself costs, beside the networks that it calls."""

import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

from benchmarks.denoising import STEPS, TOKENS, inputs
from benchmarks.report import JsonOption, publish, spread
from sdjax import programs
from sdjax.files.checkpoint import read_model
from sdjax.files.layout import embedded_models

BUCKETS = (STEPS, 32, 128)
BATCH, LATENTS = 2, (64, 64, 4)  # two pictures of Stable Diffusion 1.5 at 512 px


class FreeUNet:
    """Stands where the UNet does, and costs nothing."""

    def apply(self, _: dict, sample: jax.Array, *_inputs: jax.Array | None) -> jax.Array:
        return 0.5 * sample


def loop(
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each loop.")] = 50, json_file: JsonOption = None
) -> None:
    """The denoising program around a network that costs nothing: 20 steps in tables of 20, 32 and 128 rows.

    Rows after a plan's end are skipped, so all three should take the same time. Two pictures of 64x64x4 latents, with
    guidance and noise, DPM-Solver++(2M). The last line is the smallest UNet there is, the embedded model's, once for
    two pictures with guidance: what a step's own arithmetic is to be held against.
    """
    runs = {f"step, table of {rows} rows": (in_table(rows), STEPS) for rows in BUCKETS}
    runs["embedded model's UNet"] = (embedded_unet(), 1)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, (run, parts) in runs.items():
            times[name].append(seconds(run) / parts)
    rows = [{"what": name, **spread([1e3 * value for value in values[1:]])} for name, values in times.items()]
    publish("loop", rows, json_file, "milliseconds")


def seconds(run: Callable[[], Any]) -> float:
    """How long a program takes."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def in_table(rows: int) -> Callable[[], Any]:
    """The denoising program for a plan of STEPS rows in a table of `rows`; the first call compiles."""
    program = jax.jit(partial(programs.denoise, FreeUNet(), {"none": np.zeros(0, np.float32)}, guided=True))
    return partial(program, *jax.device_put(inputs(BATCH, LATENTS, 1, rows)))


def embedded_unet() -> Callable[[], Any]:
    """One evaluation of the embedded model's UNet for BATCH pictures and their unguided halves, at its own size."""
    unet = read_model(embedded_models()["shapes"]).unet
    config, params = unet.module.config, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), unet.params)
    sample = jnp.ones((2 * BATCH, config.sample_size, config.sample_size, config.in_channels))
    context = jnp.ones((2 * BATCH, TOKENS, config.cross_attention_dim))
    return partial(jax.jit(unet.module.apply), {"params": params}, sample, jnp.full(2 * BATCH, 500), context)
