"""Files of textual inversion: all their forms, and what is no such file."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from sdjax.adapters.textual_inversion import read_embedding
from sdjax.errors import CheckpointError

VECTORS = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)


@pytest.mark.parametrize(
    ("content", "word", "vectors"),
    [
        ({"<cat-toy>": VECTORS[0]}, "<cat-toy>", VECTORS[:1]),
        ({"<cat-toy>": VECTORS}, "<cat-toy>", VECTORS),
        ({"<cat-toy>": VECTORS.astype(np.float16)}, "<cat-toy>", VECTORS.astype(np.float16)),
        ({"emb_params": VECTORS}, "my style", VECTORS),
    ],
)
def test_safetensors_of_both_forms_are_read(tmp_path, content, word, vectors):
    save_file(content, tmp_path / "my style.safetensors")
    got_word, got = read_embedding(tmp_path / "my style.safetensors")
    assert got_word == word
    assert got[0].dtype == np.float32 and np.array_equal(got, [vectors])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": VECTORS, "b": VECTORS}, "is no textual inversion: it holds a, b"),
        ({"clip_l": VECTORS, "clip_g": VECTORS[:2]}, "has 3 and 2 vectors: as many of each"),
        ({"a": VECTORS[None]}, r"of shape \(1, 3, 16\), should be"),
        ({"a": VECTORS * np.inf}, "should be finite"),
        ({"a": VECTORS[:0]}, r"of shape \(0, 16\)"),
    ],
)
def test_what_is_no_embedding_is_said(tmp_path, content, says):
    save_file(content, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=says):
        read_embedding(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["missing.safetensors", "damaged.safetensors", "missing.pt", "damaged.pt"])
def test_files_that_cannot_be_read_are_named(tmp_path, name):
    (tmp_path / "damaged.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "damaged.pt").write_bytes(b"no pickle at all")
    with pytest.raises(CheckpointError, match=name):
        read_embedding(tmp_path / name)
