"""The UNet of Stable Diffusion XL compiled with its transformer blocks stacked, and with them one by one."""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import typer

from benchmarks.configs import XL_UNET, ConfigOption
from benchmarks.processes import run_python
from benchmarks.report import JsonOption, publish
from sdjax.files.layout import read_json
from sdjax.models import abstract_params, build, unet
from sdjax.models.layers import Dense, GroupNorm
from sdjax.models.platform import target_platform
from sdjax.models.transformer import BasicTransformerBlock, Context, Transformer2DModel
from sdjax.models.unet_encoder import Added
from sdjax.parallel import compiler_options
from sdjax.targets import describe

FORMS = ("stacked", "one by one")


class Unrolled(Transformer2DModel):
    """The same with every block of its own."""

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, eps=1e-6, name="norm")(x).reshape(batch, height * width, channels)
        h = Dense(channels, name="proj_in")(h)
        for i in range(self.layers):
            block = BasicTransformerBlock(
                self.heads, self.only_cross_attention, (height, width), name=f"transformer_blocks_{i}"
            )
            h, _ = block(h, context.text, (), None, None, None)
        return x + Dense(channels, name="proj_out")(h.reshape(x.shape))


def stacked(
    config: ConfigOption = XL_UNET,
    pixels: Annotated[int, typer.Option(help="Height and width of the picture.")] = 1024,
    target: Annotated[
        Literal["cpu", "v5e"], typer.Option(help="v5e: a TPU that need not be there, where libtpu is installed.")
    ] = "cpu",
    json_file: JsonOption = None,
) -> None:
    """Seconds to trace and compile a UNet for one picture with guidance, and the bytes that XLA counts.

    float32 for the CPU, bfloat16 for the TPU. Each form is compiled in a process of its own; no weights are needed.
    """
    rows = [run_python("-m", "benchmarks.stacked", form, config, pixels, target) for form in FORMS]
    publish("stacked", rows, json_file, f"{config}, {pixels} px, {target}; seconds of the wall and of the processor")


def measure(form: str, config: Path, pixels: int, target: str) -> dict[str, str | float]:
    """Compile one of FORMS in this process."""
    if form == "one by one":
        unet.Transformer2DModel = Unrolled
    network = build("UNet2DConditionModel", read_json(config))
    place, dtype = where(target)
    shape = partial(jax.ShapeDtypeStruct, sharding=place)
    params = jax.tree.map(lambda leaf: shape(leaf.shape, dtype), abstract_params(network))
    side, cross = pixels // 8, network.config.cross_attention_dim
    pooled = network.config.projection_class_embeddings_input_dim - 6 * network.config.addition_time_embed_dim
    sample, context = shape((2, side, side, 4), dtype), shape((2, 77, cross), dtype)
    added = Added(shape((2, pooled), dtype), shape((2, 6), jnp.float32))
    options = compiler_options() if target == "cpu" else {}
    program = jax.jit(lambda params, *inputs: network.apply({"params": params}, *inputs), compiler_options=options)
    with target_platform("cpu" if target == "cpu" else "tpu"):
        laps, cpu = [time.perf_counter()], [time.process_time()]
        lowered = program.lower(params, sample, shape((2,), jnp.float32), context, None, added)
        laps.append(time.perf_counter())
        cpu.append(time.process_time())
        compiled = lowered.compile()
        laps.append(time.perf_counter())
        cpu.append(time.process_time())
    memory = compiled.memory_analysis()
    return {
        "blocks": form,
        "trace s": laps[1] - laps[0],
        "compile s": laps[2] - laps[1],
        "compile CPU s": cpu[2] - cpu[1],
        "arguments GB": memory.argument_size_in_bytes / 1e9,
        "temporary GB": memory.temp_size_in_bytes / 1e9,
        "code MB": memory.generated_code_size_in_bytes / 1e6,
    }


def where(target: str) -> tuple[jax.sharding.Sharding | None, jnp.dtype]:
    """The device that is compiled for, and what its networks compute in."""
    if target == "cpu":
        return None, jnp.float32
    return jax.sharding.SingleDeviceSharding(describe("v5e-1")[0]), jnp.bfloat16


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
