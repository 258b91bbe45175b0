"""LoRA: reading the files, finding the kernels, adding to them."""

import contextlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save, save_file

import sdjax
from sdjax.a1111 import mentions_of, without_mentions
from sdjax.adapters.changes import Factors
from sdjax.adapters.lora import Lora, added, kernels_of, lora_for
from sdjax.adapters.lora_files import read_lora
from sdjax.cli import main
from sdjax.cli.options import files_and_scales
from sdjax.errors import CheckpointError, InputError
from sdjax.files.checkpoint import flat_specs, read_model
from sdjax.files.original_names import source_name
from sdjax.files.pictures import read_settings
from sdjax.settings import Picture

BASE = np.zeros(0, np.float32)  # which most changes do not depend on
HEART = "a big red heart at the top left on a yellow background"
STEPS = {"num_inference_steps": 2, "output_type": "np"}
QUERY = "down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q/kernel"  # [64, 64]
OUT = "down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_out_0/kernel"  # [64, 64]
CONV = "down_blocks_0/resnets_0/conv1/kernel"  # [3, 3, 64, 64]
TEXT = "encoder/layers_0/self_attn/q_proj/kernel"  # [128, 128]
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
DIFFUSERS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def loaded():
    return sdjax.load()


@pytest.fixture
def pipe(loaded):
    yield loaded
    loaded.unload_lora_weights()


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 8


