"""The refiner: another model that takes over from the first where little noise is left.

In A1111 the sampler goes on, with all that it remembers; in diffusers the second model begins with one of its own.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sdjax.errors import InputError
from sdjax.parallel import shard
from sdjax.pipeline.conditions import Conditions
from sdjax.pipeline.contexts import TextEncode, contexts_of
from sdjax.pipeline.denoising import Advance, Batch, Step, steps
from sdjax.pipeline.facts import Facts
from sdjax.pipeline.resolve import REFINED_FROM
from sdjax.pipeline.xl import sizes_of
from sdjax.schedulers import State
from sdjax.settings import Picture


def check_refiner(facts: Facts, refiner: Facts) -> None:
    """Raises InputError for a model that cannot go on with the latents of another one."""
    if refiner.task.name != "text":
        raise InputError(f"the refiner reads more than latents: it {refiner.task.does}")
    if (facts.channels, facts.factor) != (refiner.channels, refiner.factor):
        raise InputError(
            f"the refiner's latents have {refiner.channels} channels and {refiner.factor} pixels a side, those of the "
            f"model {facts.channels} and {facts.factor}"
        )
    if facts.unet.is_xl != refiner.unet.is_xl:
        raise InputError("Stable Diffusion XL's latents are others than those of 1 and 2: refine each by its own kind")


def for_refiner(batch: Batch, facts: Facts, encode: TextEncode, unet: Any) -> Batch:
    """A batch as the refiner reads it: the same plans, noise and guidance, but its own texts, sizes and parameters.

    Nets that see hints are made for the first model, and the refiner does without them, as in A1111.
    """
    order = replace(batch.order, facts=facts)
    shared = batch.shared | {"channels": batch.shared["channels"][..., :0]}
    contexts = contexts_of(order, encode)
    sizes = shard(sizes_of(order))
    return replace(batch, order=order, contexts=contexts, sizes=sizes, shared=shared, unet=unet, nets=Conditions())


def refined_steps(
    batch: Batch, advance: Advance, refine: Any, stops: Collection[int], state: State | None
) -> Iterator[Step]:
    """As `steps`, of which the refiner takes those from `batch.order.switch` on.

    refine: makes the refiner's batch and its `Advance`, when they are needed.
    """
    switch = batch.order.switch
    assert switch is not None
    if state is None or int(np.max(state.row)) < switch:
        for step in steps(batch, advance, stops, state, until=switch):
            if step.row < switch:
                yield step
        state = batch.on_host(step)
    if switch < batch.order.nfe:
        refined, refining = refine(batch)
        yield from steps(refined, refining, stops, state)
    else:
        yield step


def second_half(pictures: Sequence[Picture], latents: np.ndarray) -> list[Picture]:
    """The pictures that a refiner of diffusers' begins with: latents [batch, h, w, channels] with their noise."""
    change: dict[str, Any] = {"denoising_end": None, "conditions": ()}
    return [
        replace(picture, image=each, denoising_start=picture.denoising_end or REFINED_FROM, **change)
        for picture, each in zip(pictures, latents)
    ]
