"""The trainer: the forward process, the compiled step, and runs that are killed, resumed and spread over devices."""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import small_run
from command import SDJAX
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from tiny_training import write_pictures, write_tiny_model

from sdjax.cli import main
from sdjax.errors import TrainingError
from sdjax.schedulers import from_config
from sdjax.schedulers.noise import BETA_SCHEDULES, NoiseSchedule
from sdjax.training.data import indices
from sdjax.training.fit import Intervals, checkpoints
from sdjax.training.forward import ForwardProcess
from sdjax.training.step import Settings, learning_rate

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


def process(folder: Path, steps: int, devices: int = 1) -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, str(Path(__file__).with_name("small_run.py")), str(folder), str(steps)]
    return subprocess.Popen(command, env=os.environ | {"XLA_FLAGS": flags}, stdout=subprocess.PIPE, text=True)


def losses_of(folder: Path) -> np.ndarray:
    with (folder / "log.csv").open() as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, str]:
    """A run of 50 steps on one device that nothing interrupts: its folder, and a digest of its last state."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    return folder, process(folder, 50).communicate()[0].strip()


@pytest.mark.long
@pytest.mark.parametrize("devices", [2, 4])
def test_the_loss_curve_does_not_depend_on_the_devices(devices, undisturbed, tmp_path):
    process(tmp_path / "run", 50, devices).communicate()
    one, several = losses_of(undisturbed[0]), losses_of(tmp_path / "run")
    assert len(one) == 50
    np.testing.assert_allclose(several, one, rtol=1e-5)


@pytest.mark.long
def test_a_run_that_is_killed_goes_on_to_the_same_bits(undisturbed, tmp_path, request):
    random = np.random.default_rng()
    folder = tmp_path / "run"
    moments = sorted(random.integers(1, 50, request.config.getoption("--kills")))
    for lines in moments:
        running = process(folder, 50)
        log = folder / "log.csv"
        while running.poll() is None and not (log.is_file() and len(log.read_text().splitlines()) > lines):
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.05))
        running.kill()
        running.wait()
    end = process(folder, 50).communicate()[0].strip()
    assert end and end == undisturbed[1], f"killed behind the lines {moments} of the log"
    assert np.array_equal(losses_of(folder), losses_of(undisturbed[0]))


@pytest.mark.long
def test_a_signal_saves_what_was_learned(tmp_path):
    """As machines that are lent are taken back: SIGTERM, and soon SIGKILL; what is not in the log yet is kept too."""
    model, run = write_tiny_model(tmp_path / "model"), tmp_path / "run"
    train = [*SDJAX, "train", "text-to-image", write_pictures(tmp_path / "pictures"), run]
    choices = ["--model", model, "--batch-size", "2", "--log-every", "5", "--save-every", "10000"]
    running = subprocess.Popen([*train, *choices], stderr=subprocess.PIPE, text=True)
    log = run / "log.csv"
    while running.poll() is None and not (log.is_file() and len(log.read_text().splitlines()) > 1):
        time.sleep(0.01)
    running.terminate()
    said = running.communicate()[1].splitlines()
    assert said[-1] == "sdjax: interrupted" and "sdjax: saving; a second signal ends it at once" in said
    assert running.returncode == 128 + signal.SIGTERM
    with checkpoints(run) as manager:
        assert 5 <= 5 * len(losses_of(run)) <= manager.latest_step() < 5 * len(losses_of(run)) + 5


@pytest.mark.long
def test_parts_of_a_batch_and_computing_twice_change_nothing(tmp_path):
    ends = []
    for accumulate, remat in ((1, False), (4, True)):
        settings = Settings(steps=3, batch_size=8, accumulate=accumulate, remat=remat)
        ends.append(small_run.run(tmp_path / str(remat), settings, Intervals(1, 3)))
    for one, other in zip(*(jax.tree.leaves(end.params) for end in ends)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_learning_rate_rises_and_falls_where_it_is_asked_to():
    settings = Settings(steps=110, learning_rate=2.0, warmup_steps=10)
    falling = replace(settings, cosine_decay=True)
    assert [float(learning_rate(settings)(step)) for step in (0, 9, 10, 60, 109)] == pytest.approx([0.2, 1.82, 2, 2, 2])
    falls = [float(learning_rate(falling)(step)) for step in (0, 9, 10, 60, 110)]
    assert falls == pytest.approx([0.2, 1.82, 2, 1, 0])


@pytest.mark.long
def test_what_is_computed_in_bfloat16_is_learned_nearly_as_well(tmp_path):
    settings = Settings(steps=60, batch_size=10, learning_rate=1e-2, warmup_steps=0)
    losses = []
    for dtype in ("float32", "bfloat16"):
        end = small_run.run(tmp_path / dtype, replace(settings, dtype=dtype), Intervals(20, 60))
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves((end.params, end.ema)))
        losses.append(losses_of(tmp_path / dtype))
    exact, rounded = losses
    assert exact[2] < 0.9 * exact[0]
    np.testing.assert_allclose(rounded, exact, rtol=0.02)
    assert not np.array_equal(rounded, exact)


def test_a_log_says_how_fast_pictures_come_and_go(tmp_path):
    small_run.run(tmp_path / "run", Settings(steps=4, batch_size=2), Intervals(2, 4))
    with (tmp_path / "run" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"]
    with Image.open(tmp_path / "run" / "loss.png") as curve:
        assert curve.width > 2 * curve.height
    assert all(float(row["pictures_per_second"]) > 0 and 0 <= float(row["waiting"]) <= 1 for row in rows)


def test_a_loss_that_is_no_number_leaves_the_last_good_state(tmp_path, monkeypatch):
    def broken(params, frozen, batch, keys):
        metrics = small_run_loss(params, frozen, batch[:, :4], keys)
        return metrics | {"loss": metrics["loss"] * batch[:, 4, 0, 0]}

    small_run_loss = small_run.loss
    monkeypatch.setattr(small_run, "loss", broken)
    pictures = np.concatenate([small_run.PICTURES, np.ones_like(small_run.PICTURES[:, :1])], axis=1)
    monkeypatch.setattr(small_run, "PICTURES", pictures)
    settings = Settings(steps=4, batch_size=2)
    good = small_run.run(tmp_path / "good", settings, Intervals(10, 10))
    pictures[indices(10, 2, 0, 4)] = np.nan
    longer = replace(settings, steps=8)
    with pytest.raises(TrainingError, match=r"step 5: .*not finite.*lower learning rate"):
        small_run.run(tmp_path / "bad", longer, Intervals(10, 10))
    with checkpoints(tmp_path / "bad") as manager:
        assert manager.latest_step() == 4
    pictures[...] = 1  # and from there it goes on
    end = small_run.run(tmp_path / "bad", settings, Intervals(10, 10))
    assert all(map(np.array_equal, jax.tree.leaves(good), jax.tree.leaves(end)))
