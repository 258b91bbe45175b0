"""What every painting command does, once its options are read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from sdjax.cli.interrupt import nothing_to_tidy
from sdjax.cli.output import check_output, picture_paths
from sdjax.cli.progress import progress_bars
from sdjax.cli.watching import Watching
from sdjax.images import save_png


def paint(
    prompts: Sequence[str],
    output: Path,
    loading: Mapping[str, Any],
    num_images: int,
    seed: Sequence[int] | None,
    negative_prompt: str | None,
    images: Mapping[str, Path],
    settings: Mapping[str, Any],
    watching: Watching | None = None,
) -> None:
    """Paint, save and name pictures. Everything that can be wrong is looked at before the model is.

    loading: arguments of `sdjax.load`. images, settings: as `sdjax.arguments.spread` has them.
    """
    check_output(output)
    if watching:
        watching.check()

    import sdjax
    from sdjax.arguments import spread

    seeds = seed or [0]
    pictures = spread(prompts, negative_prompt, num_images, seeds[0] if len(seeds) == 1 else seeds, images, settings)
    with progress_bars(of_bytes=True) as report:
        pipe = sdjax.load(**loading, progress=report)
    with progress_bars() as report, nothing_to_tidy():
        result = pipe.draw(pictures, previews=watching.previews() if watching else None, progress=report)
    source = {name: str(path) for name, path in images.items()}
    source |= {"vae": loading["vae"]} if loading["vae"] else {}
    paths = watching.paths(len(pictures)) if watching else picture_paths(output, len(pictures))
    for image, how, path in zip(result.images, result.settings, paths):
        save_png(image, path, {"model": loading["model"], **how, **source, "version": sdjax.__version__})
        typer.echo(path)
    if watching:
        watching.finish(list(result.images))
