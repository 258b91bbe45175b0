"""A batch's way from the first sample to the denoised latents, as calls of the one compiled program."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from sdjax import schedulers
from sdjax.parallel import shard, unshard
from sdjax.programs import Conditioning, Guidance
from sdjax.random import DeviceNoise, HostNoise, Noise
from sdjax.schedulers import Plan
from sdjax.starts import Begin

# Called with a stage ("encode", "compile", "denoise", "decode"), how much of it is done, and out of how much.
Progress = Callable[[str, int, int], None]


def run(
    program: Callable[..., schedulers.State],
    params: Any,
    plan: Plan,
    guidance: Guidance,
    first: Begin,
    contexts: tuple[Sequence[jax.Array], Sequence[jax.Array]],
    noise: Noise,
    seeds: Sequence[int],
    progress: Progress | None,
) -> np.ndarray:
    """The denoised latents [batch, h, w, channels], on the host.

    program: `programs.denoise`, spread over the devices. plan: stacked. contexts: those of the prompts and of the
    negative prompts at each row, on the devices.
    A call of the program goes on until a picture reads another text or wants noise from the host; with progress, for
    one row.
    """
    nfe, shape = int(plan.nfe.max()), first.x.shape[1:]
    draws = (plan.weights[..., -1] != 0).any(-1)  # [pictures, rows]
    if not draws.any():
        noise = DeviceNoise(seeds)  # its program serves every sampler
    channels, labels, known = shard((first.channels, first.class_labels, first.known))
    scales = shard(guidance)
    prompts, negatives = contexts

    def inputs(row: int) -> tuple:
        conditioning = Conditioning(prompts[row], negatives[row], channels, labels)
        return conditioning, scales, known, shard(noise.of_row(shape, draws[:, row]))

    def is_cut(row: int) -> bool:
        reads_another = any(texts[row] is not texts[row - 1] for texts in contexts)
        return bool(progress) or reads_another or (isinstance(noise, HostNoise) and bool(draws[:, row].any()))

    state = shard(schedulers.init_state(plan, first.x))
    advance = partial(program, params, shard(plan))
    given = inputs(0)
    if progress:
        progress("compile", 0, 1)
        state = jax.block_until_ready(advance(state, *given, np.int32(0)))  # compiles, and takes no step
        progress("compile", 1, 1)
        progress("denoise", 0, nfe)
    cuts = [0, *filter(is_cut, range(1, nfe))]
    for row, stop in zip(cuts, [*cuts[1:], nfe]):
        given = inputs(row) if row else given
        state = advance(state, *given, np.int32(stop))
        if progress:
            jax.block_until_ready(state)
            progress("denoise", stop, nfe)
    return np.asarray(schedulers.result(plan, unshard(state, len(first.x))))
