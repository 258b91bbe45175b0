"""What every painting command does, once its options are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sdjax.cli.interrupt import nothing_to_tidy
from sdjax.cli.output import check_output, picture_paths
from sdjax.cli.progress import progress_bars
from sdjax.cli.watching import Watching
from sdjax.errors import InputError
from sdjax.files.pictures import save_png

if TYPE_CHECKING:
    from sdjax.pipeline import Pipeline


@dataclass(frozen=True)
class Loading:
    """What is loaded before anything is painted: the arguments of `sdjax.load`, and files of textual inversion.

    task: what the model must be made for, where a command is for such models only; see `sdjax.pipeline.start.task_of`.
    """

    model: str
    dtype: str | None
    vae: str | None
    vae_tiling: bool | None
    embeddings: Sequence[Path]
    loras: Sequence[tuple[str, float]]
    preview_vae: str | None = None
    task: str | None = None

    def open(self, report: Callable[..., None] | None) -> "Pipeline":
        """The pipeline."""
        import sdjax

        pipe = sdjax.load(
            self.model,
            dtype=self.dtype,
            vae=self.vae,
            vae_tiling=self.vae_tiling,
            preview_vae=self.preview_vae,
            loras=self.loras,
            progress=report,
        )
        if self.task not in (None, pipe.task):
            raise InputError(f"{self.model} is made for another task, {pipe.task}: this wants a model for {self.task}")
        for embedding in self.embeddings:
            pipe.load_textual_inversion(embedding)
        return pipe

    def settings(self) -> dict[str, Any]:
        """What of it a picture depends on; of LoRAs, the pipeline tells."""
        files = {"embeddings": [str(path) for path in self.embeddings]} if self.embeddings else {}
        return {"model": self.model, **({"vae": self.vae} if self.vae else {}), **files}


def paint(
    prompts: Sequence[str],
    output: Path,
    loading: Loading,
    num_images: int,
    seed: Sequence[int] | None,
    negative_prompt: str | None,
    images: Mapping[str, Path],
    settings: Mapping[str, Any],
    watching: Watching | None = None,
) -> None:
    """Paint, save and name pictures. Everything that can be wrong is looked at before the model is.

    images, settings: as `sdjax.pipeline.request.spread` has them; what is None is left to the model.
    """
    check_output(output)
    if watching:
        watching.check()

    from sdjax.pipeline.request import spread
    from sdjax.version import __version__

    seeds = seed or [0]
    given = {name: value for name, value in settings.items() if value is not None}
    pictures = spread(prompts, negative_prompt, num_images, seeds[0] if len(seeds) == 1 else seeds, images, given)
    with progress_bars(of_bytes=True) as report:
        pipe = loading.open(report)
    with progress_bars() as report, nothing_to_tidy():
        result = pipe.draw(pictures, previews=watching.previews() if watching else None, progress=report)
    source = {name: str(path) for name, path in images.items()}
    paths = watching.paths(len(pictures)) if watching else picture_paths(output, len(pictures))
    for image, how, path in zip(result.images, result.settings, paths):
        save_png(image, path, {**loading.settings(), **how, **source, "version": __version__})
        typer.echo(path)
    if watching:
        watching.finish(list(result.images))
