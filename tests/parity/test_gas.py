"""Checkpoints of GAS: their solver is read, and nothing else is taken for one."""

import numpy as np
import pytest
import torch

from sdjax.cli import main
from sdjax.errors import CheckpointError, InputError
from sdjax.files.gas import linear_table, read_gas
from sdjax.schedulers import NoiseSchedule
from sdjax.schedulers.noise import BETA_SCHEDULES

BETAS = BETA_SCHEDULES["scaled_linear"](0.00085, 0.012, 1000)
NOISE = NoiseSchedule.from_betas(BETAS, "epsilon")


def checkpoint(path, rows=5, others=40, **ema):
    """As torch_ema keeps averages: what is learned first, and then the networks of the loss."""
    torch.manual_seed(0)
    learned = [torch.zeros(rows - 1), *(0.01 * torch.randn(rows) for _ in range(1 + 2 * rows))]
    params = [*learned, *(torch.randn(3, 3) for _ in range(others))]
    torch.save({"ema": {"decay": 0.999, "num_updates": 2000, "shadow_params": params, **ema}, "step": 2000}, path)
    return path, [each.double().numpy() for each in learned]


@pytest.mark.parametrize("rows", [2, 5, 9])
def test_the_solver_is_read(tmp_path, rows):
    path, (logits, shifts, *added) = checkpoint(tmp_path / "student.pt", rows)
    plan = read_gas(path, NOISE)
    for ours, theirs in zip(
        plan.at(7.5), linear_table(logits, shifts, np.stack(added[::2]), np.stack(added[1::2]), NOISE)
    ):
        np.testing.assert_allclose(ours, theirs)
    assert plan.nfe == rows and plan.about["method"] == "GAS"


def test_what_is_none_is_refused(tmp_path, small, capsys):
    def refused(match, noise=NOISE, error=CheckpointError, **made):
        with pytest.raises(error, match=match):
            read_gas(checkpoint(tmp_path / "other.pt", **made)[0], noise)

    refused("with 2 to 9 rows", rows=12)
    refused("with 2 to 9 rows", others=0, shadow_params=[torch.zeros(4), torch.zeros(5)])
    refused("no averaged solver", shadow_params=None)
    refused("not all finite", shadow_params=[torch.full((1,), torch.nan), *torch.zeros(5, 2)])
    refused("predict noise", NoiseSchedule.from_betas(BETAS, "v_prediction"), InputError)
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no averaged solver"):
        read_gas(tmp_path / "other.pt", NOISE)
    (tmp_path / "other.pt").write_bytes(b"no pickle")
    with pytest.raises(CheckpointError, match="is refused"):
        read_gas(tmp_path / "other.pt", NOISE)
    assert main(["tune", str(small), "--gas", str(tmp_path / "other.pt"), "-o", str(tmp_path / "plan.json")]) == 1
    assert "Stable Diffusion 1" in capsys.readouterr().err  # the small model predicts something else
