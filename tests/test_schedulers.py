"""Plans and the loop that runs them, without PyTorch."""

import dataclasses
import inspect
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
from sdjax.schedulers.loop import advance, clipped, init_state, noise_source, of_timesteps, result
from sdjax.schedulers.noise import BETA_SCHEDULES, NoiseSchedule
from sdjax.schedulers.sigma_spacings import karras_levels
from sdjax.schedulers.spacings import TIMESTEP_SPACINGS, Grid, distilled_timesteps

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
    registers = np.zeros((plan.rows.weights.shape[-2], *x.shape))
    registers[0] = x
    for k in range(int(plan.nfe)):
        a, b = plan.rows.estimate[k]
        denoised = a * registers[0] + b * model(registers[0], plan.timesteps[k])
        inputs = np.concatenate([registers, denoised[None], denoised[None], noise[k][None]])
        registers = np.tensordot(plan.rows.weights[k], inputs, 1)
    return registers[0] * plan.result_scale


def relative_error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


# Spacings that end there.
ABOVE_ZERO = ("kl_optimal", "consistency", "compvis_ddim", "compvis_dpm_solver", "a1111_ddim", "a1111_unipc")
STABLE_DIFFUSION = BETA_SCHEDULES["scaled_linear"](0.00085, 0.012, 1000)


def karras_grid(steps, prediction_type="epsilon", final=0.0):
    noise = NoiseSchedule.from_betas(STABLE_DIFFUSION, prediction_type)
    sigmas = karras_levels(noise.sigmas[0], noise.sigmas[-1], steps)
    return Grid(noise, sigmas, noise.timestep(sigmas), np.append(sigmas[1:], final), steps)


def plan_on(grid, solver, **options):
    rows = list(SOLVERS[solver].rows(grid, **options))
    return Plan.from_rows(rows, grid, 1.0, np.sqrt(1 + rows[-1].target ** 2))


# SA-Solver's noise at every timestep.
EVERYWHERE = {"tau_start": 0, "tau_end": 999}


