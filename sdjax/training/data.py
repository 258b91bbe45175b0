"""Pictures to train on, with captions or without, in an order that follows from the seed and the number of the step."""

import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from sdjax.errors import InputError
from sdjax.pipeline.images import read_image
from sdjax.training.cifar import read_cifar

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
NAMES, TEXTS = ("file_name", "image"), ("text", "caption")  # the keys that JSON Lines are known to have
HINT = "conditioning_image"
AHEAD = 4  # batches that are read ahead of their use


class Example(NamedTuple):
    """A picture, its file or its pixels [height, width, 3] in 8 bits; what it shows, and a hint of that.

    None where nobody says.
    """

    picture: Path | np.ndarray
    caption: str | None
    hint: Path | None = None


def read_examples(source: Path, *, captions: bool) -> list[Example]:
    """The pictures of a folder, sorted by name, with their captions if these are wanted; or CIFAR-10 (see `cifar`).

    A caption stands in a .txt of the picture's name; or in a .jsonl file, of which each line is an object with
    "file_name" (or "image") and "text" (or "caption"). Raises InputError for a folder without pictures, and for
    a picture without its caption.
    """
    if not source.exists():
        raise InputError(f"{source} is no folder of pictures")
    if (found := read_cifar(source)) is not None:
        return [Example(picture, name) for picture, name in found]
    return _read_folder(source, captions)


def _read_folder(folder: Path, captions: bool) -> list[Example]:
    if lists := sorted(folder.glob("*.jsonl")):
        examples = [_from_line(path, number, line) for path in lists for number, line in _lines(path)]
    else:
        pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
        examples = [Example(path, _text_beside(path) if captions else None) for path in pictures]
    if not examples:
        raise InputError(f"{folder} holds no pictures ({', '.join(ENDINGS)})")
    for picture, caption, _ in examples:
        if captions and caption is None:
            raise InputError(f"{picture} has no caption: put one into a .txt of its name, or all into a .jsonl")
    return examples


def with_hints(examples: list[Example], folder: Path) -> list[Example]:
    """The examples with the pictures of the same names in a folder as their hints. InputError where one is missing."""
    hints = {path.stem: path for path in sorted(folder.glob("*")) if path.suffix.lower() in ENDINGS}
    for example in examples:
        if not isinstance(example.picture, Path) or example.picture.stem not in hints:
            raise InputError(f"{folder} has no hint of the name of {example.picture}")
    return [example._replace(hint=hints[Path(str(example.picture)).stem]) for example in examples]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_text(encoding="utf-8")
    return ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def _from_line(path: Path, number: int, line: str) -> Example:
    try:
        entry = json.loads(line)
        name = next(entry[key] for key in NAMES if key in entry)
        picture = path.parent / name
        hint = path.parent / entry[HINT] if HINT in entry else None
        return Example(picture, next((str(entry[key]) for key in TEXTS if key in entry), None), hint)
    except (ValueError, TypeError, StopIteration, RecursionError):
        raise InputError(f"{path}, line {number}: should be an object with {NAMES[0]!r} and {TEXTS[0]!r}") from None


def _text_beside(path: Path) -> str | None:
    text = path.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() if text.is_file() else None


def read_picture(picture: Path | np.ndarray) -> Image.Image:
    """A file, or pixels [height, width, 3], as 8-bit RGB, upright and without transparency.

    Raises InputError for what is no picture.
    """
    image = read_image("the picture", picture)
    assert isinstance(image, Image.Image)  # only arrays are read as latents
    return image


def indices(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Which of `count` examples are in the batch of a step: all, in a new order, before any comes again."""
    places = range(step * batch_size, (step + 1) * batch_size)
    return [int(_order(count, seed, place // count)[place % count]) for place in places]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def batches(read: Callable[[int], Any], count: int, batch_size: int, seed: int, start: int) -> Generator[Any]:
    """The batches of the steps from `start` on, without end: `read(i)` of each example, stacked leaf by leaf.

    Threads read some batches ahead.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting: deque = deque()
        try:
            for step in itertools.count(start):
                waiting.append([pool.submit(read, i) for i in indices(count, batch_size, seed, step)])
                if len(waiting) > AHEAD:
                    examples = [future.result() for future in waiting.popleft()]
                    yield jax.tree.map(lambda *leaves: np.stack(leaves), *examples)
        finally:
            pool.shutdown(cancel_futures=True)
