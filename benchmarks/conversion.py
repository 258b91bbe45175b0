"""Time and memory of converting a full-size checkpoint: `python -m benchmarks.conversion CONFIGS [--dtype float16]`.

CONFIGS is a folder without weights, as the hub has it (`../shared/reference/hub/runwayml/stable-diffusion-v1-5`).
Random float32 weights are written beside it in a temporary folder; the conversion runs in a process of its own.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from sdjax.checkpoint import flat_specs, read_json
from sdjax.convert import convert
from sdjax.convert.directory import sort_components
from sdjax.convert.keys import source_name, source_shapes
from sdjax.models import build
from sdjax.tensors import write_tensors


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


def measure(source: Path, destination: Path, dtype: str | None) -> None:
    """Converts and prints the time, the peak memory of this process, and the size of what was written."""
    start = time.perf_counter()
    convert(source, destination, dtype=dtype)
    seconds = time.perf_counter() - start
    # Linux's own mark; getrusage would count the process that started this one.
    peak = 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    print(
        json.dumps(
            {
                "seconds": round(seconds, 1),
                "peak_GB": round(peak / 1e9, 2),
                "output_GB": round(size(destination) / 1e9, 2),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", type=Path)
    parser.add_argument("--dtype")
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)  # source, destination
    args = parser.parse_args()
    if args.measure:
        measure(*args.measure, args.dtype)
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        write_checkpoint(args.configs, source)
        command = [sys.executable, "-m", "benchmarks.conversion", str(args.configs)]
        command += ["--measure", str(source), str(Path(folder) / "converted")]
        subprocess.run(command + (["--dtype", args.dtype] if args.dtype else []), check=True)


if __name__ == "__main__":
    main()
