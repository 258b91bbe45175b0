"""Fitting a plan to a UNet of pixels, which knows no prompts and no guidance; see `tuning`."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from sdjax import schedulers
from sdjax.files.identity import digest
from sdjax.parallel import compiled
from sdjax.pipeline.unconditional import PixelModel
from sdjax.random import image_keys, normal
from sdjax.schedulers.loop import RowModel
from sdjax.training.fit import Report, Task
from sdjax.training.following import Way
from sdjax.training.plans import first_of
from sdjax.training.step import Tree
from sdjax.training.teacher import TEACHER, Taught, as_samples, kept_way, say_how_far
from sdjax.training.tuning import Tuning, clip_range_of, fitting_task


@dataclass(frozen=True)
class PixelLesson:
    """What a teacher draws: so many pictures by so many evaluations. Their seeds are those of no study's pictures."""

    pictures: int
    evaluations: int
    seed: int = 0

    @property
    def seeds(self) -> range:
        """A seed for each picture."""
        return range((self.seed + 1) * 10**9, (self.seed + 1) * 10**9 + self.pictures)


def pixel_tuning_task(model: PixelModel, lesson: PixelLesson, nfe: int, spacings: list[str]) -> Task:
    """Fits a plan of `nfe` evaluations, see `tuning.tuning_task`. Raises InputError for a model whose estimates are
    clipped dynamically."""
    scheduler = schedulers.from_config(model.scheduler)
    firsts = tuple(first_of(scheduler, nfe, spacing) for spacing in spacings)
    return fitting_task(
        Tuning(unguided(model.unet), scheduler.noise, firsts, clip_range_of(scheduler)),
        {"unet": jax.device_get(model.params)},
        [1.0],
        {"nfe": nfe, "spacings": spacings, **asdict(lesson)},
        lambda run: pixels_taught(model, lesson, run.settings.batch_size, run.report),
        lesson.pictures,
    )


def unguided(unet: nn.Module) -> Any:
    """A UNet of pixels as it is asked at each row, a `tuning.Asked`."""

    def asked(frozen: Tree, batch: Tree, factors: jax.Array) -> RowModel:
        return schedulers.of_timesteps(jax.checkpoint(partial(unet.apply, {"params": frozen["unet"]})))

    return asked


def pixels_taught(model: PixelModel, lesson: PixelLesson, batch_size: int, report: Report) -> Taught:
    """Lets the teacher draw. Its ways are kept in the cache. Logs how far its pictures are from converged."""
    first, ways = [], []
    own = digest(
        {"config": repr(model.unet.config), "scheduler": model.scheduler}, {"unet": jax.device_get(model.params)}
    )
    for start in range(0, lesson.pictures, batch_size):
        report("encode", start, lesson.pictures, f"the teacher draws {start}/{lesson.pictures}")
        noise, way = pixel_way(model, own, lesson.seeds[start : start + batch_size], lesson.evaluations)
        if start == 0:
            of_half = pixel_way(model, own, lesson.seeds[:batch_size], lesson.evaluations // 2)[1]
            say_how_far(way.samples[-1], of_half.samples[-1], lesson.evaluations)
        first.append(noise)
        ways.append(way)
    way = Way(ways[0].levels, np.concatenate([each.samples for each in ways], 1))
    pairs = zip(np.concatenate(first), way.samples[-1])
    return Taught([{"noise": noise, "target": target, "knot": np.int32(0)} for noise, target in pairs], way)


def pixel_way(model: PixelModel, name: str, seeds: range, evaluations: int) -> tuple[np.ndarray, Way]:
    """The first noise [pictures, size, size, channels] of these seeds, and the teacher's way from there.

    name: the model's hash.
    """
    size, channels = model.unet.config.sample_size, model.unet.config.in_channels
    plan = schedulers.from_config(model.scheduler).with_solver(*TEACHER.values()).plan(evaluations)
    noise = np.asarray(normal(image_keys(list(seeds)).start, (size, size, channels)))

    def draw() -> tuple[np.ndarray, np.ndarray]:
        state, padded = schedulers.init_state(plan, plan.start(noise)), plan.padded()
        seen = [np.asarray(state.registers[:, 0])]
        for _ in range(evaluations):
            state = _advancing(model.unet)(padded, model.params, state)
            seen.append(np.asarray(state.registers[:, 0]))
        return plan.sigmas, as_samples(plan.sigmas, seen)

    return noise, kept_way((name, list(seeds), evaluations), draw)


@lru_cache
def _advancing(unet: nn.Module) -> Callable[..., schedulers.State]:
    def advance(plan: schedulers.Plan, params: Tree, state: schedulers.State) -> schedulers.State:
        predict = schedulers.of_timesteps(partial(unet.apply, {"params": params}))
        return schedulers.advance(
            plan, state, predict, schedulers.noise_source(state.denoised.shape, None), state.row + 1
        )

    return compiled(advance)