@pytest.mark.few(800)
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
        ("dpmpp_3m", {}),
        ("dpmpp_3m", {"lower_order_final": False, "solver_type": "heun", "euler_at_final": True}),
        ("dpmpp_2m_sde", {}),
        ("dpmpp_2m_sde", {"solver_type": "heun", "eta": 0.4, "s_noise": 0.9}),
        ("dpmpp_3m_sde", {}),
        ("dpmpp_3m_sde", {"eta": 0.0}),
        ("dpmsolver_2m", {"solver_type": "heun"}),
        ("dpmsolver_3m", {}),
        ("dpmsolver_2m_sde", {"lower_order_final": False}),
        ("dpmpp_2s", {}),
        ("dpmpp_2s", {"solver_type": "heun", "lower_order_final": False}),
        ("dpmpp_3s", {}),
        ("dpmpp_3s", {"solver_type": "heun", "lower_order_final": False}),
        ("dpmsolver_2s", {}),
        ("dpmsolver_3s", {"solver_type": "heun"}),
        *(("deis", {"solver_order": order}) for order in (1, 2, 3)),
        *(
            ("unipc", {"solver_order": order, "solver_type": kind, "predict_x0": data})
            for order, kind, data in itertools.product((1, 2, 3), ("bh1", "bh2"), (True, False))
        ),
        ("unipc", {"solver_order": 3, "lower_order_final": False, "disable_corrector": [0, 2, 3]}),
        *(
            ("sa_solver", {"predictor_order": p, "corrector_order": c, "algorithm_type": kind, **EVERYWHERE})
            for (p, c), kind in itertools.product(
                ((1, 1), (2, 1), (2, 2), (3, 3), (1, 4)), ("data_prediction", "noise_prediction")
            )
        ),
        ("sa_solver", {"predictor_order": 4, "corrector_order": 4, **EVERYWHERE}),
        ("sa_solver", {"tau": 0.4, "lower_order_final": False, **EVERYWHERE}),
        ("dpm2", {}),
        ("dpm2_ancestral", {}),
        ("dpm2_ancestral", {"eta": 0.4}),
        *(("lms", {"order": order}) for order in (1, 2, 3, 4)),
        *(("ipndm", {"max_order": order}) for order in (1, 2, 3, 4)),
        ("dpm_fast", {}),
        ("dpm_fast", {"eta": 0.6}),
        ("dpmpp_2s_ancestral", {}),
        ("dpmpp_2s_ancestral", {"eta": 0.4}),
        ("dpmpp_sde", {}),
        ("dpmpp_sde", {"eta": 0.4}),
        ("restart", {}),
        ("restart", {"restart_list": {0.3: (4, 2, 3.0), 2.0: (3, 1, 6.0)}}),
        ("res_multistep", {}),
        ("res_multistep", {"eta": 1.0}),
        ("er_sde", {}),
        ("er_sde", {"max_stage": 2, "s_noise": 0.7}),
        ("er_sde", {"max_stage": 1}),
        ("ddpm", {}),
        ("ddpm", {"variance_type": "fixed_large"}),
        ("lcm", {}),
        ("lcm", {"timestep_scaling": 0.01}),
        *(("tcd", {"eta": eta}) for eta in (0.0, 0.3, 1.0)),
    ],
)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_each_solver_is_its_papers_loop(solver, options, steps, final, prediction_type):
    if solver == "pndm":  # for other networks than the paper's, diffusers combines what they predict: see tests/parity
        prediction_type = "epsilon"
    grid = karras_grid(steps, prediction_type, final)
    if solver in ("lcm", "tcd"):
        timesteps = distilled_timesteps(1000, steps, 50)
        grid = dataclasses.replace(grid, timesteps=timesteps, sigmas=grid.noise.sigma(timesteps))

    def denoise(x, sigma):
        scale = np.sqrt(1 + sigma**2)
        output = network(x / scale, grid.noise.timestep(sigma))
        return {"epsilon": x - sigma * output, "v_prediction": (x / scale - sigma * output) / scale}.get(
            prediction_type, output
        )

    takes = inspect.signature(PLAIN[solver]).parameters
    known = {"timestep": grid.timestep, "sigma": grid.noise.sigma, **options}
    keywords = {name: value for name, value in known.items() if name in takes}
    x = START * np.sqrt(1 + grid.sigmas[0] ** 2)
    expected = PLAIN[solver](denoise, x, np.append(grid.sigmas, final), lambda k: NOISE[k], **keywords)
    assert relative_error(run_in_float64(plan_on(grid, solver, **options), START), expected) <= 1e-12


@pytest.mark.parametrize("steps", [4, 5, 20])
def test_pndm_with_its_runge_kutta_steps_is_its_papers_loop(steps):
    grid = karras_grid(steps)

    def denoise(x, sigma):
        return x - sigma * network(x / np.sqrt(1 + sigma**2), grid.noise.timestep(sigma))

    def middle(s, t):
        return grid.noise.sigma((grid.noise.timestep(s) + grid.noise.timestep(t)) / 2)

    levels = np.append(grid.sigmas, 0.0)
    expected = PLAIN["pndm_runge_kutta"](denoise, START * np.sqrt(1 + levels[0] ** 2), levels, None, middle)
    got = run_in_float64(plan_on(grid, "pndm", skip_prk_steps=False), START)
    assert relative_error(got, expected) <= 1e-12


