"""Stable Diffusion inference in JAX and Flax.

`sdjax.load()` gives a pipeline, `sdjax.load_condition()` a ControlNet or an adapter for it; `sdjax.schedulers` holds
the samplers; `sdjax.convert` reads PyTorch checkpoints.

Shapes in the docstrings of the package, all of them channels last (docs/architecture.md):
    batch           pictures
    height, width   pixels; h, w are those of latents
    T               tokens, 77 a chunk; features: of the context
    rows            of a plan: evaluations of the network
"""

from importlib import import_module
from typing import TYPE_CHECKING

from sdjax.version import __version__

if TYPE_CHECKING:
    from sdjax import schedulers
    from sdjax.loading import load, load_condition

__all__ = ["__version__", "load", "load_condition", "schedulers"]


def __getattr__(name: str):
    # JAX takes a second to import, and `sdjax --help` should not wait for it.
    if name in ("load", "load_condition"):
        return getattr(import_module("sdjax.loading"), name)
    if name == "schedulers":
        return import_module("sdjax.schedulers")
    raise AttributeError(f"module 'sdjax' has no attribute {name!r}")
