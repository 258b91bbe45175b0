"""A server in this process, on a port of its own, for tests of what clients see."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tiny_training import PAINTING

from sdjax.models import build
from sdjax.pipeline import Pipeline
from sdjax.pipeline.hints import ConditionNet
from sdjax.server.app import application
from sdjax.server.engine import Engine
from sdjax.server.hosting import Host
from sdjax.server.journal import Journal
from sdjax.server.limits import Limits
from sdjax.server.models import Models
from sdjax.server.nets import Nets
from sdjax.training.models import fresh

NET = {
    **{name: value for name, value in PAINTING["unet"].items() if name not in ("sample_size", "up_block_types")},
    "conditioning_embedding_out_channels": [4, 4, 4],
}
SLOTS = 2  # of every batch, so that one program draws all


class Running(NamedTuple):
    """A server: its address, and its engine."""

    url: str
    engine: Engine


def edges_net() -> ConditionNet:
    """A ControlNet for the small model, which has learned nothing."""
    module = build("ControlNetModel", NET)
    return ConditionNet("edges", module, fresh(module, 0))


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
