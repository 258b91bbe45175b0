"""ControlNets and T2I adapters against diffusers: random weights, float32, relative error at most 1e-5."""

import diffusers
import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from test_models import SD1, XL, nchw, nhwc, pair, relative_error, unet_config

import sdjax
from sdjax.convert import convert, export
from sdjax.models.unet import Residuals
from sdjax.models.unet_encoder import Added

TOLERANCE = 1e-5
OF_THE_UNET = ("up_block_types", "out_channels", "sample_size", "time_cond_proj_dim")


def net_config(unet: dict, **rest) -> dict:
    config = {name: value for name, value in unet.items() if name not in OF_THE_UNET}
    return {**config, "conditioning_embedding_out_channels": [4, 8, 12, 16], **rest}


TWO = unet_config("A-", (16, 24))
NETS = {
    "sd1": net_config(SD1),
    "xl": net_config(XL),
    "no attention in the middle": net_config(TWO, mid_block_type="UNetMidBlock2D"),
    "without attention": net_config(
        unet_config("--", (16, 24)), mid_block_type="UNetMidBlock2D", transformer_layers_per_block=[0, 0]
    ),
    "bgr": net_config(TWO, controlnet_conditioning_channel_order="bgr"),
    "pooled": net_config(TWO, global_pool_conditions=True),
    "four channels of hint": net_config(TWO, conditioning_channels=4),
    "inpainting": net_config(TWO, in_channels=9, layers_per_block=1),
    "one level": net_config(unet_config("A", (16,)), conditioning_embedding_out_channels=[4, 8]),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("size", [(7, 10), pytest.param((8, 8), marks=pytest.mark.long)])
def test_controlnet(name, size):
    config = NETS[name]
    module, params, theirs = pair("ControlNetModel", config)
    random = np.random.default_rng(0)
    sample = random.standard_normal((2, *size, module.config.in_channels), np.float32)
    hint = random.random((2, *(module.config.factor * side for side in size), module.config.conditioning_channels))
    hint = hint.astype(np.float32)
    context = random.standard_normal((2, 7, module.config.cross_attention_dim), np.float32)
    times = np.array([3.0, 700.0], np.float32)
    added, their_added = None, None
    if module.config.is_xl:
        pooled = random.standard_normal((2, config["projection_class_embeddings_input_dim"] - 6 * 8), np.float32)
        added = Added(pooled, random.uniform(0, 1024, (2, 6)).astype(np.float32))
        their_added = {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(np.array(added.time_ids))}
    with torch.no_grad():
        skips, middle = theirs(
            nchw(sample), torch.from_numpy(times), torch.from_numpy(context), nchw(hint),
            added_cond_kwargs=their_added, return_dict=False,
        )  # fmt: skip
    got = jax.jit(module.apply)({"params": params}, hint, sample, times, context, None, added)
    assert len(got.skips) + 1 == module.config.residuals
    for ours, expected in zip([*got.skips, got.middle], [*skips, middle], strict=True):
        assert relative_error(ours, nhwc(expected)) <= TOLERANCE


UNIONS = [
    {},
    {"num_control_type": 8, "num_trans_head": 4, "num_trans_layer": 2},
    {"conditioning_channels": 4, "layers_per_block": 1, "num_trans_head": 2},
]


@pytest.mark.few(1)
@pytest.mark.parametrize("changes", UNIONS, ids=str)
def test_controlnet_union(changes):
    channels = XL["block_out_channels"][0]
    config = net_config(XL, num_trans_channel=channels, num_proj_channel=channels, **changes)
    module, params, theirs = pair("ControlNetUnionModel", config)
    random = np.random.default_rng(0)
    sample = random.standard_normal((2, 7, 10, 4), np.float32)
    # Pictures with other hints would change each other in diffusers: see `models.controlnet_union.OfItself`.
    hint = random.random((1, 56, 80, module.config.conditioning_channels), np.float32).repeat(2, 0)
    context = random.standard_normal((2, 7, module.config.cross_attention_dim), np.float32)
    times = np.array([3.0, 700.0], np.float32)
    pooled = random.standard_normal((2, config["projection_class_embeddings_input_dim"] - 6 * 8), np.float32)
    added = Added(pooled, random.uniform(0, 1024, (2, 6)).astype(np.float32))
    their_added = {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(np.array(added.time_ids))}
    for kind in (0, module.config.num_control_type - 1):
        kinds = np.full(2, kind)
        with torch.no_grad():
            skips, middle = theirs(
                nchw(sample), torch.from_numpy(times), torch.from_numpy(context), [nchw(hint)],
                torch.eye(module.config.num_control_type)[kinds], [kind], 1.0,
                added_cond_kwargs=their_added, return_dict=False,
            )  # fmt: skip
        got = jax.jit(module.apply)({"params": params}, hint, kinds, sample, times, context, None, added)
        for ours, expected in zip([*got.skips, got.middle], [*skips, middle], strict=True):
            assert relative_error(ours, nhwc(expected)) <= TOLERANCE


@pytest.mark.long
def test_files_of_a_union(tmp_path):
    """A directory that diffusers writes, its file alone, and back bit for bit."""
    widths = [32 for _ in XL["block_out_channels"]]  # what a file alone says nothing of is as in the published nets
    more = {"addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 6 * 256 + 16}
    more |= {"block_out_channels": widths, "norm_num_groups": 32, "num_trans_channel": 32, "num_proj_channel": 32}
    config = net_config(XL | more)
    _, params, theirs = pair("ControlNetUnionModel", config)
    theirs.save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "diffusion_pytorch_model.safetensors"
    back = export(convert(tmp_path / "theirs", tmp_path / "ours"), tmp_path / "back")
    there, again = load_file(file), load_file(back / file.name)
    assert {name: array.tobytes() for name, array in again.items()} == {k: a.tobytes() for k, a in there.items()}
    for found in (tmp_path / "theirs", file, back):
        net = sdjax.load_condition(found)
        assert net.module.config.num_control_type == 6 and net.module.config.num_trans_layer == 1
        jax.tree.map(np.testing.assert_array_equal, net.params, params)


ADAPTERS = [
    {
        "adapter_type": kind,
        "in_channels": channels,
        "channels": widths,
        "num_res_blocks": resnets,
        "downscale_factor": factor,
    }
    for kind, channels, widths, resnets, factor in (
        ("full_adapter", 3, [16, 24], 2, 8),
        ("full_adapter", 1, [16, 16, 24, 24], 1, 4),
        ("full_adapter", 3, [8, 16, 24], 3, 2),
        ("full_adapter_xl", 3, [16, 24, 32, 32], 2, 16),
        ("full_adapter_xl", 1, [8, 8, 12, 12], 1, 4),
        ("light_adapter", 3, [16, 24, 32], 4, 8),
        ("light_adapter", 1, [8, 12], 1, 4),
        ("light_adapter", 3, [16], 2, 2),
    )
]


@pytest.mark.few(5)
@pytest.mark.parametrize("config", ADAPTERS, ids=str)
@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_adapter(config, size):
    module, params, theirs = pair("T2IAdapter", config)
    hint = np.random.default_rng(0).random((2, *(module.config.factor * side for side in size), config["in_channels"]))
    hint = hint.astype(np.float32)
    with torch.no_grad():
        expected = theirs(nchw(hint))
    got = jax.jit(module.apply)({"params": params}, hint)
    assert len(got) == module.config.residuals
    for ours, their in zip(got, expected, strict=True):
        assert relative_error(ours, nhwc(their)) <= TOLERANCE


@pytest.mark.few(1)
@pytest.mark.parametrize(("down", "extra"), [("A-", 0), ("-A", 0), ("--", 0), ("AA", 0), ("-A", 1)])
@pytest.mark.parametrize("with_net", [False, True])
def test_what_adapters_and_nets_add_to_a_unet(down, extra, with_net):
    """extra: a feature for the middle. A net adds to the skips that adapters have changed already."""
    config = unet_config(down, (16, 24))
    module, params, theirs = pair("UNet2DConditionModel", config)
    random = np.random.default_rng(0)
    sample = random.standard_normal((2, 8, 12, 4), np.float32)
    context = random.standard_normal((2, 7, module.config.cross_attention_dim), np.float32)
    times = np.array([3.0, 700.0], np.float32)
    # Without attention the addition comes after the resampler.
    sizes = [(4, 6) if down[0] == "-" else (8, 12), (4, 6), (4, 6)][: 2 + extra]
    levels = [random.standard_normal((2, *size, width), np.float32) for size, width in zip(sizes, (16, 24, 24))]
    skips, middle = [], None
    if with_net:
        shapes = [(8, 12, 16)] * 3 + [(4, 6, 16)] + [(4, 6, 24)] * 2
        skips = [random.standard_normal((2, *shape), np.float32) for shape in shapes]
        middle = random.standard_normal((2, 4, 6, 24), np.float32)
    with torch.no_grad():
        expected = theirs(
            nchw(sample), torch.from_numpy(times), torch.from_numpy(context),
            down_intrablock_additional_residuals=[nchw(level) for level in levels],
            down_block_additional_residuals=tuple(map(nchw, skips)) if with_net else None,
            mid_block_additional_residual=nchw(middle) if with_net else None,
        ).sample  # fmt: skip
    residuals = Residuals(skips, middle, levels)
    got = jax.jit(module.apply)({"params": params}, sample, times, context, residuals=residuals)
    assert relative_error(got, nhwc(expected)) <= TOLERANCE


def test_several_adapters_are_summed_with_their_weights():
    configs = [ADAPTERS[0], {**ADAPTERS[0], "num_res_blocks": 1}]
    pairs = [pair("T2IAdapter", config, seed) for seed, config in enumerate(configs)]
    hints = [np.random.default_rng(i).random((1, 64, 64, 3)).astype(np.float32) for i in range(2)]
    with torch.no_grad():
        expected = diffusers.MultiAdapter([theirs for *_, theirs in pairs])([nchw(hint) for hint in hints], [0.7, 0.4])
    ours = [module.apply({"params": params}, hint) for (module, params, _), hint in zip(pairs, hints)]
    for first, second, their in zip(*ours, expected, strict=True):
        assert relative_error(0.7 * first + 0.4 * second, nhwc(their)) <= TOLERANCE
