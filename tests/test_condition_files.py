"""Files of ControlNets and T2I adapters in every form, opened, and written back."""

import numpy as np
import pytest
from condition_checkpoints import original_controlnet, tencent_adapter, tensors_of
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from tiny_training import PAINTING, write_tiny_model

import sdjax
from sdjax.cli import main
from sdjax.convert import convert, export
from sdjax.errors import CheckpointError, InputError
from sdjax.files.checkpoint import read_model
from sdjax.models import build
from sdjax.training.models import fresh

UNET = {
    "block_out_channels": [32, 64],
    "cross_attention_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": [1, 1],
}
NET = UNET | {"conditioning_embedding_out_channels": [4, 8, 12], "transformer_layers_per_block": [1, 1]}
XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 300}
ADAPTERS = {
    "full": {"adapter_type": "full_adapter", "channels": [8, 16, 16], "num_res_blocks": 2},
    "light": {"adapter_type": "light_adapter", "channels": [8, 16], "num_res_blocks": 3, "in_channels": 1},
    "full_xl": {"adapter_type": "full_adapter_xl", "channels": [8, 16, 24, 24], "downscale_factor": 16},
}


def made(class_name, config, seed=0):
    module = build(class_name, config)
    return module, fresh(module, seed)


def same(net, params) -> None:
    ours, expected = flatten_dict(net.params, sep="/"), flatten_dict(params, sep="/")
    assert ours.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(np.asarray(ours[name]), leaf, err_msg=name)


@pytest.mark.parametrize("prefix", ["", "control_model."])
@pytest.mark.parametrize("more", [{}, XL])
def test_controlnets_in_the_original_layout(prefix, more, tmp_path):
    module, params = made("ControlNetModel", NET | more)
    tensors = {prefix + name: array for name, array in original_controlnet(module.config, params).items()}
    if prefix:  # lllyasviel's first files hold a whole Stable Diffusion beside it
        tensors["model.diffusion_model.out.0.weight"] = np.zeros(3, np.float32)
    save_file(tensors, tmp_path / "control_canny.safetensors")
    net = sdjax.load_condition(tmp_path / "control_canny.safetensors")
    same(net, params)
    assert net.module.config.levels == module.config.levels
    assert not net.module.config.global_pool_conditions


def test_a_shuffle_net_is_known_by_its_name(tmp_path):
    module, params = made("ControlNetModel", NET)
    save_file(original_controlnet(module.config, params), tmp_path / "control_v11e_sd15_shuffle.safetensors")
    assert sdjax.load_condition(tmp_path / "control_v11e_sd15_shuffle.safetensors").module.config.global_pool_conditions


@pytest.mark.parametrize("name", ["depth", *ADAPTERS])
def test_there_and_back_bit_for_bit(name, tmp_path):
    is_net = name == "depth"
    module, params = made("ControlNetModel", NET) if is_net else made("T2IAdapter", ADAPTERS[name])
    original = (original_controlnet if is_net else tencent_adapter)(module.config, params)
    save_file(original, tmp_path / f"{name}.safetensors")
    model = convert(tmp_path / f"{name}.safetensors", tmp_path / "converted")
    net = sdjax.load_condition(model)
    same(net, params)
    folder = export(model, tmp_path / "diffusers")
    same(sdjax.load_condition(folder), params)  # a directory of diffusers
    written = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert sorted(array.shape for array in written.values()) == sorted(array.shape for array in original.values())
    same(sdjax.load_condition(folder / "diffusion_pytorch_model.safetensors"), params)  # and its file alone
    if is_net:
        back = load_file(export(model, tmp_path / "back.safetensors", to="single-file"))
        assert {key: array.tobytes() for key, array in back.items()} == {k: a.tobytes() for k, a in original.items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model whose UNet nets are differences to."""
    unet = PAINTING["unet"] | UNET | {"norm_num_groups": 32, "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
    return write_tiny_model(tmp_path_factory.mktemp("base") / "base", PAINTING | {"unet": unet})


@pytest.mark.parametrize("kind", ["difference", "lora_controlnet"])
def test_differences_to_a_unet(kind, base, tmp_path):
    module, params = made("ControlNetModel", NET)
    net = original_controlnet(module.config, params)
    unet = original_controlnet(module.config, read_model(base).unet.params)
    shared = net.keys() & unet.keys()
    assert len(shared) > 30
    random = np.random.default_rng(0)
    if kind == "difference":  # kohya's: all of it
        tensors = {name: array - unet[name] if name in shared else array for name, array in net.items()}
        expected = {name: unet[name] + tensors[name] if name in shared else array for name, array in net.items()}
    else:  # Control-LoRA: products of thin matrices, whole biases, and what is not there is the UNet's
        tensors, expected = {}, {}
        for name, array in net.items():
            if name not in shared or name.endswith(".bias"):
                tensors[name] = expected[name] = array
                continue
            expected[name] = unet[name]
            if array.ndim > 1:
                up = random.standard_normal((len(array), 2)).astype(np.float32)
                down = random.standard_normal((2, array[0].size)).astype(np.float32)
                shape = (2, *array.shape[1:])
                tensors |= {name.replace("weight", "up"): up.reshape(len(up), 2, *[1] * (array.ndim - 2)),
                            name.replace("weight", "down"): down.reshape(shape)}  # fmt: skip
                expected[name] = unet[name] + (up @ down).reshape(array.shape)
    save_file(tensors | {kind: np.zeros(0, np.float32)}, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match="say of which model"):
        sdjax.load_condition(tmp_path / "net.safetensors")
    opened = sdjax.load_condition(tmp_path / "net.safetensors", base=base)
    found = original_controlnet(module.config, opened.params)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6, err_msg=name)
    assert main(["convert", str(tmp_path / "net.safetensors"), str(tmp_path / "made"), "--base", str(base)]) == 0
    same(sdjax.load_condition(tmp_path / "made"), opened.params)


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        ("lllite_unet_x.down.0.weight", "ControlLLLite"),
        ("motion_modules.0.weight", "SparseCtrl"),
        ("style_embedding", "style adapter"),
    ],
)
def test_what_is_not_implemented_is_named(tensor, what, tmp_path):
    save_file({tensor: np.zeros(3, np.float32)}, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=what):
        sdjax.load_condition(tmp_path / "net.safetensors")


@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
def test_tensors_too_many_or_too_few(damage, tmp_path):
    module, params = made("ControlNetModel", NET)
    tensors = original_controlnet(module.config, params)
    if damage == "missing":
        del tensors["zero_convs.2.0.bias"]
    elif damage == "unexpected":
        tensors["zero_convs.77.0.bias"] = np.zeros(3, np.float32)
    else:
        tensors["zero_convs.2.0.bias"] = np.zeros(3, np.float32)
    save_file(tensors, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"zero_convs|controlnet_down_blocks"):
        sdjax.load_condition(tmp_path / "net.safetensors")


def test_a_model_is_no_condition_and_a_condition_no_model(small, tmp_path):
    module, params = made("ControlNetModel", NET)
    save_file(original_controlnet(module.config, params), tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="has no condition"):
        sdjax.load_condition(small)
    with pytest.raises(CheckpointError, match="lacks text_encoder"):
        sdjax.load(tmp_path / "net.safetensors")
    assert tensors_of(params)
