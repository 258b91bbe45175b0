"""Fitting a plan to a model: levels, timesteps and weights by gradient, through the loop that draws.

A plan is numbers, and the loop is differentiable in them: bespoke solvers (Shaul et al., 2024, arXiv:2403.01329) and
S4S (Frankel et al., 2025, arXiv:2502.17423), for the tables of `schedulers.tuned`. The teacher draws the same pictures
from the same noise with many evaluations; what is fitted is the distance of the latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdjax import schedulers
from sdjax.denoisers import unet_denoiser
from sdjax.files.plans import write_plan
from sdjax.guidance import cfg
from sdjax.halves import Conditioning, denoiser
from sdjax.pipeline import Pipeline
from sdjax.schedulers import NoiseSchedule, Plan
from sdjax.schedulers.loop import RowModel
from sdjax.schedulers.plan import Rows
from sdjax.schedulers.solvers.rows import D1, D2, D3, INPUTS, REGISTERS, SAVED, D, X
from sdjax.schedulers.tuned import ORDER, TunedPlan, described
from sdjax.training.fit import Run, Task
from sdjax.training.step import Metrics, TrainState, Tree
from sdjax.training.teacher import Lesson, check_tunable, taught

# Maps a network's parameters, a batch and the number of rows to what the loop asks.
Asked = Callable[[Tree, Tree, int], RowModel]
Numbers = Any  # an array of numpy or, traced, of JAX
TRIED = 12  # examples by which it is seen how to begin
TIMESTEP = 100.0  # timesteps in a parameter's unit; the others count in logarithms and in weights


class First(NamedTuple):
    """What parameters of 0 stand for, DDIM, arXiv:2010.02502: log_levels [rows], timesteps [rows]."""

    log_levels: np.ndarray
    timesteps: np.ndarray


def first_plan(pipe: Pipeline, nfe: int, spacing: str) -> First:
    """On a spacing's levels."""
    plan = pipe.facts.scheduler.with_solver("ddim", spacing).plan(nfe)
    return First(np.log(plan.sigmas), np.array(plan.timesteps))


def multistep_weights(log_levels: np.ndarray) -> np.ndarray:
    """Those of DPM++ 2M, Lu et al. (2022), arXiv:2211.01095: [rows, ORDER]. The last step, to 0, is of first order."""
    weights = np.eye(1, ORDER).repeat(len(log_levels), 0)
    steps = -np.diff(log_levels)
    for k in range(1, len(log_levels) - 1):
        weights[k, :2] += np.array([1, -1]) * steps[k] / steps[k - 1] / 2
    return weights


def tables(first: First, params: Tree, share: Numbers, trained: int) -> tuple[Numbers, Numbers, Numbers]:
    """Parameters as levels, timesteps and weights, at a scale that is `share` [scales] of those of the plan.

    Levels fall because their steps in the logarithm are positive; the weights of a row add up to 1 because that of the
    present estimate is the rest.
    """
    own = jax.tree.map(lambda leaf: jnp.tensordot(share, leaf, 1), params)
    steps = jnp.asarray(-np.diff(first.log_levels)) * jnp.exp(own["steps"])
    log_levels = first.log_levels[0] + own["start"] - jnp.concatenate([jnp.zeros(1), jnp.cumsum(steps)])
    timesteps = jnp.clip(first.timesteps + TIMESTEP * own["timesteps"], 0, trained - 1)
    exists = np.arange(1, ORDER) <= np.arange(len(first.timesteps))[:, None]
    earlier = exists * own["weights"]
    weights = jnp.concatenate([1 - earlier.sum(-1, keepdims=True), earlier], axis=-1)
    return jnp.exp(log_levels), timesteps, weights


def traced_plan(levels: Numbers, timesteps: Numbers, weights: Numbers, noise: NoiseSchedule) -> Plan:
    """`Table.rows` as a `Plan`, in JAX: it can be differentiated. For one picture; see `Plan.from_rows`."""
    targets = jnp.append(levels[1:], 0.0)
    ratio = targets / levels
    scale, next_scale = (jnp.sqrt(1 + sigmas**2) for sigmas in (levels, targets))
    x, saved, others = (int(one.argmax()) for one in (X, SAVED, D1))
    estimates = jnp.asarray(np.stack([D, D1, D2, D3]))
    matrix = jnp.zeros((len(levels), REGISTERS, INPUTS))
    matrix = matrix.at[:, x].set(((1 - ratio) / next_scale)[:, None] * (weights @ estimates))
    matrix = matrix.at[:, x, x].add(ratio * scale / next_scale)
    matrix = matrix.at[:, saved, saved].set(1.0).at[:, others : others + 3].set(jnp.stack([D, D1, D2]))
    matrix = matrix.at[:, REGISTERS - 1, REGISTERS - 1].set(1.0)
    estimate = {
        "epsilon": (scale, -levels),
        "v_prediction": (1 / scale, -levels / scale),
        "sample": (0 * levels, 1 + 0 * levels),
    }[noise.prediction_type]
    one: Any = jnp.float32(1)
    rows: Any = (matrix, jnp.stack(estimate, -1), timesteps, levels, levels > 0, jnp.zeros((len(levels), 2)))
    return Plan(
        rows=Rows(*rows),
        nfe=np.array(len(levels), np.int32),
        clip_range=one * np.inf,
        threshold=np.zeros(2),
        data_std=one,
        start_scale=one,
        latents_sigma=levels[0],
        latents_scale=one,
        result_scale=one,
    )


