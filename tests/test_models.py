"""The networks without PyTorch: strict configurations, names, shapes, attention, precision."""

import json
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from scipy.special import ndtr

from sdjax.errors import ConfigError, InputError
from sdjax.models import (
    AutoencoderTinyConfig,
    CLIPTextConfig,
    UNetConfig,
    VAEConfig,
    abstract_params,
    attention,
    build,
    convolution,
)
from sdjax.models.activations import gelu
from sdjax.models.attention import by_heads, chunked
from sdjax.models.convolution import Conv3x3, by_taps, winograd
from sdjax.models.layers import GroupNorm, LayerNorm
from sdjax.models.platform import target_platform
from sdjax.models.precision import quantised
from sdjax.models.transformer import GEGLU

PUBLISHED = [
    "runwayml/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-inpainting",
    "stabilityai/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-inpainting",
    "stabilityai/stable-diffusion-x4-upscaler",
]
COMPONENTS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}

UNET = {
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
}
VAE = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
}
TINY_VAE = {
    "encoder_block_out_channels": [8, 8],
    "decoder_block_out_channels": [8, 8],
    "num_encoder_blocks": [1, 2],
    "num_decoder_blocks": [2, 1],
}
CLIP = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}


def random_params(module, dtype=jnp.float32, seed: int = 0):
    """Every parameter random, small enough for activations to keep their size."""
    leaves, tree = jax.tree.flatten(abstract_params(module))
    random = np.random.default_rng(seed)
    values = [random.standard_normal(leaf.shape) * 0.5 / max(1, np.prod(leaf.shape[:-1])) ** 0.5 for leaf in leaves]
    return jax.tree.unflatten(tree, [jnp.asarray(value, dtype) for value in values])


def unet_inputs(config: UNetConfig, batch: int = 3, size: tuple[int, int] = (8, 6), seed: int = 0):
    random = np.random.default_rng(seed)
    sample = random.standard_normal((batch, *size, config.in_channels), np.float32)
    context = random.standard_normal((batch, 7, config.cross_attention_dim), np.float32)
    return sample, random.uniform(0, 1000, batch).astype(np.float32), context


# Configurations


@pytest.mark.few(1)
@pytest.mark.parametrize(("model", "time_ids"), [("base", 6), ("refiner", 5)])
def test_published_configs_of_xl_are_understood(model, time_ids, shared):
    """As many parameters as the original files have."""
    folder = shared / "reference" / "hub" / "stabilityai" / f"stable-diffusion-xl-{model}-1.0" / "unet"
    unet = build("UNet2DConditionModel", json.loads((folder / "config.json").read_text()))
    keys = json.loads((shared / "reference" / "ldm-keys" / f"sdxl-{model}.json").read_text())
    shapes = [shape for name, (shape, _) in keys.items() if name.startswith("model.diffusion_model.")]
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(unet)))
    assert count == sum(map(math.prod, shapes))
    assert unet.config.time_ids(1280) == time_ids


