"""A batch's way from the first sample to the denoised latents, as calls of the one compiled program."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from sdjax import schedulers
from sdjax.parallel import shard, unshard
from sdjax.pipeline.previews import Previews
from sdjax.pipeline.start import Begin
from sdjax.programs import Conditioning, Guidance
from sdjax.random import DeviceNoise, HostNoise, Noise
from sdjax.schedulers import Plan
from sdjax.schedulers.loop import State

# Called with a stage ("encode", "compile", "denoise", "decode"), how much of it is done, and out of how much.
Progress = Callable[[str, int, int], None]


def run(
    advance: Callable[..., State],
    plan: Plan,
    guidance: Guidance,
    first: Begin,
    contexts: tuple[Sequence[jax.Array], Sequence[jax.Array]],
    noise: Noise,
    seeds: Sequence[int],
    previews: Previews | None,
    progress: Progress | None,
) -> np.ndarray:
    """The denoised latents [batch, h, w, channels], on the host.

    advance: `programs.denoise` over the devices, from its argument `state` on. plan: stacked. contexts: those of the
    prompts and of the negative prompts at each row, on the devices. previews: shown latents [batch, h, w, channels].
    A call of the program goes on until a picture reads another text, wants noise from the host, or is to be seen; with
    progress, for one row.
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

    gallery = Gallery(plan, previews) if previews else None

    def is_cut(row: int) -> bool:
        reads_another = any(texts[row] is not texts[row - 1] for texts in contexts)
        wants_noise = isinstance(noise, HostNoise) and bool(draws[:, row].any())
        is_seen = gallery is not None and row in gallery.rows
        return bool(progress) or reads_another or wants_noise or is_seen

    state = shard(schedulers.init_state(plan, first.x))
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
        if gallery and stop in gallery.rows:
            gallery.add(stop, np.asarray(schedulers.estimate(plan, unshard(state, len(first.x)))))
    return np.asarray(schedulers.result(plan, unshard(state, len(first.x))))


class Gallery:
    """Estimates that are to be shown: each picture's at the row at which it has taken so many steps.

    The pictures of a batch go from row to row together, and a step is another number of rows to each sampler.
    """

    def __init__(self, plan: Plan, previews: Previews):
        steps = range(1, int(plan.is_step.sum(-1).max()) + 1)
        self._ends = {step: plan.rows_of(step) for step in steps if step in previews.steps}
        self._seen: dict[int, dict[int, np.ndarray]] = {step: {} for step in self._ends}
        self._show = previews.show
        self.rows = {int(row) for ends in self._ends.values() for row in ends}

    def add(self, row: int, estimates: np.ndarray) -> None:
        """Take the estimates [batch, ...] behind a row, and show the steps of which every picture's is known now."""
        for step in list(self._ends):
            ends, seen = self._ends[step], self._seen[step]
            seen |= {int(i): estimates[i] for i in np.flatnonzero(ends == row)}
            if len(seen) == len(ends):
                del self._ends[step]
                self._show(step, np.stack([seen[i] for i in range(len(ends))]))
