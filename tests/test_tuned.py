"""Tuned plans: what is fitted is what is drawn, files say what is wrong with them, and they are samplers."""

import itertools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax import load, schedulers
from sdjax.cli import main
from sdjax.errors import InputError
from sdjax.files.plans import read_plan, use_plan, write_plan
from sdjax.pipeline.ordering import order_of
from sdjax.schedulers import NoiseSchedule
from sdjax.schedulers.noise import BETA_SCHEDULES
from sdjax.schedulers.tuned import TunedPlan, described
from sdjax.settings import Picture
from sdjax.training.following import Way, follow
from sdjax.training.gits import distances, shortest
from sdjax.training.objectives import OfDecoded, nearer_noise, of_latents
from sdjax.training.plans import First, at_scale, first_of, params_of, plan_of, table_of, traced_plan
from sdjax.training.teacher import Lesson, Taught, taught
from sdjax.training.tuning import Tuning, beginning, guided, tuning_task

BETAS = BETA_SCHEDULES["scaled_linear"](0.00085, 0.012, 1000)
SCALES = (1.0, 3.0, 7.5)


def noise_of(prediction_type="epsilon") -> NoiseSchedule:
    return NoiseSchedule.from_betas(BETAS, prediction_type)


def fitted(seed=0, rows=5, prediction_type="epsilon") -> tuple[First, dict, TunedPlan]:
    """Parameters as a run might find them, and their plan."""
    random = np.random.default_rng(seed)
    levels = np.geomspace(14.6, 0.05, rows)
    first = First("geometric", np.log(levels), noise_of().timestep(levels))
    shapes = {"start": (3,), "steps": (3, rows - 1), "timesteps": (3, rows), "weights": (3, rows, 3)}
    shapes["guidance"] = (3, rows)
    params = {name: jnp.asarray(random.normal(0, 0.1, shape), jnp.float32) for name, shape in shapes.items()}
    return first, params, plan_of(first, params, SCALES, noise_of(prediction_type), {"made": "by a test"})


def of_ddim(rows) -> dict:
    """Parameters of one scale from which DDIM's plan follows."""
    shapes = {"start": (1,), "steps": (1, rows - 1), "timesteps": (1, rows), "weights": (1, rows, 3)}
    return {name: jnp.zeros(shape) for name, shape in (shapes | {"guidance": (1, rows)}).items()}


def estimate_of(x, sigma):
    """The estimate of x0 of data with two points, -1 and 1: Karras et al. (2022), appendix B.3."""
    return jnp.tanh(x / sigma**2)


def drawn(plan, x):
    """A picture by the compiled loop, of a network whose estimate is `estimate_of`; its input's level is `timestep`."""

    def model(sample, timesteps):
        sigma = jnp.exp((timesteps / 999 - 1) * 5 + 2.68)[:, None, None, None]
        scaled = sample * jnp.sqrt(1 + sigma**2)
        return (scaled - estimate_of(scaled, sigma)) / sigma

    state = schedulers.init_state(plan, x)
    source = schedulers.noise_source(x.shape, None)
    rows = plan.sigmas.shape[-1]
    return schedulers.result(plan, schedulers.advance(plan, state, schedulers.of_timesteps(model), source, rows))


@given(st.integers(0, 10**6), st.integers(2, 12), st.sampled_from(["epsilon", "v_prediction", "sample"]))
@settings(max_examples=10, deadline=None)
def test_what_is_fitted_is_what_is_drawn(seed, rows, prediction_type):
    """The traced plan, which gradients go through, is the plan of the scheduler, number by number."""
    first, params, tuned = fitted(seed, rows, prediction_type)
    noise = noise_of(prediction_type)
    for k, scale in enumerate(SCALES):
        traced = traced_plan(table_of(first, at_scale(params, k), len(noise)), noise)
        scheduler = schedulers.Scheduler(noise, "ddim").with_table(tuned, scale)
        plan = scheduler.plan(sigmas=[*scheduler.table.levels, 0.0])
        for name in ("weights", "estimate", "timesteps", "sigmas", "is_step"):
            ours = np.asarray(getattr(traced.rows, name), np.float64)
            np.testing.assert_allclose(ours, getattr(plan.rows, name), rtol=1e-5, atol=2e-6, err_msg=name)
        assert traced.start_scale == plan.start_scale and traced.result_scale == plan.result_scale