@pytest.mark.few(6)
@pytest.mark.parametrize("repository", PUBLISHED)
@pytest.mark.parametrize("component", COMPONENTS)
def test_published_configs_are_understood(shared, repository, component):
    path = shared / "reference" / "hub" / repository / component / "config.json"
    params = abstract_params(build(COMPONENTS[component], json.loads(path.read_text())))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (UNetConfig, {"layer_per_block": 2}, "unknown key 'layer_per_block' = 2, did you mean 'layers_per_block'?"),
        (UNetConfig, {"zzz": None}, "unknown key 'zzz' = None"),
        (UNetConfig, {"act_fn": "mish"}, "act_fn = 'mish' is not implemented, only 'silu' or 'swish'"),
        (UNetConfig, {"center_input_sample": True}, "center_input_sample = True is not implemented, only False"),
        (UNetConfig, {"in_channels": "4"}, "in_channels = '4' is not a positive integer"),
        (UNetConfig, {"in_channels": True}, "in_channels = True is not a positive integer"),
        (UNetConfig, {"layers_per_block": [1, 0]}, "layers_per_block = [1, 0] is not a positive integer or a list"),
        (UNetConfig, {"block_out_channels": []}, "block_out_channels = [] is not a list"),
        (UNetConfig, {"norm_num_groups": None}, "norm_num_groups = None is not a positive integer"),
        (UNetConfig, {"norm_num_groups": 3}, "block_out_channels[0] = 8 is not divisible by norm_num_groups = 3"),
        (UNetConfig, {"attention_head_dim": 3}, "block_out_channels[0] = 8 is not divisible by attention heads = 3"),
        (UNetConfig, {"attention_head_dim": [2, 5]}, "block_out_channels[1] = 16 is not divisible by"),
        (UNetConfig, {"num_attention_heads": 5}, "block_out_channels[0] = 8 is not divisible by attention heads = 5"),
        (UNetConfig, {"down_block_types": ["DownBlock2D"]}, "does not have one entry for each of the 2 block_out"),
        (UNetConfig, {"attention_head_dim": [2, 2, 2]}, "attention_head_dim = (2, 2, 2) does not have one entry"),
        (UNetConfig, {"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, "'AttnUpBlock2D' is not implemented"),
        (UNetConfig, {"class_embed_type": "projection"}, "class_embed_type: 'projection' is not implemented"),
        (UNetConfig, {"mid_block_type": None}, "mid_block_type = None is not a string"),
        (UNetConfig, {"addition_embed_type": "text"}, "addition_embed_type: 'text' is not implemented"),
        (UNetConfig, {"addition_embed_type": "text_time"}, "addition_time_embed_dim belongs to addition_embed_type"),
        (UNetConfig, {"addition_time_embed_dim": 8}, "belongs to addition_embed_type 'text_time', and is 8"),
        (VAEConfig, {"latents_mean": [0.1]}, "does not have one entry for each of the 4 latent_channels"),
        (VAEConfig, {"shift_factor": 0.1}, "shift_factor = 0.1 is not implemented, only None"),
        (VAEConfig, {"scaling_factor": "big"}, "scaling_factor = 'big' is not a number"),
        (VAEConfig, {"up_block_types": ["UpDecoderBlock2D"]}, "does not have one entry for each of the 2 block_out"),
        (VAEConfig, {"down_block_types": ["DownBlock2D"] * 2}, "only 'DownEncoderBlock2D'"),
        (VAEConfig, {"norm_num_groups": 16}, "block_out_channels[0] = 8 is not divisible by norm_num_groups = 16"),
        (AutoencoderTinyConfig, {"act_fn": "gelu"}, "act_fn = 'gelu' is not implemented, only 'relu'"),
        (AutoencoderTinyConfig, {"num_encoder_blocks": [1]}, "does not have one entry for each of the 2 decoder_block"),
        (AutoencoderTinyConfig, {"decoder_block_out_channels": [8, 4]}, "(8, 4) is not implemented, only equal"),
        (CLIPTextConfig, {"model_type": "t5"}, "model_type = 't5' is not implemented, only 'clip_text_model'"),
        (CLIPTextConfig, {"hidden_act": "relu"}, "hidden_act = 'relu' is not implemented"),
        (CLIPTextConfig, {"num_attention_heads": 3}, "hidden_size = 16 is not divisible by num_attention_heads = 3"),
        (CLIPTextConfig, {"num_hidden_layers": 0}, "num_hidden_layers = 0 is not a positive integer"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_named(config, change, message):
    base = {UNetConfig: UNET, VAEConfig: VAE, AutoencoderTinyConfig: TINY_VAE, CLIPTextConfig: CLIP}[config]
    config.from_dict(base)
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        config.from_dict({**base, **change})
    assert "\n" not in str(error.value) and str(error.value).startswith(config.__name__)


def test_an_unknown_class_is_named():
    with pytest.raises(ConfigError, match="'T5EncoderModel' is not implemented, only AutoencoderKL, AutoencoderTiny"):
        build("T5EncoderModel", {})


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())))
def test_any_other_key_is_an_error(extra):
    """Whatever a config holds beyond what is known, it is refused or plainly marked as a note."""
    known = {**UNetConfig.neutral, **dict.fromkeys(UNetConfig.unused), **UNetConfig.__dataclass_fields__}
    unknown = [key for key in extra if key not in known and not key.startswith("_")]
    extra = {key: value for key, value in extra.items() if key not in known}
    if not unknown:
        assert UNetConfig.from_dict({**UNET, **extra}) == UNetConfig.from_dict(UNET)
    else:
        with pytest.raises(ConfigError, match="unknown key"):
            UNetConfig.from_dict({**UNET, **extra})