@dataclass(frozen=True, eq=False)
class Tuning:
    """The loss of a plan: the mean logarithm of the root mean square distance from the teacher's latents.

    The logarithm, because pictures differ by a factor of ten in how far few evaluations lead, and all count.
    """

    model: Asked
    noise: NoiseSchedule
    first: First

    def __call__(self, params: Tree, frozen: Tree, batch: Tree, keys: jax.Array) -> Metrics:
        """batch: "noise", "target" and "share", and what the model reads; see `teacher.taught`."""
        distance = self.distance(params, frozen, batch)
        return {"loss": jnp.log(distance), "rmse": distance}

    def distance(self, params: Tree, frozen: Tree, batch: Tree) -> jax.Array:
        """[batch], in units of the latents."""
        apart = self.latents(params, frozen, batch) - batch["target"]
        return jnp.sqrt(jnp.mean(apart**2, (1, 2, 3)) + 1e-10)

    def latents(self, params: Tree, frozen: Tree, batch: Tree) -> jax.Array:
        """What the plan draws, [batch, h, w, channels]. Backwards, a row is computed again, and only its input kept."""
        trained, rows = len(self.noise), len(self.first.timesteps)

        def plan_at(share: jax.Array) -> Plan:
            plan = traced_plan(*tables(self.first, params, share, trained), self.noise)
            return jax.tree.map(jnp.asarray, plan)

        plan = jax.vmap(plan_at)(batch["share"])
        state = schedulers.init_state(plan, batch["noise"])
        source = schedulers.noise_source(batch["noise"].shape, None)
        return schedulers.result(plan, schedulers.advance(plan, state, self.model(frozen, batch, rows), source, rows))


def guided(unet: nn.Module) -> Asked:
    """A UNet of Stable Diffusion with classifier-free guidance, as it is asked at each row."""

    def asked(frozen: Tree, batch: Tree, rows: int) -> RowModel:
        predict = jax.checkpoint(unet_denoiser(unet, frozen))
        conditioning = Conditioning(batch["positive"], batch["negative"], batch["shared"])
        scales: Any = jnp.repeat(batch["scale"][:, None], rows, 1)
        return denoiser(predict, conditioning, cfg(scales), guided=True)

    return asked


def tuning_task(pipe: Pipeline, lesson: Lesson, nfe: int, spacing: str) -> Task:
    """Fits a plan of `nfe` evaluations that begins with a spacing's levels; the result is a file of `tuned.TunedPlan`.

    Raises InputError for models that do not draw from prompts alone.
    """
    check_tunable(pipe)
    first, noise = first_plan(pipe, nfe, spacing), pipe.facts.scheduler.noise
    return fitting_task(
        Tuning(guided(pipe.networks.modules["unet"]), noise, first),
        jax.device_get(pipe.params["unet"]),
        lesson.scales,
        {"nfe": nfe, "spacing": spacing, **asdict(lesson)},
        lambda run: taught(pipe, lesson, run.settings.batch_size, run.report),
        lesson.pictures,
    )


def fitting_task(
    tuning: Tuning,
    frozen: Tree,
    scales: Sequence[float],
    about: dict[str, Any],
    teach: Callable[[Run], Sequence[Any]],
    count: int,
) -> Task:
    """Fits a plan to the examples, `count` of them, that `teach` gives; see `Task`."""
    examples: list[Any] = []
    said = {name: value for name, value in about.items() if name != "prompts"}

    def write(state: TrainState, path: Path) -> None:
        plan = plan_of(tuning.first, state.ema, scales, tuning.noise, said | {"steps": int(state.step)})
        write_plan(plan, path)

    def open_examples(run: Run) -> Callable[[int], Any]:
        examples.extend(teach(run))
        return examples.__getitem__

    return Task(
        about=about,
        init=lambda seed: beginning(tuning, frozen, examples[:TRIED]),
        frozen=frozen,
        loss=tuning,
        count=count,
        open=open_examples,
        show=lambda state, folder: None,
        result="plan-{step}.json",
        write=write,
    )


def beginning(tuning: Tuning, frozen: Tree, examples: Sequence[Any]) -> Tree:
    """At each scale the parameters of DDIM or of DPM++ 2M, whichever is nearer to the examples next to that scale."""
    nfe, knots = len(tuning.first.timesteps), len(examples[0]["share"])
    shapes = {"start": (), "steps": (nfe - 1,), "timesteps": (nfe,), "weights": (nfe, ORDER - 1)}
    ddim = {name: jnp.zeros((knots, *shape)) for name, shape in shapes.items()}
    dpmpp_2m = multistep_weights(tuning.first.log_levels)[:, 1:]

    @jax.jit
    def gain(example: Tree) -> jax.Array:
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], example)
        begun = [
            tuning.distance(params, frozen, batch) for params in (ddim, ddim | {"weights": ddim["weights"] + dpmpp_2m})
        ]
        return jnp.asarray(example["share"]) * jnp.log(begun[0] / begun[1])

    is_better = jnp.sum(jnp.stack([gain(example) for example in examples]), 0) > 0
    return ddim | {"weights": is_better[:, None, None] * jnp.asarray(dpmpp_2m, jnp.float32)}


def plan_of(
    first: First, params: Tree, scales: Sequence[float], noise: NoiseSchedule, about: dict[str, Any]
) -> TunedPlan:
    """The plan of fitted parameters."""
    found = [tables(first, params, share, len(noise)) for share in np.eye(len(scales), dtype=np.float32)]
    levels, timesteps, weights = (np.stack(leaves).astype(np.float64) for leaves in zip(*found))
    weights[..., 0] += 1 - weights.sum(-1)  # of float32
    return TunedPlan(np.array(scales, np.float64), levels, timesteps, weights, described(noise), about)
