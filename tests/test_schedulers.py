"""Plans and the loop that runs them, without PyTorch."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_samplers import PLAIN

from sdjax import schedulers
from sdjax.errors import ConfigError, InputError
from sdjax.schedulers import SOLVERS, SPACINGS, Plan
from sdjax.schedulers.loop import advance, init_state, noise_source, result
from sdjax.schedulers.noise import BETA_SCHEDULES, NoiseSchedule
from sdjax.schedulers.spacings import Grid, karras

SHAPE = (2, 3, 3, 4)
rng = np.random.default_rng(0)
START = rng.standard_normal(SHAPE)
NOISE = rng.standard_normal((128, *SHAPE))


def network(x, t):
    """A stand-in for a network's prediction: bounded, not linear, different at every timestep. For numpy and JAX."""
    if isinstance(x, np.ndarray):
        return np.cos(1.3 * x + 0.002 * t) + 0.2 * x
    return jnp.cos(1.3 * x + 0.002 * jnp.reshape(t, (-1, 1, 1, 1))) + 0.2 * x


def run_in_float64(plan, x, model=network, noise=NOISE):
    """The plan by a plain loop over its rows, on the host."""
    registers = np.zeros((plan.weights.shape[-2], *x.shape))
    registers[0] = x
    for k in range(int(plan.nfe)):
        a, b = plan.estimate[k]
        denoised = a * registers[0] + b * model(registers[0], plan.timesteps[k])
        inputs = np.concatenate([registers, denoised[None], denoised[None], noise[k][None]])
        registers = np.tensordot(plan.weights[k], inputs, 1)
    return registers[0] * plan.result_scale


def relative_error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


STABLE_DIFFUSION = BETA_SCHEDULES["scaled_linear"](0.00085, 0.012, 1000)


def karras_grid(steps, prediction_type="epsilon", final=0.0):
    noise = NoiseSchedule.from_betas(STABLE_DIFFUSION, prediction_type)
    sigmas = karras(noise.sigmas[0], noise.sigmas[-1], steps)
    return Grid(noise, sigmas, noise.timestep(sigmas), np.append(sigmas[1:], final), steps)


def plan_on(grid, solver, **options):
    return Plan.from_rows(list(SOLVERS[solver].rows(grid, **options)), grid, 1.0, np.sqrt(1 + grid.targets[-1] ** 2))


@pytest.mark.parametrize("final", [0.0, 0.02])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20, 50])
@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("ddim", {}),
        ("ddim", {"eta": 0.5}),
        ("ddim", {"eta": 1.0}),
        ("euler", {}),
        ("euler_ancestral", {}),
        ("euler_ancestral", {"eta": 0.3}),
        ("heun", {}),
        ("pndm", {}),
        ("dpmpp_2m", {"lower_order_final": False}),
    ],
)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_each_solver_is_its_papers_loop(solver, options, steps, final, prediction_type):
    if solver == "pndm":  # for other networks than the paper's, diffusers combines what they predict: see tests/parity
        prediction_type = "epsilon"
    grid = karras_grid(steps, prediction_type, final)

    def denoise(x, sigma):
        scale = np.sqrt(1 + sigma**2)
        output = network(x / scale, grid.noise.timestep(sigma))
        return {"epsilon": x - sigma * output, "v_prediction": (x / scale - sigma * output) / scale}.get(
            prediction_type, output
        )

    keywords = {"eta": options["eta"]} if "eta" in options else {}
    x = START * np.sqrt(1 + grid.sigmas[0] ** 2)
    expected = PLAIN[solver](denoise, x, np.append(grid.sigmas, final), lambda k: NOISE[k], **keywords)
    assert relative_error(run_in_float64(plan_on(grid, solver, **options), START), expected) <= 1e-12


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_compiled_loop_is_the_plain_loop(solver, spacing):
    plan = schedulers.create(solver, spacing).plan(20)
    got = schedulers.denoise(plan, network, plan.start(jnp.float32(START)), step_noise=NOISE)
    assert relative_error(got, run_in_float64(plan, plan.start(START))) <= 1e-5


@given(st.sampled_from(sorted(SOLVERS)), st.sampled_from(SPACINGS), st.integers(1, 999), st.floats(0.01, 1))
def test_every_plan_is_finite_and_falls(solver, spacing, steps, strength):
    scheduler = schedulers.create(solver, spacing)
    if int(steps * strength) == 0:
        with pytest.raises(InputError, match="strength"):
            scheduler.plan(steps, strength)
        return
    plan = scheduler.plan(steps, strength)
    for leaf in jax.tree.leaves(plan):
        assert np.isfinite(leaf).all()
    assert np.all(np.diff(plan.sigmas) <= 0)
    assert int(np.sum(plan.is_step)) == int(steps * strength)
    assert 0 <= plan.timesteps.min() <= plan.timesteps.max() <= 999


