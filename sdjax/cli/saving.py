"""What is written of finished pictures: `--grid`, `--no-metadata`, `--quality`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from PIL import Image

from sdjax.cli.output import check_file
from sdjax.errors import InputError
from sdjax.files.pictures import encoded, kind_of, save_picture, sheet_of

ROOM = 4096  # characters of a JPEG's EXIF, of which there are 65,533 bytes, for what is known after drawing only


@dataclass(frozen=True)
class Saving:
    """How pictures are saved. grid: the file of a sheet of all of them. metadata: whether they say how they were made.

    quality: from 1 to 100, of JPEG and WebP.
    """

    grid: Path | None = None
    metadata: bool = True
    quality: int = 90

    def check(self, output: Path, prompts: Sequence[str], settings: Mapping[str, Any]) -> None:
        """Raises InputError where the sheet cannot be written, or a JPEG has no room for such prompts."""
        if self.grid is not None:
            check_file(self.grid)
        if not self.metadata or "jpeg" not in (kind_of(output), self.grid and kind_of(self.grid)):
            return
        told = {name: str(value) for name, value in settings.items()} | {"prompt": max(prompts, key=len) + "-" * ROOM}
        try:
            encoded(Image.new("RGB", (8, 8)), "jpeg", told)
        except (OSError, ValueError):
            raise InputError("a JPEG has no room for prompts as long as these: write a PNG, or --no-metadata") from None

    def save(self, image: Image.Image, settings: dict[str, Any], path: Path) -> None:
        """Save a picture with its settings, and print its name."""
        save_picture(image, path, settings if self.metadata else None, self.quality)
        typer.echo(path)

    def save_sheet(self, pictures: Sequence[tuple[Image.Image, dict[str, Any]]]) -> None:
        """Save the sheet of all pictures, if there shall be one, with the settings of the first; print its name."""
        if self.grid is None:
            return
        self.grid.parent.mkdir(parents=True, exist_ok=True)
        told = {**pictures[0][1], "seeds": [settings["seed"] for _, settings in pictures]}
        sheet = sheet_of([image for image, _ in pictures])
        save_picture(sheet, self.grid, told if self.metadata else None, self.quality)
        typer.echo(self.grid)
