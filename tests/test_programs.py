"""Guidance between the network's prediction and the estimate of x0, against numpy."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from sdjax.denoisers import unet_denoiser
from sdjax.guidance import GUIDANCES, cfg
from sdjax.halves import Composed, Conditioning, denoiser
from sdjax.schedulers.loop import PlanRow
from sdjax.schedulers.plan import Rows

BATCH, ROWS = 3, 4
rng = np.random.default_rng(0)
X = rng.standard_normal((BATCH, 4, 4, 2)).astype(np.float32)
CONTEXT, NEGATIVE = rng.standard_normal((2, BATCH, 5, 2)).astype(np.float32)
TIMESTEPS = np.array([10.0, 500.0, 900.0], np.float32)


PARAMS = {"none": np.zeros(1, np.float32)}  # whose dtype is computed in


class FakeUNet(nn.Module):
    """Depends on everything that a UNet is given."""

    @nn.compact
    def __call__(self, x, timesteps, context, class_labels, added, guidance, residuals=None):
        return predict(x, timesteps, context)


def predict(x, timesteps, context):
    return jnp.tanh(x * context.mean((1, 2))[:, None, None, None]) + timesteps[:, None, None, None] / 1000


def conditioning(negative):
    shared = {"channels": jnp.zeros((BATCH, 4, 4, 0)), "class_labels": None, "guidance": None}
    return Conditioning({"context": jnp.array(CONTEXT)}, {"context": jnp.array(negative)}, shared)


def rows(number, live=(True,) * BATCH):
    unused = jnp.zeros((BATCH, 1))
    at = Rows(unused, unused, jnp.array(TIMESTEPS), unused, unused, unused)
    return PlanRow(at, unused, unused, jnp.array(number), jnp.array(live))


MEMORY = jnp.zeros(X.shape)


def run(scale, number, memory=MEMORY, **more):
    """Prediction, noise direction and memory; `more` are fields of Guidance, alike for all pictures."""
    filled = {name: jnp.full(BATCH, value) for name, value in more.items()}
    guidance = cfg(jnp.array(scale))._replace(**filled)
    model = denoiser(unet_denoiser(FakeUNet(), PARAMS), conditioning(NEGATIVE), guidance, guided=True)
    return [np.asarray(part) for part in model(jnp.array(X), rows(number), memory)]


POSITIVE, UNCONDITIONAL = (np.asarray(predict(X, TIMESTEPS, context)) for context in (CONTEXT, NEGATIVE))
SCALE = rng.uniform(1.5, 8, (BATCH, ROWS)).astype(np.float32)


def test_every_picture_has_the_scale_of_its_own_row():
    prediction, direction, _ = run(SCALE, [0, 3, 2])
    own = SCALE[[0, 1, 2], [0, 3, 2]][:, None, None, None]
    np.testing.assert_allclose(prediction, UNCONDITIONAL + own * (POSITIVE - UNCONDITIONAL), rtol=1e-5, atol=1e-6)
    assert np.array_equal(prediction, direction)


def test_rescaling_is_that_of_lin_et_al():
    """Their equations 15 and 16, as diffusers' rescale_noise_cfg has them."""
    guided_prediction = UNCONDITIONAL + SCALE[:, :1, None, None] * (POSITIVE - UNCONDITIONAL)
    spread = [part.std((1, 2, 3), ddof=1, keepdims=True) for part in (POSITIVE, guided_prediction)]
    expected = 0.7 * guided_prediction * spread[0] / spread[1] + 0.3 * guided_prediction
    np.testing.assert_allclose(run(SCALE, [0, 0, 0], rescale=0.7)[0], expected, rtol=1e-5, atol=1e-6)


