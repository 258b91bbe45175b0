"""Reading a checkpoint's own `config.json` strictly, so that a model is never run as something that it is not.

A key is one of four kinds: a field of the dataclass; *unused* (it changes nothing in inference, or nothing here);
*neutral* (accepted at the values that ask for nothing we lack); or unknown. Anything else is a ConfigError that names
the key. Keys that start with "_" are a library's notes.
"""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

from sdjax.errors import ConfigError, brief, did_you_mean
from sdjax.limits import DEPTH, LEVELS, WIDTH

ARRAYS_OF_BLOCK = 8  # of a residual block at least: two norms and two convolutions
POSITIVE = ("scaling_factor", "norm_eps", "layer_norm_eps", "latents_std")  # what is divided by


@dataclasses.dataclass(frozen=True)
class Config:
    """What the configurations share. Every integer field is a size or a count, hence positive."""

    neutral: ClassVar[dict[str, tuple]] = {}
    unused: ClassVar[frozenset[str]] = frozenset()
    at_most: ClassVar[dict[str, int]] = {}  # the largest numbers, where they are not limits.WIDTH

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads a parsed `config.json`; raises ConfigError for a key or a value that is not implemented."""
        kinds = {field.name: get_type_hints(cls)[field.name] for field in dataclasses.fields(cls)}
        fields = {}
        for key, value in values.items():
            if key in kinds:
                if not _fits(value, kinds[key]):
                    raise ConfigError(f"{cls.__name__}: {key} = {brief(value)} is not {_describe(kinds[key])}")
                cls._check_size(key, value)
                fields[key] = tuple(value) if isinstance(value, list) else value
            elif key in cls.neutral:
                if value not in cls.neutral[key]:
                    supported = " or ".join(map(repr, cls.neutral[key]))
                    raise ConfigError(f"{cls.__name__}: {key} = {brief(value)} is not implemented, only {supported}")
            elif key not in cls.unused and not key.startswith("_"):
                hint = did_you_mean(key, (*kinds, *cls.neutral, *cls.unused))
                raise ConfigError(f"{cls.__name__}: unknown key {brief(key)} = {brief(value)}{hint}")
        return cls(**fields)

    @classmethod
    def _check_size(cls, key: str, value: Any) -> None:
        """Raises ConfigError for more than any model has, before something is built of it."""
        entries = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(entry, float) and not math.isfinite(entry) for entry in entries):
            raise ConfigError(f"{cls.__name__}: {key} = {brief(value)} should be finite")
        if key in POSITIVE and not all(entry > 0 for entry in entries if entry is not None):
            raise ConfigError(f"{cls.__name__}: {key} = {brief(value)} should be above 0")
        if len(entries) > (DEPTH if type(entries[0]) is float else LEVELS):
            raise ConfigError(f"{cls.__name__}: {key} has {len(entries):,} entries: {LEVELS} levels are the most")
        most = cls.at_most.get(key, WIDTH)
        if any(isinstance(entry, int | float) and abs(entry) > most for entry in entries):
            raise ConfigError(f"{cls.__name__}: {key} = {brief(value)} is too large: {most:,} is the most")

    @property
    def least_arrays(self) -> int:
        """Arrays of parameters that the network has at least: known at once, where building it may take long."""
        return 0

    def require(self, condition: bool, message: str) -> None:
        """Raises ConfigError with `message` unless `condition` holds."""
        if not condition:
            raise ConfigError(f"{type(self).__name__}: {message}")


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is types.UnionType:
        return any(_fits(value, option) for option in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and len(value) > 0 and all(_fits(v, get_args(kind)[0]) for v in value)
    if kind is int:
        return type(value) is int and value > 0
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def _describe(kind: Any) -> str:
    if get_origin(kind) is types.UnionType:
        return " or ".join(_describe(option) for option in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list, each entry {_describe(get_args(kind)[0])}"
    names = {int: "a positive integer", float: "a number", str: "a string", bool: "true or false"}
    return names.get(kind, "null")
