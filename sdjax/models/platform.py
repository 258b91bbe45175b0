"""What a program is made for: the devices of this process, or others, which need not be there.

The fastest form of an operation differs between platforms, and so do meshes, layouts and the compiler's options. All
that depends on them asks here, so that what is compiled for a device without it is what would run on it.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import jax

LANES = 128  # of a TPU: the last axis of an array lies in so many, or is padded to them

# Part of the keys of JAX's own caches, so that nothing traced for one target is used for another.
_target = jax.make_user_context(default_value=None)


def target_platform(name: str) -> AbstractContextManager[None]:
    """Whatever is traced inside is meant for platform `name` ("cpu", "gpu" or "tpu") and not for the one in use.

    For exporting to another platform, and for tests.
    """
    return _target(name)


def target_devices(devices: Sequence[jax.Device], described: bool = True) -> AbstractContextManager[None]:
    """Whatever is made inside is for these devices: programs, and the arrays that they are handed.

    described: whether shapes stand for the arrays, since the devices are only described (`sdjax.targets`) and have no
        memory, or since only the programs are wanted.
    """
    return _target(_Devices(tuple(devices), described))


class _Devices(NamedTuple):
    devices: tuple[jax.Device, ...]
    described: bool


def platform() -> str:
    """The platform to trace for: "cpu", "gpu" or "tpu"."""
    if isinstance(_target.value, str):
        return _target.value
    name = devices()[0].platform
    return "gpu" if name in ("cuda", "rocm") else name


def devices() -> tuple[jax.Device, ...]:
    """The devices to work on: those of this process, unless `target_devices` says otherwise."""
    return _target.value.devices if isinstance(_target.value, _Devices) else tuple(jax.local_devices())


def is_described() -> bool:
    """Whether shapes stand for arrays, and a call of a program gives no more than shapes."""
    return isinstance(_target.value, _Devices) and _target.value.described
