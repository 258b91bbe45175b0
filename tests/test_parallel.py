"""Several devices. XLA makes as many of the CPU as it is told before it starts, so each count is its own process."""

import os
import subprocess
import sys

import numpy as np
import pytest

DRAW = """
import sys, numpy as np, sdjax, jax
pipe = sdjax.load()
prompts = ["a star", "a blue ring", "a red heart"]
out = pipe(prompts, seed=4, num_inference_steps=4, sampler="euler_ancestral", output_type="np")
assert jax.local_device_count() == int(sys.argv[1])
np.save(sys.argv[2], out.images)
"""


def draw(devices: int, folder) -> np.ndarray:
    flags = f"--xla_force_host_platform_device_count={devices}"
    path = folder / f"{devices}.npy"
    subprocess.run(
        [sys.executable, "-c", DRAW, str(devices), str(path)], env=os.environ | {"XLA_FLAGS": flags}, check=True
    )
    return np.load(path)


@pytest.fixture(scope="module")
def on_one(tmp_path_factory) -> np.ndarray:
    return draw(1, tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("devices", [2, 4])  # three pictures divide over neither
def test_pictures_do_not_depend_on_the_devices(devices, on_one, tmp_path):
    several = draw(devices, tmp_path)
    assert several.shape == (3, 64, 64, 3)
    assert np.abs(on_one - several).max() <= 1 / 255
