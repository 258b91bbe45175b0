"""Fitting a plan to a model: levels, timesteps and weights by natural gradient, through the loop that draws.

A plan is numbers, and the loop is differentiable in them: bespoke solvers (Shaul et al., 2024, arXiv:2403.01329) and
S4S (Frankel et al., 2025, arXiv:2502.17423), for the tables of `schedulers.tuned`. The teacher draws the same pictures
from the same noise with many evaluations; what is fitted is the distance of the latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdjax import schedulers
from sdjax.denoisers import unet_denoiser
from sdjax.errors import InputError
from sdjax.files.plans import write_plan
from sdjax.guidance import cfg
from sdjax.halves import Conditioning, denoiser
from sdjax.models.vae import AutoencoderKL
from sdjax.pipeline import Pipeline
from sdjax.schedulers import NoiseSchedule, Plan, Scheduler
from sdjax.schedulers.loop import PlanRow, RowModel
from sdjax.schedulers.tuned import ORDER, Table
from sdjax.training.fit import Report, Run, Task
from sdjax.training.following import follow
from sdjax.training.natural import NATURAL
from sdjax.training.objectives import NEAR, Apart, Name, OfDecoded, nearer_noise, of_latents
from sdjax.training.plans import First, at_scale, first_of, params_of, plan_of, table_of, traced_plan
from sdjax.training.step import Metrics, TrainState, Tree
from sdjax.training.teacher import Lesson, Taught, check_tunable, taught

# Maps a network's parameters, a batch and the factors of its guidance [batch, rows] to what the loop asks.
Asked = Callable[[Tree, Tree, jax.Array], RowModel]
AT_ONCE = 4  # of which estimates are made


@dataclass(frozen=True, eq=False)
class Tuning:
    """The loss of a plan: the mean logarithm of the distance from the teacher's latents, see `objectives`.

    The logarithm, because pictures differ by a factor of ten in how far few evaluations lead, and all count.
    """

    model: Asked
    noise: NoiseSchedule
    firsts: tuple[First, ...]
    clip_range: float = np.inf  # see `Plan`
    apart: Apart = of_latents
    radius: float = 0.0  # how far the noise may move, to where the distance is less

    @property
    def first(self) -> First:
        """What parameters count from."""
        return self.firsts[0]

    def __call__(self, params: Tree, frozen: Tree, batch: Tree, keys: jax.Array) -> Metrics:
        """batch: "noise", "target" and "knot", and what the model reads; see `teacher.taught`."""

        def distance(noise: jax.Array) -> jax.Array:
            return self.apart(frozen, self.latents(params, frozen, batch | {"noise": noise}), batch["target"])

        noise = batch["noise"]
        found = distance(nearer_noise(distance, noise, self.radius) if self.radius else noise)
        return {"loss": jnp.log(found), "distance": found}

    def latents(self, params: Tree, frozen: Tree, batch: Tree) -> jax.Array:
        """What the plan draws, [batch, h, w, channels]. Backwards, a row is computed again, and only its input kept."""
        trained, rows = len(self.noise), len(self.first.timesteps)

        def plan_at(knot: jax.Array) -> tuple[Plan, jax.Array]:
            table = table_of(self.first, at_scale(params, knot), trained)
            return jax.tree.map(jnp.asarray, (traced_plan(table, self.noise, self.clip_range), table.guidance))

        plan, factors = jax.vmap(plan_at)(batch["knot"])
        state = schedulers.init_state(plan, batch["noise"])
        source = schedulers.noise_source(batch["noise"].shape, None)
        model = self.model(frozen, batch, factors)
        return schedulers.result(plan, schedulers.advance(plan, state, model, source, rows))

    def estimates(
        self, frozen: Tree, batch: Tree, x: jax.Array, level: jax.Array, timestep: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Of x0, as `following.Estimates`, for a batch; of one evaluation, once XLA has merged what is equal."""
        numbers: Any = (jnp.asarray(each)[None] for each in (level, timestep, np.eye(1, ORDER)[0], 1.0))
        plan = jax.tree.map(jnp.asarray, traced_plan(Table(*numbers), self.noise))
        none, rows = jnp.zeros(1, jnp.int32), plan.rows
        row = PlanRow(rows, plan.clip_range[None], plan.threshold[None], none, none == 0)
        row = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(x), *leaf.shape[1:])), row)
        sample = x / jnp.sqrt(1 + level**2)

        def estimate(factor: float) -> jax.Array:
            output, _, _ = self.model(frozen, batch, jnp.full((len(x), 1), factor))(sample, row, jnp.zeros_like(sample))
            denoised = rows.estimate[0, 0] * sample + rows.estimate[0, 1] * output
            return jnp.clip(denoised, -self.clip_range, self.clip_range)

        return estimate(1.0), estimate(0.0)


def guided(unet: nn.Module, both: bool) -> Asked:
    """A UNet of Stable Diffusion with classifier-free guidance, as it is asked at each row.

    both: compute the unconditional half too; without it all scales must be 1.
    """

    def asked(frozen: Tree, batch: Tree, factors: jax.Array) -> RowModel:
        predict = jax.checkpoint(unet_denoiser(unet, frozen["unet"]))
        conditioning = Conditioning(batch["positive"], batch["negative"], batch["shared"])
        scales: Any = 1 + factors * (batch["scale"][:, None] - 1)
        return denoiser(predict, conditioning, cfg(scales), guided=both)

    return asked


