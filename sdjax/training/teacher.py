"""What a plan is fitted to: pictures that a teacher drew with many evaluations, from prompts at several scales."""

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from sdjax.errors import InputError
from sdjax.files.cache import cached
from sdjax.files.identity import model_hash
from sdjax.pipeline import Pipeline
from sdjax.pipeline.tasks import TASKS
from sdjax.settings import Picture
from sdjax.training.fit import Report

log = logging.getLogger("sdjax")

TEACHER = {"sampler": "dpmpp_2m", "spacing": "karras"}
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


def taught(pipe: Pipeline, lesson: Lesson, batch_size: int, report: Report) -> list[Any]:
    """The examples: of each picture what the UNet reads of its prompts, its noise, scale and the teacher's latents.

    "share", [scales], says between which of the lesson's scales its own lies. The teacher's latents are kept in the
    cache. Logs how far they are from converged.
    """
    examples: list[Any] = []
    pictures, knots, model = lesson.drawn(), np.log(lesson.scales), model_hash(pipe.model, [])
    for start in range(0, len(pictures), batch_size):
        report("encode", start, len(pictures), f"the teacher draws {start}/{len(pictures)}")
        own = pictures[start : start + batch_size]
        batch = pipe.begin(pipe.prepare(own))
        conditioning = batch.inputs(0)[0]
        scales = np.array([picture.guidance_scale for picture in own], np.float32)
        tree = {
            "positive": conditioning.positive,
            "negative": conditioning.negative,
            "shared": conditioning.shared,
            "noise": batch.first,
            "target": latents_of(pipe, model, own),
            "scale": scales,
            "share": np.stack([np.interp(np.log(scales), knots, one) for one in np.eye(len(knots))], -1).astype(
                np.float32
            ),
        }
        if start == 0:
            _say_how_far(tree["target"], latents_of(pipe, model, [_with_half(picture) for picture in own]), lesson)
        leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
        examples += [jax.tree.unflatten(structure, each) for each in zip(*leaves)]
    return examples


def _with_half(picture: Picture) -> Picture:
    return replace(picture, num_inference_steps=int(picture.num_inference_steps or 0) // 2)


def _say_how_far(latents: np.ndarray, of_half: np.ndarray, lesson: Lesson) -> None:
    """Logs the distance of a teacher's latents from those of half as many evaluations: a warning where it is large."""
    apart = float(np.median(np.sqrt(np.mean((latents - of_half) ** 2, (1, 2, 3)))))
    said = f"the teacher's latents are {apart:.2g} from those of {lesson.evaluations // 2} evaluations"
    if apart > CONVERGED:
        log.warning("%s: it has not converged, and a plan gets no nearer to the truth: give --teacher more", said)
    else:
        log.info("%s", said)


def latents_of(pipe: Pipeline, model: str, pictures: Sequence[Picture]) -> np.ndarray:
    """The latents of pictures, [pictures, h, w, channels], drawn once and then found in the cache. model: its hash."""

    def draw() -> bytes:
        file = io.BytesIO()
        np.save(file, np.asarray(pipe.draw(list(pictures), output_type="latent").images, np.float32))
        return file.getvalue()

    return np.load(io.BytesIO(cached("teachers", (model, list(pictures)), draw)))
