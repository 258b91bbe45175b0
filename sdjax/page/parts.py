"""The parts of the page that its events read and write."""

from dataclasses import dataclass, field
from typing import Any

from sdjax.pipeline.facts import Facts
from sdjax.server.gateway import Gateway
from sdjax.server.limits import Limits
from sdjax.server.work import Job

TEXT, PICTURE, COMPARE, FILE = "text", "picture", "compare", "file"  # the tabs


@dataclass
class Page:
    """What all events share. running: jobs by session. controls: by setting, in the order of the page."""

    gateway: Gateway
    facts: Facts
    running: dict[str, Job] = field(default_factory=dict)
    controls: dict[str, Any] = field(default_factory=dict)

    @property
    def limits(self) -> Limits:
        """Of the server."""
        return self.gateway.engine.limits


@dataclass
class Tabs:
    """What a picture may start from. mode: which tab is open."""

    mode: Any
    tabs: Any
    editor: Any
    samplers: Any
    steps: Any
    file: Any
    examples: Any


@dataclass
class Asked(Tabs):
    """All that is said on the left, beside the controls."""

    model: Any
    count: Any
    paint: Any
    stop: Any


@dataclass
class Seen:
    """What is seen on the right. kept: the jobs that the browser remembers. listed: the pictures of the gallery."""

    stage: Any
    gallery: Any
    kept: Any
    listed: Any
    chosen: Any
    details: Any
    text: Any
    again: Any
    edit: Any
