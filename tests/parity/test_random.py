"""The numbers of PyTorch's CPU generator, bit for bit."""

import numpy as np
import pytest
import torch

from sdjax.random import TorchGenerator

SHAPES = [
    *[(1,), (2,), (3,), (15,), (16,), (17,), (31,), (32,), (33,), (3, 5, 7), (4, 3, 3), (1, 4, 8, 8), (4, 16, 16)],
    *[(4, 36, 44), (4, 64, 64), (4, 96, 64), (4, 128, 128), (9, 64, 64), (3, 256, 256), (1000, 1001)],
]
SEEDS = [0, 1, 2, 3, 42, 1234, 31337, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**63 + 11, 2**64 - 1]


def test_the_processor_is_one_on_which_pytorch_draws_these():
    assert torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@pytest.mark.parametrize("seed", SEEDS)
def test_numbers_are_those_of_torch_bit_for_bit(seed):
    ours, theirs = TorchGenerator(seed), torch.Generator().manual_seed(seed)
    for shape in SHAPES:  # one generator for all: where a draw leaves it decides the next one
        got, expected = ours.normal(shape), torch.randn(shape, generator=theirs).numpy()
        assert np.array_equal(got.view(np.int32), expected.view(np.int32)), shape
