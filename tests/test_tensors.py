"""safetensors files: what we write, everybody can read; what is damaged, is refused."""

import json
import os
import tracemalloc
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import save

from sdjax.errors import CheckpointError
from sdjax.files.tensors import ALIGNMENT, DTYPES, let_go, open_tensors, write_tensors

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda name: name != "__metadata__")


@st.composite
def arrays(draw) -> np.ndarray:
    """An array of any dtype and a small shape, scalars and empty ones among them; NaN and infinity too."""
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
    if dtype == np.bool_:
        return draw(hnp.arrays(np.bool_, shape))
    bits = draw(hnp.arrays(np.dtype(f"u{dtype.itemsize}"), shape))
    return bits.view(dtype) if shape else np.asarray(bits.view(dtype))


def specs(tensors: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in tensors.items()}


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to the bit, NaN included."""
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@given(tensors=st.dictionaries(names, arrays(), max_size=8), metadata=st.dictionaries(names, st.text(max_size=9)))
def test_the_librarys_reader_and_ours_read_what_is_written(tmp_path_factory, tensors, metadata):
    path = tmp_path_factory.mktemp("written") / "x.safetensors"
    write_tensors(path, specs(tensors), tensors.__getitem__, metadata)
    ours = open_tensors(path)
    assert ours.metadata == metadata
    assert all(same(ours[name], array) for name, array in tensors.items())
    with safe_open(path, framework="numpy") as library:
        assert set(library.keys()) == set(tensors) == set(ours)
        assert (library.metadata() or {}) == metadata
        assert all(same(library.get_tensor(name), array) for name, array in tensors.items())
    assert [file.name for file in path.parent.iterdir()] == ["x.safetensors"]


@given(tensors=st.dictionaries(names, arrays(), max_size=8))
def test_the_librarys_files_are_read(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("library") / "x.safetensors"
    path.write_bytes(save(tensors))
    ours = open_tensors(path)
    assert set(ours) == set(tensors)
    assert all(same(ours[name], array) for name, array in tensors.items())


@given(tensors=st.dictionaries(names, arrays(), max_size=8))
def test_tensors_begin_on_64_bytes_where_their_sizes_allow(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("aligned") / "x.safetensors"
    write_tensors(path, specs(tensors), tensors.__getitem__, {})
    for name, (dtype, shape, offset) in open_tensors(path).entries.items():
        size = tensors[name].nbytes
        assert offset % (ALIGNMENT if size % ALIGNMENT == 0 else dtype.itemsize) == 0, (name, shape)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_cpu_computes_on_the_mapped_file(tmp_path, dtype):
    """No copy of the weights: what `device_put` returns begins where the map does."""
    tensors = {"odd": np.ones(3, dtype), "kernel": np.ones((3, 3, 8, 16), dtype), "bias": np.ones(32, dtype)}
    write_tensors(tmp_path / "x.safetensors", specs(tensors), tensors.__getitem__, {})
    ours = open_tensors(tmp_path / "x.safetensors")
    for name in ("kernel", "bias"):
        array = ours[name]
        on_device = jax.device_put(array, jax.devices("cpu")[0])
        assert on_device.unsafe_buffer_pointer() == array.ctypes.data
        assert not array.flags.writeable


def test_only_one_tensor_is_in_memory_while_writing(tmp_path):
    layers = {f"layer {i}": jax.ShapeDtypeStruct((1 << 18,), np.float32) for i in range(32)}  # 1 MiB each
    tracemalloc.start()
    write_tensors(tmp_path / "x.safetensors", layers, lambda name: np.zeros(1 << 18, np.float32), {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "x.safetensors").stat().st_size > 32 << 20
    assert peak < 3 << 20


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


def test_all_tensors_of_a_file_share_one_map(tmp_path):
    """A process may hold about a thousand files open; Stable Diffusion has more tensors than that."""
    many = {str(i): np.full(4, i, np.float32) for i in range(1200)}
    write_tensors(tmp_path / "x.safetensors", specs(many), many.__getitem__, {})
    before = open_files()
    arrays = open_tensors(tmp_path / "x.safetensors").arrays()
    assert open_files() <= before + 1
    assert all(np.array_equal(arrays[name], array) for name, array in many.items())


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, stop):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")

    def produce(name):
        if name == "b":
            raise stop
        return np.zeros(4, np.float32)

    with pytest.raises(stop):
        write_tensors(path, specs({"a": np.zeros(4, np.float32), "b": np.zeros(4, np.float32)}), produce, {})
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("wrong", [np.zeros(5, np.float32), np.zeros(4, np.float16)])
def test_a_tensor_that_is_not_what_was_announced_is_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="'a' came out as"):
        write_tensors(tmp_path / "x", {"a": jax.ShapeDtypeStruct((4,), np.float32)}, lambda name: wrong, {})
    assert list(tmp_path.iterdir()) == []


GOOD = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float16)}, {"format": "pt"})


@given(length=st.integers(0, len(GOOD) - 1))
def test_a_file_that_is_cut_short_is_refused_by_name(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("cut") / "cut.safetensors"
    path.write_bytes(GOOD[:length])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors cannot be read as safetensors"):
        open_tensors(path)


@given(position=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255))
def test_a_flipped_byte_is_refused_or_stays_inside_the_file(tmp_path_factory, position, byte):
    path = tmp_path_factory.mktemp("flipped") / "x.safetensors"
    path.write_bytes(GOOD[:position] + bytes([byte]) + GOOD[position + 1 :])
    try:
        ours = open_tensors(path)
    except CheckpointError:
        return
    assert sum(array.nbytes for array in ours.values()) <= len(GOOD)


@given(noise=st.binary(max_size=200).filter(lambda noise: b"{" not in noise))
def test_noise_is_refused(tmp_path_factory, noise):
    path = tmp_path_factory.mktemp("noise") / "x.safetensors"
    path.write_bytes(noise)
    with pytest.raises(CheckpointError):
        open_tensors(path)


def test_what_is_not_there_or_no_file_is_refused(tmp_path):
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match=path.name):
            open_tensors(path)


def test_a_header_is_bounded_before_it_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((1 << 25).to_bytes(8, "little"))
        file.truncate(1 << 26)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="header would have 33554432 bytes"):
        open_tensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f'{{"w":{entry},"w":{entry}}}'.encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="'w' is there twice"):
        open_tensors(tmp_path / "x.safetensors")


def test_an_unknown_dtype_is_named(tmp_path):
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    path = Path(tmp_path / "x.safetensors")
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="'w' is stored as F8_E4M3"):
        open_tensors(path)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says what of a file is in memory")
def test_what_is_let_go_leaves_memory_and_can_be_read_again(tmp_path):
    large = np.arange(2**20, dtype=np.float32)
    tensors = {"before": large[:3], "large": large, "after": large[:5]}
    (tmp_path / "a.safetensors").write_bytes(save(tensors))
    opened = open_tensors(tmp_path / "a.safetensors").arrays()

    def kilobytes() -> int:
        """Of the file, what this process has in memory."""
        maps = Path("/proc/self/smaps").read_text().split("a.safetensors")[1:]
        return sum(int(each.split("Rss:")[1].split()[0]) for each in maps)

    np.testing.assert_array_equal(opened["large"], large)
    read = kilobytes()
    let_go(opened["large"])
    assert read >= 4096 > 1024 > kilobytes()
    let_go(np.zeros(3))  # of no file
    np.testing.assert_array_equal(opened["large"], large)
    np.testing.assert_array_equal(opened["after"], large[:5])
