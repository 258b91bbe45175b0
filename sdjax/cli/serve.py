"""`sdjax serve`: a server that speaks OpenAI's images API and A1111's; `sdjax ui`: with a page to look at."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sdjax.cli.interrupt import GLANCE, check
from sdjax.cli.painting import Loading
from sdjax.cli.progress import progress_bars
from sdjax.cli.serving import LOOPBACK, Serving, with_serving
from sdjax.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from sdjax.pipeline import Pipeline
    from sdjax.server.engine import Engine
    from sdjax.server.gateway import Gateway
    from sdjax.server.journal import Journal
    from sdjax.server.lanes import Drawing

MONTH = 30 * 24 * 3600.0


@with_serving()
def serve(*, serving: Serving) -> None:
    """Serve pictures over HTTP to the clients that exist: those of OpenAI's images API, and those of A1111's web UI.

    OpenAI's is at http://HOST:PORT/v1, A1111's at http://HOST:PORT/sdapi/v1. Requests of all users are drawn in common
    batches, with the pictures that `sdjax generate` would draw. Only this machine is served unless --host says
    otherwise, which needs a --token.

    [bold]Examples[/bold]

    sdjax serve

    sdjax serve --model sdxl=stabilityai/stable-diffusion-xl-base-1.0 --port 8000

    sdjax serve --host 0.0.0.0 --token a-long-secret --warm 512x512

    sdjax serve --engine ray --address auto
    """
    _need("server", "fastapi", "python_multipart", "uvicorn")
    _serve(serving, "OpenAI's API: {url}/v1   A1111's: {url}/sdapi/v1")


@with_serving(keep_seconds=MONTH)
def ui(*, serving: Serving) -> None:
    """Open a page to paint on, in the browser: from texts and pictures, with masks, by sampler and steps, from a file.

    The page is at http://HOST:PORT, and beside it all that `sdjax serve` serves. Pictures are kept for a month, so that
    a browser finds its own again. With a --token the browser asks for it: it is the password, with any name.

    [bold]Examples[/bold]

    sdjax ui

    sdjax ui --models-dir models --lora-dir loras
    """
    _need("ui", "fastapi", "python_multipart", "uvicorn", "gradio")
    from sdjax.page.mounting import put_page

    _serve(serving, "the page: {url}", put_page)


def _need(extra: str, *modules: str) -> None:
    try:
        for module in modules:
            import_module(module)
    except ImportError:
        raise InputError(f"this needs what is not installed: pip install 'sdjax[{extra}]'") from None


def _serve(serving: Serving, said: str, dress: Callable[["FastAPI", "Gateway"], None] | None = None) -> None:
    """Runs a server until it is interrupted. said: what is told first, with {url}. dress: see `application`."""
    from sdjax.server.app import application
    from sdjax.server.hosting import PATIENCE, Host
    from sdjax.server.logs import log_as_lines

    log_as_lines()
    with _drawing(serving) as lanes:
        engine = _engine(serving, _journal(serving), lanes)
        if count := engine.resume():
            typer.echo(f"going on with {count} pictures that were accepted before", err=True)
        if not serving.is_local and not serving.tokens:
            place = f"{serving.host}:{serving.port}"
            typer.secho(f"whoever reaches {place} may ask: there is no token", fg="yellow", err=True)
        app = application(engine, serving.tokens, serving.cors or (), dress)
        running = Host(app, engine, serving.host, serving.port)
        typer.echo(said.format(url=running.url), err=True)
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


@contextmanager
def _drawing(serving: Serving) -> "Iterator[Drawing | None]":
    """The replicas that are to draw, or None where this machine is."""
    if serving.engine != "ray":
        yield None
        return
    _need("ray", "ray")
    from sdjax.batch.cluster import ray_cluster
    from sdjax.server.replicas import deployed

    sizes = serving.sizes
    own = replace(serving, token=None, host=LOOPBACK[0])  # nobody asks a replica but this process
    with ray_cluster(serving.address), deployed(partial(_replica, own, Path.cwd()), serving.workers, sizes) as lanes:
        yield lanes


def _replica(serving: Serving, folder: Path) -> "Engine":
    """The engine of a replica. folder: what relative paths start from."""
    from sdjax.server.journal import Journal

    os.chdir(folder)
    return _engine(serving, Journal(seconds=0))


def _engine(serving: Serving, journal: "Journal", lanes: "Drawing | None" = None) -> "Engine":
    """The engine with its default model open, and all compiled that was to be, unless something else draws.

    Raises InputError.
    """
    from sdjax.loading import load_condition
    from sdjax.server.engine import Engine
    from sdjax.server.limits import Limits
    from sdjax.server.models import Models
    from sdjax.server.nets import Nets
    from sdjax.server.warm import warm, warm_of

    sizes = serving.sizes
    wanted = [warm_of(each, sizes) for each in serving.warm or ()]
    limits = Limits(
        serving.max_pixels,
        serving.max_steps,
        serving.max_pictures,
        body=serving.max_body * 2**20,
        queue=serving.max_queue,
        seconds=serving.max_seconds,
    )
    shared = serving.loading()
    openers = {name: partial(_open, replace(shared, model=path)) for name, path in serving.allowed().items()}
    nets = Nets({name: partial(load_condition, net) for name, net in serving.nets().items()})
    engine = Engine(Models(openers, serving.keep_models), sizes, limits, journal, nets, lanes)
    pipe = engine.ask(lambda: engine.models.open(engine.models.default)).result()
    for each in wanted if lanes is None else ():
        typer.echo(f"compiling for {each.width} x {each.height} pixels", err=True)
        engine.ask(partial(warm, pipe, each, limits)).result()
    return engine


def _open(loading: Loading) -> "Pipeline":
    with progress_bars(of_bytes=True) as report:
        return loading.open(report)


def _journal(serving: Serving) -> "Journal":
    import sqlite3

    from sdjax.files.cache import cache_directory
    from sdjax.server.journal import Journal

    place = serving.folder or cache_directory() / "server" / str(serving.port)
    try:
        place.mkdir(parents=True, exist_ok=True)
        os.chmod(place, 0o700)  # prompts are nobody else's
        return Journal(place / "journal.sqlite", serving.keep_seconds, serving.keep_megabytes * 2**20)
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"{place} cannot be used ({error}): is another server using it? see --folder") from error
