"""A server in this process, on a port of its own, for tests of what clients see."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import uvicorn

from sdjax.pipeline import Pipeline
from sdjax.server.app import application
from sdjax.server.engine import Engine
from sdjax.server.journal import Journal
from sdjax.server.limits import Limits
from sdjax.server.models import Models

SLOTS = 2  # of every batch, so that one program draws all


class Running(NamedTuple):
    """A server: its address, and its engine."""

    url: str
    engine: Engine


@contextmanager
def served(pipe: Pipeline, tokens: tuple[str, ...] = (), **limits) -> Iterator[Running]:
    """A pipeline under two names, served while the block runs."""
    models = Models({"small": lambda: pipe, "other": lambda: pipe}, kept=2)
    engine = Engine(models, [SLOTS], Limits(**limits), Journal())
    app = application(engine, tokens)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", engine)
    finally:
        server.should_exit = True
        thread.join()