def dense(size: int = 64, rank: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """down and up for a kernel [size, size]."""
    return draw(rank, size, seed=seed), draw(size, rank, seed=seed + 1)


def pair(down: str, up: str, factors=None) -> dict[str, np.ndarray]:
    return dict(zip((down, up), factors or dense()))


def kohya(module: str, factors=None, **more: np.ndarray | float) -> dict[str, np.ndarray]:
    parts = pair(f"{module}.lora_down.weight", f"{module}.lora_up.weight", factors)
    return parts | {f"{module}.{name.replace('__', '.')}": np.float32(value) for name, value in more.items()}


def loha(module: str, a: np.ndarray, b: np.ndarray, **more: np.ndarray | float) -> dict[str, np.ndarray]:
    parts = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": a + 1, "hada_w2_b": b - 1, **more}
    return {f"{module}.{name}": np.float32(value) for name, value in parts.items()}


def lokr(module: str, first: np.ndarray, second: np.ndarray, **more: np.ndarray | float) -> dict[str, np.ndarray]:
    return {f"{module}.{name}": np.float32(v) for name, v in {"lokr_w1": first, "lokr_w2": second, **more}.items()}


@pytest.fixture
def write(tmp_path):
    def write(tensors: dict[str, np.ndarray], name: str = "it", **metadata: str) -> Path:
        path = tmp_path / f"{name}.safetensors"
        save_file({key: np.asarray(value) for key, value in tensors.items()}, path, {"format": "pt", **metadata})
        return path

    return write


@pytest.fixture
def both(write) -> Path:
    """A LoRA for a few modules of both networks."""
    text = kohya("lora_te_text_model_encoder_layers_0_self_attn_q_proj", dense(128, seed=4), alpha=2)
    conv = (draw(4, 64, 3, 3), draw(64, 4, 1, 1))
    return write(kohya(KOHYA, alpha=8) | kohya("lora_unet_down_blocks_0_resnets_0_conv1", conv) | text)


def kernel(tree: dict, path: str) -> np.ndarray:
    for name in path.split("/"):
        tree = tree[name]
    return np.asarray(tree)


@pytest.mark.parametrize(
    ("names", "place"),
    [
        ((f"{KOHYA}.lora_down.weight", f"{KOHYA}.lora_up.weight"), QUERY),
        ((f"{DIFFUSERS}.to_q.lora_A.weight", f"{DIFFUSERS}.to_q.lora_B.weight"), QUERY),
        ((f"{DIFFUSERS}.to_q.lora.down.weight", f"{DIFFUSERS}.to_q.lora.up.weight"), QUERY),
        ((f"{DIFFUSERS}.processor.to_q_lora.down.weight", f"{DIFFUSERS}.processor.to_q_lora.up.weight"), QUERY),
        ((f"{DIFFUSERS}.processor.to_out_lora.down.weight", f"{DIFFUSERS}.processor.to_out_lora.up.weight"), OUT),
        ((f"{DIFFUSERS[5:]}.to_out.0.lora_A.weight", f"{DIFFUSERS[5:]}.to_out.0.lora_B.weight"), OUT),
    ],
)
def test_every_name_of_a_module_leads_to_its_kernel(loaded, write, names, place):
    lora = lora_for(read_lora(write(pair(*names))), loaded.networks.modules, 1.0)
    assert list(lora.changes) == [("unet", place)]
    down, up = dense()
    expected = (up.astype(np.float64) @ down).T
    np.testing.assert_allclose(lora.changes["unet", place][0][1].of(BASE, 1.0), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "form",
    [
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.{}.weight",
        "text_encoder.encoder.layers.0.self_attn.q_proj.lora.{}.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.{}.weight",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_{}.weight",
    ],
)
def test_names_of_the_text_encoder(loaded, write, form):
    file = read_lora(write(pair(form.format("down"), form.format("up"), dense(128))))
    assert list(lora_for(file, loaded.networks.modules, 1.0).changes) == [("text_encoder", TEXT)]


@pytest.mark.parametrize("dotted", [False, True])
def test_every_kernel_of_both_networks_can_be_meant(loaded, write, dotted):
    """By the names that conversion knows them by, which are PyTorch's."""
    tensors, places = {}, []
    prefixes = {"unet": ("lora_unet_", "unet."), "text_encoder": ("lora_te_text_model_", "text_encoder.text_model.")}
    for component, both in prefixes.items():
        for path, spec in flat_specs(loaded.networks.modules[component]).items():
            if path.endswith("/kernel"):
                module = source_name(path).removesuffix(".weight")
                *pixels, inputs, outputs = spec.shape
                factors = (np.zeros((1, inputs, *pixels), np.float32), np.zeros((outputs, 1), np.float32))
                tensors |= kohya(both[dotted] + (module if dotted else module.replace(".", "_")), factors)
                places.append((component, path))
    assert sorted(lora_for(read_lora(write(tensors)), loaded.networks.modules, 1.0).changes) == sorted(places)
    assert len(places) > 100


def test_convolutions_of_three_forms(loaded, write):
    """Plain, 1x1 and Tucker, against sums that are written out, in float64."""
    window, one, inner = draw(4, 64, 3, 3), draw(4, 64, 1, 1), draw(6, 4, 3, 3, seed=1)
    up, wide = draw(64, 4, 1, 1, seed=2), draw(64, 6, 1, 1, seed=3)
    tensors = kohya("lora_unet_down_blocks_0_resnets_0_conv1", (window, up), alpha=2)
    tensors |= kohya("lora_unet_down_blocks_0_resnets_0_conv2", (one, wide), lora_mid__weight=inner)
    tensors |= kohya("lora_unet_down_blocks_0_attentions_0_proj_in", (one, up), alpha=np.array([1.0]))
    factors = lora_for(read_lora(write(tensors)), loaded.networks.modules, 1.0).changes
    paths = (CONV, "down_blocks_0/attentions_0/proj_in/kernel", "down_blocks_0/resnets_0/conv2/kernel")
    plain, dense_one, tucker = (factors["unet", path][0][1] for path in paths)
    exact = {"dtype": np.float64, "optimize": True}
    for got, expected in (
        (plain.of(BASE, 0.5), 0.25 * np.einsum("rihw,or->hwio", window, up[..., 0, 0], **exact)),
        (tucker.of(BASE, 1.0), np.einsum("ri,prhw,op->hwio", one[..., 0, 0], inner, wide[..., 0, 0], **exact)),
        (dense_one.of(BASE, 1.0), 0.25 * np.einsum("ri,or->io", one[..., 0, 0], up[..., 0, 0], **exact)),
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


CONV_MODULE = "lora_unet_down_blocks_0_resnets_0_conv1"


def change_of(loaded, write, tensors, place):
    return lora_for(read_lora(write(tensors)), loaded.networks.modules, 1.0).changes["unet", place][0][1]


def test_loha_and_lokr_are_their_products(loaded, write):
    """Of dense layers and convolutions, whole, factored and by Tucker decompositions, against sums in float64."""
    a, b, window = (draw(*shape).astype(np.float64) for shape in ((64, 4), (4, 64), (4, 64 * 9)))
    both = (a @ b) * ((a + 1) @ (b - 1))
    base, conv = np.zeros((64, 64), np.float32), np.zeros((3, 3, 64, 64), np.float32)
    got = change_of(loaded, write, loha(KOHYA, a, b, alpha=2), QUERY).of(base, 0.5)
    np.testing.assert_allclose(got, 0.25 * both.T, rtol=1e-4, atol=1e-6)
    got = change_of(loaded, write, loha(CONV_MODULE, a, window), CONV).of(conv, 1.0)
    flat = ((a @ window) * ((a + 1) @ (window - 1))).reshape(64, 64, 3, 3)
    np.testing.assert_allclose(got, flat.transpose(2, 3, 1, 0), rtol=1e-4, atol=1e-6)
    first, second, pixels = draw(8, 4), draw(8, 16), draw(8, 16, 3, 3)
    got = change_of(loaded, write, lokr(KOHYA, first, second, alpha=7), QUERY).of(base, 1.0)  # no rank, so no alpha
    np.testing.assert_allclose(got, np.kron(first, second).T, rtol=1e-4, atol=1e-6)
    got = change_of(loaded, write, lokr(CONV_MODULE, first, pixels), CONV).of(conv, 1.0)
    np.testing.assert_allclose(got, np.kron(first[..., None, None], pixels).transpose(2, 3, 1, 0), rtol=1e-4, atol=1e-6)
    full = draw(64, 64, 3, 3)
    got = change_of(loaded, write, {f"{CONV_MODULE}.diff": full}, CONV).of(conv, 0.5)
    np.testing.assert_allclose(got, 0.5 * full.transpose(2, 3, 1, 0), rtol=1e-6)


@pytest.mark.parametrize(("shape", "axis"), [((64, 1), 0), ((1, 64), 1)])
def test_dora_gives_kernels_their_norms(loaded, write, shape, axis):
    """At a scale of 1 the norms are the magnitudes; at any other, the kernel is so far on its way there."""
    magnitude = np.abs(draw(*shape)) + 1
    change = change_of(loaded, write, kohya(KOHYA) | {f"{KOHYA}.dora_scale": magnitude}, QUERY)
    base = draw(64, 64, seed=9)
    whole = change.of(base, 1.0)
    norms = np.linalg.norm((base + whole).T, axis=1 - axis)
    np.testing.assert_allclose(norms, magnitude.reshape(-1), rtol=1e-5)
    np.testing.assert_allclose(change.of(base, 0.25), 0.25 * whole, rtol=1e-5, atol=1e-7)


def test_alphas_in_the_configuration_of_peft(loaded, write):
    parts = ("lora_A.weight", "lora_B.weight")
    tensors = {}
    for name in ("to_q", "to_k", "to_v"):
        tensors |= pair(*(f"{DIFFUSERS}.{name}.{part}" for part in parts))
    patterns = {f"^{DIFFUSERS[5:]}.to_k": 3, "attn1.to_v": 5, "1.to_v": 9}
    configuration = {"unet.lora_alpha": 2, "unet.alpha_pattern": patterns, "unet.use_rslora": False}
    path = write(tensors, lora_adapter_metadata=json.dumps(configuration))
    lora = lora_for(read_lora(path), loaded.networks.modules, 1.0)
    scales = [factors.scale for [(_, factors)] in lora.changes.values()]
    assert scales == [alpha / 4 for alpha in (3, 2, 5)]  # in the order of their names
    path = write(tensors, lora_adapter_metadata=json.dumps({**configuration, "unet.use_rslora": True}))
    assert next(iter(read_lora(path).changes.values())).scale == 3 / 4**0.5


@pytest.mark.few(1)
@pytest.mark.parametrize("scale", [0.0, -0.0])
def test_at_scale_0_the_model_is_the_plain_one_bit_for_bit(pipe, both, scale):
    plain = pipe(HEART, **STEPS).images
    pipe.load_lora_weights(both, scale=scale)
    assert np.array_equal(pipe(HEART, **STEPS).images, plain)
    pipe.set_adapters("it", 0.7)
    assert not np.array_equal(pipe(HEART, **STEPS).images, plain)
    pipe.unload_lora_weights()
    assert np.array_equal(pipe(HEART, **STEPS).images, plain)


def test_loras_and_scales_compile_nothing_and_leave_the_rest_in_its_place(pipe, both, write, compilations):
    pipe(HEART, **STEPS)
    before = jax.tree.leaves(pipe.params)
    compilations.clear()
    pipe.load_lora_weights(both, scale=0.5)
    pipe.load_lora_weights(write(kohya(f"{KOHYA[:-4]}to_k"), "second"))
    pipe(HEART, **STEPS)
    pipe.set_adapters(["it", "second"], [1.5, -0.3])
    pipe(HEART, **STEPS)
    assert len(compilations) == 0
    changed = [a is not b for a, b in zip(jax.tree.leaves(pipe.params), before)]
    assert sum(changed) == 4  # three kernels of one file, one of the other


def test_kernels_are_the_base_and_the_sum_of_products(pipe, both, write):
    second = write(kohya(KOHYA, dense(rank=2, seed=9), alpha=3), "second")
    assert pipe.load_lora_weights(both, scale=0.5) == "it"
    assert pipe.load_lora_weights(second, adapter_name="mine", scale=-2) == "mine"
    base = kernel(pipe.model.unet.params, QUERY).astype(np.float64)
    (down, up), (down2, up2) = dense(), dense(rank=2, seed=9)
    first, other = (8 / 4 * up.astype(np.float64) @ down).T, (3 / 2 * up2.astype(np.float64) @ down2).T
    np.testing.assert_allclose(kernel(pipe.params["unet"], QUERY), base + 0.5 * first - 2 * other, rtol=1e-4, atol=1e-6)
    pipe.set_adapters("mine", 0.25)  # and the other one is out
    np.testing.assert_allclose(kernel(pipe.params["unet"], QUERY), base + 0.25 * other, rtol=1e-4, atol=1e-6)


def test_load_takes_loras_and_pictures_name_them(pipe, both):
    pipe.load_lora_weights(both, scale=0.7)
    here = pipe(HEART, **STEPS)
    there = sdjax.load(loras=[(both, 0.7)])(HEART, **STEPS)
    assert np.array_equal(here.images, there.images)
    assert here.settings[0]["loras"] == there.settings[0]["loras"] == [f"{both}:0.7"]
    pipe.set_adapters("it", 0)
    assert "loras" not in pipe(HEART, **STEPS).settings[0]


def test_files_of_one_name_get_names_of_their_own(pipe, both):
    """diffusers calls every file pytorch_lora_weights.safetensors."""
    assert [pipe.load_lora_weights(both, scale=scale) for scale in (0.1, 0.2, 0.3)] == ["it", "it_2", "it_3"]
    base, all_three = (kernel(tree, QUERY) for tree in (pipe.model.unet.params, pipe.params["unet"]))
    pipe.unload_lora_weights()
    pipe.load_lora_weights(both, scale=0.6)
    np.testing.assert_allclose(all_three, kernel(pipe.params["unet"], QUERY), rtol=1e-5, atol=1e-6)
    assert not np.array_equal(base, all_three)


def test_sums_are_made_in_float32_and_rounded_once(both):
    pipe = sdjax.load(dtype="bfloat16", loras=[(both, 0.3)])
    base = kernel(pipe.model.unet.params, QUERY)
    down, up = dense()
    expected = base.astype(np.float32) + np.float32(0.3 * 8 / 4) * np.tensordot(down, up, axes=(0, 1))
    got = kernel(pipe.params["unet"], QUERY)
    assert got.dtype == "bfloat16"
    assert np.abs(got.astype(np.float32) - expected).max() <= 2**-8 * np.abs(expected).max()
    assert (got == expected.astype(got.dtype)).mean() > 0.99  # all, but for halves that fell to the other side


def test_a_lora_for_another_model_changes_nothing(pipe, both, write):
    pipe.load_lora_weights(both, scale=0.5)
    before = jax.tree.leaves(pipe.params)
    with pytest.raises(CheckpointError, match="another model"):
        pipe.load_lora_weights(write(kohya(KOHYA, dense(32)), "other"))
    with pytest.raises(InputError, match="there is an adapter 'it' already"):
        pipe.load_lora_weights(both, "it")
    assert list(pipe.loras) == ["it"]
    assert all(a is b for a, b in zip(jax.tree.leaves(pipe.params), before))


def test_an_error_half_way_leaves_all_as_it_was(pipe, both):
    pipe.load_lora_weights(both, scale=0.5)
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(pipe.params)]
    good, misfit = next(iter(pipe.loras["it"].changes.values())), [(..., Factors(*dense(32)[::-1], None, 1.0))]
    places = [("unet", OUT), ("unet", QUERY), ("unet", "conv_in/kernel")]  # the last one fails
    with pytest.raises(ValueError, match="broadcast"):
        pipe.use_loras({"half": Lora(both, dict(zip(places, (good, good, misfit))), 1.0)})
    assert list(pipe.loras) == ["it"]
    assert all(map(np.array_equal, jax.tree.leaves(pipe.params), before))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "should hold a LoRA, and holds nothing at all"),
        ({"conv_in.weight": draw(4, 4)}, r"holds something else \(conv_in.weight\)"),
        ({f"{KOHYA}.hada_w1_a": draw(4, 4)}, f"only a part of {KOHYA}"),
        ({f"{KOHYA}.lokr_w1": draw(4, 4), f"{KOHYA}.lokr_w2_a": draw(4, 4)}, f"only a part of {KOHYA}"),
        ({f"{KOHYA}.dora_scale": draw(1, 4)}, f"only a part of {KOHYA}"),
        (kohya(KOHYA) | {f"{KOHYA}.dora_scale": draw(1, 4)}, "have other shapes"),
        (loha(KOHYA, draw(64, 4), draw(5, 64)), "do not fit each other"),
        (loha(KOHYA, draw(64, 4), draw(4, 63)), "have other shapes"),
        (lokr(KOHYA, draw(8, 8), draw(8, 9)), "have other shapes"),
        ({f"{KOHYA}.diff": draw(64, 63)}, "have other shapes"),
        ({f"{KOHYA}.oft_blocks": draw(4, 4)}, r"holds OFT \("),
        ({f"{KOHYA}.diff": draw(64, 64), f"{KOHYA}.diff_b": draw(64)}, r"holds changes of biases \("),
        ({f"{KOHYA}.lora_up.weight": draw(64, 4)}, f"only a part of {KOHYA}"),
        ({f"{KOHYA}.alpha": np.float32(1)}, f"only a part of {KOHYA}"),
        (kohya(KOHYA, dense(32)), r"another model: 1 of its modules have other shapes \(unet .*to_q.*\(64, 64\)"),
        (kohya(KOHYA, (draw(4, 64, 3, 3), draw(64, 4))), "have other shapes"),
        (kohya("lora_unet_conv_in", (draw(4, 4), draw(64, 4))), "have other shapes"),
        (kohya("lora_unet_down_blocks_7_conv"), r"1 of its modules are not in this one \(unet down_blocks_7_conv\)"),
        (kohya("lora_te2_text_model_encoder_layers_0_mlp_fc1"), "was made for Stable Diffusion XL"),
        (
            kohya(KOHYA.replace("attn1", "attn2").replace("to_q", "to_k"), (draw(4, 768), draw(64, 4))),
            "for Stable Diffusion 1: 1",
        ),
        (kohya("lora_unet_input_blocks_44_1_proj_in"), "was made for Stable Diffusion XL"),
        (kohya(KOHYA, (draw(4, 64), draw(64, 5))), r"do not fit each other: down \(4, 64\), up \(64, 5\)"),
        (kohya(KOHYA, (draw(0, 64), draw(64, 0))), "do not fit each other"),
        (kohya(KOHYA, (draw(4), draw(64, 4))), "do not fit each other"),
        (kohya(KOHYA, (np.float32(1), np.float32(1))), "do not fit each other"),
        (kohya(KOHYA, lora_mid__weight=draw(4, 5, 3, 3)), "do not fit each other"),
        (kohya(KOHYA, lora_mid__weight=draw(4)), "do not fit each other"),
        (kohya(KOHYA, alpha=draw(2)), "do not fit each other"),
        (kohya(KOHYA, alpha=np.nan), "should be finite"),
        (kohya(KOHYA, (draw(4, 64), np.full((64, 4), np.inf, np.float32))), "should be finite"),
        (kohya(KOHYA, (np.zeros((4, 64), np.int8), draw(64, 4))), "should be finite numbers"),
        (kohya(KOHYA) | pair(f"{DIFFUSERS}.to_q.lora_A.weight", f"{DIFFUSERS}.to_q.lora_B.weight"), "twice"),
        (kohya(KOHYA) | {f"{KOHYA}.lora_A.weight": draw(4, 64)}, "twice"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(loaded, write, tensors, message):
    path = write(tensors)
    with pytest.raises(CheckpointError, match=message) as error:
        lora_for(read_lora(path), loaded.networks.modules, 1.0)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    "configuration",
    [
        "{",
        "[]",
        "[" * 100_000,
        '{"unet.lora_alpha": "x"}',
        '{"unet.lora_alpha": NaN}',
        '{"unet.alpha_pattern": 3}',
        '{"unet.lora_alpha": 1' + 400 * "0" + "}",  # beyond a float
    ],
)
def test_damaged_configurations_are_refused(write, configuration):
    tensors = pair(f"{DIFFUSERS}.to_q.lora_A.weight", f"{DIFFUSERS}.to_q.lora_B.weight")
    with pytest.raises(CheckpointError, match="lora_adapter_metadata"):
        read_lora(write(tensors, lora_adapter_metadata=configuration))


