"""The natural gradient: each scale by its own examples, and numbers of any steepness in few steps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.training.natural import FARTHEST, NATURAL, gradients
from sdjax.training.step import ADAMW, Settings, begin, make_step, place

SCALES, NUMBERS = 3, 6
STEEP = np.geomspace(1, 1000, NUMBERS)  # how steep the numbers are
TURNED = np.linalg.qr(np.random.default_rng(0).standard_normal((NUMBERS, NUMBERS)))[0]


def loss(params, frozen, batch, keys):
    """The logarithm of how far numbers are from their scale's best ones, which examples see a little elsewhere."""
    own = jax.vmap(lambda knot: jnp.concatenate([params["a"][knot], params["b"][knot].ravel()]))(batch["knot"])
    apart = (own - batch["best"]) @ (TURNED * STEEP) + batch["noise"]
    found = jnp.sqrt(jnp.mean(apart**2, -1))
    return {"loss": jnp.log(found), "distance": found}


def batch_of(size, seed=0, scales=SCALES):
    random = np.random.default_rng(seed)
    knot = np.arange(size) % scales
    best = 0.3 * np.random.default_rng(1).standard_normal((SCALES, NUMBERS))[knot]
    noise = 0.02 * random.standard_normal((size, NUMBERS))
    return {"knot": knot, "best": best.astype(np.float32), "noise": noise.astype(np.float32)}


def nothing():
    return {"a": jnp.zeros((SCALES, 2)), "b": jnp.zeros((SCALES, 2, 2))}


def trained(descent, steps, scales=SCALES, **chosen):
    settings = Settings(steps, 12, 0.1, 10, ema_decay=0, cosine_decay=True, **chosen)
    state, step = begin(nothing(), settings, descent), make_step(loss, settings, descent)
    for number in range(steps):
        state, metrics = step(state, (), place(batch_of(12, number, scales)), number)
    return jax.device_get((state.params, metrics["distance"]))


def test_what_is_seen_is_each_examples_gradient():
    batch = batch_of(7)
    seen, means = gradients(lambda params, batch, keys: loss(params, (), batch, keys), nothing(), batch, None)
    found = np.zeros((SCALES, NUMBERS)), np.zeros((SCALES, NUMBERS, NUMBERS))
    for i in range(7):
        one = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batch)
        slope = jax.grad(lambda params, one=one: loss(params, (), one, None)["loss"][0])(nothing())
        own = np.concatenate([leaf[one["knot"][0]].ravel() for leaf in jax.tree.leaves(slope)])
        found[0][one["knot"]] += own / 7
        found[1][one["knot"]] += np.outer(own, own) / 7
    np.testing.assert_allclose(seen.share, np.array([3, 2, 2]) / 7, rtol=1e-6)
    for ours, theirs in zip(seen[1:], found):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(means["loss"], loss(nothing(), (), batch, None)["loss"].mean(), rtol=1e-6)


def test_numbers_of_any_steepness_are_found_in_few_steps():
    """Where Adam, which scales the axes and no other directions, is still far."""
    (_, ours), (_, adams) = (trained(descent, 120) for descent in (NATURAL, ADAMW))
    assert ours < 0.3 and adams > 4 * ours, (ours, adams)


def test_a_scale_without_examples_stays_where_it_is():
    params, _ = trained(NATURAL, 5, scales=2)
    for leaf in jax.tree.leaves(params):
        assert np.abs(leaf[:2]).max() > 0 and not leaf[2].any()


@pytest.mark.parametrize("chosen", [{"accumulate": 3}, {"remat": True}])
def test_parts_of_a_batch_lead_where_the_whole_does(chosen):
    (whole, _), (parts, _) = (trained(NATURAL, 5, **each) for each in ({}, chosen))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), parts, whole)


def test_a_step_has_an_end():
    """The first gradient may be of one example, and its matrix nearly singular."""
    params, _ = trained(NATURAL, 1)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(params)) <= FARTHEST