def test_a_scale_takes_the_plan_of_the_nearest():
    """By the logarithm: 5 is nearer to 7.5 than to 3."""
    tables = fitted()[2].tables
    for scale, number in [(0.0, 0), (1.7, 0), (1.8, 1), (4.7, 1), (5.0, 2), (30.0, 2)]:
        assert np.array_equal(fitted()[2].at(scale).levels, tables.levels[number])


def test_the_compiled_loop_a_plain_one_and_a_file_agree(tmp_path):
    _, _, tuned = fitted()
    write_plan(tuned, tmp_path / "plan.json")
    again = read_plan(tmp_path / "plan.json")
    assert again.hash == tuned.hash and again.about == tuned.about
    table = again.at(3.0)
    scheduler = schedulers.Scheduler(noise_of(), "ddim").with_table(again, 3.0)
    plan = scheduler.plan(sigmas=[*table.levels, 0.0])
    first = np.random.default_rng(1).standard_normal((2, 4, 4, 1))
    x, estimates = first * np.sqrt(1 + table.levels[0] ** 2), []
    for k, level in enumerate(table.levels):
        sigma = np.exp((table.timesteps[k] / 999 - 1) * 5 + 2.68)
        scaled = x / np.sqrt(1 + level**2) * np.sqrt(1 + sigma**2)
        output = (scaled - np.tanh(scaled / sigma**2)) / sigma
        estimates.insert(0, x - level * output)
        target = [*table.levels, 0.0][k + 1]
        weights = table.weights[k]
        own = sum(weight * each for weight, each in zip(weights, estimates))
        own = own + weights[len(estimates) :].sum() * estimates[0]
        x = target / level * x + (1 - target / level) * own
    found = drawn(plan, jnp.asarray(first, jnp.float32))
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_finite_differences():
    first, params, _ = fitted()
    x = jax.random.normal(jax.random.key(0), (4, 4, 4, 1))
    target = jnp.sign(x) * 0.9

    @jax.jit
    def loss(params):
        knots = jnp.array([0, 2, 1, 2])
        plan = jax.vmap(lambda knot: traced_plan(table_of(first, at_scale(params, knot), 1000), noise_of()))(knots)
        return jnp.mean((drawn(plan, x) - target) ** 2)

    gradient = jax.grad(loss)(params)
    leaves, structure = jax.tree.flatten(params)
    for seed in range(4):
        random = np.random.default_rng(seed)
        way = [random.standard_normal(leaf.shape) for leaf in leaves]
        way = [each / np.sqrt(sum((part**2).sum() for part in way)) for each in way]
        by_gradient = sum(np.sum(each * np.asarray(own)) for each, own in zip(way, jax.tree.leaves(gradient)))

        def at(width, way=way):
            return float(loss(jax.tree.unflatten(structure, [leaf + width * each for leaf, each in zip(leaves, way)])))

        # Richardson's, without the error of second order
        by_differences = (8 * (at(0.01) - at(-0.01)) - (at(0.02) - at(-0.02))) / 0.12
        assert abs(by_differences - by_gradient) < 1e-4 * max(1, abs(by_gradient))


def test_a_right_estimate_leads_to_the_right_sample():
    """Where the network knows x0, every plan ends there: rows are consistent by construction."""
    _, _, tuned = fitted(7)
    table = tuned.at(2.0)
    np.testing.assert_allclose(table.weights.sum(-1), 1, atol=1e-9)
    assert (np.diff(table.levels) < 0).all()


