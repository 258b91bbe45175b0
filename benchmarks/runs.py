"""The runs of a study on a trained model: which there are, their latents, and how far these are from converged ones."""

import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from time import perf_counter
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.progress import track

from benchmarks.budgets import affordable
from sdjax import a1111
from sdjax.errors import InputError
from sdjax.files.cache import cached
from sdjax.files.plans import plans_in
from sdjax.pipeline import Pipeline
from sdjax.schedulers import SOLVERS
from sdjax.schedulers.names import parse_sampler
from sdjax.schedulers.tuned import is_tuned
from sdjax.settings import Picture
from sdjax.training.following import root_mean_square

REFERENCE = "dpmpp_2m", "karras"  # of those even in time every method is of first order, and 999 steps are few


class Cheaper(NamedTuple):
    """What evaluations leave out: all but each `cache`-th compute the outermost layer alone (DeepCache); from the share
    `gate` of the steps on there is neither guidance nor cross-attention (T-GATE)."""

    cache: int = 1
    gate: float = 1.0

    def __str__(self) -> str:
        return "".join(f" {name}={value:g}" for name, value in self._asdict().items() if value != 1)


WHOLE = Cheaper()


class Kind(NamedTuple):
    """A sampler, the spacing that is asked for, and what its evaluations leave out."""

    sampler: str
    spacing: str | None
    cheaper: Cheaper = WHOLE

    @classmethod
    def of(cls, name: str) -> "Kind":
        """From a name such as "dpmpp_2m karras cache=3"; "tuned" for the model's own plans. Raises InputError."""
        words = name.split()
        own = dict(word.split("=", 1) for word in words if "=" in word)
        try:
            cheaper = Cheaper(int(own.pop("cache", 1)), float(own.pop("gate", 1)))
        except ValueError:
            own = {"": ""}
        if own or cheaper.cache < 1 or not 0 < cheaper.gate <= 1:
            raise InputError(f"{name!r}: say cache=N for each N-th evaluation whole, gate=S for a share S of the steps")
        plain = " ".join(word for word in words if "=" not in word)
        if is_tuned(plain):
            return cls(plain, None, cheaper)
        named = parse_sampler(plain)
        return cls(named.label or named.solver, named.spacing, cheaper)


