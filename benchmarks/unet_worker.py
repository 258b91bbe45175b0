"""One UNet, sdjax's or PyTorch's, in a process of its own: `python -m benchmarks.unet_worker FRAMEWORK FOLDER`.

FOLDER/unet holds its weights. Each line of standard input is a size in pixels; the answer says how long one evaluation
took and the most memory that was held so far. The first output at a size is left in FOLDER.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.processes import peak_memory

BATCH, TOKENS, FACTOR = 2, 77, 8
Evaluate = Callable[..., np.ndarray]


def inputs(config: dict, pixels: int) -> dict[str, np.ndarray]:
    """The same sample [batch, height, width, channels], timesteps and context for both frameworks."""
    random = np.random.default_rng(pixels)
    sample = (BATCH, pixels // FACTOR, pixels // FACTOR, config.get("in_channels", 4))
    arrays = {
        "sample": random.standard_normal(sample, np.float32),
        "timesteps": np.array([500, 500], np.int32),
        "context": random.standard_normal((BATCH, TOKENS, config.get("cross_attention_dim", 1280)), np.float32),
    }
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        arrays["class_labels"] = np.array([20, 20], np.int32)
    return arrays


def sdjax(folder: Path) -> Evaluate:
    """Compiled by `jit`, as a part of the pipeline's program is."""
    import jax

    from sdjax.checkpoint import read_component
    from sdjax.parallel import replicate

    unet = read_component(folder, "UNet2DConditionModel")
    params = replicate(unet.params, np.dtype("float32"))
    apply = jax.jit(unet.module.apply)
    return lambda **arrays: np.asarray(apply({"params": params}, **arrays))


def pytorch(folder: Path) -> Evaluate:
    """As diffusers runs it when left alone."""
    import torch
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder)

    @torch.inference_mode()
    def evaluate(sample, timesteps, context, **others) -> np.ndarray:
        others = {name: torch.from_numpy(array) for name, array in others.items()}
        channels_first = torch.from_numpy(sample.transpose(0, 3, 1, 2).copy())
        output = unet(channels_first, torch.from_numpy(timesteps), torch.from_numpy(context), **others).sample
        return output.numpy().transpose(0, 2, 3, 1)

    return evaluate


def main(framework: str, folder: Path) -> None:
    config = json.loads((folder / "unet" / "config.json").read_text())
    evaluate = {"sdjax": sdjax, "pytorch": pytorch}[framework](folder / "unet")
    for line in sys.stdin:
        arrays = inputs(config, pixels := int(line))
        start = time.perf_counter()
        output = evaluate(**arrays)
        seconds = time.perf_counter() - start
        if not (saved := folder / f"{pixels}.npy").exists():
            np.save(saved, output)
        print(json.dumps({"seconds": seconds, "peak GB": peak_memory() / 1e9}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
