"""`sdjax compile`: the programs for pictures to come, made ahead of them."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdjax.cli import options
from sdjax.cli.fitting import compiled_for, precision_of, say_whether_it_fits, show
from sdjax.cli.painting import Loading
from sdjax.cli.progress import progress_bars
from sdjax.errors import InputError
from sdjax.limits import BATCH

if TYPE_CHECKING:
    from sdjax.models.precision import Precision
    from sdjax.settings import Picture

# The stages of drawing that make a program each, and what it is called.
PARTS = {"encode": "text", "compile": "denoising", "decode": "decoding"}


def compile_ahead(
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="An embedded model, a directory, a file, or a hub id.")
    ] = "shapes",
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            metavar="WIDTHxHEIGHT",
            help="Of the pictures, in pixels, such as 512x768; may be given several times.",
            show_default="the model's own",
        ),
    ] = None,
    batches: Annotated[
        list[int] | None,
        typer.Option(
            "--batch", min=1, max=BATCH, help="Pictures drawn at once; may be given several times.", show_default="1"
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            metavar="PICTURE", help="Also what painting from a picture takes; any picture will do.", dir_okay=False
        ),
    ] = None,
    dtype: options.Dtype = None,
    weights: options.Weights = None,
    offload: options.Offload = False,
    shard_parameters: options.ShardParameters = False,
    vae: options.Vae = None,
    vae_tiling: options.VaeTiling = None,
    target: options.Target = None,
) -> None:
    """Make the programs that pictures of some sizes take, before anybody waits for them.

    A program is made for each size and each number of pictures at once; prompts, samplers, guidance, seeds and steps
    share it. What is made is kept in the cache: later commands on this machine, on the same model with the same --dtype
    and --vae, begin to draw at once. Nothing is drawn.

    With --target they are made for a device that need not be there, and nothing is kept: whether the model fits, the
    memory of each program, and for a TPU what its compiler estimates of the time. Only its configurations are read.

    [bold]Examples[/bold]

    sdjax compile

    sdjax compile ./sd15 --size 512x512 --size 512x768 --batch 1 --batch 4

    sdjax compile sd15 --target v5e-1 --batch 4
    """
    if target is not None:
        from sdjax.targets import check_target

        if image is not None or vae is not None:
            raise InputError("--target compiles text to image with the model's own VAE: no --image, no --vae")
        check_target(target)
    wanted: list[tuple[int | None, int | None]] = [(None, None)]
    if sizes:
        wanted = [parsed(size) for size in sizes]
    from sdjax.pipeline.request import pictures_of

    images = {} if image is None else {"image": image}
    groups = [
        pictures_of(["a picture"] * batch, {**images, "width": width, "height": height})
        for width, height in wanted
        for batch in batches or [1]
    ]
    if target is not None:
        precision = precision_of(dtype, weights, offload, shard_parameters, target)
        _for_target(model, groups, precision, vae_tiling, target)
        return
    with progress_bars(of_bytes=True) as report:
        pipe = Loading(model, dtype, weights, offload, shard_parameters, vae, vae_tiling).open(report)
    orders = [pipe.prepare(pictures) for pictures in groups]  # raises before the first program is made
    for pictures, order in zip(groups, orders):
        with progress_bars() as report:
            clock = Clock(report)
            pipe.compile(pictures, clock)
        width, height = order.size.pixels
        times = ", ".join(f"{name} {clock.seconds[stage]:.1f} s" for stage, name in PARTS.items())
        typer.echo(f"{width}x{height}, {len(pictures)} at once: {times}")


def _for_target(
    model: str, groups: "list[list[Picture]]", precision: "Precision", vae_tiling: bool | None, target: str
) -> None:
    """Compiles groups of pictures for a device that need not be there, and says what comes out."""
    from sdjax.fitting import Wish
    from sdjax.targets import TARGETS, describe

    devices = describe(target)
    for pictures in groups:
        wish = Wish(model, pictures, precision, vae_tiling)
        readings = compiled_for(wish, devices)
        show(readings, TARGETS[target])
        say_whether_it_fits(wish, readings, TARGETS[target].memory, target, devices)


class Clock:
    """Passes progress on, and notes how long each stage took."""

    def __init__(self, report: Callable[[str, int, int], None]):
        self._report = report
        self._begun: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in PARTS:
            return
        if not done:
            self._begun[stage] = time.perf_counter()
        else:
            self.seconds[stage] = time.perf_counter() - self._begun[stage]
        self._report(PARTS[stage], done, total)


def parsed(size: str) -> tuple[int, int]:
    """The width and the height that "512x768" names. Raises InputError."""
    found = re.fullmatch(r"(\d{1,9})x(\d{1,9})", size)
    if not found:
        raise InputError(f"--size is a width and a height in pixels, such as 512x768, not {size!r}")
    return int(found[1]), int(found[2])