@given(st.integers(0, 10**6), st.integers(2, 12))
@settings(max_examples=10, deadline=None)
def test_a_table_as_parameters_is_the_same_table(seed, rows):
    first, _, tuned = fitted(seed, rows)
    table = tuned.at(3.0)
    again = table_of(first, params_of(first, table), 1000)
    for ours, theirs in zip(again, table):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_fit_begins_on_the_teachers_way():
    """Where a plan drew the way, it is found again: what follows ends where that plan does, by its numbers."""
    _, _, tuned = fitted(3)
    table = tuned.at(3.0)

    def estimate(x, level, timestep, factor):
        return np.tanh(x / level**2) + factor * np.cos(3 * x) * timestep / 1000

    def both(x, level, timestep):
        return estimate(x, level, timestep, 1.0), estimate(x, level, timestep, 0.0)

    x = np.random.default_rng(1).standard_normal((6, 8, 8, 2)) * table.levels[0]
    samples, estimates = [x], []
    for k, level in enumerate(table.levels):
        estimates.insert(0, estimate(x, level, table.timesteps[k], table.guidance[k]))
        target = [*table.levels, 0.0][k + 1]
        mixed = sum(weight * each for weight, each in zip(table.weights[k], estimates))
        mixed = mixed + table.weights[k, len(estimates) :].sum() * estimates[0]
        x = target / level * x + (1 - target / level) * mixed
        samples.append(x)
    found, apart = follow(Way(table.levels, np.stack(samples)), table.levels, table.timesteps, both)
    assert apart.max() < 2e-3
    np.testing.assert_allclose(found.guidance[:-1], table.guidance[:-1], atol=0.01)  # the last row has many ways
    np.testing.assert_allclose(found.weights[3], table.weights[3], atol=0.02)


def test_a_fit_begins_on_the_levels_that_end_nearest():
    """At each scale; and from there on the parameters are those of one plan, whose levels another spacing has."""
    fine, noise = np.geomspace(14.6, 0.03, 200), np.random.default_rng(0).standard_normal((12, 4, 4, 1))
    samples = [noise * np.sqrt(1 + fine[0] ** 2)]
    for level, target in zip(fine, [*fine[1:], 0.0]):
        estimate = (samples[-1] / 4 + level**2) / (1 / 4 + level**2)  # of data around 1
        samples.append(estimate + target / level * (samples[-1] - estimate))

    def asked(frozen, batch, factors):
        def model(x, row, memory):
            sigma = row.at.sigmas[:, None, None, None]
            output = (x * jnp.sqrt(1 + sigma**2) / 4 + sigma**2) / (1 / 4 + sigma**2)
            return output, output, memory

        return model

    levels = {"low": np.geomspace(0.2, 0.03, 5), "good": np.geomspace(14.6, 0.3, 5)}
    firsts = tuple(First(name, np.log(each), noise_of().timestep(each)) for name, each in levels.items())
    examples = [
        {"noise": first.astype(np.float32), "target": end.astype(np.float32), "knot": np.int32(i % 2)}
        for i, (first, end) in enumerate(zip(noise, samples[-1]))
    ]
    tuning = Tuning(asked, noise_of("sample"), firsts)
    params, names = beginning(tuning, (), Taught(examples, Way(fine, np.stack(samples))), lambda *_: None)
    assert names == ["good", "good"]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *examples)
    assert of_latents((), tuning.latents(params, (), batch), batch["target"]).max() < 0.1


def test_a_plan_that_begins_lower_begins_with_the_same_noise():
    """As it will be drawn, and not where the teacher passed that level."""
    way = Way(np.array([8.0, 2.0, 0.5]), np.random.default_rng(0).standard_normal((4, 3, 4, 4, 1)))
    seen = []
    levels = np.array([2.0, 0.5])
    follow(way, levels, levels, lambda x, *_: seen.append(x) or (np.tanh(x), np.tanh(x)))
    np.testing.assert_allclose(seen[0], way.samples[0] / np.sqrt(1 + 8**2) * np.sqrt(1 + 2**2))


def test_what_is_decoded_alike_is_near(small):
    """In the decoder's eyes a picture is 0 from itself, and the farther the more it is changed."""
    opened = load(small)
    vae = opened.networks.modules["vae"]
    apart = OfDecoded(vae)
    drawn = jax.random.normal(jax.random.key(0), (2, 4, 4, vae.config.latent_channels))
    changes = [float(apart({"vae": opened.params["vae"]}, drawn + by, drawn).max()) for by in (0.0, 0.05, 0.5)]
    assert changes[0] < 1e-4 < changes[1] < changes[2]
    slope = jax.grad(lambda x: apart({"vae": opened.params["vae"]}, x, drawn).sum())(drawn + 0.1)
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0


