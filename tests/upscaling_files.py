"""Small files of networks that enlarge, with random weights, for tests without PyTorch."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

Tensors = dict[str, np.ndarray]


def _convolution(random: np.random.Generator, name: str, inputs: int, outputs: int) -> Tensors:
    kernel = random.standard_normal((outputs, inputs, 3, 3)) / (9 * inputs) ** 0.5
    return {f"{name}.weight": kernel.astype(np.float32), f"{name}.bias": random.normal(0, 0.1, outputs).astype("f")}


def compact(scale: int = 2, width: int = 4, layers: int = 2, seed: int = 0) -> Tensors:
    """SRVGGNetCompact, which looks `layers` + 2 pixels around."""
    random, found = np.random.default_rng(seed), {}
    for i in range(layers + 1):
        found |= _convolution(random, f"body.{2 * i}", 3 if i == 0 else width, width)
        found[f"body.{2 * i + 1}.weight"] = random.random(width, np.float32)
    return found | _convolution(random, f"body.{2 * layers + 2}", width, 3 * scale**2)


def esrgan(doublings: int = 2, width: int = 4, growth: int = 2, blocks: int = 1, seed: int = 0) -> Tensors:
    """RRDBNet."""
    random = np.random.default_rng(seed)
    found = _convolution(random, "conv_first", 3, width)
    for i in range(blocks):
        for j in range(1, 4):
            for k in range(1, 6):
                name, inputs = f"body.{i}.rdb{j}.conv{k}", width + (k - 1) * growth
                found |= _convolution(random, name, inputs, width if k == 5 else growth)
    for name in ("conv_body", *(f"conv_up{i + 1}" for i in range(doublings)), "conv_hr"):
        found |= _convolution(random, name, width, width)
    return found | _convolution(random, "conv_last", width, 3) | {"conv_last.bias": np.full(3, 0.5, np.float32)}


def swinir(width: int = 4, heads: int = 2, window: int = 4, scale: int = 2, seed: int = 0) -> Tensors:
    """SwinIR, the lightweight form, of one layer with two blocks."""
    random, found = np.random.default_rng(seed), _convolution(np.random.default_rng(seed), "conv_first", 3, width)

    def dense(name: str, inputs: int, outputs: int) -> None:
        found[f"{name}.weight"] = (random.standard_normal((outputs, inputs)) / inputs**0.5).astype(np.float32)
        found[f"{name}.bias"] = np.zeros(outputs, np.float32)

    def norm(name: str) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = np.ones(width, np.float32), np.zeros(width, np.float32)

    for i in range(2):
        block = f"layers.0.residual_group.blocks.{i}"
        norm(f"{block}.norm1")
        norm(f"{block}.norm2")
        dense(f"{block}.attn.qkv", width, 3 * width)
        dense(f"{block}.attn.proj", width, width)
        dense(f"{block}.mlp.fc1", width, 2 * width)
        dense(f"{block}.mlp.fc2", 2 * width, width)
        rows = (2 * window - 1) ** 2
        found[f"{block}.attn.relative_position_bias_table"] = random.standard_normal((rows, heads)).astype(np.float32)
        found[f"{block}.attn.relative_position_index"] = np.zeros((window**2, window**2), np.int64)
    norm("patch_embed.norm")
    norm("norm")
    for name in ("layers.0.conv", "conv_after_body"):
        found |= _convolution(random, name, width, width)
    return found | _convolution(random, "upsample.0", width, 3 * scale**2)


def write(path: Path, tensors: Tensors) -> Path:
    """The tensors as a file."""
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
    return path
