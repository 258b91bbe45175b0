"""Doors for files of tensors whose names and shapes anybody may have chosen: conditions, IP-Adapters, upscalers; and
for what `sdjax tune` writes.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save

from benchmarks.fuzz import Door
from benchmarks.hostile import DAMAGES, TEXT, changed, damaged
from sdjax.convert import convert
from sdjax.convert.ip_adapters import read_picture_adapter
from sdjax.files.layout import embedded_models, read_json
from sdjax.files.plans import read_plan
from sdjax.upscaling.files import open_upscaler

Shapes = dict[str, tuple[int, ...]]


def _convolutions(**sizes: tuple[int, int, int]) -> Shapes:
    """Kernels and biases by name, of outputs, inputs and the kernel's width; `_` of a name stands for a dot."""
    shapes: Shapes = {}
    for name, (outputs, inputs, width) in sizes.items():
        module = name.replace("_", ".").replace("in.conv", "in_conv").replace("out.conv", "out_conv")
        shapes |= {f"{module}.weight": (outputs, inputs, width, width), f"{module}.bias": (outputs,)}
    return shapes


UPSCALER: Shapes = {
    **_convolutions(body_0=(4, 3, 3), body_2=(4, 4, 3), body_4=(12, 4, 3)),
    "body.1.weight": (4,),
    "body.3.weight": (4,),
}
ADAPTER = _convolutions(
    body_0_in_conv=(2, 64, 1),
    body_0_body_0_block1=(2, 2, 3),
    body_0_body_0_block2=(2, 2, 3),
    body_0_out_conv=(8, 2, 1),
    body_1_in_conv=(2, 8, 1),
    body_1_body_0_block1=(2, 2, 3),
    body_1_body_0_block2=(2, 2, 3),
    body_1_out_conv=(8, 2, 1),
)
IP_ADAPTER: Shapes = {
    "image_proj.proj.weight": (16, 6),
    "image_proj.proj.bias": (16,),
    "image_proj.norm.weight": (8,),
    "image_proj.norm.bias": (8,),
    "ip_adapter.1.to_k_ip.weight": (4, 8),
    "ip_adapter.1.to_v_ip.weight": (4, 8),
}


def _shapes(shapes: Shapes, read: Callable[[Path, Path], Any]) -> tuple[Any, Callable[[Any, Path], None]]:
    """Files of zeros, some tensors of other shapes, left out (None) or new, and then damaged.

    Raises what `read` raises where it refuses the whole one.
    """
    shape = st.none() | st.lists(st.integers(0, 70), max_size=5).filter(lambda sizes: np.prod(sizes) < 10**6)
    changes = st.dictionaries(st.sampled_from(sorted(shapes)) | TEXT, shape, max_size=3)

    def work(of: tuple[dict[str, list[int] | None], list[Any]], folder: Path) -> None:
        found = {name: sizes for name, sizes in {**shapes, **of[0]}.items() if sizes is not None}
        path = folder / "x.safetensors"
        path.write_bytes(damaged(save({name: np.zeros(sizes, np.float32) for name, sizes in found.items()}), of[1]))
        read(path, folder / "new")

    with tempfile.TemporaryDirectory() as folder:
        work(({}, []), Path(folder))
    return st.tuples(changes, DAMAGES), work


def _tuned(of: tuple[dict[str, Any], list[Any]], folder: Path) -> None:
    path = folder / "x.json"
    path.write_bytes(damaged(json.dumps(of[0]).encode(), of[1]))
    plan = read_plan(path)
    assert np.isfinite(plan.tables.levels).all() and plan.hash == of[0]["hash"]


def tensor_doors() -> list[Door]:
    """The doors."""
    plan = read_json(embedded_models()["shapes"] / "plans" / "5.json")
    return [
        Door("upscaler", *_shapes(UPSCALER, lambda path, _: open_upscaler(path))),
        Door("ip-adapter", *_shapes(IP_ADAPTER, lambda path, _: read_picture_adapter(path, path.name))),
        Door("condition", *_shapes(ADAPTER, lambda path, new: convert(path, new))),
        Door("tuned plan", st.tuples(changed(plan), DAMAGES), _tuned),
    ]
