"""What a plan is fitted to: pictures that a teacher drew with many evaluations, from prompts at several scales."""

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from sdjax.errors import InputError
from sdjax.files.cache import cached
from sdjax.files.identity import model_hash
from sdjax.pipeline import Pipeline
from sdjax.pipeline.tasks import TASKS
from sdjax.schedulers.tuned import nearest_scale
from sdjax.settings import Picture
from sdjax.training.fit import Report
from sdjax.training.following import Way, root_mean_square

log = logging.getLogger("sdjax")

TEACHER = {"sampler": "dpmpp_2m", "spacing": "karras"}
EVERY = 3  # levels; those between are interpolated
CONVERGED = 0.02  # distance of latents from those of half the evaluations, which leaves a plan of few ones room
BETWEEN = 4  # one of so many rounds of the scales is drawn between them, so that what lies there is fitted too


@dataclass(frozen=True)
class Lesson:
    """What is drawn: pictures of the prompts in turn, with the guidance scales in turn, by so many evaluations."""

    prompts: tuple[str, ...]
    scales: tuple[float, ...]
    pictures: int
    evaluations: int
    seed: int = 0

    def drawn(self) -> list[Picture]:
        """The pictures. Their seeds count from a number that no other pictures of a study begin with."""
        random = np.random.default_rng(self.seed)
        found = []
        for i in range(self.pictures):
            scale = self.scales[i % len(self.scales)]
            if len(self.scales) > 1 and i // len(self.scales) % BETWEEN == BETWEEN - 1:
                scale = float(np.exp(random.uniform(*np.log([self.scales[0], self.scales[-1]]))))
            prompt = self.prompts[i % len(self.prompts)]
            steps = {"num_inference_steps": self.evaluations, "guidance_scale": scale}
            found.append(Picture(prompt, seed=(self.seed + 1) * 10**9 + i, **steps, **TEACHER))  # type: ignore[arg-type]
        return found


def check_tunable(pipe: Pipeline) -> None:
    """Raises InputError for a model that does not draw from prompts alone, or reads its guidance scale."""
    facts = pipe.facts
    if facts.task is not TASKS["text"] or facts.embeds_guidance or facts.scheduler.noise.continuous:
        raise InputError("a plan is tuned for models that draw from prompts alone, with classifier-free guidance")


class Taught(NamedTuple):
    """What is learned from.

    examples: of each picture what the UNet reads of its prompts, its "noise", its "scale", the teacher's latents as
    "target", and "knot", the number of the lesson's scale that is nearest to its own. way: of all of them.
    """

    examples: list[Any]
    way: Way


def taught(pipe: Pipeline, lesson: Lesson, batch_size: int, report: Report) -> Taught:
    """Lets the teacher draw. Its ways are kept in the cache. Logs how far its latents are from converged."""
    examples: list[Any] = []
    ways: list[Way] = []
    pictures, model = lesson.drawn(), model_hash(pipe.model, [])
    for start in range(0, len(pictures), batch_size):
        report("encode", start, len(pictures), f"the teacher draws {start}/{len(pictures)}")
        own = pictures[start : start + batch_size]
        batch = pipe.begin(pipe.prepare(own))
        conditioning = batch.inputs(0)[0]
        scales = np.array([picture.guidance_scale for picture in own], np.float32)
        ways.append(way_of(pipe, model, own))
        tree = {
            "positive": conditioning.positive,
            "negative": conditioning.negative,
            "shared": conditioning.shared,
            "noise": batch.first,
            "target": ways[-1].samples[-1],
            "scale": scales,
            "knot": np.array([nearest_scale(scale, lesson.scales) for scale in scales], np.int32),
        }
        if start == 0:
            of_half = way_of(pipe, model, [_with_half(picture) for picture in own])
            say_how_far(tree["target"], of_half.samples[-1], lesson.evaluations)
        leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
        examples += [jax.tree.unflatten(structure, each) for each in zip(*leaves)]
    return Taught(examples, Way(ways[0].levels, np.concatenate([way.samples for way in ways], 1)))


def _with_half(picture: Picture) -> Picture:
    return replace(picture, num_inference_steps=int(picture.num_inference_steps or 0) // 2)


def say_how_far(results: np.ndarray, of_half: np.ndarray, evaluations: int) -> None:
    """Logs the distance of a teacher's results from those of half as many evaluations: a warning where it is large."""
    apart = float(np.median(root_mean_square(results - of_half)))
    said = f"the teacher's results are {apart:.2g} from those of {evaluations // 2} evaluations"
    if apart > CONVERGED:
        log.warning("%s: it has not converged, and a plan gets no nearer to the truth: give --teacher more", said)
    else:
        log.info("%s", said)


def way_of(pipe: Pipeline, model: str, pictures: Sequence[Picture]) -> Way:
    """The way of pictures. model: its hash."""
    return kept_way((model, list(pictures)), lambda: trajectories(pipe, pictures)[:2])


def kept_way(key: tuple, draw: Callable[[], tuple[np.ndarray, np.ndarray]]) -> Way:
    """The way through levels and samples, drawn once and then found in the cache; every third level is kept."""

    def made() -> bytes:
        file, (levels, samples) = io.BytesIO(), draw()
        kept = [*range(0, len(levels) - 1, EVERY), len(levels) - 1]
        np.savez(file, levels=levels[kept], samples=samples[[*kept, -1]].astype(np.float32))
        return file.getvalue()

    found = np.load(io.BytesIO(cached("teachers", (*key, EVERY), made)))
    return Way(found["levels"], found["samples"])


def trajectories(pipe: Pipeline, pictures: Sequence[Picture]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The teacher's levels [rows], and there its samples [rows + 1, pictures, ...] and estimates [rows, pictures, ...].

    Samples are x0 + sigma * noise; the last one is the picture.
    """
    batch = pipe.begin(pipe.prepare(pictures))
    plan = batch.order.recipes[0].plan
    seen, estimates = [batch.first], []
    for step in pipe.denoise(batch, range(1, int(plan.nfe))):
        state = batch.on_host(step)
        seen.append(np.asarray(state.registers[:, 0]))
        estimates.append(np.asarray(state.denoised))
    return plan.sigmas, as_samples(plan.sigmas, seen), np.stack(estimates)


def as_samples(levels: np.ndarray, seen: Sequence[np.ndarray]) -> np.ndarray:
    """What a network sees at each level, and the end, as x0 + sigma * noise: [levels + 1, pictures, ...]."""
    return np.stack(seen) * np.sqrt(1 + np.append(levels, 0.0) ** 2)[:, None, None, None, None]