# Parameters


@pytest.mark.parametrize("component", COMPONENTS)
def test_parameters_are_named_as_in_the_checkpoint(shapes_sd, component):
    """Indices of lists joined by "_", the rest letter by letter; PyTorch has one name, weight, for three of ours."""
    (path,) = (shapes_sd / component).glob("*.safetensors")
    with safe_open(path, "numpy") as file:
        theirs = {re.sub(r"\.(\d+)(?=\.)", r"_\1", name).replace(".", "/") for name in file.keys()}  # noqa: SIM118
    module = build(COMPONENTS[component], json.loads((shapes_sd / component / "config.json").read_text()))
    ours = flatten_dict(abstract_params(module), sep="/")
    assert {re.sub("(kernel|scale|embedding)$", "weight", name) for name in ours} == theirs


# Attention


def exact_attention(q, k, v, causal):
    """The definition, in float64; [batch, heads, tokens, head_dim]."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if causal:
        logits[..., ~np.tri(*logits.shape[-2:], dtype=bool)] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def random_qkv(seed, batch, heads, tokens, keys, head_dim, scale=1.0):
    random = np.random.default_rng(seed)
    return tuple(
        random.standard_normal((batch, heads, length, head_dim), np.float32) * scale for length in (tokens, keys, keys)
    )


@pytest.mark.long
@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, limit) for limit in (3, 3, 40, 40, 9))),
    queries=st.integers(1, 50),
    causal=st.booleans(),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_attention_is_softmax(shape, queries, causal, scale, seed):
    """Whatever the shape, however the queries are cut up, and however large the logits."""
    q, k, v = random_qkv(seed, *shape, scale=scale)
    expected = exact_attention(q, k, v, causal)
    limit = {"rtol": 0, "atol": 2e-6 * scale * max(1.0, scale) ** 2}  # logits grow, and err, with scale squared
    np.testing.assert_allclose(chunked(q, k, v, causal=causal, queries=queries), expected, **limit)
    np.testing.assert_allclose(by_heads(q, k, v, causal=causal), expected, **limit)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize(("tokens", "keys", "causal"), [(1030, 77, False), (1030, 1030, False), (77, 77, True)])
def test_attention_for_every_platform(platform, tokens, keys, causal):
    q, k, v = random_qkv(0, 2, 2, tokens, keys, 8)
    with target_platform(platform):
        out = jax.jit(lambda q, k, v: attention(q, k, v, causal=causal))(*(x.swapaxes(1, 2) for x in (q, k, v)))
    np.testing.assert_allclose(out.swapaxes(1, 2), exact_attention(q, k, v, causal), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("tokens", "keys", "causal"), [(1030, 77, False), (1030, 300, False), (77, 77, True)])
def test_derivatives_of_attention(tokens, keys, causal):
    """The CPU's form has a derivative of its own; the textbook's is what XLA derives from one product of all heads."""
    *arrays, toward = (
        jnp.asarray(x) for x in (*random_qkv(1, 1, 6, tokens, keys, 8), *random_qkv(2, 1, 6, tokens, 1, 8)[:1])
    )
    ours = jax.vjp(partial(by_heads, causal=causal), *arrays)[1](toward)
    textbook = jax.vjp(partial(chunked, causal=causal, queries=tokens), *arrays)[1](toward)
    for one, other in zip(ours, textbook):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * float(jnp.abs(other).max()))


# Layers


@pytest.mark.long
@settings(max_examples=20, deadline=None)
@given(
    size=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    stride=st.sampled_from([1, 2]),
    padding=st.sampled_from([(1, 1), (0, 1)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_forms_of_the_convolution_agree(size, stride, padding, seed):
    """The CPU multiplies patches where other platforms convolve; sizes odd and even, down to a single pixel."""
    if min(size) + sum(padding) >= 3:  # else there is no output
        compare_forms(Conv3x3(5, stride=stride, padding=padding), 4, size, seed)


@pytest.mark.parametrize("size", [(17, 16), (16, 33), (23, 45)])
def test_forms_of_large_convolutions_agree(size):
    """As many pixels and channels as make the CPU take Winograd's form, and odd heights and widths."""
    compare_forms(Conv3x3(64), 64, size, seed=0)


