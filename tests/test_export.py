"""The whole text-to-image program at the size of Stable Diffusion 1.5 lowers for accelerators.

It cannot run here at that size in a test's time, but what does not lower will never run anywhere.
"""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import ShapeDtypeStruct as Shape

from sdjax import programs, schedulers
from sdjax.guidance import cfg
from sdjax.halves import Conditioning
from sdjax.models import abstract_params, build
from sdjax.models.attention import cudnn_is_installed
from sdjax.models.platform import target_platform
from sdjax.random import normal

COMPONENTS = {"text_encoder": "CLIPTextModel", "unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}


def text_to_image(modules, params, ids, negative_ids, plan, start_keys, step_keys, guidance):
    def encode(ids):
        ids = ids[:, :, None]
        weights, skip = jnp.ones(ids.shape), jnp.zeros(ids.shape[0], jnp.int32)
        encoders, own = (modules["text_encoder"],), (params["text_encoder"],)
        return programs.encode_text(encoders, own, ids, weights, skip, skip != 0, is_xl=False)

    noise = normal(start_keys, (64, 64, 4))
    state = schedulers.init_state(plan, noise)
    positive, negative = (encode(each) for each in (ids, negative_ids))
    shared = {"channels": jnp.zeros((2, 64, 64, 0)), "class_labels": None, "guidance": None}
    conditioning = Conditioning(positive, negative, shared)
    known = schedulers.Known(jnp.zeros_like(noise), noise, jnp.zeros((2, 64, 64, 1)))
    inputs = (conditioning, guidance, known, step_keys, jnp.int32(1000))
    state = programs.denoise(modules["unet"], params["unet"], plan, state, *inputs, guided=True)
    return programs.decode(modules["vae"], params["vae"], schedulers.result(plan, state), None)


KERNELS = {"cuda": "__cudnn$fmhaSoftmax", "tpu": "tpu_custom_call"}  # attention's


@pytest.mark.long
@pytest.mark.parametrize(("platform", "dtype"), [("cuda", "bfloat16"), ("tpu", "bfloat16")])
def test_text_to_image_lowers(shared, platform, dtype):
    folder = shared / "reference" / "hub" / "runwayml" / "stable-diffusion-v1-5"
    modules = {
        name: build(cls, json.loads((folder / name / "config.json").read_text())) for name, cls in COMPONENTS.items()
    }
    params = {
        name: jax.tree.map(lambda leaf: Shape(leaf.shape, dtype), abstract_params(module))
        for name, module in modules.items()
    }
    plan = schedulers.stack([schedulers.create("dpmpp_2m", "karras").plan(20)] * 2)
    plan = jax.tree.map(lambda leaf: Shape(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype)), plan)
    rows = plan.sigmas.shape[-1]
    guidance = jax.tree.map(lambda leaf: Shape(leaf.shape, leaf.dtype), cfg(np.zeros((2, rows), np.float32)))
    ids, keys = Shape((2, 2, 77), jnp.int32), jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    arguments = (params, ids, ids, plan, keys, keys, guidance)
    with target_platform({"cuda": "gpu"}.get(platform, platform)):
        unpromised = [jax.export.DisabledSafetyCheck.custom_call(name) for name in KERNELS.values()]
        traced = jax.jit(partial(text_to_image, modules))
        exported = jax.export.export(traced, platforms=[platform], disabled_checks=unpromised)(*arguments)
    assert exported.out_avals[0].shape == (2, 512, 512, 3)
    found = {name for name in KERNELS if KERNELS[name] in exported.mlir_module()}
    assert found == ({platform} if platform == "tpu" or cudnn_is_installed() else set())
