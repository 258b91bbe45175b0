"""Time and memory of converting a full-size checkpoint."""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Literal
from zlib import crc32

import jax
import numpy as np
import typer

from benchmarks.configs import SD15
from benchmarks.processes import peak_memory, run_python
from benchmarks.report import JsonOption, publish
from sdjax.convert import Choices, convert, export
from sdjax.convert.directory import sort_components
from sdjax.convert.keys import source_shapes
from sdjax.errors import InputError
from sdjax.files.checkpoint import TEXT_ENCODERS, flat_specs
from sdjax.files.layout import read_json
from sdjax.files.original_names import source_name
from sdjax.files.tensors import open_tensors, write_tensors
from sdjax.models import build


def conversion(
    configs: Annotated[Path, typer.Option(help="A checkpoint's folder; weights are not needed.", exists=True)] = SD15,
    keys: Annotated[
        Path | None, typer.Option(help="A list of a single file's tensors, as in ldm-keys: that file is converted.")
    ] = None,
    dtype: Annotated[Literal["float32", "float16", "bfloat16"], typer.Option(help="What is written.")] = "float32",
    stored: Annotated[
        Literal["float32", "float16"], typer.Option(help="What the single file holds, as far as it is no integers.")
    ] = "float32",
    back: Annotated[
        bool, typer.Option("--back", help="Also the way back to a single file, which is compared bit for bit.")
    ] = False,
    diffusers: Annotated[
        bool, typer.Option("--diffusers", help="Also let diffusers load, and save, the single file.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Converting a checkpoint of random weights, in a process of its own.

    At SD 1.5's size, 9 GB in the folder for temporary files and a minute; a single file of SDXL in float16 and back, 21
    GB. above the output: the most memory that was held, less the size of what was written. same: how many tensors of
    the file that was written back are those of the first one, bit for bit, out of how many; a position_ids and a
    logit_scale, on which no picture depends, are not written back.
    """
    if back and (keys is None or stored != dtype):
        raise InputError("--back is for a single file (--keys) that is converted as it is stored (--dtype, --stored)")
    with tempfile.TemporaryDirectory() as folder:
        destination = Path(folder) / "converted"
        if keys is None:
            source = Path(folder) / "source"
            write_checkpoint(configs, source)
        else:
            source = Path(folder) / f"{keys.stem}.safetensors"
            write_single_file(keys, source, stored)
        rows = []
        for what in ("sdjax", *(("diffusers, loaded", "diffusers, saved") if diffusers else ())):
            measured = run_python("-m", "benchmarks.conversion", what, source, destination, dtype, configs)
            rows.append({"what": what, **measured})
            rows[-1] |= {"above the output": measured["peak GB"] - measured["output GB"]}
            if back and what == "sdjax":
                returned = source.with_stem("back")
                measured = run_python("-m", "benchmarks.conversion", "back", destination, returned, dtype, configs)
                rows.append({"what": "back", **measured, "same": equal_tensors(source, returned)})
                rows[-1] |= {"above the output": measured["peak GB"] - measured["output GB"]}
                returned.unlink()
            shutil.rmtree(destination, ignore_errors=True)
    publish("conversion", rows, json_file, f"{keys or configs}; {stored if keys else 'float32'} to {dtype}")


def equal_tensors(first: Path, second: Path) -> str:
    """How many tensors of two files are the same bit for bit under the same name, out of all names."""
    ours, theirs = (open_tensors(path).arrays() for path in (first, second))
    same = 0
    for name in ours.keys() & theirs.keys():
        a, b = (np.ascontiguousarray(arrays[name]) for arrays in (ours, theirs))
        same += a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a.view(np.uint8), b.view(np.uint8))
    return f"{same} of {len(ours.keys() | theirs.keys())}"


def write_single_file(keys: Path, path: Path, stored: str) -> None:
    """A single file of these tensors; every one is a cut of one random block, at a place of its own."""
    noise = np.random.default_rng(0).standard_normal(1 << 26, np.float32) / 50
    listed = json.loads(keys.read_text())
    kinds = {"float32": stored}
    dtypes = {name: np.dtype(kinds.get(kind, kind)) for name, (_, kind) in listed.items()}
    specs = {name: jax.ShapeDtypeStruct(shape, dtypes[name]) for name, (shape, _) in listed.items()}

    def values(name: str) -> np.ndarray:
        begin = crc32(name.encode()) % (len(noise) - specs[name].size)
        return noise[begin : begin + specs[name].size].reshape(specs[name].shape).astype(specs[name].dtype)

    write_tensors(path, specs, values, {"format": "pt"})


def write_checkpoint(configs: Path, folder: Path) -> None:
    """A diffusers directory of float32 weights for these configs; every tensor is a cut of one random block."""
    shutil.copytree(configs, folder)
    index = read_json(folder / "model_index.json")
    noise = np.random.default_rng(0).standard_normal(1 << 26, np.float32) / 50
    for component, class_name in sort_components(index, folder)[0].items():
        module = build(class_name, read_json(folder / component / "config.json"))
        specs = {
            source_name(path): jax.ShapeDtypeStruct(source_shapes(path, spec.shape)[0], np.float32)
            for path, spec in flat_specs(module).items()
        }
        stem = "model" if component == "text_encoder" else "diffusion_pytorch_model"
        write_tensors(
            folder / component / f"{stem}.safetensors",
            specs,
            lambda name, specs=specs: noise[: specs[name].size].reshape(specs[name].shape),
            {"format": "pt"},
        )


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(source: Path, destination: Path, dtype: str, configs: Path) -> dict[str, float]:
    """Convert, and say how long it took, the most memory that this process held, and the size of what was written."""
    tokenizer = next(path for name in TEXT_ENCODERS.values() if (path := configs / name).is_dir())
    choices = Choices(tokenizer=tokenizer) if source.is_file() else Choices()
    clocks = Clocks()
    convert(source, destination, dtype=dtype, single_file=choices)
    return {**clocks.read(), "output GB": size(destination) / 1e9}


def measure_export(source: Path, destination: Path) -> dict[str, float]:
    """The same of the way back."""
    clocks = Clocks()
    export(source, destination, to="single-file")
    return {**clocks.read(), "output GB": destination.stat().st_size / 1e9}


def measure_diffusers(source: Path, destination: Path, configs: Path, saves: bool) -> dict[str, float]:
    """The same of diffusers. Where it only loads, it maps the file and reads no weights."""
    from diffusers import StableDiffusionPipeline

    clocks = Clocks()
    pipe = StableDiffusionPipeline.from_single_file(str(source), config=str(configs), local_files_only=True)
    if saves:
        pipe.save_pretrained(destination)
    return {**clocks.read(), "output GB": size(destination) / 1e9 if saves else 0.0}


class Clocks:
    """Time since it was made: on the wall, and of the processor; and the most memory that this process ever held."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {"seconds": wall, "CPU seconds": cpu, "peak GB": peak_memory() / 1e9}


if __name__ == "__main__":
    what, source, destination, dtype, configs = sys.argv[1:]
    if what == "back":
        print(json.dumps(measure_export(Path(source), Path(destination))))
    elif what == "sdjax":
        print(json.dumps(measure(Path(source), Path(destination), dtype, Path(configs))))
    else:
        saves = what == "diffusers, saved"
        print(json.dumps(measure_diffusers(Path(source), Path(destination), Path(configs), saves)))