def compare_forms(layer: Conv3x3, channels: int, size: tuple[int, int], seed: int):
    random = np.random.default_rng(seed)
    x = jnp.asarray(random.standard_normal((2, *size, channels), np.float32))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    scale = 1 / np.sqrt(9 * channels)
    params = jax.tree.map(lambda leaf: jnp.asarray(random.standard_normal(leaf.shape, np.float32)) * scale, shapes)
    with target_platform("gpu"):
        convolved = layer.apply(params, x)
    np.testing.assert_allclose(layer.apply(params, x), convolved, rtol=0, atol=1e-5)
    padded = jnp.pad(x, [(0, 0), layer.padding, layer.padding, (0, 0)])
    taps = by_taps(padded, params["params"]["kernel"], layer.stride) + params["params"]["bias"]
    np.testing.assert_allclose(taps, convolved, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "relative"), [(jnp.float32, 0), (jnp.bfloat16, 1.01 * 2**-8)])
def test_gelu_is_as_exact_as_its_dtype(dtype, relative):
    x = jnp.linspace(-12, 12, 2**15).astype(dtype)
    ours, points = gelu(x), np.asarray(x, np.float64)
    assert ours.dtype == x.dtype
    np.testing.assert_allclose(np.asarray(ours, np.float64), points * ndtr(points), rtol=relative, atol=5e-7)


@pytest.mark.parametrize(
    ("pictures", "size", "is_by_taps"), [(2, 64, True), (2, 8, False), (8, 64, False), (1, 256, False)]
)
def test_a_tpu_multiplies_tap_by_tap_where_it_serves(pictures, size, is_by_taps):
    layer, x = Conv3x3(64), jax.ShapeDtypeStruct((pictures, size, size, 64), jnp.bfloat16)
    with target_platform("tpu"):
        traced = jax.make_jaxpr(lambda key, x: layer.init_with_output(key, x)[0])(jax.random.key(0), x)
    assert ("conv_general_dilated" in str(traced)) != is_by_taps


@pytest.mark.parametrize("channels", [40, 128])
@pytest.mark.parametrize("bits", [32, 8])
def test_a_tpu_gates_in_two_products_where_it_serves(channels, bits):
    """And they are the columns of the one product that others take; also with a scale for each column."""
    layer, random = GEGLU(4 * channels), np.random.default_rng(0)
    kernel = random.standard_normal((channels, 8 * channels), np.float32) / channels**0.5
    own = {"kernel": kernel, "bias": random.standard_normal(8 * channels).astype(np.float32)}
    if bits == 8:
        own["kernel"], own["kernel_scale"] = quantised(kernel, is_stacked=False)
    x = jnp.asarray(random.standard_normal((2, 9, channels), np.float32))
    with target_platform("tpu"):
        traced = str(jax.make_jaxpr(layer.apply)({"params": {"proj": own}}, x))
        apart = layer.apply({"params": {"proj": own}}, x)
    assert traced.count("dot_general") == (2 if channels % 128 else 1)
    np.testing.assert_allclose(apart, layer.apply({"params": {"proj": own}}, x), rtol=0, atol=2e-6)