@pytest.mark.parametrize("steps", [1, 2, 20])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("set_alpha_to_one", [True, False])
def test_ddim_inverse_goes_from_a_picture_to_its_noise(steps, prediction_type, set_alpha_to_one):
    """Song et al. (2021), section 4.3, on the variance-preserving sample; the network is told where each step goes."""
    noise = NoiseSchedule.from_betas(STABLE_DIFFUSION, prediction_type)
    scheduler = schedulers.Scheduler(noise, "ddim_inverse", steps_offset=0, set_alpha_to_one=set_alpha_to_one)
    remaining = 1 / (1 + noise.sigmas**2)
    z, a = START, 1.0 if set_alpha_to_one else remaining[0]
    for t in range(0, steps * (1000 // steps), 1000 // steps):
        output = network(z, t)
        v = prediction_type == "v_prediction"
        x0 = np.sqrt(a) * z - np.sqrt(1 - a) * output if v else (z - np.sqrt(1 - a) * output) / np.sqrt(a)
        epsilon = np.sqrt(a) * output + np.sqrt(1 - a) * z if v else output
        z, a = np.sqrt(remaining[t]) * x0 + np.sqrt(1 - remaining[t]) * epsilon, remaining[t]
    plan = scheduler.plan(steps)
    assert relative_error(run_in_float64(plan, plan.start(START)), z) <= 1e-12


@jax.jit
def compiled(plan, x, step_noise):
    return schedulers.denoise(plan, network, x, step_noise=step_noise)


@pytest.mark.few(500)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_compiled_loop_is_the_plain_loop(solver, spacing):
    # The samplers of distilled models take few steps; with more, LCM multiplies a rounding error at each by up to 14.
    plan = schedulers.create(solver, spacing).plan(4 if solver in ("lcm", "tcd", "consistency") else 20)
    got = compiled(plan.padded(), plan.start(jnp.float32(START)), NOISE)
    assert relative_error(got, run_in_float64(plan, plan.start(START))) <= 1e-5


@given(st.sampled_from(sorted(SOLVERS)), st.sampled_from(SPACINGS), st.integers(1, 999), st.floats(0.01, 1))
def test_every_plan_is_finite_and_falls(solver, spacing, steps, strength):
    scheduler = schedulers.create(solver, spacing)
    if solver in ("lcm", "tcd") and steps > 50 and spacing in TIMESTEP_SPACINGS:
        with pytest.raises(InputError, match="original_inference_steps=50"):
            scheduler.plan(steps, strength)
        return
    if spacing == "a1111_ddim" and steps == 1:
        with pytest.raises(InputError, match="of 1 step none"):
            scheduler.plan(steps, strength)
        return
    # Five spacings have more or fewer levels than steps; Euler's method visits each once.
    counted = spacing in ("ddim_uniform", "comfyui_beta", "compvis_ddim", "a1111_ddim", "a1111_unipc")
    levels = int(schedulers.create("euler", spacing).plan(steps).nfe) if counted else steps
    if int(levels * strength) == 0:
        with pytest.raises(InputError, match="strength"):
            scheduler.plan(steps, strength)
        return
    plan = scheduler.plan(steps, strength)
    for table in (*plan.rows, plan.start_scale, plan.result_scale):
        assert np.isfinite(table).all()
    if solver not in (
        "restart",
        "ddim_inverse",
        "dpm_multistep_inverse",
        "heunpp2",
    ):  # which are there to rise, or look ahead
        assert np.all(np.diff(plan.sigmas) <= 1e-12)
    taken = int(levels * strength)
    if solver in (
        "dpm_fast",
        "dpm_adaptive",
    ):  # a step asked for is one evaluation, so that its methods' steps are fewer
        taken = taken // 3 + 1
    if solver == "restart" and taken >= 20 and np.all(np.diff(plan.sigmas) <= 1e-12):
        taken -= taken // 4 * 2 if taken >= 36 else 9  # below 0.1 there is nowhere to go back to; A1111 saves its steps
    assert int(np.sum(plan.rows.is_step)) == taken
    assert 0 <= plan.timesteps.min() <= plan.timesteps.max() <= 999


@pytest.mark.few(300)
@pytest.mark.parametrize(
    ("solver", "spacing"),
    [
        (solver, spacing)
        for solver, spacing in itertools.product(SOLVERS, SPACINGS)
        # As in diffusers, PNDM strides off these two grids where steps do not divide the trained timesteps.
        if not (solver in ("pndm", "plms", "pndm_of_diffusers") and spacing in ("trailing", "linspace"))
        # TCD and DPM-Solver-fast end at the smallest trained level, LCM mixes some of the sample in, and DDIM inverse
        # begins with the picture.
        if solver not in ("dpm_fast", "dpm_adaptive", "lcm", "tcd", "ddim_inverse", "dpm_multistep_inverse")
        if spacing not in ABOVE_ZERO
    ],
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


@pytest.mark.parametrize(
    ("solver", "options", "order"),
    [
        ("euler", {}, 1),
        ("ddim", {}, 1),
        ("heun", {}, 2),
        ("restart", {"restart_list": {}}, 2),
        ("dpm2", {}, 2),
        ("dpm2_ancestral", {"eta": 0.0}, 2),
        ("dpmpp_2s_ancestral", {"eta": 0.0}, 2),
        ("dpmpp_sde", {"eta": 0.0}, 2),
        ("dpm_fast", {}, 3),  # at 3n + 2 evaluations; otherwise its last step, of first order, caps it
        ("lms", {"order": 1}, 1),
        ("lms", {"order": 2}, 2),
        ("lms", {"order": 3}, 2.9),  # its first two steps are of lower order, and short enough to show but little
        # Adams-Bashforth's weights for steps of equal size are of second order on other grids, whatever their number.
        ("pndm", {}, 2),
        ("pndm", {"skip_prk_steps": False}, 2),
        ("ipndm", {}, 2),
        ("res_multistep", {}, 2),
    ],
)
def test_order_of_convergence(solver, options, order):
    """On x0 ~ N(mean, std²) the probability-flow ODE has the solution `exact`; halving steps shows the order."""
    mean, std, end = 0.4, 0.7, 0.3

    def error(steps):
        grid = karras_grid(steps)
        levels = karras_levels(end, grid.sigmas[0], steps + 1)
        grid = Grid(grid.noise, levels[:-1], grid.noise.timestep(levels[:-1]), levels[1:], steps)
        plan = plan_on(grid, solver, **options)
        asked = iter(plan.sigmas)

        def gaussian(x, t):
            sigma = next(asked)
            x = x * np.sqrt(1 + sigma**2)
            return sigma * (x - mean) / (std**2 + sigma**2)

        x = START * np.sqrt(1 + levels[0] ** 2)
        exact = mean + (x - mean) * np.sqrt((std**2 + end**2) / (std**2 + levels[0] ** 2))
        return np.median(np.abs(run_in_float64(plan, START, gaussian, np.zeros((1000, *SHAPE))) - exact))

    steps = np.array([65, 128, 257])
    slope = -np.polyfit(np.log(steps), np.log([error(n) for n in steps]), 1)[0]
    assert abs(slope - order) <= 0.15


@pytest.mark.parametrize(
    "solver",
    [
        "euler_ancestral",
        "dpm2_ancestral",
        "dpmpp_2s_ancestral",
        "dpmpp_sde",
        "res_multistep_ancestral",
        "er_sde",
        "restart",
        "ddpm",
    ],
)
def test_noise_has_the_right_variance(solver):
    """On x0 ~ N(0, 1) a stochastic sampler, like the SDE that it follows, ends in samples of variance 1."""
    plan = schedulers.create(solver, "karras").plan(100)
    asked = iter(plan.sigmas)

    def gaussian(x, t):
        sigma = next(asked)
        return sigma * x / np.sqrt(1 + sigma**2)

    many = np.random.default_rng(1).standard_normal((201, 4000))
    assert np.var(run_in_float64(plan, many[200], gaussian, many)) == pytest.approx(1, abs=0.1)


def test_one_compilation_for_every_setting():
    compiled = []

    @jax.jit
    def draw(plan, x, key):
        compiled.append(1)
        return schedulers.denoise(plan, network, x, key)

    for seed, (solver, spacing) in enumerate(itertools.product(SOLVERS, SPACINGS)):
        fewest = 2 if spacing == "a1111_ddim" else 1
        steps, strength = ((fewest, 1.0), (20, 0.6), (40, 1.0))[seed % 3]
        plan = schedulers.create(solver, spacing).plan(steps, strength).padded()
        assert np.isfinite(draw(plan, jnp.float32(START), jax.random.key(seed))).all()
    assert len(compiled) == 1


@pytest.mark.parametrize("shape", [(2,), (2, 36), (2, 12, 3), (2, 1, 3, 3, 4)])
def test_samples_may_have_any_axes(shape):
    plan = schedulers.create("euler_ancestral").plan(5)

    def of_any(x, t):
        return jnp.cos(1.3 * x + 0.002 * t.reshape(-1, *[1] * (x.ndim - 1))) + 0.2 * x

    count = int(np.prod(shape))
    x, noise = START.reshape(-1)[:count].reshape(shape), NOISE.reshape(len(NOISE), -1)[:, :count]
    got = schedulers.denoise(plan, of_any, jnp.float32(x), step_noise=noise.reshape(-1, *shape))
    columns = (2, count // 2, 1, 1)
    expected = schedulers.denoise(plan, of_any, jnp.float32(x).reshape(columns), step_noise=noise.reshape(-1, *columns))
    np.testing.assert_allclose(got, expected.reshape(shape), rtol=1e-5, atol=1e-6)


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
        state = advance(plan, state, of_timesteps(network), noise_source(SHAPE, None), stop)
    assert np.array_equal(result(plan, state), whole)


@pytest.mark.parametrize("settings", [{"clip_range": 0.8}, {"threshold": (0.9, 1.5)}])
def test_estimates_are_clipped_in_the_compiled_loop(settings):
    plan = dataclasses.replace(schedulers.create("heun", "karras"), **settings).plan(8)
    seen = []

    def clipping(x, t, sigma):
        """The prediction whose estimate is the clipped one of `network`'s."""
        scale = np.sqrt(1 + sigma**2)
        denoised = scale * x - sigma * network(x, t)
        if "clip_range" in settings:
            clipped = np.clip(denoised, -0.8, 0.8)
        else:
            limit = np.quantile(np.abs(denoised), 0.9, axis=(1, 2, 3), keepdims=True).clip(1, 1.5)
            clipped = np.clip(denoised, -limit, limit) / limit
        seen.append(np.abs(denoised - clipped).max())
        return (scale * x - clipped) / sigma

    asked = iter(plan.sigmas)
    expected = run_in_float64(plan, plan.start(START), lambda x, t: clipping(x, t, next(asked)))
    assert max(seen) > 0.1
    assert relative_error(compiled(plan.padded(), plan.start(jnp.float32(START)), NOISE), expected) <= 1e-5


def test_derivatives_pass_through_the_loop():
    plan = schedulers.create("dpmpp_2m").plan(6)

    def loss(estimate):
        learned = plan._replace(rows=plan.rows._replace(estimate=estimate))
        return jnp.sum(schedulers.denoise(learned, network, jnp.float32(START)))

    gradient = jax.grad(loss)(jnp.float32(plan.rows.estimate))
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
    np.testing.assert_allclose(tail.start(START, latents), (latents + sigma * START) / np.sqrt(1 + sigma**2), atol=1e-6)


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
        (lambda: schedulers.create("pndm", skip_prk_steps=False).plan(3), "skip_prk_steps=False needs at least 4"),
        (lambda: schedulers.create("lms", order=5).plan(3), "order=5 is not possible"),
        (lambda: schedulers.create("ipndm", max_order=0).plan(3), "max_order=0 is not possible"),
        (lambda: schedulers.create("er_sde", max_stage=4).plan(3), "max_stage=4 is not possible"),
        (lambda: schedulers.create("ddpm", variance_type="learned").plan(3), "variance_type='learned' is not possible"),
        (lambda: schedulers.create("tcd", eta=1.5).plan(3), "eta=1.5 is not possible"),
        (lambda: schedulers.create("lcm").plan(51), "original_inference_steps=50 cannot take 51 steps"),
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
        ({"_class_name": "IPNDMScheduler"}, "the solver itself is sampler 'ipndm'"),
        ({}, "class 'None'"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "timestep_type='continuous'"),
        (
            {"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True, "use_karras_sigmas": True},
            "only one of use_karras_sigmas and use_beta_sigmas",
        ),
        ({"_class_name": "DDIMScheduler", "steps_ofset": 1}, "'steps_ofset' is not known, did you mean 'steps_offset'"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "log"}, "timestep_spacing='log'"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "flow"}, "prediction_type 'flow'"),
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.5, 1.5]}, "betas"),
    ],
)
def test_configs_that_ask_for_more_are_refused_by_name(config, message):
    with pytest.raises(ConfigError, match=message):
        schedulers.from_config(config)


def test_a_threshold_below_1_is_the_largest_value():
    """The quantile is raised to 1 at least, and then cut to sample_max_value, as diffusers' clamp does both."""
    sample = np.linspace(-2, 2, 9).reshape(1, 3, 3, 1).astype(np.float32)
    got = clipped(sample, np.array([np.inf]), np.array([[0.995, 0.5]]))
    np.testing.assert_allclose(got, np.clip(sample, -0.5, 0.5) / 0.5)