@dataclass(frozen=True)
class Run:
    """A sampler's way of making pictures with so many evaluations of the network."""

    sampler: str
    spacing: str
    guidance: float
    budget: int
    steps: int
    nfe: int
    cheaper: Cheaper = WHOLE

    @property
    def name(self) -> str:
        """The sampler's, with what its evaluations leave out."""
        return f"{self.sampler}{self.cheaper}"

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise on the way."""
        return SOLVERS[parse_sampler(self.sampler).solver].stochastic

    def picture(self, prompt: str, seed: int) -> Picture:
        return Picture(
            prompt,
            seed=seed,
            sampler=self.sampler,
            spacing=self.spacing or None,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            cache_interval=self.cheaper.cache,
            gate_step=None if self.cheaper.gate == 1 else max(1, round(self.cheaper.gate * self.steps)),
        )


def planned(
    pipe: Pipeline,
    kinds: Sequence[Kind],
    budgets: Sequence[int],
    scales: Sequence[float],
    read_at: float | None,
) -> list[Run]:
    """The runs that there is a plan for; of samplers that draw noise, only those whose pictures are read."""
    runs = []
    for sampler, spacing, cheaper in kinds:
        if is_tuned(sampler):
            own = {plan.nfe for plan in plans_in(pipe.facts.plans)} & set(budgets)
            runs += [Run(sampler, "", scale, n, n, n, cheaper) for n in sorted(own) for scale in scales]
            continue
        scheduler = pipe.facts.scheduler.with_solver(
            sampler, spacing or (None if sampler in a1111.SAMPLERS else "leading")
        )
        spacing = scheduler.sigma_spacing or scheduler.spacing
        taken = set()
        for budget in budgets:
            found = affordable(scheduler, budget)
            if found is None or found[0] in taken:
                continue
            taken.add(found[0])
            told = [scale for scale in scales if scale == read_at or not SOLVERS[scheduler.solver].stochastic]
            runs += [Run(sampler, spacing, scale, budget, found[0], int(found[1].nfe), cheaper) for scale in told]
    if not runs:
        raise InputError(
            "these samplers draw noise at every step, or none of them has a plan for such budgets: name others"
        )
    return runs


def latents_of(pipe: Pipeline, count: dict[Run, int], texts: Sequence[str], batch: int) -> dict[Run, np.ndarray]:
    """Of each run the latents [pictures, height, width, channels] of its first pictures, seeds 0, 1, ...

    Pictures of many samplers make up a batch: one program draws them all. Those with as many evaluations run together,
    since a batch takes as long as its longest.
    """
    jobs = [(run, i) for run, pictures in count.items() for i in range(pictures)]
    jobs.sort(key=lambda job: (job[0].guidance == 1, job[0].nfe))
    found: dict[tuple[Run, int], np.ndarray] = {}
    for start in track(range(0, len(jobs), batch), "pictures"):
        group = jobs[start : start + batch]
        filled = group + group[-1:] * (batch - len(group))
        drawn = pipe.draw([run.picture(texts[i], i) for run, i in filled], output_type="latent").images
        found |= dict(zip(group, np.asarray(drawn)))
    return {run: np.stack([found[run, i] for i in range(pictures)]) for run, pictures in count.items()}


def seconds_of(pipe: Pipeline, runs: Sequence[Run], texts: Sequence[str], batch: int, turns: int) -> dict[Run, float]:
    """Of each run the seconds for each picture's latents in a batch of it alone: medians over turns of all runs."""
    spent: dict[Run, list[float]] = {run: [] for run in runs}
    for turn in track(range(turns + 1), "measuring"):
        for run in runs:
            pictures = [run.picture(texts[i % len(texts)], i) for i in range(batch)]
            begun = perf_counter()
            pipe.draw(pictures, output_type="latent")
            if turn:  # the first compiles
                spent[run].append((perf_counter() - begun) / batch)
    return {run: float(np.median(own)) for run, own in spent.items()}


def converged(pipe: Pipeline, scales: Sequence[float], steps: int, texts: Sequence[str]) -> dict[float, np.ndarray]:
    """At each scale of guidance the latents of as good as endless runs, for seeds 0, 1, ...: of each text one.

    They cost as much as the rest of a study: other studies of the same model, texts and machine find them in the cache.
    """
    found = {}
    for scale in scales:
        run = Run(*REFERENCE, scale, steps, steps, steps)

        def draw(run: Run = run) -> bytes:
            file = io.BytesIO()
            np.save(file, latents_of(pipe, {run: len(texts)}, texts, len(texts))[run])
            return file.getvalue()

        key = (identity(pipe), jax.default_backend(), astuple(run)[:-1], texts)  # a class of ours would not be cached
        found[scale] = np.load(io.BytesIO(cached("references", key, draw)))
    return found


def identity(pipe: Pipeline) -> tuple:
    """Tells a model's state on disk, and what it is computed in, from another."""
    found = pipe.model.path.resolve().rglob("*")
    files = sorted(path for path in found if path.is_file() and path.parent.name != "plans")
    return (str(pipe.precision), *((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files))


def errors(run: Run, latents: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """The row of a run: what it is, and how far its latents are from the converged ones."""
    names = ("spacing", "stochastic", "guidance", "budget", "steps", "nfe")
    row = {"sampler": run.name, **{name: getattr(run, name) for name in names}}
    if run.stochastic:
        return row
    apart = root_mean_square(latents[: len(reference)] - reference)
    quartiles = np.quantile(apart, [0.25, 0.5, 0.75]).tolist()
    return row | {"rmse": quartiles[1], "quartiles": quartiles}