def test_noise_nearby_draws_what_is_nearer():
    noise, target = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 1))

    def distance(noise):
        return of_latents((), jnp.tanh(noise), target)

    moved = nearer_noise(distance, noise, 0.1)
    assert (distance(moved) < distance(noise)).all()
    np.testing.assert_allclose(jnp.sqrt(jnp.mean((moved - noise) ** 2, (1, 2, 3))), 0.1, rtol=1e-4)
    # where the whole way is shorter than the radius, it is gone and no more
    close = nearer_noise(lambda noise: of_latents((), noise, target), target + 0.01, 0.1)
    np.testing.assert_allclose(close, target, atol=1e-4)


def test_no_guidance_is_found_where_there_is_none():
    levels = np.array([8.0, 2.0, 0.5])
    way = Way(levels, np.random.default_rng(0).standard_normal((4, 3, 4, 4, 1)))
    found, _ = follow(way, levels, levels, lambda x, *_: (np.tanh(x), np.tanh(x)))
    assert (found.guidance == 1).all() and np.isfinite(found.weights).all()
    np.testing.assert_allclose(found.weights.sum(-1), 1)


def test_a_plan_is_a_sampler(pipe, tmp_path):
    first = first_of(pipe.facts.scheduler, 4, "trailing")
    tuned = plan_of(first, of_ddim(4), (3.0,), pipe.facts.scheduler.noise, {})
    path = tmp_path / "mine.json"
    write_plan(tuned, path)
    found = pipe("a red star", sampler=str(path), guidance_scale=3.0)
    said = found.settings[0]
    assert said["sampler"] == f"mine.json@{tuned.hash}" and said["steps"] == 4 and "spacing" not in said
    again = pipe("a red star", sampler=said["sampler"], guidance_scale=3.0)
    assert np.array_equal(found.images[0], again.images[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spacing": "karras"}, "levels of its own"),
        ({"eta": 0.5}, "levels of its own"),
        ({"sigmas": (3.0, 1.0, 0.0)}, "levels of its own"),
    ],
)
def test_what_changes_its_levels_is_refused(pipe, tmp_path, arguments, message):
    _, _, tuned = fitted()
    write_plan(tuned, tmp_path / "mine.json")
    with pytest.raises(InputError, match=message):
        pipe.prepare([Picture("a star", sampler=use_plan(tmp_path / "mine.json"), **arguments)])


def test_a_plan_for_another_noise_schedule_is_refused(pipe, tmp_path):
    _, _, tuned = fitted(prediction_type="v_prediction")
    write_plan(tuned, tmp_path / "mine.json")
    with pytest.raises(InputError, match="for a model with"):
        pipe.prepare([Picture("a star", sampler=use_plan(tmp_path / "mine.json"))])


def test_a_name_without_its_file_is_refused(pipe):
    with pytest.raises(InputError, match="give its file"):
        pipe.prepare([Picture("a star", sampler="gone.json@0123456789ab")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: said["weights"][0][2].__setitem__(0, 3.0), "weights of row 2 add up to"),
        (lambda said: said["levels"][1].reverse(), "levels do not fall"),
        (lambda said: said["levels"][1].pop(), "no whole tuned plan"),
        (lambda said: said["timesteps"][0].__setitem__(0, float("nan")), "not all finite"),
        (lambda said: said["scales"].reverse(), "scales do not rise"),
        (lambda said: said.pop("weights"), "no whole tuned plan"),
        (lambda said: said["timesteps"][0].__setitem__(0, 11.0), "it was changed"),
        (lambda said: said.update(format="something"), "no tuned plan"),
        (lambda said: said.update(scales=3), "other shapes"),
        (lambda said: said["noise"].update(trained=10**12), "noise schedule is not described"),
        (lambda said: said.update(noise={}), "noise schedule is not described"),
        (lambda said: [said[name].clear() for name in ("scales", "levels", "timesteps", "weights")], "other shapes"),
    ],
)
def test_damaged_files_are_named(tmp_path, change, message):
    _, _, tuned = fitted()
    path = tmp_path / "plan.json"
    write_plan(tuned, path)
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))
    with pytest.raises(InputError, match=message):
        read_plan(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"{" * 5000, b"[" * 100_000, b"1e999"])
