"""Networks that enlarge against PyTorch modules, from files of each kind: float32, relative error at most 1e-5."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from upscalers import Compact, RRDBNet, SwinIR, as_first_released, as_old_architecture

from sdjax.errors import CheckpointError
from sdjax.upscaling import open_upscaler
from sdjax.upscaling.apply import upscale

TOLERANCE = 1e-5
SWINIR_L = {"width": 16, "heads": 4, "window": 8, "convolutions": 3}


def random_weights(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter is random, so that no two of them could be swapped unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(generator=generator)
        if parameter.ndim == 1:
            parameter.data.mul_(0.2).add_(float("norm" in name and name.endswith("weight")))
        elif "table" not in name:
            parameter.data.div_(parameter[0].numel() ** 0.5)
    return model.eval()


def wrapped(key: str, state: dict) -> dict:
    return {key: state}


CASES = {
    "RRDBNet x4, params_ema": (RRDBNet, partial(wrapped, "params_ema"), "pth"),
    "RRDBNet x2 (pixel unshuffle), old architecture": (partial(RRDBNet, 2), as_old_architecture, "safetensors"),
    "SRVGGNetCompact x4, params": (Compact, partial(wrapped, "params"), "pth"),
    "SwinIR classical x4": (partial(SwinIR, "pixelshuffle", 4), dict, "safetensors"),
    "SwinIR lightweight x3": (partial(SwinIR, "pixelshuffledirect", 3), partial(wrapped, "params"), "pth"),
    "SwinIR-L real x4": (partial(SwinIR, "nearest+conv", **SWINIR_L), partial(wrapped, "params_ema"), "pth"),
}
# Other forms of a file: what makes it, the form that was compared, and the scale.
FORMS = {
    "as first released": (RRDBNet, as_first_released, 4),
    "BSRGAN x2": (partial(RRDBNet, 2, doublings=1), as_first_released, 2),
    "old architecture x1": (partial(RRDBNet, 1, doublings=0), as_old_architecture, 1),
    "old architecture x8": (partial(RRDBNet, 8, doublings=3), as_old_architecture, 8),
    "of DataParallel": (Compact, lambda state: {f"module.{name}": tensor for name, tensor in state.items()}, 4),
    "SwinIR classical x3": (partial(SwinIR, "pixelshuffle", 3), partial(wrapped, "params"), 3),
    "averaged beside not averaged": (
        partial(RRDBNet, 1),
        lambda state: {"params": {name: 0 * tensor for name, tensor in state.items()}, "params_ema": state},
        1,
    ),
}


def written(path: Path, tensors: dict) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return path


# At the sizes of RealESRGAN_x4plus, realesr-general-x4v3 and SwinIR-L.
LARGE = {"width": 240, "heads": 8, "window": 8, "convolutions": 3, "layers": 9, "depth": 6, "between": 64}
FULL_SIZE = {
    "RRDBNet x4": (partial(RRDBNet, 4, 64, 32, 23), dict, "safetensors"),
    "SRVGGNetCompact x4": (partial(Compact, 4, 64, 32), dict, "safetensors"),
    "SwinIR-L": (partial(SwinIR, "nearest+conv", **LARGE), dict, "safetensors"),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.full_size) for case in FULL_SIZE)])
def test_enlarged_alike(case, tmp_path):
    make, layout, suffix = (CASES | FULL_SIZE)[case]
    theirs = random_weights(make())
    ours = open_upscaler(written(tmp_path / f"net.{suffix}", layout(theirs.state_dict())))
    picture = np.random.default_rng(1).random((1, 32, 40, 3), np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(picture.transpose(0, 3, 1, 2).copy())).numpy().transpose(0, 2, 3, 1)
    got = jax.jit(partial(upscale, ours.module))(ours.params, picture)
    assert got.shape == expected.shape == (1, round(32 * ours.config.scale), round(40 * ours.config.scale), 3)
    error = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    print(f"{error:10.1e}  {case}: {ours.kind}")
    assert error <= TOLERANCE


@pytest.mark.few(3)
@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_the_same_tensors(form, tmp_path):
    make, layout, scale = FORMS[form]
    state = random_weights(make()).state_dict()
    plain = open_upscaler(written(tmp_path / "plain.safetensors", state))
    other = open_upscaler(written(tmp_path / "other.pth", layout(state)))
    assert other.module == plain.module and other.config.scale == scale
    assert all(map(np.array_equal, jax.tree.leaves(other.params), jax.tree.leaves(plain.params)))


def test_half_precision_is_read(tmp_path):
    state = random_weights(Compact()).state_dict()
    for dtype in (torch.float16, torch.bfloat16):
        path = written(tmp_path / f"{dtype}.pth".replace("torch.", ""), {n: t.to(dtype) for n, t in state.items()})
        kernel = open_upscaler(path).params["first"]["conv"]["kernel"]
        np.testing.assert_array_equal(kernel, state["body.0.weight"].to(dtype).float().numpy().transpose(2, 3, 1, 0))


def test_a_pickle_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"params": random_weights(Compact()).state_dict() | {"x": Evil()}}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="is refused"):
        open_upscaler(tmp_path / "net.pth")
    assert not (tmp_path / "ran").exists()
