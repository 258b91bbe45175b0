"""The trainer: the forward process, the compiled step, and runs that are killed, resumed and spread over devices."""

import jax
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from sdjax.cli import main
from sdjax.schedulers import from_config
from sdjax.schedulers.noise import BETA_SCHEDULES, NoiseSchedule
from sdjax.training.forward import ForwardProcess

TYPES = ("epsilon", "v_prediction", "sample", "edm")


@st.composite
def processes(draw) -> ForwardProcess:
    kind = draw(st.sampled_from(TYPES))
    count = draw(st.integers(2, 1000))
    name = draw(st.sampled_from([*BETA_SCHEDULES, "edm"]))
    if name == "edm":
        low = draw(st.floats(1e-3, 1))
        return ForwardProcess(NoiseSchedule.edm(low, low * draw(st.floats(2, 1e4)), count, 0.5, kind))
    start = draw(st.floats(1e-5, 0.01))
    betas = BETA_SCHEDULES[name](start, draw(st.floats(start, 0.5)), count)
    schedule = NoiseSchedule.from_betas(betas, kind, draw(st.sampled_from([None, 2**-24])))
    assume(np.all(np.diff(schedule.sigmas) > 0))  # some lose all signal long before their end
    return ForwardProcess(schedule)


@given(process=processes(), data=st.data())
def test_a_chain_of_single_steps_is_the_closed_form(process, data):
    """A step is linear in the sample and in its own noise: so mean and variance of the chain follow exactly."""
    last = data.draw(st.integers(0, len(process.schedule) - 1))
    mean, variance = np.ones(1), np.zeros(1)
    for t in range(last + 1):
        one, zero = np.ones(1), np.zeros(1)
        mean, kept = process.one_step(mean, zero, t), process.one_step(one, zero, t)
        variance = kept**2 * variance + process.one_step(zero, one, t) ** 2
    np.testing.assert_allclose(mean, process.add_noise(np.ones(1), np.zeros(1), last), rtol=1e-9)
    np.testing.assert_allclose(np.sqrt(variance), process.add_noise(np.zeros(1), np.ones(1), last), rtol=1e-9)
    np.testing.assert_allclose(mean**2 + variance, 1, rtol=1e-9)


@given(process=processes(), data=st.data())
def test_the_target_is_what_the_samplers_take_for_the_clean_picture(process, data):
    t = data.draw(st.integers(0, len(process.schedule) - 1))
    x0, noise = np.random.default_rng(t).standard_normal((2, 1, 3))
    sigma, x = process.schedule.sigmas[t], process.add_noise(x0, noise, np.array([t]))
    np.testing.assert_allclose(x, (x0 + sigma * noise) * process.signal[t], rtol=1e-9)
    estimate = process.schedule.denoised(x / process.signal[t], process.target(x0, noise, np.array([t])), sigma)
    np.testing.assert_allclose(estimate, x0, atol=1e-12 * (1 + sigma**2))


@given(process=processes(), gamma=st.floats(0.1, 20))
def test_min_snr_weighs_an_error_of_the_clean_picture_by_at_most_gamma(process, gamma):
    every = np.arange(len(process.schedule))
    snr = process.snr(every)
    np.testing.assert_allclose(snr, (process.signal / process.spread) ** 2, rtol=1e-9)
    # An error of 1 in x0, and what it is as an error of the target, told by the samplers' own conversion.
    of_target = process.schedule.output(np.zeros(1), np.ones(1), process.schedule.sigmas)
    np.testing.assert_allclose(process.weights(every, gamma) * of_target**2, np.minimum(snr, gamma), rtol=1e-9)
    assert np.array_equal(process.weights(every, None), np.ones(len(every)))


def test_arrays_on_the_device_get_the_same():
    process = ForwardProcess(from_config({"_class_name": "DDIMScheduler"}).noise)
    x0, noise = np.random.default_rng(0).standard_normal((2, 3, 4, 4, 1))
    t = np.array([0, 500, 999])
    for method in (process.add_noise, process.one_step, process.target):
        assert jax.jit(method)(x0, noise, t) == pytest.approx(method(x0, noise, t), abs=1e-6)
    assert jax.jit(process.snr)(t) == pytest.approx(process.snr(t), rel=1e-6)


def test_the_sheet_shows_more_noise_from_left_to_right(tmp_path):
    Image.new("RGB", (128, 128), "grey").save(tmp_path / "grey.png")
    assert main(["train", "noise", str(tmp_path / "grey.png"), "-o", str(tmp_path / "sheet.webp")]) == 0
    sheet = np.asarray(Image.open(tmp_path / "sheet.webp").convert("RGB"), float)
    linear = sheet[40:140, -8 * 134 :]  # the first row: cells of 128 pixels and 6 between them
    spreads = [linear[:, 134 * i + 10 : 134 * i + 120].std() for i in range(8)]
    assert np.all(np.diff(spreads[:6]) > 1)