def test_files_that_are_none(tmp_path, content):
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(InputError, match="no tuned plan"):
        read_plan(tmp_path / "plan.json")


def test_what_describes_a_noise_schedule():
    assert described(noise_of())["sigma_max"] == pytest.approx(14.6146, rel=1e-4)


@pytest.mark.long
def test_the_command_fits_a_plan_and_goes_on_where_it_stopped(small, pipe, tmp_path, capsys, caplog):
    caplog.set_level("INFO", "sdjax")
    prompts, output = tmp_path / "prompts.txt", tmp_path / "plan.json"
    prompts.write_text("a red star\n\na blue ring\n")
    few = ["--pictures", "4", "--teacher", "20", "--batch-size", "2", "--guidance", "1,3", "--save-every", "1"]
    command = ["tune", str(small), "--nfe", "3", "--prompts", str(prompts), "-o", str(output), *few]
    assert main([*command, "--steps", "1"]) == 0
    assert "from those of 10 evaluations" in caplog.text
    first = read_plan(output)
    assert main([*command, "--steps", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(output)] * 2
    tuned = read_plan(output)
    assert tuned.nfe == 3 and tuned.scales.tolist() == [1, 3] and tuned.about["steps"] == 2
    assert tuned.hash != first.hash
    assert main([*command[:3], "5", *command[4:], "--steps", "2"]) == 1
    assert "holds a run with" in capsys.readouterr().err


def test_estimates_are_clipped_in_a_fit_as_they_are_in_drawing(pipe, monkeypatch):
    facts, lesson = pipe.facts, Lesson(("a star",), (1.0,), 1, 20)

    def task_where(**changed):
        monkeypatch.setattr(pipe, "facts", replace(facts, scheduler=replace(facts.scheduler, **changed)))
        return tuning_task(pipe, lesson, 3, ["trailing"], "latents")

    assert task_where(clip_range=1.5).loss.clip_range == 1.5 and task_where().loss.clip_range == np.inf
    with pytest.raises(InputError, match="not clipped dynamically"):
        task_where(threshold=(0.995, 1.0))


def test_without_guidance_half_the_work_gives_the_same(pipe):
    lesson = Lesson(("a red star",), (1.0,), 2, 20)
    task = tuning_task(pipe, lesson, 3, ["trailing"], "latents")
    examples = taught(pipe, lesson, 2, lambda *_: None).examples
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *examples)
    found, work = [], []
    for loss in (task.loss, replace(task.loss, model=guided(pipe.networks.modules["unet"], True))):
        program = jax.jit(loss).lower(of_ddim(3), task.frozen, batch, None)
        found.append(program.compile()(of_ddim(3), task.frozen, batch, None)["distance"])
        work.append(program.cost_analysis()["flops"])
    np.testing.assert_allclose(*found, rtol=1e-4)
    assert work[0] < 0.6 * work[1]


def test_both_estimates_are_of_one_evaluation(pipe):
    lesson = Lesson(("a red star",), (3.0,), 2, 20)
    task = tuning_task(pipe, lesson, 3, ["trailing"], "latents")
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *taught(pipe, lesson, 2, lambda *_: None).examples)
    given = task.frozen, batch, batch["noise"], 2.0, 300.0
    both = jax.jit(task.loss.estimates).lower(*given).compile()
    found = both(*given)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    alone = jax.jit(lambda *given: task.loss.estimates(*given)[0]).lower(*given).compile()
    assert both.cost_analysis()["flops"] < 1.01 * alone.cost_analysis()["flops"]


@pytest.mark.long
@pytest.mark.parametrize("objective", ["relaxed", "decoded"])
def test_each_objective_fits(small, tmp_path, objective):
    prompts, output = tmp_path / "prompts.txt", tmp_path / "plan.json"
    prompts.write_text("a red star\n")
    few = ["--pictures", "3", "--teacher", "20", "--batch-size", "2", "--guidance", "1,3", "--nfe", "3", "--steps", "2"]
    command = ["tune", str(small), "--prompts", str(prompts), "-o", str(output), "--spacing", "trailing", *few]
    assert main([*command, "--objective", objective]) == 0
    assert read_plan(output).about["objective"] == objective


