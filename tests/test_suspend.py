"""A batch that is suspended, resumed in another process and branched has the bits of uninterrupted runs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sdjax.errors import CheckpointError, InputError
from sdjax.pipeline import load_state, save_state
from sdjax.pipeline.request import pictures_of

ROW, STEPS = 7, 10
PROMPTS = ["a red heart", "a [green:blue:0.8] star"]  # the text of the second changes after the row
BEFORE, BRANCHES = 3.0, (1.0, 5.0)
RESUME = """
import sys, numpy as np, sdjax
from sdjax.pipeline import load_state
sys.path.insert(0, "tests")
from test_suspend import pictures
model, folder, rng, sampler = sys.argv[1:]
pipe = sdjax.load(model)
for scale in (1.0, 5.0):
    batch = pipe.begin(pipe.prepare(pictures(rng, sampler, scale)))
    *_, last = pipe.denoise(batch, state=load_state(f"{folder}/state.safetensors"))
    np.save(f"{folder}/{scale}.npy", batch.latents(last))
"""


def pictures(rng: str, sampler: str, after: float):
    """Two pictures with one guidance scale before the row, and another one after it."""
    scales = (BEFORE,) * ROW + (after,) * (STEPS - ROW)
    settings = {"guidance_scale": [scales] * 2, "num_inference_steps": STEPS, "rng": rng, "sampler": sampler}
    return pictures_of(PROMPTS, settings, seed=3)


@pytest.mark.long
@pytest.mark.parametrize(("rng", "sampler"), [("jax", "dpmpp_2m"), ("torch", "euler_ancestral")])
def test_a_run_goes_on_in_another_process_under_other_settings(pipe, small, tmp_path, rng, sampler):
    order = pipe.prepare(pictures(rng, sampler, BEFORE))
    batch = pipe.begin(order)
    step = next(pipe.denoise(batch, stops=[ROW]))
    save_state(tmp_path / "state.safetensors", batch.on_host(step), order)
    run = subprocess.run(
        [sys.executable, "-c", RESUME, small, tmp_path, rng, sampler],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    for scale in BRANCHES:
        uninterrupted = pipe.draw(pictures(rng, sampler, scale), output_type="latent").images
        assert np.array_equal(np.load(tmp_path / f"{scale}.npy"), uninterrupted)


def test_states_come_where_they_are_wanted_and_change_nothing(pipe):
    order = pipe.prepare(pictures("jax", "euler", BEFORE))
    batch = pipe.begin(order)
    estimates = {}
    for step in pipe.denoise(batch, stops=[2, 5]):
        estimates[step.row] = batch.estimate(step)
    assert list(estimates) == [2, 5, STEPS]
    assert np.array_equal(batch.latents(step), pipe.draw(order.pictures, output_type="latent").images)
    assert not np.array_equal(estimates[2], estimates[5])


def test_a_state_of_another_batch_is_refused(pipe, tmp_path):
    order = pipe.prepare(pictures("jax", "euler", BEFORE))
    batch = pipe.begin(order)
    state = batch.on_host(next(pipe.denoise(batch, stops=[ROW])))
    one = pipe.begin(pipe.prepare(order.pictures[:1]))
    with pytest.raises(InputError, match="the state is of another batch"):
        next(pipe.denoise(one, state=state))
    finished = state._replace(row=np.full(2, STEPS, np.int32))
    with pytest.raises(InputError, match="after the last of 10 rows"):
        next(pipe.denoise(batch, state=finished))
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_state(tmp_path / "other.safetensors")
