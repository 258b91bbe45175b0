"""Numbers for Prometheus: what waits, how full batches are, how long it all takes, and what is compiled."""

from typing import Any

import jax
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

COMPILED = "/jax/core/compile/backend_compile_duration"
SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)


class Metrics:
    """The numbers of one server.

    waiting, running: pictures. slots: of the batches that are being drawn. pictures: by outcome: done, failed, stopped.
    evaluations: of the network, each picture's counted. fill: of each chunk, the share of slots with a picture.
    seconds: from a request to each of its pictures; waited: of these, in the queue. compilations, compiling: of
    programs, and their seconds.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "sdjax"}
        self.waiting = Gauge("waiting", "pictures in the queue", **own)
        self.running = Gauge("running", "pictures that are being drawn", **own)
        self.slots = Gauge("slots", "slots of the batches that are being drawn", **own)
        self.pictures = Counter("pictures", "pictures that were asked for, by outcome", ["outcome"], **own)
        self.evaluations = Counter("evaluations", "evaluations of the network", **own)
        self.fill = Histogram("fill", "share of slots with a picture", buckets=[k / 8 for k in range(1, 9)], **own)
        self.seconds = Histogram("seconds", "from a request to its picture", buckets=SECONDS, **own)
        self.waited = Histogram("waited_seconds", "in the queue", buckets=SECONDS, **own)
        self.compilations = Counter("compilations", "programs that were compiled or loaded", **own)
        self.compiling = Counter("compiling_seconds", "that compiling took", **own)
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def text(self) -> bytes:
        """As Prometheus reads them."""
        return generate_latest(self.registry)

    def show(self, waiting: int, running: int, slots: int) -> None:
        """What there is at present."""
        self.waiting.set(waiting)
        self.running.set(running)
        self.slots.set(slots)

    def count(self, outcome: str, evaluations: int, seconds: float, waited: float) -> None:
        """A picture that has ended."""
        self.pictures.labels(outcome).inc()
        self.evaluations.inc(evaluations)
        self.seconds.observe(seconds)
        self.waited.observe(waited)

    def close(self) -> None:
        """Listen to JAX no more."""
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            self.compilations.inc()
            self.compiling.inc(duration_secs)
