"""`sdjax batch`: a file of rows to a folder of pictures."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sdjax.cli import options
from sdjax.cli.batch_run import judge, place_all, run_of
from sdjax.cli.painting import Loading, configured
from sdjax.cli.progress import progress_bars
from sdjax.cli.throughput import Showing, summarise
from sdjax.errors import InputError
from sdjax.limits import BATCH, SHARD
from sdjax.settings import EDIT, UPSCALE

if TYPE_CHECKING:
    from sdjax.batch.cluster import Cluster

OUTPUT, DEVICES = "Output", "Devices and processes"

Coordinator = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        rich_help_panel=DEVICES,
        help="Where process 0 of several is; `auto` on Cloud TPU and Slurm, which tell.",
    ),
]


@configured("image", "mask_image", UPSCALE, EDIT, without=("depth_map",))
def batch(
    *,
    rows: Annotated[
        Path,
        typer.Argument(
            metavar="PROMPTS", help="A prompt per line (.txt), .jsonl, .csv or .parquet; - is what comes in."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder of the run: a new one, or that of the run to go on with.")
    ],
    kind: Annotated[
        Literal["txt", "jsonl", "csv", "parquet"] | None,
        typer.Option("--from", help="What PROMPTS holds.", show_default="as its name ends; txt for -"),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that cannot be drawn.")] = False,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Of the first picture; the others count up from it.")] = 0,
    num_images: options.NumImages = 1,
    dynamic: options.Dynamic = False,
    wildcards: options.Wildcards = None,
    name: Annotated[
        str,
        typer.Option(
            rich_help_panel=OUTPUT,
            help="What pictures are called: {index}, {row}, {image}, {seed}, {prompt} are filled in.",
        ),
    ] = "{index:08d}",
    picture_format: Annotated[
        Literal["png", "jpeg", "webp"], typer.Option("--format", rich_help_panel=OUTPUT, help="Of the pictures.")
    ] = "png",
    quality: Annotated[int, typer.Option(min=1, max=100, rich_help_panel=OUTPUT, help="Of JPEG and WebP.")] = 90,
    container: Annotated[
        Literal["files", "tar", "parquet"],
        typer.Option(rich_help_panel=OUTPUT, help="Pictures in sub-folders, or in shards: WebDataset's, or Parquet."),
    ] = "files",
    shard_size: Annotated[
        int, typer.Option(min=1, max=SHARD, rich_help_panel=OUTPUT, help="Pictures in a sub-folder or shard.")
    ] = 1000,
    batch_size: Annotated[
        int, typer.Option(min=1, max=BATCH, rich_help_panel=DEVICES, help="Pictures that each device draws at once.")
    ] = 8,
    coordinator: Coordinator = None,
    processes: Annotated[int | None, typer.Option(min=1, rich_help_panel=DEVICES, help="How many there are.")] = None,
    process: Annotated[
        int | None, typer.Option(min=0, rich_help_panel=DEVICES, help="Which of them this is, from 0.")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(rich_help_panel=DEVICES, help="What draws: this machine's devices, or a Ray cluster's workers."),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=DEVICES, help="Of the Ray cluster, or `auto`.", show_default="one of this machine"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            rich_help_panel=DEVICES,
            help="Of Ray, each of which holds the model.",
            show_default="one for each GPU, else for each machine",
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a JAX trace of three batches, for TensorBoard or Perfetto."),
    ] = None,
    settings: dict[str, Any],
    loading: Loading,
) -> None:
    """Paint the rows of a file, by the thousand. Killed at any moment, the same command goes on.

    Columns are the names of the settings (prompt, negative_prompt, seed, steps, sampler, spacing, guidance_scale,
    width, height, image, mask_image, strength, num_images, name and others); every row may have its own. What is wrong
    with a row is said before the first picture. `manifest.jsonl` in the folder records how each picture was made.

    The exit code is 0 when all pictures are there, and 3 when some could not be made.

    [bold]Examples[/bold]

    sdjax batch prompts.txt -o pictures --steps 20

    sdjax batch rows.csv -o shards --container tar --format webp

    printf 'a red heart\\na blue star\\n' | sdjax batch - -o pictures

    sdjax batch rows.csv -o pictures --engine ray --address auto
    """
    if engine == "ray" and (coordinator or profile):
        raise InputError("--engine ray takes no --coordinator and no --profile: Ray has its own ways")
    if engine != "ray" and (address or workers):
        raise InputError("--address and --workers are for --engine ray")
    defaults = settings | {"seed": seed, "num_images": num_images}
    if str(settings.get("sampler", "")).endswith(".json"):
        from sdjax.files.plans import use_plan

        defaults["sampler"] = use_plan(settings["sampler"])

    from sdjax.batch.formats import STANDARD_INPUT, kind_of, read_rows
    from sdjax.batch.hosts import connect
    from sdjax.batch.identity import check_vacant_or_ours
    from sdjax.batch.output import Output
    from sdjax.batch.rows import Naming, items_of
    from sdjax.prompts.dynamic import Wildcards

    form = Output(output, container, picture_format, quality, shard_size)
    folder = Path() if rows == STANDARD_INPUT else rows.parent
    lines = Wildcards(wildcards) if dynamic or wildcards else None
    read = read_rows(rows, kind_of(rows, kind))
    items, problems = items_of(read, defaults, Naming(name), folder, container == "tar", lines)
    problems += form.without_room(items)
    bad = {problem.row for problem in problems}
    items = [item for item in items if item.row not in bad]
    judge(rows, items, problems, skip_bad)
    check_vacant_or_ours(output)
    hosts = connect(coordinator, processes, process)
    with _cluster(engine, address, workers, batch_size, loading) as cluster:
        if cluster:
            loading = replace(loading, dtype=loading.dtype or cluster.machine.dtype)
        with progress_bars(of_bytes=True) as report:
            pipe = loading.open(report)
        with progress_bars() as report:
            placed = place_all(pipe, items, problems, report)
            judge(rows, items, problems, skip_bad)

            from sdjax.batch.drawing import Drawing
            from sdjax.batch.identity import fingerprint, versions
            from sdjax.batch.runner import run

            own = cluster.machine.versions if cluster else versions()
            of_rows = fingerprint(items, folder, report)
            this = run_of(pipe, loading, form, placed, problems, of_rows, batch_size, own)
            summary = run(cluster or Drawing(pipe, batch_size), this, report, Showing(report), hosts, profile)
    summarise(summary, output)


@contextmanager
def _cluster(
    engine: str, address: str | None, workers: int | None, batch_size: int, loading: Loading
) -> "Iterator[Cluster | None]":
    """The workers of a Ray cluster, where they are to draw."""
    if engine != "ray":
        yield None
        return
    from sdjax.batch.cluster import Cluster, ray_cluster

    with ray_cluster(address):
        yield Cluster(workers, batch_size, partial(loading.open, None))
