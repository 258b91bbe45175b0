"""Several devices. XLA makes as many of the CPU as it is told before it starts, so each count is its own process."""

import os
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from tiny_training import XL, write_tiny_model

from sdjax.files.checkpoint import read_model
from sdjax.parallel import _is_known, compiler_options, pmap
from sdjax.shards import WHOLE, axis_to_cut
from sdjax.training.lora import begin_factors, write_lora

LARGE = {"unet": XL["unet"] | {"block_out_channels": [128]}}  # some of whose kernels are large enough to be cut
DRAW = """
import sys, numpy as np, sdjax, jax
pipe = sdjax.load(sys.argv[3])
prompts = ["a star", "a blue ring", "a red heart"]
out = pipe(prompts, seed=4, num_inference_steps=4, sampler="euler_ancestral", output_type="np")
assert jax.local_device_count() == int(sys.argv[1])
# Then one picture: guidance, a row without it, CFG++, and several conditions.
settings = dict(seed=4, sampler="euler", height=32, width=32, output_type="latent")
changing, plus_plus = dict(guidance_scale=[[7.5, 1.0, 3.0, 7.5]]), dict(guidance_scale=2.0, cfg_plus_plus=True)
runs = [changing, dict(negative_prompt="red", **plus_plus), dict(prompt="a star AND blue AND red :-0.5")]
drawn = [pipe(**dict(prompt="a blue star", num_inference_steps=4) | settings | run).images for run in runs]
np.savez(sys.argv[2], several=out.images, one=drawn)
"""


def run(devices: int, folder: Path, *arguments: Path, code: str):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    path = folder / f"{devices}.npz"
    command = [sys.executable, "-c", code, str(devices), str(path), *map(str, arguments)]
    subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, check=True)
    return np.load(path)


@pytest.fixture(scope="module")
def drawn(small, tmp_path_factory):
    """What so many devices draw: the pictures of `several`, and the latents of `one`."""
    folder = tmp_path_factory.mktemp("drawn")
    return cache(lambda devices: run(devices, folder, small, code=DRAW))


@pytest.mark.long
@pytest.mark.few(1)
@pytest.mark.parametrize("devices", [2, 4])  # three pictures divide over neither
def test_pictures_do_not_depend_on_the_devices(devices, drawn):
    alone, several = drawn(1)["several"], drawn(devices)["several"]
    assert several.shape == (3, 64, 64, 3)
    assert np.abs(alone - several).max() <= 1 / 255


@pytest.mark.long
def test_two_devices_share_the_halves_of_one_pictures_guidance(drawn):
    alone, shared = (drawn(devices)["one"] for devices in (1, 2))
    assert np.abs(alone - shared).max() <= 1e-4 * np.abs(alone).max()
    assert np.abs(alone[0] - alone[1]).max() > 0.01  # the settings are not the same picture


WHOLE_OR_CUT = """
import sys, numpy as np, jax, sdjax
from sdjax.parallel import bytes_of_a_device
drawn = {}
for cut in (False, True):
    pipe = sdjax.load(sys.argv[3], shard_parameters=cut)
    pipe.load_lora_weights(sys.argv[4])
    how = dict(seed=4, sampler="euler_ancestral", output_type="latent")
    drawn[f"several_{cut}"] = pipe(["a star", "a ring", "a cat"], num_inference_steps=[2, 3, 1], **how).images
    drawn[f"one_{cut}"] = pipe("a star", num_inference_steps=2, **how).images  # the halves of guidance side by side
    drawn[f"bytes_{cut}"] = bytes_of_a_device(pipe.params["unet"])
np.savez(sys.argv[2], **drawn)
"""


@pytest.mark.long
@pytest.mark.parametrize("devices", [2, 4])
def test_parameters_in_parts_draw_the_same(devices, tmp_path):
    """With stacked blocks and a LoRA; several pictures, some of which are done before others, and one."""
    model, lora = write_tiny_model(tmp_path / "model", XL | LARGE), tmp_path / "lora.safetensors"
    write_lora(
        lora, begin_factors({"text_encoder": read_model(model).components["text_encoder"].params}, 2, 0), "a test"
    )
    found = run(devices, tmp_path, model, lora, code=WHOLE_OR_CUT)
    for drawn in ("several", "one"):
        whole, cut = found[f"{drawn}_False"], found[f"{drawn}_True"]
        assert np.abs(whole - cut).max() <= 1e-5 * np.abs(whole).max()
    assert found["bytes_True"] < 0.7 * found["bytes_False"]


@pytest.mark.parametrize(
    ("shape", "devices", "axis"),
    [
        ((320, 1280), 4, -2),
        ((3, 3, 321, 1280), 4, -1),
        ((10, 1280, 1280), 8, -2),  # of stacked layers
        ((321, 1281), 4, None),
        ((256, WHOLE // 256), 4, None),
        ((320, 1280), 1, None),
    ],
)
def test_kernels_are_cut_by_inputs_where_they_divide(shape, devices, axis):
    assert axis_to_cut(shape, devices) == axis


SHARES = """
import sys, jax, numpy as np
from functools import partial
from sdjax.models.layers import Dense
from sdjax.parallel import pmap, shard, sharding, unshard
from sdjax.shards import InParts
devices = jax.local_device_count()
batch = {"x": np.arange(6.0).reshape(3, 2), "key": jax.random.split(jax.random.key(0), 3)}
placed = shard(batch)
assert placed["x"].shape == (-(-3 // devices) * devices, 2), placed["x"].shape
seen = pmap(partial(lambda batch: jax.tree.map(lambda leaf: leaf, batch)), in_axes=(0,))(placed)
kernel = InParts(np.arange(8.0).reshape(4, 2), -2)
kernel = kernel.replace_boxed(jax.device_put(kernel.part, sharding(kernel.spec)))
product = lambda params, x: Dense(2, use_bias=False).apply({"params": params}, x)
products = pmap(partial(product), in_axes=(None, 0))({"kernel": kernel}, shard(np.ones((4, 4), np.float32)))
assert np.array_equal(products, [[12, 16]] * 4), products
assert kernel.part.addressable_shards[0].data.shape == (4 // devices, 2)
assert len(seen["x"].addressable_shards) == devices == int(sys.argv[1])
np.savez(sys.argv[2], x=unshard(seen["x"], 3))
"""


@pytest.mark.few(1)
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_batch_is_shared_out_and_comes_back_without_its_padding(devices, tmp_path):
    assert np.array_equal(run(devices, tmp_path, code=SHARES)["x"], np.arange(6.0).reshape(3, 2))


@pytest.mark.parametrize("axis", [1, -1])
def test_other_axes_are_refused(axis):
    with pytest.raises(ValueError, match=r"in_axes can be 0 .* or None .*, not"):
        pmap(partial(np.negative), in_axes=(axis,))


def test_options_that_xla_does_not_know_are_left_out():
    """Those that programs for a CPU are fast with are there, in every version that is tested."""
    assert not _is_known("xla_cpu_was_never_there", "1")
    assert "xla_cpu_experimental_ynn_fusion_type" in compiler_options()
