"""What is trained on: folders of pictures, captions, CIFAR-10, and the order in which they come."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_training import write_pictures

from sdjax.errors import InputError
from sdjax.pipeline.images import read_square
from sdjax.training.data import indices, read_examples


@given(count=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 9))
def test_every_picture_comes_once_before_any_comes_again(count, batch, seed):
    steps = -(-3 * count // batch)
    drawn = [i for step in range(steps) for i in indices(count, batch, seed, step)]
    for start in range(0, len(drawn) - count + 1, count):
        assert sorted(drawn[start : start + count]) == list(range(count))


def test_captions_beside_pictures_and_in_lines(tmp_path):
    folder = write_pictures(tmp_path / "pictures", 3)
    assert read_examples(folder, captions=True)[1] == (folder / "1.png", "a green square", None)
    (folder / "1.txt").unlink()
    assert len(read_examples(folder, captions=False)) == 3
    with pytest.raises(InputError, match=r"1\.png has no caption"):
        read_examples(folder, captions=True)
    (folder / "all.jsonl").write_text(
        '{"file_name": "2.png", "text": "two"}\n\n{"image": "0.png", "caption": "none"}\n'
    )
    assert read_examples(folder, captions=True) == [(folder / "2.png", "two", None), (folder / "0.png", "none", None)]
    (folder / "all.jsonl").write_text('{"text": "two"}')
    with pytest.raises(InputError, match=r"all\.jsonl, line 1: "):
        read_examples(folder, captions=True)


def write_cifar(folder: Path) -> Path:
    """A folder with two pictures: a red automobile whose first row is black, and a blue truck."""
    folder.mkdir()
    red = np.concatenate([np.full(1024, 255), np.zeros(2048)])
    red[:32] = 0
    blue = np.concatenate([np.zeros(2048), np.full(1024, 255)])
    for number, (label, picture) in enumerate(((1, red), (9, blue)), 1):
        (folder / f"data_batch_{number}.bin").write_bytes(bytes([label, *picture.astype(int).tolist()]))
    (folder / "test_batch.bin").write_bytes(b"not read")
    return folder


def test_cifar_10_is_read_from_its_folder_and_its_archive(tmp_path):
    folder = write_cifar(tmp_path / "cifar-10-batches-bin")
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    for source in (folder, archive):
        (car, one, _), (truck, other, _) = read_examples(source, captions=True)
        assert (one, other) == ("automobile", "truck")
        assert read_square(car, 32)[:2, 0] == pytest.approx(np.array([[-1, -1, -1], [1, -1, -1]]))
        assert read_square(truck, 32) == pytest.approx(np.broadcast_to([-1, -1, 1], (32, 32, 3)))


def test_what_is_no_plain_cifar_10_is_said(tmp_path):
    folder = write_cifar(tmp_path / "cifar")
    batch = folder / "data_batch_1.bin"
    content = batch.read_bytes()
    for damaged, says in ((content[:-1], "3072 bytes"), (b"", "0 bytes"), (b"\x0a" + content[1:], "label 10")):
        batch.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"data_batch_1\.bin has .*{says}"):
            read_examples(folder, captions=False)
    (folder / "data_batch_1").write_bytes(b"c__builtin__\neval\n")
    archive = tmp_path / "archive.tar.gz"
    for source, says in (
        (folder, "pickles that could run code: take the binary version"),
        (batch, "cannot be read as CIFAR-10's archive"),
        (tmp_path / "cifar-10-python.tar.gz", "pickles that could run code"),
        (archive, "no data_batch_1.bin"),
    ):
        if not source.exists():
            with tarfile.open(source, "w:gz") as file:
                file.add(folder / "test_batch.bin", "other.bin")
        with pytest.raises(InputError, match=says):
            read_examples(source, captions=False)


def test_pictures_are_cut_to_their_middle_square(tmp_path):
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (10, 0, 30, 20))
    image.save(tmp_path / "wide.png")
    assert read_square(tmp_path / "wide.png", 8) == pytest.approx(np.broadcast_to([-1, -1, 1], (8, 8, 3)))