def test_alpha_may_be_a_whole_number(write):
    path = write(kohya(KOHYA) | {f"{KOHYA}.alpha": np.int64(6)})
    assert [factors.scale for factors in read_lora(path).changes.values()] == [6 / 4]


@given(st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_are_refused_or_read(loaded, tmp_path, data):
    """Never anything but a CheckpointError, whatever byte of the header is another one and wherever the file ends."""
    tensors = kohya(KOHYA, alpha=1) | {f"{KOHYA}.lora_mid.weight": draw(4, 4, 3, 3)}
    content = bytearray(save({name: np.asarray(array) for name, array in tensors.items()}))
    header = 8 + int.from_bytes(content[:8], "little")
    for position in data.draw(st.lists(st.integers(0, header - 1), max_size=3)):
        content[position] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content[:end])
    with contextlib.suppress(CheckpointError):
        lora_for(read_lora(path), loaded.networks.modules, 1.0)


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ("that", 1.0, "there is no adapter 'that'; loaded are: it"),
        (["it"], [1.0, 2.0], "2 weights were given for 1 adapters"),
        ("it", float("nan"), "must be a finite number"),
    ],
)
def test_wrong_scales_are_told(pipe, both, names, weights, message):
    pipe.load_lora_weights(both)
    with pytest.raises(InputError, match=message):
        pipe.set_adapters(names, weights)
    assert [lora.scale for lora in pipe.loras.values()] == [1.0]


