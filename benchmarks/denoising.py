"""What the denoising program takes besides the UNet and its parameters."""

import jax
import numpy as np

from sdjax import schedulers
from sdjax.guidance import cfg
from sdjax.halves import Conditioning

STEPS, TOKENS = 20, 77


def inputs(batch: int, latents: tuple[int, int, int], features: int, rows: int | None = None, pooled: int = 0) -> tuple:
    """The arguments of `programs.denoise` after the parameters: guided, DPM-Solver++(2M), STEPS steps.

    latents: height, width and channels. features: of the context. rows: how long the plan's table is to be, where it
    is not the usual bucket. pooled: features of the pooled prompt of a Stable Diffusion XL.
    """
    padded = schedulers.stack([schedulers.create("dpmpp_2m").plan(STEPS)] * batch)
    plan = jax.tree.map(lambda leaf: leaf[:, :rows] if leaf.ndim > 1 else leaf, padded)
    text = {"context": np.zeros((batch, TOKENS, features), np.float32)}
    if pooled:
        text |= {"pooled": np.zeros((batch, pooled), np.float32), "time_ids": np.zeros((batch, 6), np.float32)}
    scale = np.full(plan.sigmas.shape, 7.5, np.float32)
    shared = {"channels": np.zeros((batch, *latents[:2], 0), np.float32), "class_labels": None, "guidance": None}
    return (
        plan,
        schedulers.init_state(plan, np.ones((batch, *latents), np.float32)),
        Conditioning(text, text, shared),
        cfg(scale),
        schedulers.Known(
            *(np.zeros((batch, *latents[:2], channels), np.float32) for channels in (latents[2], latents[2], 1))
        ),
        jax.random.split(jax.random.key(0), batch),
        np.int32(STEPS),
    )