def tuning_task(pipe: Pipeline, lesson: Lesson, nfe: int, spacings: Sequence[str], objective: Name) -> Task:
    """Fits a plan of `nfe` evaluations that begins with the levels of one of these spacings: at each scale the best.

    objective: "latents"; or "relaxed", from noise nearby (`objectives.nearer_noise`); or "decoded" (`OfDecoded`). The
    result is a file of `tuned.TunedPlan`. Raises InputError for models that do not draw from prompts alone, or clip
    estimates dynamically.
    """
    check_tunable(pipe)
    scheduler = pipe.facts.scheduler
    firsts = tuple(first_of(scheduler, nfe, spacing) for spacing in spacings)
    modules = pipe.networks.modules
    if objective == "decoded" and not isinstance(modules["vae"], AutoencoderKL):
        raise InputError("the objective decoded is for models with an AutoencoderKL: take latents or relaxed")
    apart = OfDecoded(modules["vae"]) if objective == "decoded" else of_latents
    read = ("unet", "vae") if objective == "decoded" else ("unet",)
    radius = NEAR if objective == "relaxed" else 0.0
    model = guided(modules["unet"], max(lesson.scales) > 1)
    return fitting_task(
        Tuning(model, scheduler.noise, firsts, clip_range_of(scheduler), apart, radius),
        jax.device_get({name: pipe.params[name] for name in read}),
        lesson.scales,
        {"nfe": nfe, "spacings": list(spacings), "objective": objective, **asdict(lesson)},
        lambda run: taught(pipe, lesson, run.settings.batch_size, run.report),
        lesson.pictures,
    )


def clip_range_of(scheduler: Scheduler) -> float:
    """What estimates of x0 are clipped to, see `Plan`. Raises InputError where the quantiles of a picture say it."""
    if scheduler.threshold is not None:
        raise InputError("a plan is tuned for models whose estimates are not clipped dynamically (thresholding)")
    return np.inf if scheduler.clip_range is None else scheduler.clip_range


def fitting_task(
    tuning: Tuning,
    frozen: Tree,
    scales: Sequence[float],
    about: dict[str, Any],
    teach: Callable[[Run], Taught],
    count: int,
) -> Task:
    """Fits a plan to what `teach` gives, `count` examples; see `Task`."""
    begun: list[tuple[Tree, list[str]]] = []
    said = {name: value for name, value in about.items() if name != "prompts"}

    def write(state: TrainState, path: Path) -> None:
        own = {"begun on": begun[-1][1], "steps": int(state.step)}
        plan = plan_of(tuning.first, state.ema, scales, tuning.noise, said | own)
        write_plan(plan, path)

    def open_examples(run: Run) -> Callable[[int], Any]:
        taught = teach(run)
        begun.append(beginning(tuning, frozen, taught, run.report))
        return taught.examples.__getitem__

    return Task(
        about=about,
        init=lambda seed: begun[-1][0],
        frozen=frozen,
        loss=tuning,
        count=count,
        open=open_examples,
        show=lambda state, folder: None,
        result="plan-{step}.json",
        write=write,
        descent=NATURAL,
    )


def beginning(tuning: Tuning, frozen: Tree, taught: Taught, report: Report) -> tuple[Tree, list[str]]:
    """Parameters of plans that follow the teacher, at each scale on those of the levels where they end nearest to it;
    and the names of those levels' spacings [scales].

    Nearest by the median: few pictures on which all levels fail would otherwise choose those that fail less.
    """
    estimates = jax.jit(tuning.estimates)
    frozen = jax.device_put(frozen)

    def followed(first: First, knot: int) -> tuple[Table, np.ndarray]:
        own = [i for i, example in enumerate(taught.examples) if example["knot"] == knot]
        examples = jax.tree.map(lambda *leaves: np.stack(leaves), *(taught.examples[i] for i in own))

        def asked(x: np.ndarray, *row: float) -> tuple[np.ndarray, np.ndarray]:
            found = []
            for start in range(0, len(x), AT_ONCE):  # the last batch is filled up, so that one program does them all
                taken = np.minimum(np.arange(start, start + AT_ONCE), len(x) - 1)
                batch = jax.tree.map(lambda leaf, taken=taken: leaf[taken], examples)
                found.append(estimates(frozen, batch, x[taken].astype(np.float32), *row))
            guided, unguided = (np.concatenate(each)[: len(x)].astype(np.float64) for each in zip(*found))
            return guided, unguided

        return follow(taught.way.of(own), np.exp(first.log_levels), first.timesteps, asked)

    knots = range(1 + max(int(example["knot"]) for example in taught.examples))
    found, names = [], []
    for knot in knots:
        report("encode", knot, len(knots), "following the teacher")
        tried = [(first.spacing, *followed(first, knot)) for first in tuning.firsts]
        name, table, _ = min(tried, key=lambda one: np.median(one[2]))
        found.append(params_of(tuning.first, table))
        names.append(name)
    params = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves), jnp.float32), *found)
    return params, names