@given(offset=st.sampled_from([0, 1, 10, 100]), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=10)
def test_norms_in_half_precision_round_no_more_than_their_input(offset, seed):
    """In bfloat16, whose steps are 2**-8 of a number, against float64 of the same input."""
    x = jnp.asarray(np.random.default_rng(seed).normal(offset, size=(2, 16, 16, 64)), jnp.bfloat16)
    exact = np.asarray(x, np.float64).reshape(2, 256, 4, 16)
    for norm, axes in [(GroupNorm(4, 1e-6), (1, 3)), (LayerNorm(1e-6), (2, 3))]:
        ours = np.asarray(norm.apply(norm.init(jax.random.key(0), x), x), np.float64)
        expected = (exact - exact.mean(axes, keepdims=True)) / exact.std(axes, keepdims=True)
        np.testing.assert_allclose(ours, expected.reshape(x.shape), rtol=2**-8, atol=2**-8)


@pytest.mark.long
@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 3),
    squares=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    most=st.sampled_from([0, 2**15, 2**30]),
    seed=st.integers(0, 2**32 - 1),
)
def test_winograd_convolves(batch, squares, channels, most, seed):
    """Also where it may hold little at a time: one picture, some of its rows, two of its rows."""
    height, width = (2 * n for n in squares)
    random = np.random.default_rng(seed)
    x = random.standard_normal((batch, height + 2, width + 2, channels[0]), np.float32)
    kernel = random.standard_normal((3, 3, *channels), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3), axis=(1, 2))
    expected = np.einsum("bhwcij,ijcf->bhwf", windows, kernel)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "WINOGRAD_BYTES", most)
        np.testing.assert_allclose(jax.jit(winograd)(x, kernel), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("most", [2**27, 1])
def test_the_gradients_of_winograd_are_those_of_the_convolution(monkeypatch, most):
    monkeypatch.setattr(convolution, "WINOGRAD_BYTES", most)
    random = np.random.default_rng(0)
    x, kernel, weigh = (
        random.standard_normal(shape, np.float32) for shape in [(2, 8, 6, 5), (3, 3, 5, 7), (2, 6, 4, 7)]
    )

    def gradients(convolved):
        return jax.jit(jax.grad(lambda *inputs: jnp.sum(weigh * convolved(*inputs)), (0, 1)))(x, kernel)

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=convolution.LAYOUT)

    for ours, expected in zip(gradients(winograd), gradients(plain)):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-5)


# Models


