"""Programs made ahead of the pictures that take them."""

import re

import numpy as np
import pytest

from sdjax.cli import main
from sdjax.pipeline.request import pictures_of


@pytest.mark.parametrize("images", [{}, {"image": np.full((64, 64, 3), 99, np.uint8)}], ids=["text", "image"])
def test_what_was_made_ahead_is_not_made_again(pipe, images, compilations):
    pipe.compile(pictures_of(["anything"], images))
    assert compilations
    compilations.clear()
    pipe("a red heart", seed=7, sampler="euler_ancestral", num_inference_steps=3, guidance_scale=2.0, **images)
    assert not compilations


def test_the_command_tells_what_it_made(small, capsys):
    assert main(["compile", str(small), "--size", "64x64", "--batch", "1"]) == 0
    printed = capsys.readouterr().out
    assert re.fullmatch(r"64x64, 1 at once: text \d+\.\d s, denoising \d+\.\d s, decoding \d+\.\d s\n", printed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "512"], "--size is a width and a height in pixels, such as 512x768, not '512'"),
        (["--size", "64x64", "--size", "33x32"], "33"),
    ],
)
def test_sizes_that_cannot_be_drawn_are_named_before_anything_is_made(arguments, message, capsys):
    assert main(["compile", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
