"""Guidance between the network's prediction and the estimate of x0, against numpy."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.programs import Conditioning, Guidance, guided
from sdjax.schedulers.loop import PlanRow

BATCH, ROWS = 3, 4
rng = np.random.default_rng(0)
X = rng.standard_normal((BATCH, 4, 4, 2)).astype(np.float32)
CONTEXT, NEGATIVE = rng.standard_normal((2, BATCH, 5, 2)).astype(np.float32)
TIMESTEPS = np.array([10.0, 500.0, 900.0], np.float32)


class FakeUNet(nn.Module):
    """Depends on everything that a UNet is given."""

    @nn.compact
    def __call__(self, x, timesteps, context, class_labels):
        return predict(x, timesteps, context)


def predict(x, timesteps, context):
    return jnp.tanh(x * context.mean((1, 2))[:, None, None, None]) + timesteps[:, None, None, None] / 1000


def conditioning(negative):
    return Conditioning(jnp.array(CONTEXT), jnp.array(negative), jnp.zeros((BATCH, 4, 4, 0)), None)


def rows(number, live=(True,) * BATCH):
    unused = jnp.zeros((BATCH, 1))
    return PlanRow(unused, unused, jnp.array(TIMESTEPS), unused, unused, unused, jnp.array(number), jnp.array(live))


def run(scale, number, rescale=0.0, plus_plus=False, live=(True,) * BATCH):
    guidance = Guidance(jnp.array(scale), jnp.full(BATCH, rescale), jnp.full(BATCH, plus_plus))
    model = guided(FakeUNet(), {}, conditioning(NEGATIVE), guidance)
    return [np.asarray(part) for part in model(jnp.array(X), rows(number, live))]


POSITIVE, UNCONDITIONAL = (np.asarray(predict(X, TIMESTEPS, context)) for context in (CONTEXT, NEGATIVE))
SCALE = rng.uniform(1.5, 8, (BATCH, ROWS)).astype(np.float32)


def test_every_picture_has_the_scale_of_its_own_row():
    prediction, direction = run(SCALE, [0, 3, 2])
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
    prediction, direction = run(SCALE, [0, 0, 0], plus_plus=True)
    expected = UNCONDITIONAL + SCALE[:, :1, None, None] * (POSITIVE - UNCONDITIONAL)
    np.testing.assert_allclose(prediction, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(direction, UNCONDITIONAL, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("scale", "live"), [(1.0, (True,) * BATCH), (5.0, (False,) * BATCH)])
def test_without_guidance_the_unconditional_half_plays_no_part(scale, live):
    unreadable = np.full_like(NEGATIVE, np.nan)
    guidance = Guidance(jnp.full((BATCH, ROWS), scale), jnp.zeros(BATCH), jnp.zeros(BATCH, bool))
    model = guided(FakeUNet(), {}, conditioning(unreadable), guidance)
    prediction, _ = model(jnp.array(X), rows([0, 1, 2], live))
    np.testing.assert_allclose(prediction, POSITIVE, rtol=1e-5, atol=1e-6)