@pytest.mark.parametrize(
    ("solver", "spacing"),
    # As in diffusers, PNDM strides off these two grids where steps do not divide the trained timesteps.
    [pair for pair in itertools.product(SOLVERS, SPACINGS) if pair not in (("pndm", "trailing"), ("pndm", "linspace"))],
)
def test_a_network_that_knows_the_picture_gets_it_back(solver, spacing):
    """Whatever the weights: when every estimate of x0 is the same picture, that is what a plan ends in."""
    picture = rng.standard_normal(SHAPE)
    scheduler = dataclasses.replace(schedulers.create(solver, spacing), set_alpha_to_one=True)
    plan = scheduler.plan(12)
    asked = iter(plan.sigmas)

    def knows(x, t):
        sigma = next(asked)
        return (x * np.sqrt(1 + sigma**2) - picture) / sigma

    got = run_in_float64(plan, plan.start(START), knows, 0 * NOISE)
    np.testing.assert_allclose(got, picture, atol=1e-9)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "euler_ancestral"])
def test_order_of_convergence(solver):
    """On x0 ~ N(mean, std²) the probability-flow ODE has the solution that `exact` says; halving steps shows the order.

    PNDM's first step is of second order, which caps it: its paper starts with Runge-Kutta steps instead.
    """
    mean, std, end = 0.4, 0.7, 0.3
    order = min(SOLVERS[solver].order, 2)

    def error(steps):
        grid = karras_grid(steps)
        levels = karras(end, grid.sigmas[0], steps + 1)
        grid = Grid(grid.noise, levels[:-1], grid.noise.timestep(levels[:-1]), levels[1:], steps)
        plan = plan_on(grid, solver, **({"lower_order_final": False} if solver == "dpmpp_2m" else {}))
        asked = iter(plan.sigmas)

        def gaussian(x, t):
            sigma = next(asked)
            x = x * np.sqrt(1 + sigma**2)
            return sigma * (x - mean) / (std**2 + sigma**2)

        x = START * np.sqrt(1 + levels[0] ** 2)
        exact = mean + (x - mean) * np.sqrt((std**2 + end**2) / (std**2 + levels[0] ** 2))
        return np.median(np.abs(run_in_float64(plan, START, gaussian, np.zeros((1000, *SHAPE))) - exact))

    steps = np.array([64, 128, 256])
    slope = -np.polyfit(np.log(steps), np.log([error(n) for n in steps]), 1)[0]
    assert abs(slope - order) <= 0.15


def test_ancestral_noise_has_the_right_variance():
    """On x0 ~ N(0, 1) the ancestral sampler, like the SDE that it follows, ends in samples of variance 1."""
    plan = schedulers.create("euler_ancestral", "karras").plan(100)
    asked = iter(plan.sigmas)

    def gaussian(x, t):
        sigma = next(asked)
        return sigma * x / np.sqrt(1 + sigma**2)

    many = np.random.default_rng(1).standard_normal((101, 4000))
    assert np.var(run_in_float64(plan, many[100], gaussian, many)) == pytest.approx(1, abs=0.1)


def test_one_compilation_for_every_setting():
    compiled = []

    @jax.jit
    def draw(plan, x, key):
        compiled.append(1)
        return schedulers.denoise(plan, network, x, key)

    for seed, solver in enumerate(SOLVERS):
        for spacing in SPACINGS:
            for steps, strength in ((1, 1.0), (20, 0.6), (50, 1.0)):
                plan = schedulers.create(solver, spacing).plan(steps, strength).padded()
                assert np.isfinite(draw(plan, jnp.float32(START), jax.random.key(seed))).all()
    assert len(compiled) == 1


def test_step_noise_depends_on_the_picture_alone():
    plan = schedulers.create("euler_ancestral").plan(5)
    keys = jax.random.split(jax.random.key(1), 2)
    both = schedulers.denoise(plan, network, jnp.float32(START), keys)
    alone = schedulers.denoise(plan, network, jnp.float32(START[1:]), keys[1:])
    np.testing.assert_allclose(both[1:], alone, rtol=1e-5, atol=1e-6)
    assert relative_error(both[0], both[1]) > 0.1
    noise = [np.stack([jax.random.normal(jax.random.fold_in(key, k), SHAPE[1:]) for key in keys]) for k in range(5)]
    given_noise = schedulers.denoise(plan, network, jnp.float32(START), step_noise=np.stack(noise))
    np.testing.assert_allclose(both, given_noise, rtol=1e-5, atol=1e-6)


