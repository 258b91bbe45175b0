"""`sdjax serve`: a server that speaks OpenAI's images API and A1111's."""

import os
import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdjax.cli import options
from sdjax.cli.interrupt import GLANCE, check
from sdjax.cli.options import files_and_scales
from sdjax.cli.painting import Loading
from sdjax.cli.progress import progress_bars
from sdjax.errors import InputError

if TYPE_CHECKING:
    from sdjax.pipeline import Pipeline
    from sdjax.server.engine import Engine

DOORS, ENGINE, MODELS = "Who may ask", "Batches and limits", "Models"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
TOKEN = "SDJAX_TOKEN"


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]MODEL",
            help="A model that may be asked for, by this name or that of its file; the first is the default.",
            show_default="shapes",
            rich_help_panel=MODELS,
        ),
    ] = None,
    models_dir: Annotated[
        Path | None,
        typer.Option(help="All models in a folder may be asked for: files and folders.", rich_help_panel=MODELS),
    ] = None,
    keep_models: Annotated[int, typer.Option(min=1, help="Models on the devices at once.", rich_help_panel=MODELS)] = 1,
    lora_dir: options.LoraDir = None,
    embedding: options.Embedding = None,
    lora: options.Loras = None,
    vae: options.Vae = None,
    dtype: options.Dtype = None,
    weights: options.Weights = None,
    offload: options.Offload = False,
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 is all of this machine's.", rich_help_panel=DOORS)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any.", rich_help_panel=DOORS)] = 7860,
    token: Annotated[
        list[str] | None,
        typer.Option(
            help="Whoever asks must say it, as Bearer or as the password of Basic.",
            envvar=TOKEN,
            rich_help_panel=DOORS,
        ),
    ] = None,
    open_to_all: Annotated[
        bool,
        typer.Option(
            "--open-to-all",
            help="Let whoever reaches another address than loopback ask without a token.",
            rich_help_panel=DOORS,
        ),
    ] = False,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Scripts of this site's pages may ask.", rich_help_panel=DOORS),
    ] = None,
    batch_sizes: Annotated[
        str,
        typer.Option(
            help="How many pictures are drawn at once; the smallest that holds what waits is taken.",
            rich_help_panel=ENGINE,
        ),
    ] = "1,4",
    max_pixels: Annotated[int, typer.Option(min=1, help="Of a picture.", rich_help_panel=ENGINE)] = 2048 * 2048,
    max_steps: Annotated[int, typer.Option(min=1, help="Of a picture.", rich_help_panel=ENGINE)] = 150,
    max_pictures: Annotated[int, typer.Option(min=1, help="Of a request.", rich_help_panel=ENGINE)] = 16,
    max_body: Annotated[int, typer.Option(min=1, help="Megabytes of a request.", rich_help_panel=ENGINE)] = 64,
    max_queue: Annotated[int, typer.Option(min=1, help="Pictures that wait.", rich_help_panel=ENGINE)] = 500,
    max_seconds: Annotated[
        float, typer.Option(min=1, help="Until a request is answered.", rich_help_panel=ENGINE)
    ] = 600,
    warm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WIDTHxHEIGHT[:SIZES]",
            help="Compile for pictures of this size before the first request, such as 512x512:1,4.",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where accepted requests and results are kept, so that a killed server goes on.",
            show_default="in the cache, by port",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    keep_seconds: Annotated[
        float, typer.Option(min=0, help="How long results can be fetched.", rich_help_panel=ENGINE)
    ] = 3600,
    keep_megabytes: Annotated[int, typer.Option(min=1, help="Of results.", rich_help_panel=ENGINE)] = 1024,
) -> None:
    """Serve pictures over HTTP to the clients that exist: those of OpenAI's images API, and those of A1111's web UI.

    OpenAI's is at http://HOST:PORT/v1, A1111's at http://HOST:PORT/sdapi/v1. Requests of all users are drawn in common
    batches, with the pictures that `sdjax generate` would draw. Only this machine is served unless --host says
    otherwise, which needs a --token.

    [bold]Examples[/bold]

    sdjax serve

    sdjax serve --model sdxl=stabilityai/stable-diffusion-xl-base-1.0 --port 8000

    sdjax serve --host 0.0.0.0 --token a-long-secret --warm 512x512
    """
    tokens = [each for each in token or () if each]
    if host not in LOOPBACK and not tokens and not open_to_all:
        raise InputError(
            f"--host {host} lets others ask: give a --token that they must say ({TOKEN}), or --open-to-all if all may"
        )
    sizes = _sizes(batch_sizes)
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise InputError("sdjax serve needs FastAPI and uvicorn: pip install 'sdjax[server]'") from None

    shared = Loading(
        None, dtype, weights, offload, vae, embeddings=embedding or (), loras=files_and_scales(lora), lora_dir=lora_dir
    )
    allowed = _allowed(model or [], models_dir)

    from sdjax.server.limits import Limits
    from sdjax.server.logs import log_as_lines
    from sdjax.server.warm import warm as compile_ahead
    from sdjax.server.warm import warm_of

    log_as_lines()
    wanted = [warm_of(each, sizes) for each in warm or ()]
    limits = Limits(max_pixels, max_steps, max_pictures, body=max_body * 2**20, queue=max_queue, seconds=max_seconds)
    openers = {name: partial(_open, replace(shared, model=path)) for name, path in allowed.items()}
    engine = _engine(openers, keep_models, sizes, limits, folder, port, keep_seconds, keep_megabytes)

    from sdjax.server.app import application
    from sdjax.server.hosting import PATIENCE, Host

    pipe = engine.ask(lambda: engine.models.open(engine.models.default)).result()
    for each in wanted:
        typer.echo(f"compiling for {each.width} x {each.height} pixels", err=True)
        engine.ask(partial(compile_ahead, pipe, each, limits)).result()
    if count := engine.resume():
        typer.echo(f"going on with {count} pictures that were accepted before", err=True)
    if host not in LOOPBACK and not tokens:
        typer.secho(f"whoever reaches {host}:{port} may ask: there is no token", fg="yellow", err=True)
    running = Host(application(engine, tokens, cors or ()), engine, host, port)
    typer.echo(f"OpenAI's API: {running.url}/v1   A1111's: {running.url}/sdapi/v1", err=True)
    try:
        while running.is_alive:
            check()
            time.sleep(GLANCE)
    except KeyboardInterrupt:
        typer.echo(
            f"stopping: what was accepted is finished within {PATIENCE:g} seconds, or at the next start", err=True
        )
        running.stop()
        raise


