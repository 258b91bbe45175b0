"""LoHa, LoKr, DoRA and LoCon against LyCORIS' own modules and PEFT's: their files, their merged weights, float32."""

import numpy as np
import peft
import pytest
import torch
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from safetensors.torch import save_file

from sdjax.adapters.lora_files import read_lora

TOLERANCE = 1e-5
NAME = "lora_unet_down_blocks_0_resnets_0_conv1"
MODULES = {"LoCon": LoConModule, "LoHa": LohaModule, "LoKr": LokrModule}
LAYERS = {
    "dense": lambda: torch.nn.Linear(24, 40),
    "convolution": lambda: torch.nn.Conv2d(12, 20, 3, padding=1),
    "convolution of a pixel": lambda: torch.nn.Conv2d(12, 20, 1),
}


def kernel_of(weight: torch.Tensor) -> np.ndarray:
    """A weight of PyTorch in the layout of a kernel."""
    array = weight.detach().numpy()
    array = array.reshape(array.shape[:2]) if array.shape[2:] == (1, 1) else array
    return np.moveaxis(array, (0, 1), (-1, -2))


def weight_of(kernel: np.ndarray, shape: torch.Size) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(kernel, (-1, -2), (0, 1)).copy()).reshape(shape)


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


FORMS = [{}, {"use_tucker": True}]
OF_LOKR = [{"decompose_both": True, "factor": 4}, {"factor": 8, "use_tucker": True}]


@pytest.mark.few(18)
@pytest.mark.parametrize("decomposed", [None, "outputs", "inputs"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, form) for kind in MODULES for form in (*FORMS, *(OF_LOKR if kind == "LoKr" else ()))],
    ids=str,
)
@pytest.mark.parametrize("layer", LAYERS)
def test_what_lycoris_trains(kind, layer, options, decomposed, tmp_path):
    torch.manual_seed(len(kind) + len(layer))
    original = LAYERS[layer]()
    module = MODULES[kind](
        NAME,
        original,
        multiplier=1.0,
        lora_dim=3,
        alpha=2,
        weight_decompose=decomposed is not None,
        wd_on_out=decomposed == "outputs",
        **options,
    )
    for name, parameter in module.named_parameters():
        if "dora" not in name:
            parameter.data.normal_(std=0.3)
        else:
            parameter.data.mul_(1 + 0.3 * torch.rand_like(parameter))
    state = {f"{NAME}.{name}": tensor.detach().contiguous() for name, tensor in module.custom_state_dict().items()}
    save_file(state, tmp_path / "it.safetensors")
    base = kernel_of(original.weight)
    change = read_lora(tmp_path / "it.safetensors").changes["unet", "down_blocks_0_resnets_0_conv1"]
    assert change.fits(base.shape)
    # Its layers as they are trained: merging applies alpha / rank twice to LoHa and LoKr.
    x = torch.randn(3, original.weight.shape[1], *[5] * (original.weight.ndim - 2))
    with torch.no_grad():
        plain, expected = original(x).numpy(), module.eval()(x).numpy()
        original.weight.copy_(weight_of(base + change.of(base, 1.0), original.weight.shape))
        error = relative(original(x).numpy(), expected)
    print(f"\n{kind:6} {layer:24} {options!s:42} {decomposed!s:8} {error:.1e}")
    assert relative(plain, expected) > 0.01 and error <= TOLERANCE


@pytest.mark.parametrize("layer", LAYERS)
def test_what_peft_trains_as_dora(layer, tmp_path):
    torch.manual_seed(1)
    model = torch.nn.Sequential()
    model.add_module("conv1", LAYERS[layer]())
    original = model.conv1.weight.detach().clone()
    config = peft.LoraConfig(r=3, lora_alpha=2, target_modules=["conv1"], use_dora=True)
    trained = peft.inject_adapter_in_model(config, model)
    for name, parameter in trained.named_parameters():
        if "lora_" in name:
            scale = 1 + 0.3 * torch.rand_like(parameter) if "magnitude" in name else 0
            parameter.data = parameter.data * scale if "magnitude" in name else 0.3 * torch.randn_like(parameter)
    state = peft.utils.get_peft_model_state_dict(trained)
    prefix = "unet.down_blocks.0.resnets.0."
    save_file(
        {prefix + name: tensor.contiguous() for name, tensor in state.items()},
        tmp_path / "it.safetensors",
        {"lora_adapter_metadata": '{"unet.lora_alpha": 2}'},
    )
    change = read_lora(tmp_path / "it.safetensors").changes["unet", "down_blocks_0_resnets_0_conv1"]
    trained.conv1.merge()
    base = kernel_of(original)
    assert change.fits(base.shape)
    error = relative(base + change.of(base, 1.0), kernel_of(trained.conv1.get_base_layer().weight))
    print(f"\nPEFT's DoRA, {layer:24} {error:.1e}")
    assert error <= TOLERANCE
