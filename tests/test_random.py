"""Noise drawn on the host: published numbers of the generators, and how pictures share them out."""

import numpy as np
import pytest

from sdjax.random import HostNoise, PhiloxGenerator, TorchGenerator, slerp
from sdjax.random.float32 import fma
from sdjax.random.philox import philox_4x32


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # kat_vectors of Random123, "philox4x32 10"
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_words_of_its_authors(counter, key, words):
    assert tuple(philox_4x32(np.array([counter], np.uint64).T, key)[:, 0]) == words


def test_philox_gives_the_numbers_of_a_cuda_generator():
    # torch.randn(3, 4, device="cuda") with seed 0, as A1111's modules/rng_philox.py quotes it.
    expected = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    np.testing.assert_allclose(PhiloxGenerator(0).normal((3, 4)), expected, atol=2e-7)


def test_torch_generator_gives_the_numbers_that_every_tutorial_shows():
    # torch.manual_seed(0); torch.randn(3): tensor([ 1.5410, -0.2934, -2.1788])
    np.testing.assert_allclose(TorchGenerator(0).normal((3,)), [1.5410, -0.2934, -2.1788], atol=5e-5)


@pytest.mark.parametrize("generator", [TorchGenerator, PhiloxGenerator])
def test_numbers_are_standard_normal_and_never_repeat(generator):
    source = generator(2**64 - 1)
    first, second = source.normal((100, 500)), source.normal((100, 500))
    both = np.concatenate([first, second])
    assert np.isfinite(both).all()
    assert abs(both.mean()) < 0.01 and abs(both.std() - 1) < 0.01 and abs((both**3).mean()) < 0.03
    assert abs((first * second).mean()) < 0.01
    assert np.array_equal(generator(2**64 - 1).normal((100, 500)), first)


def test_a_picture_draws_channels_first_from_a_generator_of_its_own():
    noise = HostNoise("torch", [5, 6], [5, 6])
    first = noise.draw("start", (8, 16, 4), np.array([True, True]))
    assert first.shape == (2, 8, 16, 4)
    second = noise.draw("step", (8, 16, 4), np.array([False, True]))
    assert not second[0].any()
    third = noise.draw("step", (8, 16, 4), np.array([True, True]))
    for seed, drawn in ((5, [first[0], third[0]]), (6, [first[1], second[1], third[1]])):
        alone = TorchGenerator(seed)
        for picture in drawn:
            assert np.array_equal(picture, alone.normal((4, 8, 16)).transpose(1, 2, 0))


def test_fma_rounds_once():
    # (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24: the last bit is lost when the product is rounded before the sum.
    x = np.float32(1 + 2**-12)
    assert fma(x, x, np.float32(-1)) == np.float32(2**-11 + 2**-24)
    # In float64 this sum is a tie of float32, 2^-60 above it is not: rounded twice, it would go to the even neighbour.
    assert fma(np.float32(1 + 2**-23), np.float32(1), np.float32(2**-24)) == np.float32(1 + 2**-22)
    assert fma(np.float32(2**-30), np.float32(2**-30), np.float32(1 + 2**-23)) == np.float32(1 + 2**-23)


def in_torch_layout(noise):
    return noise.transpose(2, 0, 1)  # [channels, h, w]


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_variations_turn_every_column_of_a_channel_by_its_own_angle(strength):
    """As the web UI does: its axis 1 is the height of [channels, h, w]. Here in float64, column by column."""
    low, high = np.random.default_rng(0).standard_normal((2, 8, 12, 4)).astype(np.float32)
    expected = np.empty((4, 8, 12))
    for channel, column in np.ndindex(4, 12):
        a, b = (in_torch_layout(noise.astype(float))[channel, :, column] for noise in (low, high))
        angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        mixed = np.sin((1 - strength) * angle) * a + np.sin(strength * angle) * b
        expected[channel, :, column] = mixed / np.sin(angle)
    got = slerp(strength, low, high)
    assert got.dtype == np.float32
    np.testing.assert_allclose(in_torch_layout(got), expected, rtol=2e-5, atol=2e-6)


def test_of_nearly_parallel_noise_the_web_ui_mixes_the_other_way_round():
    low = np.random.default_rng(0).standard_normal((8, 8, 4)).astype(np.float32)
    np.testing.assert_allclose(slerp(0.25, low, 2 * low), (0.25 + 0.75 * 2) * low, rtol=1e-6)