def test_files_are_looked_at_before_the_model_is(tmp_path):
    with pytest.raises(CheckpointError, match=r"no\.safetensors cannot be read"):
        sdjax.load(tmp_path / "no-model", loras=[(tmp_path / "no.safetensors", 1.0)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a.st:0.7", ("a.st", 0.7)), ("a.st", ("a.st", 1.0)), (r"C:\a.st", (r"C:\a.st", 1.0)), ("a:b:-1", ("a:b", -1.0))],
)
def test_files_and_scales_on_the_command_line(text, expected):
    assert files_and_scales([text]) == [expected]


@pytest.mark.long
def test_pictures_of_the_command_line_tell_their_loras(both, write, tmp_path, capsys):
    second = write(kohya(KOHYA), "second")
    picture = tmp_path / "a.png"
    options = ["--steps", "2", "-o", str(picture), "--lora", f"{both}:0.7", "--lora", str(second)]
    assert main(["generate", HEART, *options]) == 0
    assert read_settings(picture)["loras"] == [f"{both}:0.7", f"{second}:1.0"]
    again = tmp_path / "again.png"
    assert main(["generate", "--like", str(picture), "--yes", "-o", str(again)]) == 0
    assert read_settings(again) == read_settings(picture)
    assert again.read_bytes() == picture.read_bytes()
    assert main(["generate", HEART, "-o", str(picture), "--lora", "no.safetensors"]) == 1
    assert "no.safetensors cannot be read" in capsys.readouterr().err


def test_half_precision_files_give_what_they_hold(loaded, both, write):
    halves = {name: array.astype(np.float16) for name, array in load_file(both).items()}
    lora = lora_for(read_lora(write(halves, "half")), loaded.networks.modules, 1.0)
    down, up = (halves[f"{KOHYA}.lora_{part}.weight"].astype(np.float64) for part in ("down", "up"))
    np.testing.assert_allclose(lora.changes["unet", QUERY][0][1].of(BASE, 1.0), 2 * (up @ down).T, rtol=1e-4, atol=1e-6)


def test_conversion_adds_loras_for_good(tiny_original, tmp_path, write):
    """The tiny checkpoint has a UNet of 8 and 16 channels; its kernels come out as the pipeline would add them up."""
    modules = {
        "lora_unet_mid_block_attentions_0_proj_in": 16,
        "lora_te_text_model_encoder_layers_1_self_attn_v_proj": 16,
    }
    tensors: dict[str, np.ndarray] = {}
    for seed, (module, size) in enumerate(modules.items()):
        tensors |= kohya(module, dense(size, rank=2, seed=seed), alpha=1)
    paths = [str(write(tensors)), str(write(kohya(next(iter(modules)), dense(16, rank=3, seed=7)), "second"))]
    plain, merged = tmp_path / "plain", tmp_path / "merged"
    assert main(["convert", str(tiny_original), str(plain)]) == 0
    assert main(["convert", str(tiny_original), str(merged), "--lora", f"{paths[0]}:0.6", "--lora", paths[1]]) == 0
    before, after = read_model(plain).components, read_model(merged).components
    networks = {name: component.module for name, component in before.items()}
    loras = [lora_for(read_lora(path), networks, scale) for path, scale in zip(paths, (0.6, 1.0))]
    changed = []
    for component, part in after.items():
        for path, array in flatten_dict(part.params, sep="/").items():
            base = kernel(before[component].params, path)
            assert np.array_equal(array, added(base, loras, (component, path)))
            changed += [] if np.array_equal(array, base) else [(component, path)]
    assert sorted(changed) == sorted(kernels_of(loras)) and len(changed) == 2
    assert read_model(merged).index["sdjax"]["source"] == "tiny-sd + it.safetensors:0.6 + second.safetensors:1.0"


@pytest.mark.parametrize(
    ("option", "message"), [("--verify", "which has no LoRA in it"), ("--to=diffusers", "convert to sdjax first")]
)
def test_what_does_not_go_with_a_lora_is_said(both, tmp_path, capsys, option, message):
    assert main(["convert", "shapes", str(tmp_path / "made"), "--lora", str(both), option]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("written", "text_encoder", "unet"),
    [
        ("<lora:cat>", 1, 1),
        ("<lora:cat:0.7>", 0.7, 0.7),
        ("<lyco:cat:-1>", -1, -1),
        ("<lora:cat:0.7:0.2>", 0.7, 0.2),
        ("<lora:cat:unet=0.2>", 1, 0.2),
        ("<lora:cat:te=0.7>", 0.7, 0.7),
        ("<lora:cat:0.5:te=0.7:unet=0.2>", 0.7, 0.2),
    ],
)
def test_loras_are_named_as_in_a1111(written, text_encoder, unet):
    assert mentions_of(f"a {written} b") == (("cat", text_encoder, unet),)
    assert without_mentions(f"a {written}b") == "a b"


@pytest.mark.parametrize(
    "wrong", ["<lora:cat:x>", "<lora:cat:nan>", "<lora::1>", "<lora:cat:1:1:16>", "<lora:cat:dyn=16>", "<lora:cat:te=>"]
)
def test_wrong_mentions_are_refused_with_the_prompt(wrong):
    with pytest.raises(InputError, match="should be <lora:name:scale>"):
        Picture(f"a cat {wrong}")
    Picture(f"a cat {wrong}", prompt_syntax="plain")


def test_hypernetworks_are_refused_by_name():
    with pytest.raises(InputError, match="<hypernet:x:1>: hypernetworks are not supported"):
        Picture("a cat <hypernet:x:1>")


@pytest.fixture
def folder(tmp_path, write):
    """A folder with two LoRAs, one in a folder of its own."""
    (tmp_path / "loras" / "more").mkdir(parents=True)
    text = kohya("lora_te_text_model_encoder_layers_0_self_attn_q_proj", dense(128, seed=4), alpha=2)
    write(kohya(KOHYA, alpha=8) | text).rename(tmp_path / "loras" / "first.safetensors")
    write(kohya(KOHYA, dense(seed=7))).rename(tmp_path / "loras" / "more" / "second.safetensors")
    return tmp_path / "loras"


@pytest.mark.long
def test_loras_in_prompts_are_those_of_the_pipeline(folder, compilations):
    pipe = sdjax.load(lora_dir=folder)
    plain = pipe(HEART, **STEPS).images
    params = pipe.params
    compilations.clear()
    named = pipe(f"{HEART}<lora:first:0.5> <lora:second:2>", **STEPS).images
    other = pipe(f"<lora:first:1:0>{HEART}", **STEPS).images
    again = pipe(HEART, **STEPS).images
    assert len(compilations) == 0 and pipe.params is params
    assert np.array_equal(plain, again)
    pipe.load_lora_weights(folder / "first.safetensors", scale=0.5)
    beside = pipe(f"{HEART} <lora:second:2>", **STEPS).images
    pipe.load_lora_weights(folder / "more" / "second.safetensors", scale=2)
    assert np.array_equal(named, beside) and np.array_equal(named, pipe(HEART, **STEPS).images)
    assert np.abs(named - plain).max() > 0.01
    pipe.use_loras(
        {
            "text alone": lora_for(read_lora(folder / "first.safetensors"), pipe.networks.modules, 0)._replace(
                text_scale=1
            )
        }
    )
    assert np.array_equal(other, pipe(HEART, **STEPS).images) and np.abs(other - plain).max() > 1e-4


def test_a_lora_that_is_not_there_is_said_with_what_is(pipe, folder):
    with pytest.raises(InputError, match="names the LoRA 'first': say in which folder it is"):
        pipe("a <lora:first:1>", **STEPS)
    pipe = sdjax.load(lora_dir=folder)
    with pytest.raises(InputError, match=r"no LoRA 'firs' in .*; did you mean first"):
        pipe("a <lora:firs:1>", **STEPS)
    (folder / "more" / "first.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"more than one LoRA in .* is called 'first'"):
        pipe("a <lora:first:1>", **STEPS)
    with pytest.raises(InputError, match="the prompts of a batch name the same LoRAs"):
        pipe(["a <lora:second:1>", "b"], **STEPS)
    with pytest.raises(InputError, match=r"there is no folder .*nowhere of LoRAs"):
        sdjax.load(lora_dir=folder / "nowhere")


@pytest.mark.long
def test_rows_and_pictures_name_loras(folder, tmp_path, capsys):
    rows, out, one, again = (tmp_path / name for name in ("rows.txt", "out", "one.png", "again.png"))
    rows.write_text("a star\na star <lora:first:1>\na ring <lora:first:1>\n")
    options = ["--steps", "2", "--seed", "5", "--lora-dir", str(folder)]
    assert main(["batch", str(rows), "-o", str(out), *options]) == 0
    pictures = [np.asarray(Image.open(path)) for path in sorted(out.rglob("*.png"))]
    assert len(pictures) == 3 and len({picture.tobytes() for picture in pictures}) == 3
    capsys.readouterr()
    assert main(["batch", str(rows), "-o", str(out), *options]) == 0  # it is the same run
    (folder / "first.safetensors").write_bytes((folder / "more" / "second.safetensors").read_bytes())
    assert main(["batch", str(rows), "-o", str(out), *options]) == 1
    assert "model_hash" in capsys.readouterr().err
    assert main(["generate", "a star <lora:second:1>", "-o", str(one), *options]) == 0
    assert main(["generate", "--like", str(one), "--yes", "--lora-dir", str(folder), "-o", str(again)]) == 0
    assert one.read_bytes() == again.read_bytes()
    assert main(["generate", "--like", str(one), "--yes", "-o", str(again)]) == 0
    assert "not followed: <lora:second:1>" in capsys.readouterr().err
    assert read_settings(again)["prompt"] == "a star "
