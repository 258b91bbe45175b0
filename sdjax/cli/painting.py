"""What every painting command does, once its options are read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from sdjax.cli.interrupt import nothing_to_tidy
from sdjax.cli.output import check_output, picture_paths
from sdjax.cli.progress import progress_bars
from sdjax.images import save_png


def paint(
    prompts: Sequence[str],
    output: Path,
    model: str,
    dtype: str | None,
    num_images: int,
    seed: Sequence[int] | None,
    negative_prompt: str | None,
    images: Mapping[str, Path],
    settings: Mapping[str, Any],
    embeddings: Sequence[Path],
) -> None:
    """Paint, save and name pictures. Everything that can be wrong is looked at before the model is.

    images, settings: as `sdjax.arguments.spread` has them. embeddings: files of textual inversion.
    """
    check_output(output)

    import sdjax
    from sdjax.arguments import spread

    seeds = seed or [0]
    settings = {name: value for name, value in settings.items() if value is not None}
    pictures = spread(prompts, negative_prompt, num_images, seeds[0] if len(seeds) == 1 else seeds, images, settings)
    with progress_bars(of_bytes=True) as report:
        pipe = sdjax.load(model, dtype=dtype, progress=report)
    for embedding in embeddings:
        pipe.load_textual_inversion(embedding)
    with progress_bars() as report, nothing_to_tidy():
        result = pipe.draw(pictures, progress=report)
    source: dict[str, Any] = {name: str(path) for name, path in images.items()}
    if embeddings:
        source["embeddings"] = [str(path) for path in embeddings]
    for image, how, path in zip(result.images, result.settings, picture_paths(output, len(result.images))):
        save_png(image, path, {"model": model, **how, **source, "version": sdjax.__version__})
        typer.echo(path)
