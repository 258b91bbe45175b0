"""For which platform a model is being traced: the fastest form of an operation differs between them."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_target: ContextVar[str | None] = ContextVar("target", default=None)


@contextmanager
def target_platform(name: str) -> Iterator[None]:
    """Whatever is traced inside is meant for platform `name` ("cpu", "gpu" or "tpu") and not for the one in use.

    For exporting to another platform, for tests and for benchmarks. What jit has already traced is not traced again.
    """
    token = _target.set(name)
    try:
        yield
    finally:
        _target.reset(token)


def platform() -> str:
    """The platform to trace for: the one in use, unless `target_platform` says otherwise."""
    return _target.get() or jax.default_backend()
