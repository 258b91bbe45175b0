"""The models that may be asked for, by name; the latest few are on the devices."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping

from sdjax.errors import did_you_mean
from sdjax.pipeline import Pipeline
from sdjax.pipeline.facts import Facts
from sdjax.server.refusals import Refused


class Models:
    """Models by name, the first of which is asked where nobody says.

    openers: what opens each. kept: how many are on the devices at once.
    """

    def __init__(self, openers: Mapping[str, Callable[[], Pipeline]], kept: int = 1):
        self._openers, self.kept = openers, kept
        self._pipes: OrderedDict[str, Pipeline] = OrderedDict()
        self._facts: dict[str, Facts] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """All that may be asked for."""
        return list(self._openers)

    @property
    def default(self) -> str:
        """The one that is asked where nobody says."""
        return self.names[0]

    def find(self, name: str | None) -> str:
        """A model's name, or the default for None and "". Raises Refused for any other."""
        if not name:
            return self.default
        if name not in self._openers:
            known = did_you_mean(name, self.names) or f"; there are: {', '.join(self.names)}"
            raise Refused(f"there is no model {name!r}{known}", 404, "model", "model_not_found")
        return name

    def facts(self, name: str) -> Facts | None:
        """What preparing pictures needs to know of a model, if it has ever been open."""
        return self._facts.get(name)

    def is_open(self, name: str) -> bool:
        """Whether a model is on the devices."""
        return name in self._pipes

    def open(self, name: str) -> Pipeline:
        """A model on the devices, in the place of the one that was not asked for the longest. By the engine alone."""
        with self._lock:
            if name not in self._pipes:
                while len(self._pipes) >= self.kept:
                    self._pipes.popitem(last=False)
                self._pipes[name] = self._openers[name]()
                self._facts[name] = self._pipes[name].facts
            self._pipes.move_to_end(name)
            return self._pipes[name]
