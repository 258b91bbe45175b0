"""Linear plans: solvers that others have fitted, run by the loop of all samplers."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax import schedulers
from sdjax.errors import InputError
from sdjax.files.gas import linear_table
from sdjax.files.plans import read_plan, use_plan, write_plan
from sdjax.schedulers import NoiseSchedule
from sdjax.schedulers.linear import MOST_ROWS, LinearTable
from sdjax.schedulers.noise import BETA_SCHEDULES
from sdjax.schedulers.tuned import TunedPlan, described
from sdjax.settings import Picture

NOISE = NoiseSchedule.from_betas(BETA_SCHEDULES["scaled_linear"](0.00085, 0.012, 1000), "epsilon")


def learned(rows: int, seed: int, amount: float) -> TunedPlan:
    """What GAS might find: DPM-Solver++ and so much of something else."""
    random = np.random.default_rng(seed)
    left = np.linspace(1, 0, rows + 1)[1:-1][::-1]  # even times, as shares of what is left
    shares = left[::-1] / np.append(1.0, left[::-1])[:-1]
    logits = np.log(shares / (1 - shares)) + amount * random.standard_normal(rows - 1)
    added = amount * random.standard_normal((2, rows, rows)) / 10
    table = linear_table(logits, amount * random.standard_normal(rows) / 100, *added, NOISE)
    return TunedPlan(np.array([7.5]), LinearTable(*(leaf[None] for leaf in table)), described(NOISE), {})


def drawn(plan: schedulers.Plan, x: np.ndarray) -> np.ndarray:
    """By the compiled loop, of a network that predicts `predicted`."""
    start = jnp.asarray(plan.start(x.astype(np.float32)))
    return np.asarray(schedulers.denoise(plan, lambda x, t: predicted(x, t[:, None, None, None], jnp), start))


def predicted(x, timestep, lib):
    return lib.tanh(x) + 0.2 * lib.cos(2 * x) * timestep / 1000


@given(st.integers(2, MOST_ROWS), st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_the_compiled_loop_and_a_plain_one_agree(tmp_path_factory, rows, seed):
    """Although the loop's registers are fewer than the samples and estimates that a row reads."""
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    write_plan(learned(rows, seed, 0.3), path)
    plan = read_plan(path)
    table = plan.at(7.5)
    first = np.random.default_rng(seed).standard_normal((2, 4, 4, 1))
    samples, estimates = [first * np.sqrt(1 + table.levels[0] ** 2)], []
    for k, level in enumerate(table.levels):
        x = samples[-1]
        estimates.append(x - level * predicted(x / np.sqrt(1 + level**2), table.timesteps[k], np))
        weighed = zip([*table.samples[k, : k + 1], *table.estimates[k, : k + 1]], [*samples, *estimates])
        samples.append(sum(weight * each for weight, each in weighed))
    scheduler = schedulers.Scheduler(NOISE, "ddim").with_table(plan, 7.5)
    found = drawn(scheduler.plan(sigmas=[*table.levels, 0.0]), first)
    np.testing.assert_allclose(found, samples[-1], atol=2e-5 * np.abs(samples[-1]).max())


@pytest.mark.parametrize("rows", [3, 5, 9])
def test_nothing_learned_is_dpm_solver(rows):
    """Of third order, but for the last rows, where diffusers' falls to the first."""
    plan = learned(rows, 0, 0.0)
    levels = plan.at(7.5).levels
    theirs = schedulers.Scheduler(NOISE, "ddim").with_solver("dpmpp_3m").plan(sigmas=[*levels, NOISE.sigmas[0]])
    ours = schedulers.Scheduler(NOISE, "ddim").with_table(plan, 7.5).plan(sigmas=[*levels, 0.0])
    np.testing.assert_allclose(levels[0], NOISE.sigmas[-1])
    first = np.random.default_rng(0).standard_normal((2, 4, 4, 1))

    def after(plan: schedulers.Plan) -> np.ndarray:
        head = plan.head(rows - 2, 1.0)._replace(rows=plan.rows._replace(timesteps=0 * plan.timesteps))
        return drawn(head._replace(rows=schedulers.plan.Rows(*(leaf[: rows - 2] for leaf in head.rows))), first)

    np.testing.assert_allclose(after(ours), after(theirs), atol=1e-5)


def test_it_is_a_sampler_beside_others(pipe, tmp_path):
    noise = pipe.facts.scheduler.noise
    table = learned(5, 1, 0.0).tables
    write_plan(TunedPlan(np.array([7.5]), table, described(noise), {}), tmp_path / "published.json")
    name = use_plan(tmp_path / "published.json")
    both = pipe.draw([Picture("a star", sampler=name, seed=1), Picture("a star", sampler="ddim", seed=1)])
    alone = pipe.draw([Picture("a star", sampler=name, seed=1)])
    assert both.settings[0]["steps"] == 5
    np.testing.assert_allclose(np.asarray(both.images[0], int), np.asarray(alone.images[0], int), atol=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table._replace(samples=table.samples[:, :, :3]), "other shapes"),
        (lambda table: table._replace(levels=table.levels[:, ::-1]), "levels do not fall"),
        (lambda table: table._replace(estimates=np.nan * table.estimates), "not all finite"),
        (lambda table: LinearTable(*(np.zeros((1, 10, 10)[: leaf.ndim]) for leaf in table)), "from 2 to 9"),
    ],
)
def test_damaged_files_are_named(tmp_path, change, message):
    plan = learned(4, 0, 0.1)
    write_plan(TunedPlan(plan.scales, change(plan.tables), plan.noise, {}), tmp_path / "plan.json")
    with pytest.raises(InputError, match=message):
        read_plan(tmp_path / "plan.json")


def test_it_takes_no_strength():
    plan = learned(4, 0, 0.1)
    scheduler = schedulers.Scheduler(NOISE, "ddim").with_table(plan, 7.5)
    with pytest.raises(InputError, match="takes no strength"):
        scheduler.plan(sigmas=[*scheduler.table.levels, 0.0], strength=0.5)
