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
from sdjax.inputs import read_image, resized

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
NAMES, TEXTS = ("file_name", "image"), ("text", "caption")  # the keys that JSON Lines are known to have
AHEAD = 4  # batches that are read before they are asked for


class Example(NamedTuple):
    """A picture's file and what it shows; no caption where there is none."""

    path: Path
    caption: str | None


def read_folder(folder: Path, *, captions: bool) -> list[Example]:
    """The pictures of a folder, sorted by name, with their captions if these are wanted.

    A caption stands in a .txt of the picture's name; or in a .jsonl file, of which each line is an object with
    "file_name" (or "image") and "text" (or "caption"). Raises InputError for a folder without pictures, and for
    a picture without its caption.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder of pictures")
    if lists := sorted(folder.glob("*.jsonl")):
        examples = [_from_line(path, number, line) for path in lists for number, line in _lines(path)]
    else:
        pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
        examples = [Example(path, _text_beside(path) if captions else None) for path in pictures]
    if not examples:
        raise InputError(f"{folder} holds no pictures ({', '.join(ENDINGS)})")
    if lacking := [example.path for example in examples if captions and example.caption is None]:
        raise InputError(
            f"{lacking[0]} has no caption: put one into {lacking[0].stem}.txt beside it, or all into a .jsonl"
        )
    return examples


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_text(encoding="utf-8")
    return ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def _from_line(path: Path, number: int, line: str) -> Example:
    try:
        entry = json.loads(line)
        name = next(entry[key] for key in NAMES if key in entry)
        picture = path.parent / name
        return Example(picture, next((str(entry[key]) for key in TEXTS if key in entry), None))
    except (ValueError, TypeError, StopIteration, RecursionError):
        raise InputError(f"{path}, line {number}: should be an object with {NAMES[0]!r} and {TEXTS[0]!r}") from None


def _text_beside(path: Path) -> str | None:
    text = path.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() if text.is_file() else None


def read_picture(path: Path) -> Image.Image:
    """A file as 8-bit RGB, upright and without transparency. Raises InputError for what is no picture."""
    image = read_image("the picture", path)
    assert isinstance(image, Image.Image)  # only arrays are read as latents
    return image


def read_square(path: Path, size: int) -> np.ndarray:
    """The middle square of a picture, [size, size, 3] float32 in [-1, 1]."""
    image = read_picture(path)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = resized(image.crop((left, top, left + side, top + side)), (size, size))
    return np.asarray(square, np.float32) / 127.5 - 1


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
