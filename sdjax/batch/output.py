"""Where the pictures of a run go: a folder of files, or shards that pack so many of them, as WebDataset or Parquet.

Every picture is a file first, in a sub-folder of those with neighbouring indices. Shards are packed from these files
once all of their pictures are done. A file is complete or absent, and the same picture is always the same bytes.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdjax.batch.rows import Item, Problem
from sdjax.errors import InputError
from sdjax.files.atomic import replaced
from sdjax.files.identity import hash_of
from sdjax.files.pictures import encoded, read_settings

CONTAINERS = ("files", "tar", "parquet")
ENDINGS = {"png": "png", "jpeg": "jpg", "webp": "webp"}
JPEG_ROOM = 60_000  # bytes of texts; the rest of 64 kilobytes is for the other settings
PARTS = ".parts"  # the pictures of shards that are not packed yet


@dataclass(frozen=True)
class Output:
    """Where pictures go and as what: `container` of CONTAINERS, `kind` of ENDINGS, `shard_size` pictures together."""

    folder: Path
    container: str = "files"
    kind: str = "png"
    quality: int = 90
    shard_size: int = 1000

    def __post_init__(self) -> None:
        for name, value, known in (("container", self.container, CONTAINERS), ("kind", self.kind, tuple(ENDINGS))):
            if value not in known:
                raise InputError(f"unknown {name} {value!r}; known: {', '.join(known)}")

    @property
    def packs(self) -> bool:
        """Whether pictures end up in shards."""
        return self.container != "files"

    def shard_of(self, item: Item) -> int:
        """The number of the shard, or of the sub-folder, that a picture belongs to."""
        return item.index // self.shard_size

    def shard_file(self, shard: int) -> str:
        """The name of a shard in the folder."""
        return f"{shard:05d}.{self.container}" if self.packs else f"{shard:05d}"

    def path_of(self, item: Item) -> Path:
        """Where a picture's file lies until it is packed."""
        return self._pictures(self.shard_of(item)) / f"{item.name}.{ENDINGS[self.kind]}"

    def name_of(self, item: Item) -> str:
        """How the manifest names a picture's file: by its place in the folder, or in the shard."""
        return f"{self.shard_file(self.shard_of(item))}/{item.name}.{ENDINGS[self.kind]}"

    def encoded(self, image: Image.Image, settings: dict[str, Any]) -> bytes:
        """A picture's file. Raises ValueError for settings that are too long for its format."""
        return encoded(image, self.kind, settings, self.quality)

    def without_room(self, items: Sequence[Item]) -> list[Problem]:
        """The rows whose texts a JPEG cannot hold, once as JSON and once as A1111's; other files have room for all."""
        found = {}
        for item in items if self.kind == "jpeg" else ():
            texts = [value for value in item.settings.values() if isinstance(value, str)]
            lengths = [len(json.dumps(text)) + len(text.encode("utf-16-be", "surrogatepass")) for text in texts]
            if sum(lengths) > JPEG_ROOM:
                found[item.row] = Problem(item.row, "its texts are too long for a JPEG: take --format webp or png")
        return list(found.values())

    def write(self, item: Item, data: bytes) -> dict[str, Any]:
        """Write a picture's file; returns its entry in the manifest. Raises OSError where it cannot be written."""
        path = self.path_of(item)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as partial:
            partial.write_bytes(data)
        return {"file": self.name_of(item), "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}

    def pack(self, shard: int, items: Sequence[Item]) -> dict[str, Any]:
        """Pack a shard from the files of these pictures; returns the journal's entry, and leaves the files."""
        destination = self.folder / self.shard_file(shard)
        ordered = sorted(items, key=lambda item: item.index)
        with replaced(destination) as partial:
            PACKERS[self.container](partial, [(item, self.path_of(item)) for item in ordered])
            digest = hash_of(partial)
        return {"shard": shard, "file": destination.name, "sha256": digest, "pictures": len(items)}

    def unpack(self, shard: int) -> None:
        """Put the files that a shard was packed from where they were; the shard stays."""
        folder = self._pictures(shard)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in UNPACKERS[self.container](self.folder / self.shard_file(shard)):
            if name.endswith(f".{ENDINGS[self.kind]}"):
                with replaced(folder / name) as partial:
                    partial.write_bytes(data)

    def clear(self, shard: int) -> None:
        """Remove the files that a shard was packed from."""
        shutil.rmtree(self._pictures(shard), ignore_errors=True)

    def finish(self) -> None:
        """Remove what only a run that is not done needs."""
        if self.packs:
            shutil.rmtree(self.folder / PARTS, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what killed processes have left half-written."""
        for partial in self.folder.rglob(".*.partial"):
            partial.unlink(missing_ok=True)

    def _pictures(self, shard: int) -> Path:
        return self.folder / PARTS / f"{shard:05d}" if self.packs else self.folder / f"{shard:05d}"


def _told_in(item: Item, path: Path) -> dict[str, Any]:
    settings = read_settings(path) or {}
    return {"index": item.index, "row": item.row, "name": item.name, **settings}


def _pack_tar(destination: Path, pictures: Sequence[tuple[Item, Path]]) -> None:
    """WebDataset: NAME.png, NAME.json with how it was made, and NAME.txt with the prompt."""
    with tarfile.open(destination, "w", format=tarfile.PAX_FORMAT) as tar:  # which has room for names of any length
        for item, path in pictures:
            settings = _told_in(item, path)
            for ending, data in (
                (path.suffix[1:], path.read_bytes()),
                ("json", json.dumps(settings).encode()),
                ("txt", settings["prompt"].encode("utf-8", "replace")),
            ):
                member = tarfile.TarInfo(f"{item.name}.{ending}")  # of the year 1970, and nobody's: the same every time
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _pack_parquet(destination: Path, pictures: Sequence[tuple[Item, Path]]) -> None:
    """A row for each picture; its column `image` holds the file, as `bytes`, and its name, as `path`."""
    import pyarrow
    from pyarrow import parquet

    kinds: Mapping[str, Any] = {
        "index": pyarrow.int64(),
        "row": pyarrow.int64(),
        "name": pyarrow.string(),
        "prompt": pyarrow.string(),
        "negative_prompt": pyarrow.string(),
        "seed": pyarrow.uint64(),
        "width": pyarrow.int64(),
        "height": pyarrow.int64(),
        "settings": pyarrow.string(),
        "image": pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]),
    }
    rows = []
    for item, path in pictures:
        settings = _told_in(item, path)
        row = {name: settings.get(name) for name in kinds}
        rows.append(row | {"settings": json.dumps(settings), "image": {"bytes": path.read_bytes(), "path": path.name}})
    table = pyarrow.Table.from_pylist(rows, pyarrow.schema(list(kinds.items())))
    parquet.write_table(table, os.fspath(destination))


def _unpack_tar(source: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(source) as tar:
        for member in tar:
            if file := tar.extractfile(member):
                yield member.name, file.read()


def _unpack_parquet(source: Path) -> Iterator[tuple[str, bytes]]:
    from pyarrow import parquet

    for row in parquet.read_table(source, columns=["image"]).to_pylist():
        yield row["image"]["path"], row["image"]["bytes"]


PACKERS: dict[str, Callable[[Path, Sequence[tuple[Item, Path]]], None]] = {"tar": _pack_tar, "parquet": _pack_parquet}
UNPACKERS: dict[str, Callable[[Path], Iterator[tuple[str, bytes]]]] = {"tar": _unpack_tar, "parquet": _unpack_parquet}