@pytest.mark.long
@given(
    size=st.integers(1, 40),
    channels=st.integers(1, 3),
    offset=st.sampled_from([0, 3, 100, 3000]),
    narrow=st.sampled_from([1, 0.01]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_group_norm_keeps_its_digits(size, channels, offset, narrow, seed):
    """In float32 against float64, also of groups that lie far from 0 and of channels that lie far apart.

    Allowed is what float32 rounds, against the deviation of the group. XLA adds one pixel after another on a CPU, and
    where all are nearly equal the rounding errors have one sign: up to half an ulp, 6e-8, a pixel; a third of it is.
    """
    random = np.random.default_rng(seed)
    x = random.normal(size=(2, size, size, 4 * channels)) * narrow + offset * random.normal(size=4 * channels)
    x = x.astype(np.float32)
    norm = GroupNorm(4, 1e-5)
    params = {"scale": np.ones(x.shape[-1], np.float32), "bias": np.zeros(x.shape[-1], np.float32)}
    grouped = x.astype(np.float64).reshape(2, size * size, 4, channels)
    deviation = np.sqrt(grouped.var((1, 3), keepdims=True) + 1e-5)
    expected = ((grouped - grouped.mean((1, 3), keepdims=True)) / deviation).reshape(x.shape)
    allowed = 4e-6 * (1 + np.abs(expected)) + ((8e-7 + 2e-8 * size**2) * np.abs(grouped).max() / deviation).max()
    assert np.all(np.abs(norm.apply({"params": params}, x) - expected) <= allowed)


@pytest.mark.long
def test_images_do_not_see_each_other():
    unet = build("UNet2DConditionModel", {**UNET, "num_class_embeds": 10})
    params, inputs = random_params(unet), (*unet_inputs(unet.config), np.array([1, 5, 9]))
    others = (*unet_inputs(unet.config, seed=1), np.array([2, 6, 8]))
    mixed = [np.concatenate([x[:1], other[1:]]) for x, other in zip(inputs, others)]
    apply = jax.jit(unet.apply)
    np.testing.assert_array_equal(apply({"params": params}, *inputs)[0], apply({"params": params}, *mixed)[0])


@pytest.mark.long
@pytest.mark.parametrize("class_embed_type", [None, "timestep"])
def test_classes_matter(class_embed_type):
    config = {**UNET, "class_embed_type": class_embed_type, "num_class_embeds": 10}
    unet = build("UNet2DConditionModel", config)
    inputs = unet_inputs(unet.config)
    params = {"params": random_params(unet)}
    apply = jax.jit(unet.apply)
    one, other = (apply(params, *inputs, np.array(labels)) for labels in ([1, 2, 3], [1, 2, 4]))
    np.testing.assert_array_equal(one[:2], other[:2])
    assert not np.allclose(one[2], other[2])
    with pytest.raises(InputError, match="is conditioned on class_labels: pass it"):
        unet.apply(params, *inputs)


def test_a_model_without_classes_takes_none():
    unet = build("UNet2DConditionModel", UNET)
    with pytest.raises(InputError, match="is not conditioned on class_labels: leave it out"):
        unet.apply({"params": random_params(unet)}, *unet_inputs(unet.config), np.array([1, 2, 3]))


def test_too_many_tokens():
    clip = build("CLIPTextModel", CLIP)
    with pytest.raises(InputError, match="78 tokens are more than the text encoder's 77"):
        clip.apply({"params": random_params(clip)}, np.zeros((1, 78), np.int32))


def test_later_tokens_do_not_change_earlier_states():
    clip = build("CLIPTextModel", CLIP)
    ids = np.random.default_rng(0).integers(0, 50, (2, 20))
    changed = np.where(np.arange(20) < 12, ids, (ids + 1) % 50)
    apply = jax.jit(clip.apply)
    one, other = (apply({"params": random_params(clip)}, tokens).context for tokens in (ids, changed))
    np.testing.assert_array_equal(one[:, :12], other[:, :12])
    assert not np.allclose(one[:, 12:], other[:, 12:])


@pytest.mark.long
@pytest.mark.few(1)
@pytest.mark.parametrize(("class_name", "config"), [("AutoencoderKL", VAE), ("AutoencoderTiny", TINY_VAE)])
def test_decoding_has_the_size_of_the_encoded(class_name, config):
    vae = build(class_name, config)
    params, images = {"params": random_params(vae)}, np.zeros((2, 12, 20, 3), np.float32)
    mean, logvar = vae.apply(params, images, method="encode")
    assert mean.shape == logvar.shape == (2, 6, 10, 4)
    assert vae.apply(params, mean, method="decode").shape == images.shape


CONFIGS = {"UNet2DConditionModel": UNET, "AutoencoderKL": VAE, "AutoencoderTiny": TINY_VAE, "CLIPTextModel": CLIP}


@pytest.mark.long
@pytest.mark.few(1)
@pytest.mark.parametrize("class_name", CONFIGS)
def test_bfloat16_is_followed_throughout(class_name):
    """The dtype of parameters and inputs is that of the result, which stays as near as 8 bits of mantissa allow."""
    module = build(class_name, CONFIGS[class_name])
    params = random_params(module)
    if class_name == "UNet2DConditionModel":
        inputs = unet_inputs(module.config)
    elif class_name.startswith("Autoencoder"):
        inputs = (np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32),)
    else:
        inputs = (np.random.default_rng(0).integers(0, 50, (2, 20)),)

    @jax.jit
    def apply(*arguments):
        result = module.apply(*arguments)
        return getattr(result, "context", result)

    exact = np.asarray(apply({"params": params}, *inputs))
    half_inputs = [x if x.dtype == np.int64 else jnp.asarray(x, jnp.bfloat16) for x in inputs]
    half_params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    half = apply({"params": half_params}, *half_inputs)
    assert exact.dtype == jnp.float32 and half.dtype == jnp.bfloat16
    assert np.linalg.norm(np.asarray(half, np.float32) - exact) < 0.05 * np.linalg.norm(exact)