def _sizes(text: str) -> list[int]:
    """Batch sizes, as an option has them. Raises InputError."""
    if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", text) or "0" in text.split(","):
        raise InputError(f"--batch-sizes should be whole numbers from 1 with commas between them, not {text!r}")
    return sorted(set(map(int, text.split(","))))


def _allowed(given: list[str], folder: Path | None) -> dict[str, str]:
    """Models by name. Raises InputError for a name that comes twice and a folder that is not there."""
    found: dict[str, str] = {}
    pairs = [
        (Path(each).stem if "=" not in each else each.partition("=")[0], each.partition("=")[2] or each)
        for each in given
    ]
    if folder is not None:
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder} of models")
        pairs += [
            (path.stem, str(path))
            for path in sorted(folder.iterdir())
            if path.suffix in (".safetensors", ".ckpt") or (path / "model_index.json").exists()
        ]
    for name, path in pairs or [("shapes", "shapes")]:
        if name in found:
            raise InputError(f"there are two models {name!r}: name them, as in --model NAME={path}")
        found[name] = path
    return found


def _open(loading: Loading) -> "Pipeline":
    with progress_bars(of_bytes=True) as report:
        return loading.open(report)


def _engine(openers, keep_models, sizes, limits, folder, port, keep_seconds, keep_megabytes) -> "Engine":
    import sqlite3

    from sdjax.files.cache import cache_directory
    from sdjax.server.engine import Engine
    from sdjax.server.journal import Journal
    from sdjax.server.models import Models

    place = folder or cache_directory() / "server" / str(port)
    try:
        place.mkdir(parents=True, exist_ok=True)
        os.chmod(place, 0o700)  # prompts are nobody else's
        journal = Journal(place / "journal.sqlite", keep_seconds, keep_megabytes * 2**20)
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"{place} cannot be used ({error}): is another server using it? see --folder") from error
    return Engine(Models(openers, keep_models), sizes, limits, journal)
