"""IP-Adapters against diffusers, which reads the same tensors: projections, and whole predictions of a UNet."""

import jax
import numpy as np
import pytest
import torch
from test_models import SD1, nchw, nhwc, pair, relative_error
from test_sight import VISION

from sdjax.adapters.ip_adapter import ip_adapter_of, kernels_of
from sdjax.errors import CheckpointError, InputError
from sdjax.models.transformer import Seen

TOLERANCE = 1e-5
EMBEDS, HIDDEN, HEADS = VISION["projection_dim"], VISION["hidden_size"], 2


def tensor(random, *shape):
    return (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def projection(kind, width, random):
    def norm(name, size):
        return {f"{name}.weight": 1 + tensor(random, size), f"{name}.bias": tensor(random, size)}

    def dense(name, out, inputs, bias=True):
        return {f"{name}.weight": tensor(random, out, inputs)} | ({f"{name}.bias": tensor(random, out)} if bias else {})

    if kind == "plain":
        return dense("proj", 4 * width, EMBEDS) | norm("norm", width)
    if kind == "full face":
        return dense("proj.0", HIDDEN, HIDDEN) | dense("proj.2", width, HIDDEN) | norm("proj.3", width)
    inner, found = HEADS * 64, {"latents": tensor(random, 1, 6, 32)}
    found |= dense("proj_in", 32, HIDDEN) | dense("proj_out", width, 32) | norm("norm_out", width)
    for layer in (f"layers.{i}" for i in range(4)):
        found |= norm(f"{layer}.0.norm1", 32) | norm(f"{layer}.0.norm2", 32) | norm(f"{layer}.1.0", 32)
        found |= dense(f"{layer}.0.to_q", inner, 32, False) | dense(f"{layer}.0.to_kv", 2 * inner, 32, False)
        found |= dense(f"{layer}.0.to_out", 32, inner, False)
        found |= dense(f"{layer}.1.1", 128, 32, False) | dense(f"{layer}.1.3", 32, 128, False)
    return found


def adapter_for(unet, kind, width):
    """The two dicts of a file, random."""
    random = np.random.default_rng(0)
    layers, number = {}, 0
    for name in unet.attn_processors:
        if "attn2" in name:
            channels = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
            for key in ("to_k_ip", "to_v_ip"):
                layers[f"{2 * number + 1}.{key}.weight"] = tensor(random, channels, width)
            number += 1
    return {"image_proj": projection(kind, width, random), "ip_adapter": layers}


def flat(adapter):
    return {f"{part}.{name}": array for part, arrays in adapter.items() for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("config", "kind"),
    [(SD1, "plus"), *(pytest.param(SD1, kind, marks=pytest.mark.long) for kind in ("plain", "full face"))],
)
def test_predictions_with_a_picture(config, kind):
    module, params, theirs = pair("UNet2DConditionModel", config)
    width = config["cross_attention_dim"]
    file = adapter_for(theirs, kind, width)
    random = np.random.default_rng(1)
    sample, context = (
        random.standard_normal((2, 8, 8, 4), np.float32),
        random.standard_normal((2, 7, width), np.float32),
    )
    shape = (2, 1, EMBEDS) if kind == "plain" else (2, 1, 257, HIDDEN)
    seen = random.standard_normal(shape, np.float32)
    conditions = {"image_embeds": [torch.from_numpy(seen)]}
    theirs._load_ip_adapter_weights(
        [{part: {name: torch.from_numpy(array) for name, array in arrays.items()} for part, arrays in file.items()}]
    )
    with torch.no_grad():
        expected = theirs(
            nchw(sample), torch.tensor(500), torch.from_numpy(context), added_cond_kwargs=conditions
        ).sample
    adapter = ip_adapter_of(flat(file), "a file")
    assert adapter.reads == ("embeds" if kind == "plain" else "penultimate")
    tokens = adapter.projection.apply({"params": adapter.params}, seen[:, 0])
    places = [np.ones((2, side * side), np.float32) for side in (8, 4, 2, 1)]

    def looked(kernels):
        keys, values = (np.einsum("btw,lwc->bltc", tokens, kernel) for kernel in kernels)
        return [Seen(keys, values, np.ones(2, np.float32), places)]

    found = {name: looked(kernels) for name, kernels in kernels_of(adapter, module.config).items()}
    apply = jax.jit(lambda params, seen, *inputs: module.apply(params, *inputs, seen=seen))
    ours = apply({"params": params}, found, sample, np.full(2, 500), context)
    assert relative_error(ours, nhwc(expected)) <= TOLERANCE


def test_what_is_no_adapter():
    _, _, theirs = pair("UNet2DConditionModel", SD1)
    file = flat(adapter_for(theirs, "plain", 24))
    with pytest.raises(InputError, match="x is a FaceID adapter"):
        ip_adapter_of(file | {"image_proj.proj.2.bias": np.zeros(3, np.float32)}, "x")
    for wrong in ({"conv_in.weight": np.zeros(3)}, {"image_proj.norm.weight": np.zeros(5)}, {}):
        with pytest.raises(CheckpointError, match="x is no IP-Adapter"):
            ip_adapter_of(wrong, "x")
    del file["ip_adapter.3.to_k_ip.weight"]
    with pytest.raises(CheckpointError, match="does not hold a to_k_ip and a to_v_ip"):
        ip_adapter_of(file, "x")
