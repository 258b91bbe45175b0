"""One evaluation of a UNet at full size, by sdjax and by PyTorch, of which never more than one is in memory."""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from typing import Annotated, Any
from zlib import crc32

import jax
import numpy as np
import typer
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.configs import XL_UNET, ConfigOption
from benchmarks.processes import run_python
from benchmarks.report import JsonOption, console, publish
from benchmarks.speed import relative_error
from benchmarks.speed_worker import Case, inputs
from sdjax.convert.keys import fill, source_shapes
from sdjax.files.checkpoint import flat_specs, layers_of
from sdjax.files.layout import read_json
from sdjax.files.original_names import source_name
from sdjax.files.tensors import open_tensors, write_tensors
from sdjax.models import abstract_params, build
from sdjax.models.precision import Precision
from sdjax.models.unet_encoder import Added
from sdjax.parallel import bytes_of_a_device, compiled, placed_leaf
from sdjax.programs import full_precision_matmul

BLOCK = 1 << 26  # random numbers, out of which every tensor is a piece
HALVINGS = 4  # blocks of the VAE: latents have an eighth of the pixels a side
PYTORCH, WEIGHTS = "PyTorch", "unet.safetensors"
Run = Callable[[], np.ndarray]


def full_size(
    config: ConfigOption = XL_UNET,
    pixels: Annotated[int, typer.Option(min=64, help="Height and width of the picture.")] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Samples.")] = 1,
    form: Annotated[
        list[str] | None,
        typer.Option(help="Of float32, bfloat16, int8: what kernels are kept in.", show_default="float32"),
    ] = None,
    turns: Annotated[int, typer.Option(min=1, help="Processes of each.")] = 3,
    evaluations: Annotated[int, typer.Option(min=1, help="In each process, after one that is not counted.")] = 2,
    json_file: JsonOption = None,
) -> None:
    """A UNet of random weights, as large as is published: sdjax's time, bytes and error beside PyTorch's, in float32.

    Each has processes of its own, one at a time and in turns, so that a UNet of 10 GB needs 12 GB of memory; and 10 GB
    lie in the folder for temporary files. `ratio` is the median over the turns of sdjax's time over PyTorch's just
    before. `error` is how far an output lies from PyTorch's, against its size. Needs PyTorch and diffusers:

    .venv-parity/bin/python -m benchmarks full-size --form float32 --form int8
    """
    kinds = [PYTORCH, *dict.fromkeys(form or ["float32"])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_unet(config, folder / WEIGHTS)
        command = ("-m", "benchmarks.full_size")
        rest = (config, folder, pixels, batch, evaluations)
        answers: list[dict[str, dict[str, float]]] = []
        for turn in range(turns):
            answers.append({})
            for kind in kinds:
                answers[-1][kind] = run_python(*command, kind, *rest)
                console().print(f"turn {turn + 1}, {kind}: {answers[-1][kind]['seconds']:.2f} s")
        outputs = {kind: np.load(folder / f"{kind}.npy") for kind in kinds}
    rows = []
    for kind in kinds:
        found = [answer[kind] for answer in answers]
        ratios = [answer[kind]["seconds"] / answer[PYTORCH]["seconds"] for answer in answers]
        rows.append({"kernels": kind, "seconds": median(each["seconds"] for each in found)})
        rows[-1] |= {"ratio": median(ratios), "range": f"{min(ratios):.2f}-{max(ratios):.2f}"}
        rows[-1] |= {"parameters GB": found[0]["parameters GB"]}
        rows[-1] |= {"error": relative_error(outputs[kind], outputs[PYTORCH])}
    publish("full-size", rows, json_file, f"{config}, {batch} x {pixels} px; {turns} turns")


def write_unet(config: Path, path: Path) -> None:
    """Random float32 weights in diffusers' layout, of a size that keeps that of activations; no two are alike."""
    noise = np.random.default_rng(0).standard_normal(BLOCK, np.float32)
    shapes = {
        source_name(layer): source_shapes(layer, shape)[0]
        for place, spec in flat_specs(build("UNet2DConditionModel", read_json(config))).items()
        for layer, _, shape in layers_of(place, spec.shape)
    }

    def values(name: str) -> np.ndarray:
        size = prod(shapes[name])
        begin = crc32(name.encode()) % (BLOCK - size)
        piece = noise[begin : begin + size].reshape(shapes[name])
        if piece.ndim > 1:
            return piece / (size / len(piece)) ** 0.5
        return 0.3 * piece + (1 if "norm" in name and name.endswith("weight") else 0)

    specs = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    write_tensors(path, specs, values, {"format": "pt"})


def sdjax(kind: str, config: dict[str, Any], weights: Path, arrays: dict[str, np.ndarray]) -> tuple[Run, int]:
    """An evaluation as the pipeline computes it, and the bytes of its parameters."""
    module = build("UNet2DConditionModel", config)
    precision = Precision("float32", weights=None if kind == "float32" else kind)
    flat = flatten_dict(fill(abstract_params(module), open_tensors(weights).arrays()), sep="/")
    made: dict[str, Any] = {}
    for path in list(flat):  # the float32 ones are let go one by one
        made |= placed_leaf("unet", path, flat.pop(path), precision)
    params = unflatten_dict(made, sep="/")
    added = Added(arrays["pooled"], arrays["time_ids"]) if "pooled" in arrays else None
    first = [arrays[name] for name in ("sample", "timesteps", "context")]
    evaluate = compiled(partial(full_precision_matmul(applied), module))
    return lambda: np.asarray(evaluate(params, *first, None, added)), bytes_of_a_device(params)


def applied(module: Any, params: Any, *arrays: Any) -> jax.Array:
    """What a module makes of arrays."""
    return module.apply({"params": params}, *arrays)


def pytorch(config: dict[str, Any], weights: Path, arrays: dict[str, np.ndarray]) -> tuple[Run, int]:
    """An evaluation of diffusers' UNet, and the bytes of its parameters."""
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors import safe_open

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    with safe_open(weights, framework="pt") as file:
        shapes = {name: parameter.shape for name, parameter in unet.named_parameters()}
        # Copies: PyTorch's own memory is aligned for its kernels.
        tensors = {name: file.get_tensor(name).reshape(shape).clone() for name, shape in shapes.items()}
    unet.load_state_dict(tensors, assign=True)
    unet.eval()
    told = {name: torch.from_numpy(x.transpose(0, 3, 1, 2).copy() if x.ndim == 4 else x) for name, x in arrays.items()}
    added = {"text_embeds": told["pooled"], "time_ids": told["time_ids"]} if "pooled" in told else None

    @torch.inference_mode()
    def run() -> np.ndarray:
        output = unet(told["sample"], told["timesteps"], told["context"], added_cond_kwargs=added).sample
        return output.numpy().transpose(0, 2, 3, 1)

    return run, sum(parameter.numel() * parameter.element_size() for parameter in unet.parameters())


def measure(kind: str, path: Path, folder: Path, pixels: int, batch: int, evaluations: int) -> dict[str, float]:
    """Evaluate in this process, leave the output in the folder, and say how long it took."""
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    config = read_json(path)
    network = build("UNet2DConditionModel", config)
    latents = {"block_out_channels": [0] * HALVINGS, "latent_channels": network.config.in_channels}
    arrays = inputs({"unet": config, "vae": latents}, Case("unet", batch, pixels))
    weights = folder / WEIGHTS
    run, size = pytorch(config, weights, arrays) if kind == PYTORCH else sdjax(kind, config, weights, arrays)
    output, seconds = run(), []
    for _ in range(evaluations):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    np.save(folder / f"{kind}.npy", output)
    return {"seconds": median(seconds), "parameters GB": size / 1e9}


if __name__ == "__main__":
    kind, path, folder, *numbers = sys.argv[1:]
    print(json.dumps(measure(kind, Path(path), Path(folder), *map(int, numbers))))
