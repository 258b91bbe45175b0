"""A server in this process, on a port of its own, for tests of what clients see."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sdjax.pipeline import Pipeline
from sdjax.server.app import application
from sdjax.server.engine import Engine
from sdjax.server.hosting import Host
from sdjax.server.journal import Journal
from sdjax.server.limits import Limits
from sdjax.server.models import Models
from sdjax.server.nets import Nets

SLOTS = 2  # of every batch, so that one program draws all


class Running(NamedTuple):
    """A server: its address, and its engine."""

    url: str
    engine: Engine


@contextmanager
def served(
    pipe: Pipeline,
    tokens: tuple[str, ...] = (),
    names: tuple[str, ...] = ("small", "other"),
    dress=None,
    nets=(),
    **limits,
) -> Iterator[Running]:
    """A pipeline under some names, served while the block runs. dress: see `application`. nets: of conditions."""
    models = Models(dict.fromkeys(names, lambda: pipe), kept=len(names))
    engine = Engine(models, [SLOTS], Limits(**limits), Journal(), Nets({net.name: lambda net=net: net for net in nets}))
    host = Host(application(engine, tokens, dress=dress), engine)
    try:
        yield Running(host.url, engine)
    finally:
        host.stop()
