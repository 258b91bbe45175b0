"""Ways to damage a checkpoint. Each takes a file or folder and a random generator, and says what it did."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from checkpoints import edit_json, rewrite
from flax.serialization import msgpack_restore, msgpack_serialize
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.files.layout import read_json

Random = np.random.Generator
Damage = Callable[[Path, Random], str]


class Evil:
    """A pickle of this makes a file where nothing stops it."""

    def __init__(self, path: Path, function: Callable = os.system):
        self.path, self.function = path, function

    def __reduce__(self):
        return self.function, (f"touch {self.path}",)


def truncate(file: Path, random: Random) -> str:
    length = int(random.integers(0, file.stat().st_size - 1))
    os.truncate(file, length)
    return f"{file.name} cut to {length} bytes"


def append(file: Path, random: Random) -> str:
    file.write_bytes(file.read_bytes() + random.bytes(int(random.integers(1, 99))))
    return f"{file.name} with bytes after its end"


def _header(file: Path) -> tuple[bytes, bytes]:
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end], content[end:]


def _with_header(file: Path, header: bytes, data: bytes) -> None:
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)


def flip(file: Path, random: Random) -> str:
    """Changes a byte of a safetensors header so that it says something else, or nothing that can be read."""
    header, data = _header(file)
    before = json.loads(header)
    while True:
        position, byte = int(random.integers(len(header))), int(random.integers(256))
        flipped = header[:position] + bytes([byte]) + header[position + 1 :]
        try:
            after = json.loads(flipped)
            if {**before, "__metadata__": 0} == {**after, "__metadata__": 0}:
                continue  # in a note or in the padding
        except ValueError:
            pass
        _with_header(file, flipped, data)
        return f"byte {position} of the header is {byte}"


def lie_about_length(file: Path, random: Random) -> str:
    length = int(random.integers(0, 2 ** int(random.integers(1, 64))))
    content = file.read_bytes()
    if length == int.from_bytes(content[:8], "little"):
        length += 1
    file.write_bytes(length.to_bytes(8, "little") + content[8:])
    return f"the header has {length} bytes"


def lie_about_a_tensor(file: Path, random: Random) -> str:
    """Another shape, place or dtype in the header; the data stay as they are."""
    header, data = _header(file)
    entries = json.loads(header)
    name = str(random.choice([key for key, entry in entries.items() if key != "__metadata__" and entry["shape"]]))
    entry = entries[name]
    what = random.choice(["shape", "data_offsets", "dtype"])
    if what == "shape":
        axis = int(random.integers(len(entry["shape"])))
        entry["shape"][axis] = int(entry["shape"][axis] * 2 ** random.integers(1, 50)) + int(random.integers(0, 2))
    elif what == "data_offsets":
        entry["data_offsets"][int(random.integers(2))] += int(random.integers(1, 2**40)) * int(random.choice([-1, 1]))
    else:
        entry["dtype"] = str(random.choice(["F64", "I8", "F16", "I32", "U16", "F8_E4M3", "text", ""]))
    _with_header(file, json.dumps(entries).encode(), data)
    return f"{what} of {name} is {entry[what]}"


def name_twice(file: Path, random: Random) -> str:
    header, data = _header(file)
    entries = json.loads(header)
    name = str(random.choice([key for key in entries if key != "__metadata__"]))
    again = f", {json.dumps(name)}: {json.dumps(entries[name])}}}"
    _with_header(file, header.rstrip()[:-1] + again.encode(), data)
    return f"{name} is there twice"


def drop(file: Path, random: Random) -> str:
    return _change_tensors(file, random, lambda tensors, name: tensors.pop(name), "dropped")


def add(file: Path, random: Random) -> str:
    return _change_tensors(
        file,
        random,
        lambda tensors, name: tensors.update({name + random.choice([".x", "0", " "]): tensors[name]}),
        "added",
    )


def rename(file: Path, random: Random) -> str:
    def change(tensors: dict, name: str) -> None:
        tensors[name[:-1] + "#"] = tensors.pop(name)

    return _change_tensors(file, random, change, "renamed")


def swap_axes(file: Path, random: Random) -> str:
    def change(tensors: dict, name: str) -> None:
        candidates = [key for key, array in tensors.items() if array.ndim >= 2 and array.shape[0] != array.shape[1]]
        name = str(random.choice(candidates))
        tensors[name] = np.ascontiguousarray(np.swapaxes(tensors[name], 0, 1))

    return _change_tensors(file, random, change, "with its axes swapped")


def flatten(file: Path, random: Random) -> str:
    def change(tensors: dict, name: str) -> None:
        name = str(random.choice([key for key, array in tensors.items() if array.ndim >= 2]))
        tensors[name] = tensors[name].reshape(-1)

    return _change_tensors(file, random, change, "flattened")


def poison(file: Path, random: Random) -> str:
    def change(tensors: dict, name: str) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].flat[int(random.integers(tensors[name].size))] = random.choice([np.nan, np.inf, -np.inf])

    return _change_tensors(file, random, change, "not finite")


def quantise(file: Path, random: Random) -> str:
    def change(tensors: dict, name: str) -> None:
        tensors[name] = tensors[name].astype(random.choice([np.int8, np.int32, np.uint8, np.bool_]))

    return _change_tensors(file, random, change, "of another kind")


def _change_tensors(file: Path, random: Random, change: Callable[[dict, str], object], what: str) -> str:
    if file.suffix == ".msgpack":
        tensors = flatten_dict(msgpack_restore(file.read_bytes()), sep="/")
        name = str(random.choice(list(tensors)))
        change(tensors, name)
        file.write_bytes(msgpack_serialize(unflatten_dict(tensors, sep="/")))
    else:
        done = []
        rewrite(file, lambda tensors: done.append(_change(tensors, random, change)))
        (name,) = done
    return f"{name} or another is {what}"


def _change(tensors: dict, random: Random, change: Callable[[dict, str], object]) -> str:
    name = str(random.choice(list(tensors)))
    change(tensors, name)
    return name


def cut_json(file: Path, random: Random) -> str:
    content = file.read_bytes().rstrip()
    file.write_bytes(content[: int(random.integers(0, len(content)))])
    return f"{file.name} cut"


def retype_json(file: Path, random: Random) -> str:
    """Another type for a setting that says how large something is."""
    sizes = [key for key, value in read_json(file).items() if type(value) is int or isinstance(value, list)]
    key, value = str(random.choice(sizes)), [{}, "text", -1, 0, [[]], 1.5][int(random.integers(6))]
    edit_json(file, **{key: value})
    return f"{key} is {value!r}"


def point_outside(file: Path, random: Random) -> str:
    """A component that lies elsewhere, in model_index.json."""
    name = str(random.choice(["../unet", "/etc", "unet/../../x", "a b", "..", "", "C:\\\\x"]))
    edit_json(file, **{name: ["diffusers", "UNet2DConditionModel"]})
    return f"a component {name!r}"


def pickle_with_code(file: Path, random: Random) -> str:
    """A pickle that runs something, as PyTorch saves it (a zip with data.pkl) or bare, and as it did before 1.6."""
    ran = file.parent / "ran"
    content = pickle.dumps({"state_dict": {"a": Evil(ran)}} if random.integers(2) else Evil(ran), protocol=2)
    if random.integers(2):
        file.write_bytes(content)
        return "a bare pickle with code"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        archive.writestr("../../outside", b"x")
    return "an archive with code"


SAFETENSORS: tuple[Damage, ...] = (
    truncate, append, flip, lie_about_length, lie_about_a_tensor, name_twice,
    drop, add, rename, swap_axes, flatten, poison, quantise,
)  # fmt: skip
MSGPACK: tuple[Damage, ...] = (truncate, append, drop, add, rename, swap_axes, flatten, poison, quantise)
