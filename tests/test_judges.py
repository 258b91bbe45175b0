"""Guidance by gradients: what it changes, what it compiles, and what is refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_training import write_pictures

import sdjax
from benchmarks.judged import shares
from benchmarks.readings import rendered
from benchmarks.scenes import PALETTE, SHAPES, draw_scene
from benchmarks.scorer import read_picture
from sdjax.cli import main
from sdjax.errors import ConfigError, InputError
from sdjax.files.checkpoint import read_model
from sdjax.files.layout import embedded_models
from sdjax.gradients import Judge, Wish, pulled
from sdjax.models import build
from sdjax.pipeline import JudgeNet
from sdjax.pipeline.facts import Facts
from sdjax.pipeline.ordering import order_of
from sdjax.schedulers.loop import PlanRow
from sdjax.schedulers.plan import Rows
from sdjax.settings import Picture
from sdjax.settings.unit import Unit, read_unit
from sdjax.training.classifier import targets_of
from sdjax.training.data import read_examples
from sdjax.training.models import fresh

CONFIG = {"block_out_channels": [8, 8], "norm_num_groups": 2, "labels": "star,ring,red"}
CLASSIFIER = "shapes-classifier"
HOW = {"num_inference_steps": 4, "output_type": "np", "guidance_scale": 3.0, "seed": 1}


@pytest.fixture(scope="module")
def judge():
    module = build("LatentClassifier", CONFIG)
    return JudgeNet("shapes", module, fresh(module, 0))


@pytest.mark.long
def test_wishes_change_the_picture_and_compile_nothing(pipe, judge, compilations):
    first = pipe("a", **HOW, conditions=[judge("star", scale=30)]).images
    del compilations[:]
    found = [
        pipe("a", **HOW, conditions=[judge(target, **how)]).images
        for target, how in (
            ("red ring", {"scale": 30}),
            ("star", {"scale": 60}),
            ("star", {"scale": [30, 20, 10, 0]}),
            ("star", {"scale": 30, "end": 0.5}),
            (np.array([1, 1, 0.5]), {"scale": 30}),
            ("star", {"scale": 0}),
        )
    ]
    assert not compilations
    assert len({image.tobytes() for image in [first, *found]}) == 7
    np.testing.assert_allclose(found[-1], pipe("a", **HOW).images, atol=1e-5)


@pytest.mark.long
def test_each_picture_of_a_batch_has_its_own_wish(pipe, judge):
    wishes = [[judge("star", scale=30)], [judge("ring", scale=40), judge("red", scale=9)], []]
    together = pipe(["a", "b", "c"], **HOW, conditions=wishes).images
    for k, (own, prompt) in enumerate(zip(wishes, "abc")):
        alone = pipe(prompt, **HOW | {"seed": 1 + k}, conditions=own).images[0]
        np.testing.assert_allclose(together[k], alone, atol=2e-5)


class Smooth(nn.Module):
    def score(self, seen, timesteps, target):
        return jnp.sum(jnp.sin(seen) * target * jnp.cos(timesteps)[:, None, None, None], (1, 2, 3))


@pytest.mark.parametrize("sees", ["noisy", "estimate", "picture"])
def test_pulls_are_the_slopes_of_the_score(sees):
    """By finite differences, through a model, its estimate and what decodes it; each picture with its own weight."""
    random = np.random.default_rng(0)
    x, target = (jnp.asarray(random.standard_normal((2, 2, 3, 4)), jnp.float32) for _ in range(2))
    weights, times = jnp.array([[9.0, -0.7], [9.0, 1.3]]), jnp.array([0.2, 0.4])
    scale = jnp.array([[0.8, -0.6], [1.1, -0.4]])
    rows = Rows(None, scale, times, None, None, None)
    row = PlanRow(rows, None, None, jnp.array([1, 1]), jnp.array([True, True]))

    def model(x, row, memory):
        return jnp.tanh(2 * x), x, memory

    def decode(latents):
        return latents**2

    def score(x):
        a, b = scale[:, 0, None, None, None], scale[:, 1, None, None, None]
        estimate = a * x + b * jnp.tanh(2 * x)
        seen = {"noisy": x, "estimate": estimate, "picture": decode(estimate)}[sees]
        return jnp.sum(weights[:, 1] * Smooth().score(seen, times, target))

    guided = pulled(model, [Judge(Smooth(), sees)], [{}], [Wish(target, weights)], decode)
    output, direction, _ = jax.jit(guided)(x, row, x)
    pull, step = output - jnp.tanh(2 * x), 1e-2
    np.testing.assert_allclose(direction, x + pull, atol=1e-6)
    for place in [(0, 0, 0, 0), (0, 1, 2, 3), (1, 0, 1, 2), (1, 1, 0, 1)]:
        slope = (score(x.at[place].add(step)) - score(x.at[place].add(-step))) / (2 * step)
        assert abs(pull[place] - slope) < 2e-3


def test_an_estimate_climbs_its_score():
    """Three steps up the slope of a score that is known, and the prediction is the one whose estimate is there."""

    class Near(nn.Module):
        def score(self, seen, timesteps, target):
            return -jnp.sum((seen - target) ** 2, (1, 2, 3))

    random = np.random.default_rng(0)
    x, target = (jnp.asarray(random.standard_normal((2, 2, 3, 4)), jnp.float32) for _ in range(2))
    scale, weights = jnp.array([[0.8, -0.6], [1.1, -0.4]]), jnp.array([[0.1, 9.0], [0.2, 9.0]])
    row = PlanRow(Rows(None, scale, jnp.ones(2), None, None, None), None, None, jnp.array([0, 0]), jnp.ones(2, bool))
    guided = pulled(
        lambda x, *_: (jnp.tanh(x), x, x), [Judge(Near(), "estimate", 3)], [{}], [Wish(target, weights)], None
    )
    output, direction, _ = jax.jit(guided)(x, row, x)
    a, b = scale[:, 0, None, None, None], scale[:, 1, None, None, None]
    kept = (1 - 2 * weights[:, 0, None, None, None]) ** 3
    np.testing.assert_allclose(a * x + b * output, target + kept * (a * x + b * jnp.tanh(x) - target), atol=1e-5)
    np.testing.assert_allclose(direction - x, output - jnp.tanh(x), atol=1e-6)


def test_what_cannot_be_wished(small, judge):
    facts = Facts.of(read_model(small))
    for target, message in (
        ("red sta", "does not know 'sta', did you mean 'star'"),
        (" ", "say what shapes is to see"),
        (np.array([np.nan]), "not finite"),
    ):
        with pytest.raises(InputError, match=message):
            judge(target)
    for how, message in (({"scale": float("inf")}, "scale of a hint"), ({"start": 0.5, "end": 0.2}, "start < end")):
        with pytest.raises(InputError, match=message):
            judge("star", **how)
    with pytest.raises(InputError, match="3 scales were given to a wish"):
        prepared(facts, judge("star", scale=[1, 2, 3]))
    other = build("LatentClassifier", CONFIG | {"in_channels": 9})
    with pytest.raises(InputError, match="reads 9 channels of latents, this model has 4"):
        prepared(facts, JudgeNet("other", other, fresh(other, 0))("star"))
    with pytest.raises(InputError, match="has no method `score`"):
        JudgeNet("dense", nn.Dense(3), {})
    with pytest.raises(InputError, match="a judge sees noisy, estimate, picture, not 'all'"):
        JudgeNet("all", judge.module, judge.params, "all")
    with pytest.raises(InputError, match="what climbs is an estimate"):
        JudgeNet("climbs", judge.module, judge.params, climbs=3)
    with pytest.raises(InputError, match="knows no words"):
        JudgeNet("other", Smooth(), {})("star")
    with pytest.raises(InputError, match="dpm_adaptive"):
        prepared(facts, judge("star"), sampler="dpm_adaptive")
    with pytest.raises(ConfigError, match="are no words"):
        build("LatentClassifier", CONFIG | {"labels": "star,,red"})


def prepared(facts, wish, **more):
    return order_of([Picture("a", num_inference_steps=4, conditions=(wish,), **more)], facts)


@pytest.mark.long
def test_a_trained_classifier_is_opened_and_draws(small, pipe, tmp_path):
    pictures, run = write_pictures(tmp_path / "pictures"), tmp_path / "run"
    command = ["train", "classifier", str(pictures), str(run), "--model", str(small), "--channels", "8,8"]
    assert (
        main([*command, "--labels", "red,green,blue", "--steps", "3", "--batch-size", "2", "--store", "float16"]) == 0
    )
    judge = sdjax.load_condition(run / "classifier-3")
    assert judge.module.config.words == ("red", "green", "blue")
    assert judge.params["conv_in"]["kernel"].dtype == np.float16
    assert pipe("", **HOW, conditions=[judge("red", scale=3)]).images.shape == (1, 64, 64, 3)
    with pytest.raises(InputError, match="does not know"):
        pipe("", conditions=[Unit(str(run / "classifier-3"), str(pictures / "0.png"))])


def test_what_cannot_be_learned(tmp_path):
    examples = read_examples(write_pictures(tmp_path / "pictures"), captions=True)
    np.testing.assert_array_equal(targets_of(examples, ["red", "blue"])[:3], [[1, 0], [0, 0], [0, 1]])
    with pytest.raises(InputError, match="every caption says 'square'"):
        targets_of(examples, ["red", "square"])
    with pytest.raises(InputError, match="no caption says 'rose'"):
        targets_of(examples, ["rose"])


def test_the_share_of_pictures_that_show_what_was_wished():
    scenes = [draw_scene(np.random.default_rng(i)) for i in range(3)]
    readings = [read_picture(picture) for picture in rendered(scenes)]
    wanted = [(scene.facts.things[0].colour, scene.facts.things[0].shape) for scene in scenes]
    assert shares(readings, wanted) == {"shape": 1, "colour": 1, "both": 1}
    others = [(colour, "square" if shape != "square" else "ring") for colour, shape in wanted]
    assert shares(readings, others)["both"] < 1


def test_a_classifier_ships_with_the_embedded_model():
    """Opened by its name, for the embedded model's latents, of its colours and shapes; small."""
    net = sdjax.load_condition(CLASSIFIER)
    assert net.module.config.words == (*PALETTE, *SHAPES)
    net.check(read_model(embedded_models()["shapes"]).unet.module.config)
    files = [path for path in embedded_models()[CLASSIFIER].rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2**20


def test_a_judge_is_told_a_text_on_the_command_line():
    shapes, net = Facts.of(read_model(embedded_models()["shapes"])), sdjax.load_condition(CLASSIFIER)
    facts = replace(shapes, open_net=lambda name, unet: (net, ""))
    unit = read_unit(f"{CLASSIFIER}:red star:3:0-0.5")
    [wish] = order_of([Picture("", conditions=(unit,))], facts).pictures[0].conditions
    assert wish.settings() == {"net": CLASSIFIER, "target": "red star", "scale": 3.0, "start": 0.0, "end": 0.5}
    for text, message in (
        (f"{CLASSIFIER}:red stra:3", "does not know 'stra', did you mean 'star'"),
        (f"{CLASSIFIER}:red star:mode=prompt", "mode=prompt is of nets that look at pictures, and .* is a judge"),
        ("org/net:red star", "there is no file red star"),
    ):
        with pytest.raises(InputError, match=message):
            order_of([Picture("", conditions=(read_unit(text),))], facts)


@pytest.mark.long
def test_the_classifier_sees_what_is_there():
    """In latents of scenes that it was not trained on: of each the colours and shapes, with little noise."""
    scenes = [draw_scene(np.random.default_rng([77, i])) for i in range(40)]
    pipe, net = sdjax.load(), sdjax.load_condition(CLASSIFIER)
    encoded = pipe.networks.autoencoder.encode((2 * rendered(scenes) - 1).astype(np.float32))
    means = np.stack([mean for mean, _ in encoded])
    logits = net.module.apply({"params": jax.tree.map(jnp.float32, net.params)}, means, np.full(40, 20))
    told = np.array([[word in str(scene.facts).split() for word in net.module.config.words] for scene in scenes])
    right = np.mean((np.asarray(logits) > 0) == told)
    print(f"\n{right:.3f} of the labels are told rightly")
    assert right > 0.9