def test_cfg_plus_plus_tells_the_noise_by_the_unconditional_prediction():
    prediction, direction, _ = run(SCALE, [0, 0, 0], plus_plus=True)
    expected = UNCONDITIONAL + SCALE[:, :1, None, None] * (POSITIVE - UNCONDITIONAL)
    np.testing.assert_allclose(prediction, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(direction, UNCONDITIONAL, rtol=1e-5, atol=1e-6)


def test_without_guidance_the_unconditional_half_plays_no_part():
    unreadable = np.full_like(NEGATIVE, np.nan)
    model = denoiser(unet_denoiser(FakeUNet(), PARAMS), conditioning(unreadable), cfg(SCALE), guided=False)
    prediction, direction, _ = model(jnp.array(X), rows([0, 1, 2]), MEMORY)
    np.testing.assert_allclose(prediction, POSITIVE, rtol=1e-5, atol=1e-6)
    assert np.array_equal(prediction, direction)


def test_conditions_are_composed_by_their_weights():
    """Liu et al. (2022), equation 11: the weighted directions of all conditions from the unconditional prediction."""
    contexts = np.random.default_rng(1).standard_normal((4, BATCH, 5, 2)).astype(np.float32)
    weights = np.float32([[1, 0.5, -0.3, 0], [1, 1, 0, 0], [2, 0, 0, 1]])
    positive = Composed(tuple({"context": jnp.array(context)} for context in contexts), jnp.array(weights))
    model = denoiser(
        unet_denoiser(FakeUNet(), PARAMS), conditioning(NEGATIVE)._replace(positive=positive), cfg(SCALE), guided=True
    )
    got, _, _ = model(jnp.array(X), rows([0, 3, 2]), MEMORY)
    own = SCALE[[0, 1, 2], [0, 3, 2]][:, None, None, None]
    directions = [np.asarray(predict(X, TIMESTEPS, context)) - UNCONDITIONAL for context in contexts]
    expected = UNCONDITIONAL + own * np.einsum("bp,pbhwc->bhwc", weights, directions)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_away_from_the_perturbed_alone_asks_for_no_unconditional_half():
    asked = []

    def unet(x, timesteps, own, shared):
        asked.append(len(x))
        return predict(x, timesteps, own["context"])

    other = np.random.default_rng(2).standard_normal(CONTEXT.shape).astype(np.float32)
    both = conditioning(NEGATIVE)._replace(negative=None, perturbed={"context": jnp.array(other)})
    guidance = cfg(np.ones_like(SCALE))._replace(perturbed=jnp.full(BATCH, 2.5))
    got, _, _ = denoiser(unet, both, guidance, guided=True)(jnp.array(X), rows([0, 3, 2]), MEMORY)
    expected = POSITIVE + 2.5 * (POSITIVE - np.asarray(predict(X, TIMESTEPS, other)))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert asked == [2 * BATCH]


APG = list(GUIDANCES).index("apg")


def test_projected_guidance_without_its_parts_is_classifier_free():
    plain, _, _ = run(SCALE, [0, 3, 2])
    projected, _, memory = run(SCALE, [0, 3, 2], kind=APG, eta=1.0)
    np.testing.assert_allclose(projected, plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(memory, POSITIVE - UNCONDITIONAL, rtol=1e-5, atol=1e-6)


def test_projected_guidance_is_the_papers():
    """Its algorithm 1 in float64, vector by vector: momentum, the largest norm, and the parallel part."""
    earlier = np.random.default_rng(0).standard_normal(X.shape).astype(np.float32)
    how = {"eta": 0.3, "norm_threshold": 2.0, "momentum": -0.5}
    got, direction, memory = run(SCALE, [0, 0, 0], jnp.array(earlier), kind=APG, **how)
    for k in range(BATCH):
        positive, negative, old = (each[k].astype(float).ravel() for each in (POSITIVE, UNCONDITIONAL, earlier))
        difference = positive - negative - 0.5 * old
        np.testing.assert_allclose(memory[k].ravel(), difference, rtol=1e-4, atol=1e-5)
        difference *= min(1, 2.0 / np.linalg.norm(difference))
        parallel = (difference @ positive) / (positive @ positive) * positive
        expected = negative + SCALE[k, 0] * (difference - parallel + 0.3 * parallel)
        np.testing.assert_allclose(got[k].ravel(), expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(got, direction)


def test_pictures_of_one_batch_have_guidances_of_their_own():
    kinds = jnp.array([0, APG, 0])
    guidance = cfg(jnp.array(SCALE))._replace(kind=kinds, eta=jnp.full(BATCH, 0.0))
    model = denoiser(unet_denoiser(FakeUNet(), PARAMS), conditioning(NEGATIVE), guidance, guided=True)
    mixed, _, _ = model(jnp.array(X), rows([0, 3, 2]), MEMORY)
    plain, projected = (run(SCALE, [0, 3, 2], kind=kind, eta=0.0)[0] for kind in (0, APG))
    np.testing.assert_array_equal(mixed, np.stack([plain[0], projected[1], plain[2]]))
