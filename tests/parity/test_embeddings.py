"""Textual inversion from files that PyTorch wrote."""

import numpy as np
import pytest
import torch

from sdjax.adapters.textual_inversion import read_embedding
from sdjax.errors import CheckpointError

VECTORS = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("content", "word", "vectors"),
    [
        ({"<cat-toy>": VECTORS[0]}, "<cat-toy>", VECTORS[:1]),  # diffusers' learned_embeds.bin
        ({"<cat-toy>": VECTORS.bfloat16()}, "<cat-toy>", VECTORS.bfloat16().float()),
        (
            {
                "string_to_token": {"*": 265},
                "string_to_param": {"*": VECTORS.clone().requires_grad_()},
                "name": "other",
                "step": 499,
                "sd_checkpoint": "4bdfc29c",
                "sd_checkpoint_name": None,
            },
            "my-style",
            VECTORS,
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_pickles_of_both_forms_are_read(tmp_path, content, word, vectors, suffix):
    path = (tmp_path / "my-style").with_suffix(suffix)
    torch.save(content, path)
    got_word, got = read_embedding(path)
    assert got_word == word
    assert got[0].dtype == np.float32 and np.array_equal(got, [vectors.numpy()])


class Evil:
    def __reduce__(self):
        return (eval, ("1/0",))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": Evil()}, "refused: it asks for .*eval"),
        ([VECTORS], "something else than a dict"),
        ({"a": VECTORS, "b": VECTORS}, "it holds a, b"),
        ({"string_to_param": {"*": VECTORS, "+": VECTORS}}, "the vectors of one word"),
        ({"a": "b"}, "is no textual inversion"),
    ],
)
def test_pickles_of_anything_else_are_refused(tmp_path, content, says):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=says):
        read_embedding(tmp_path / "x.pt")
