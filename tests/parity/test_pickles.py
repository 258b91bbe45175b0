"""Pickles that PyTorch wrote and others packed again: read rightly or refused, never as other numbers."""

import random
import zipfile
from pathlib import Path

import pytest
import torch

from sdjax.errors import CheckpointError
from sdjax.files.pickles import read_pickle

TENSORS = {"a": torch.arange(4096.0), "b": torch.ones(1000)}


def packed(path: Path, compression: int, change=lambda content: content, twice: bool = False) -> Path:
    """The tensors in a zip file, the record of the first of them changed."""
    torch.save(TENSORS, path.with_suffix(".whole"))
    with (
        zipfile.ZipFile(path.with_suffix(".whole")) as whole,
        zipfile.ZipFile(path, "w", compression) as archive,
    ):
        for name in whole.namelist():
            content = whole.read(name)
            archive.writestr(name, change(content) if name.endswith("data/0") else content)
            if twice and name.endswith("data/0"):
                archive.writestr(name, bytes(len(content)))
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_is_packed_again_is_read_rightly(tmp_path, compression):
    found = read_pickle(packed(tmp_path / "x.ckpt", compression))
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("change", [lambda content: content[:100], lambda content: content + b"x" * 4])
def test_records_of_another_size_are_refused(tmp_path, compression, change):
    with pytest.raises(CheckpointError, match=r"x\.ckpt is refused"):
        read_pickle(packed(tmp_path / "x.ckpt", compression, change))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="two records of one name"):
        read_pickle(packed(tmp_path / "x.ckpt", zipfile.ZIP_STORED, twice=True))


def test_what_grows_beyond_measure_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="larger than what holds it"):
        read_pickle(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="times as large"):
        read_pickle(packed(tmp_path / "x.ckpt", zipfile.ZIP_DEFLATED, lambda content: bytes(2**26)))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_ones_are_refused_or_changed_where_they_are_damaged(tmp_path, compression):
    """A byte of a number that is stored changes that number; nothing tells that, as in safetensors."""
    whole = packed(tmp_path / "x.ckpt", compression).read_bytes()
    draw = random.Random(compression)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[draw.choice([draw.randrange(len(whole)), -draw.randrange(1, 1000)])] = draw.randrange(256)
        (tmp_path / "y.ckpt").write_bytes(damaged)
        try:
            found = read_pickle(tmp_path / "y.ckpt")
        except CheckpointError:
            continue
        for name in found.keys() & TENSORS.keys():
            if found[name].shape == TENSORS[name].shape:
                assert (found[name] != TENSORS[name]).sum() <= 1
