"""The platform that a model is being traced for: the fastest form of an operation differs between them."""

from contextlib import AbstractContextManager

import jax

# Part of the keys of JAX's own caches, so that nothing traced for one platform is used for another.
_target = jax.make_user_context(default_value=None)


def target_platform(name: str) -> AbstractContextManager[None]:
    """Whatever is traced inside is meant for platform `name` ("cpu", "gpu" or "tpu") and not for the one in use.

    For exporting to another platform, for tests and for benchmarks.
    """
    return _target(name)


def platform() -> str:
    """The platform to trace for: the one in use, unless `target_platform` says otherwise."""
    return _target.value or jax.default_backend()
