"""A run that is watched: `--preview-every` and `--animate`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from sdjax.cli.output import check_output, picture_paths
from sdjax.errors import InputError
from sdjax.files.pictures import save_animation, save_picture

if TYPE_CHECKING:
    from sdjax.pipeline.previews import Previews

ANIMATED = (".webp", ".gif")


class Watching:
    """Saves what pictures look like on the way, beside where they will be.

    every: after how many steps; after each one for an animation alone.
    """

    def __init__(self, output: Path, every: int | None, animation: Path | None):
        self._output, self._every, self._animation = output, every, animation
        self._paths: list[Path] = []
        self._frames: dict[int, list[Image.Image]] = {}  # by the number of the picture

    @property
    def wanted(self) -> bool:
        """Whether anything is to be seen on the way."""
        return self._every is not None or self._animation is not None

    def check(self) -> None:
        """Raises InputError where the animation cannot be written."""
        if self._animation is not None:
            if self._animation.suffix.lower() not in ANIMATED:
                raise InputError(f"{self._animation}: animations are written as {' or '.join(ANIMATED)}")
            check_output(self._animation.with_suffix(".png"))

    def previews(self, count: int, numbers: Sequence[int]) -> "Previews | None":
        """What to ask of the pipeline for a batch; count: of all pictures, numbers: of those of the batch among them.

        The batch may have more pictures than numbers, which are not shown.
        """
        from sdjax.pipeline.previews import previews_of

        return previews_of(self._every or 1, partial(self._show, count, numbers)) if self.wanted else None

    def paths(self, count: int) -> list[Path]:
        """The names of the finished pictures; always the same."""
        self._paths = self._paths or picture_paths(self._output, count)
        return self._paths

    def finish(self, number: int, image: Image.Image, count: int) -> None:
        """Save the animation of a finished picture, one of `count`."""
        if self._animation is None:
            return
        path = self._animation.with_stem(f"{self._animation.stem}-{number + 1}") if count > 1 else self._animation
        save_animation([*self._frames.pop(number, []), image], path)

    def _show(self, count: int, numbers: Sequence[int], step: int, images: list[Image.Image]) -> None:
        for number, image in zip(numbers, images):
            if self._animation is not None:
                self._frames.setdefault(number, []).append(image)
            if self._every is not None:
                path = self.paths(count)[number]
                save_picture(image, path.with_stem(f"{path.stem}-step-{step:02d}"), {"step": step})