def test_tuned_is_the_models_plan_whose_evaluations_are_nearest(pipe, tmp_path):
    noise = pipe.facts.scheduler.noise
    facts = replace(pipe.facts, plans=tmp_path)
    with pytest.raises(InputError, match="no tuned plans"):
        order_of([Picture("a star", sampler="tuned")], facts)
    folder = tmp_path / "plans"
    folder.mkdir()
    plans = {rows: replace(fitted(rows=rows)[2], noise=described(noise)) for rows in (3, 8)}
    for rows, plan in plans.items():
        write_plan(plan, folder / f"{rows}.json")
    facts = replace(pipe.facts, plans=folder)
    for steps, rows in ((1, 3), (5, 3), (6, 8), (None, 8)):
        order = order_of([Picture("a star", sampler="tuned", num_inference_steps=steps)], facts)
        assert order.nfe == rows and order.pictures[0].sampler == f"tuned@{plans[rows].hash}"


@pytest.mark.long
def test_gits_finds_the_levels_that_bend_a_trajectory_least(small, tmp_path):
    """The way that it finds is the best of all ways, by trying them; and the command writes it."""
    random = np.random.default_rng(0)
    costs = np.triu(random.uniform(0, 1, (8, 9)), 1) + np.where(np.tri(8, 9, 0, bool), np.inf, 0)
    ways = [(0, *middle, 8) for middle in itertools.combinations(range(1, 8), 3)]
    best = min(ways, key=lambda way: sum(costs[i, j] for i, j in itertools.pairwise(way)))
    assert tuple(shortest(costs, 4)) == best[:-1]
    prompts, output = tmp_path / "prompts.txt", tmp_path / "gits.json"
    prompts.write_text("a red star\n")
    few = ["--pictures", "3", "--teacher", "20", "--batch-size", "2", "--guidance", "1,3", "--nfe", "4"]
    assert main(["tune", str(small), "--method", "gits", "--prompts", str(prompts), "-o", str(output), *few]) == 0
    tuned = read_plan(output)
    assert tuned.tables.levels.shape == (2, 4) and tuned.about["method"] == "gits"


def test_steps_of_a_straight_trajectory_cost_nothing():
    levels = np.array([8.0, 3.0, 1.0])
    picture, noise = np.ones((2, 2, 2, 1)), np.random.default_rng(0).standard_normal((2, 2, 2, 1))
    samples = np.stack([picture + level * noise for level in (*levels, 0.0)])
    costs = distances(levels, samples, np.stack([picture] * 3))
    assert np.allclose(costs[np.isfinite(costs)], 0) and np.isinf(costs[1, 1])


def test_a_plan_is_explained_row_by_row(tmp_path, capsys):
    write_plan(fitted()[2], tmp_path / "plan.json")
    assert main(["samplers", "--explain", str(tmp_path / "plan.json")]) == 0
    said = capsys.readouterr().out
    assert said.count("5 evaluations") == 3 and "at guidance 7.5" in said
    assert main(["samplers", "--explain", "tuned"]) == 1
    assert "give the file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"a\xff\xfe\n", [], "prompt"),
        (b"\n \n", [], "holds no prompt"),
        (b"a star\n", ["--guidance", "1,nan"], "scales from 1 to 100"),
        (b"a star\n", ["--pictures", "2"], "fewer than the guidance scales"),
        (b"a star\n", ["--spacing", "nope"], "unknown spacing"),
    ],
)
def test_what_cannot_be_tuned_is_said_before_a_model_is_opened(tmp_path, capsys, content, options, message):
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes(content)
    command = ["tune", str(tmp_path / "no-model"), "--prompts", str(prompts), "-o", str(tmp_path / "plan.json")]
    assert main([*command, *options]) == 1
    said = capsys.readouterr().err
    assert message in said and "fault of sdjax" not in said


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 3.0), (1.0, 2.0, 3.0, 4.0)])
def test_every_scale_has_pictures_of_its_own(scales):
    drawn = [picture.guidance_scale for picture in Lesson(("a star",), scales, 32, 20).drawn()]
    assert set(scales) <= set(drawn) and (len(scales) == 1 or set(drawn) - set(scales))
