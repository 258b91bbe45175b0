"""A run that is watched: `--preview-every` and `--animate`."""

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
        self._frames: list[list[Image.Image]] = []

    def check(self) -> None:
        """Raises InputError where the animation cannot be written."""
        if self._animation is not None:
            if self._animation.suffix.lower() not in ANIMATED:
                raise InputError(f"{self._animation}: animations are written as {' or '.join(ANIMATED)}")
            check_output(self._animation.with_suffix(".png"))

    def previews(self) -> "Previews | None":
        """What to ask of the pipeline."""
        from sdjax.pipeline.previews import previews_of

        every = self._every or (1 if self._animation else None)
        return None if every is None else previews_of(every, self._show)

    def paths(self, count: int) -> list[Path]:
        """The names of the finished pictures; always the same."""
        self._paths = self._paths or picture_paths(self._output, count)
        return self._paths

    def finish(self, images: list[Image.Image]) -> None:
        """Save the animations, one for each picture."""
        if self._animation is None:
            return
        for i, image in enumerate(images):
            several = len(images) > 1
            path = self._animation.with_stem(f"{self._animation.stem}-{i + 1}") if several else self._animation
            save_animation([*(frame[i] for frame in self._frames), image], path)

    def _show(self, step: int, images: list[Image.Image]) -> None:
        if self._animation is not None:
            self._frames.append(images)
        if self._every is not None:
            for image, path in zip(images, self.paths(len(images))):
                save_picture(image, path.with_stem(f"{path.stem}-step-{step:02d}"), {"step": step})
