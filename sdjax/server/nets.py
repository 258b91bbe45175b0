"""The ControlNets and T2I adapters that may be asked for, by name, each opened once."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sdjax.errors import did_you_mean
from sdjax.pipeline.hints import ConditionNet
from sdjax.server.refusals import Refused


class Nets:
    """openers: what opens each. For any number of threads."""

    def __init__(self, openers: Mapping[str, Callable[[], Any]] | None = None):
        self._openers = dict(openers or {})
        self._open: dict[str, ConditionNet] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """All that may be asked for."""
        return list(self._openers)

    def find(self, name: str) -> str:
        """A net's name, however it is capitalised. Raises Refused for one that is not there."""
        known = {each.lower(): each for each in self._openers}
        if name.lower() not in known:
            near = did_you_mean(name, self.names) or (f"; there are: {', '.join(self.names)}" if known else "")
            raise Refused(f"there is no net {name[:60]!r} here{near}", 422, "model")
        return known[name.lower()]

    def open(self, name: str) -> ConditionNet:
        """A net, which goes by the name that it is asked for. Raises Refused, and what opening raises."""
        name = self.find(name)
        with self._lock:
            if name not in self._open:
                opened = self._openers[name]()
                if not isinstance(opened, ConditionNet):
                    raise Refused(f"{name} is no ControlNet and no T2I adapter, which units are for", 422, "model")
                self._open[name] = replace(opened, name=name)
            return self._open[name]
