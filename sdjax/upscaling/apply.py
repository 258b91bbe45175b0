"""Enlarging pictures of any size in bounded memory: tile by tile, each with its surroundings."""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import product
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from PIL import Image

from sdjax.errors import CheckpointError, InputError
from sdjax.limits import ENLARGED
from sdjax.models.platform import devices
from sdjax.parallel import fitting_in_memory, pmap, replicate, shard, unshard
from sdjax.upscaling.files import Upscaler

TILE, AROUND = 192, 32  # pixels of a tile, and the surroundings that it is computed with to each side
MOST_AROUND = 64  # networks that look no farther than this give what they would of the whole picture
TIMES = 3  # at most, that a network is applied to reach a size


class Span(NamedTuple):
    """A stretch of a side: what a tile reads, from `start` on, and what is kept of it."""

    start: int
    kept: slice


def spans(size: int, tile: int, around: int) -> list[Span]:
    """Stretches of one length that cover a side: what is kept has `around` pixels to each side, or the border."""
    length = tile + 2 * around
    if size <= length:
        return [Span(0, slice(0, size))]
    found, done = [], 0
    while done < size:
        start = min(max(done - around, 0), size - length)
        end = size if start + length == size else start + length - around
        found.append(Span(start, slice(done, end)))
        done = end
    return found


def surroundings_of(config: Any) -> int:
    """The surroundings of a tile: all that a network looks at, where that is not much; in multiples of its own."""
    around = config.reach if config.reach is not None and config.reach <= MOST_AROUND else AROUND
    return -(-around // config.multiple) * config.multiple


def enlarged_once(
    upscaler: Upscaler, picture: np.ndarray, progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """A picture, uint8 [height, width, 3], as many times larger as the network makes it.

    Pictures of more than 256 pixels or so are cut into tiles. Networks that look no farther than 64 pixels around
    (SRVGGNetCompact) give what they would give of the whole; of others tiles see the nearest 32 pixels or more, and
    differ by little. progress: called with how many tiles are done, from 0, out of how many. Raises InputError for a
    result of more than 2^28 pixels, or more than fits in memory, CheckpointError where the numbers overflow.
    """
    config = upscaler.config
    height, width = picture.shape[:2]
    check_size(round(height * config.scale), round(width * config.scale))
    multiple = config.multiple
    tile, around = -(-TILE // multiple) * multiple, surroundings_of(config)
    padded = np.pad(picture, ((0, -height % multiple), (0, -width % multiple), (0, 0)), "reflect")
    rows, columns = (spans(side, tile, around) for side in padded.shape[:2])
    size = [min(side, tile + 2 * around) for side in padded.shape[:2]]
    result = np.empty([round(side * config.scale) for side in padded.shape[:2]] + [3], np.uint8)
    places = list(product(rows, columns))
    if progress:
        progress(0, len(places))
    with fitting_in_memory(f"enlarging tiles of {size[1]} x {size[0]} pixels"):
        for done, (row, column, made) in enumerate(_tiles(upscaler, padded, places, size)):
            _put(result, made, row, column, config.scale)
            if progress:
                progress(done + 1, len(places))
    return result[: round(height * config.scale), : round(width * config.scale)]


def _tiles(
    upscaler: Upscaler, picture: np.ndarray, places: list[tuple[Span, Span]], size: list[int]
) -> Iterator[tuple[Span, Span, np.ndarray]]:
    """The tiles of a picture, enlarged; as many at a time as there are devices."""
    params = jax.tree.map(replicate, upscaler.params)
    run = _program(upscaler.module)
    count = len(devices())
    for first in range(0, len(places), count):
        some = places[first : first + count]
        cut = [picture[r.start : r.start + size[0], c.start : c.start + size[1]] for r, c in some]
        made = unshard(run(params, shard(np.stack(cut).astype(np.float32) / 255)), len(some))
        for (row, column), tile in zip(some, made):
            yield row, column, tile


def _put(result: np.ndarray, made: np.ndarray, row: Span, column: Span, scale: float) -> None:
    """The part of a tile that is kept, rounded to 8 bits, in its place."""

    def scaled(part: slice, offset: int) -> slice:
        return slice(round((part.start - offset) * scale), round((part.stop - offset) * scale))

    kept = made[scaled(row.kept, row.start), scaled(column.kept, column.start)]
    if not np.isfinite(kept).all():
        raise CheckpointError("the network that enlarges gives numbers that are not finite")
    result[scaled(row.kept, 0), scaled(column.kept, 0)] = np.round(255 * kept.clip(0, 1)).astype(np.uint8)


def enlarge(
    upscaler: Upscaler,
    image: Image.Image,
    size: tuple[int, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Image.Image:
    """A picture enlarged to a size (width, height), or as many times as the network makes it where none is given.

    The network is applied until the size is reached, three times at most, and Lanczos does the rest: A1111's way.
    Errors are those of `enlarged_once`.
    """
    if size is None:
        return Image.fromarray(enlarged_once(upscaler, np.asarray(image.convert("RGB")), progress))
    check_size(*size)
    for time in range(TIMES):
        reached = image.width >= size[0] and image.height >= size[1]
        if time and (reached or upscaler.config.scale <= 1):
            break
        image = Image.fromarray(enlarged_once(upscaler, np.asarray(image.convert("RGB")), progress))
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def check_size(*sides: int) -> None:
    """Raises InputError where a result is too large."""
    if np.prod(sides, dtype=float) > ENLARGED:
        raise InputError(f"a picture of {sides[0]} x {sides[1]} pixels is too large: at most {ENLARGED:,} pixels")


@lru_cache(4)
def _program(module: nn.Module) -> Callable:
    return pmap(partial(upscale, module), (None, 0))


def upscale(module: nn.Module, params: Any, pictures: jax.Array) -> jax.Array:
    """Pictures [batch, height, width, 3] in [0, 1], enlarged, not clipped."""
    return module.apply({"params": params}, pictures)