def test_a_batch_may_hold_different_plans():
    plans = [schedulers.create("heun", "karras").plan(7), schedulers.create("pndm").plan(30)]
    x = jnp.stack([plan.start(jnp.float32(START[i])) for i, plan in enumerate(plans)])
    got = schedulers.denoise(schedulers.stack(plans), network, x)
    for i, plan in enumerate(plans):
        alone = schedulers.denoise(plan, network, x[i : i + 1])
        np.testing.assert_allclose(got[i : i + 1], alone, rtol=1e-5, atol=1e-6)


@given(st.lists(st.integers(0, 60), max_size=4))
@settings(max_examples=10, deadline=None)
def test_a_run_can_be_cut_anywhere(stops):
    plan = schedulers.create("dpmpp_2m").plan(20).padded()
    x = plan.start(jnp.float32(START))
    whole = schedulers.denoise(plan, network, x)
    state = init_state(plan, x)
    for stop in [*sorted(stops), 128]:
        state = advance(plan, state, network, noise_source(SHAPE, None), stop)
    assert np.array_equal(result(plan, state), whole)


def test_derivatives_pass_through_the_loop():
    plan = schedulers.create("dpmpp_2m").plan(6)

    def loss(estimate):
        learned = dataclasses.replace(plan, estimate=estimate)
        return jnp.sum(schedulers.denoise(learned, network, jnp.float32(START)))

    gradient = jax.grad(loss)(jnp.float32(plan.estimate))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).min(axis=0).max() > 0


def test_cosine_betas_are_those_of_nichol_and_dhariwal():
    betas = BETA_SCHEDULES["squaredcos_cap_v2"](0, 0, 1000)
    remaining = np.cumprod(1 - betas)
    for t in (1, 250, 500, 900):  # equation 17: f(t) / f(0), f(t) = cos((t / T + s) / (1 + s) * pi / 2)^2, s = 0.008
        f = [np.cos((step / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2 for step in (0, t)]
        assert remaining[t - 1] == pytest.approx(f[1] / f[0], rel=1e-9)


def test_image_to_image_starts_on_the_same_grid():
    scheduler = schedulers.create("dpmpp_2m", "karras")
    whole, tail = scheduler.plan(20), scheduler.plan(20, strength=0.6)
    assert np.array_equal(tail.sigmas, whole.sigmas[8:])
    latents = rng.standard_normal(SHAPE)
    sigma = tail.sigmas[0]
    np.testing.assert_allclose(tail.start(START, latents), (latents + sigma * START) / np.sqrt(1 + sigma**2), rtol=1e-5)


def test_swapping_the_solver_keeps_what_the_checkpoint_says():
    original = schedulers.from_config(
        {
            "_class_name": "DDIMScheduler",
            "beta_schedule": "linear",
            "prediction_type": "v_prediction",
            "steps_offset": 1,
        }
    )
    swapped = original.with_solver("euler", "trailing")
    assert swapped.noise is original.noise
    assert (swapped.spacing, swapped.steps_offset) == ("trailing", 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedulers.create("dpm_2m"), "did you mean dpmpp_2m"),
        (lambda: schedulers.create("euler", "karas"), "did you mean karras"),
        (lambda: schedulers.create("heun", eta=1.0), "'heun' has no option 'eta'"),
        (lambda: schedulers.create("euler").plan(0), "from 1 to 1000"),
        (lambda: schedulers.create("euler").plan(1001), "from 1 to 1000"),
        (lambda: schedulers.create("euler").plan(2.5), "whole number"),
        (lambda: schedulers.create("euler").plan(10, strength=1.5), "strength"),
        (lambda: schedulers.denoise(schedulers.create("euler_ancestral").plan(3), network, START), "pass a key"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
        ({}, "class None"),
        ({"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True}, "use_beta_sigmas=True"),
        ({"_class_name": "DDIMScheduler", "clip_sample": True}, "clip_sample=True"),
        ({"_class_name": "DDIMScheduler", "steps_ofset": 1}, "'steps_ofset' is not known; did you mean 'steps_offset'"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "log"}, "timestep_spacing='log'"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "flow"}, "prediction_type 'flow'"),
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.5, 1.5]}, "betas"),
    ],
)
def test_configs_that_ask_for_more_are_refused_by_name(config, message):
    with pytest.raises(ConfigError, match=message):
        schedulers.from_config(config)
