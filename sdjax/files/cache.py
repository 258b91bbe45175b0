"""Results on disk that take long to compute and never change: shapes of parameters, tokenizers, traced programs."""

import functools
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import lru_cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from types import FunctionType
from typing import Any

from sdjax.errors import InputError
from sdjax.files.atomic import replaced

LIBRARIES = ("jax", "jaxlib", "flax", "transformers", "tokenizers")
DIGEST = sha256().digest_size


class ForeignCode(TypeError):
    """A key names a class or function outside of this package, whose code no key covers: nothing may be cached."""


def cache_directory() -> Path:
    """The folder of all caches: $SDJAX_CACHE, else ~/.cache/sdjax. `files.eviction` lists what is in it."""
    if chosen := os.environ.get("SDJAX_CACHE"):
        return Path(chosen)
    try:
        return Path.home() / ".cache" / "sdjax"
    except RuntimeError as error:  # a user without one, as in some containers
        raise InputError("there is no home directory to keep models in: set SDJAX_CACHE to a folder") from error


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which need not exist yet."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return existing.is_dir() and os.access(existing, os.W_OK)


def cached(kind: str, key: object, make: Callable[[], bytes]) -> bytes:
    """The result of `make()`, read from the cache if an earlier call with an equal key has stored it.

    kind: the folder of the cache. key: everything the result depends on besides this package's code and the versions
    of the libraries below it, which are always part of the key; see `exact_key`, whose TypeError it raises. A damaged
    file is made again, and so is everything where nothing can be written.
    """
    try:
        name = sha256(f"{_code()} {exact_key(key)}".encode()).hexdigest()
    except ForeignCode:
        return make()
    file = cache_directory() / kind / name
    with suppress(OSError):
        content = file.read_bytes()
        if sha256(content[DIGEST:]).digest() == content[:DIGEST]:
            with suppress(OSError):  # a cache that can be read only
                os.utime(file)  # the least recently used is dropped first
            return content[DIGEST:]
    made = make()
    with suppress(OSError):  # `sdjax.load` has warned that nothing can be written there
        file.parent.mkdir(parents=True, exist_ok=True)
        with replaced(file) as partial:
            partial.write_bytes(sha256(made).digest() + made)
    return made


def exact_key(value: object) -> str:
    """A value as JSON, such that values that differ in any way that matters have different texts.

    For None, booleans, numbers, strings, lists, tuples (as lists), dicts with string keys, frozen settings and flax
    modules (dataclasses: their class and fields), functions and classes (their names) and `functools.partial`.
    Raises TypeError for anything else, such as an array, of which no short text is exact, and ForeignCode for code
    outside of this package.
    """
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {"dict": {name: _plain(entry) for name, entry in value.items()}}
    if isinstance(value, functools.partial):
        bound = [_plain(value.args), _plain(value.keywords)]  # first: a bound array is an error in foreign code too
        return {"partial": [_plain(value.func), *bound]}
    if isinstance(value, type | FunctionType):
        return {"code": _name(value)}
    if is_dataclass(value):
        return {_name(type(value)): {field.name: _plain(getattr(value, field.name)) for field in fields(value)}}
    raise TypeError(
        f"{type(value).__module__}.{type(value).__qualname__} cannot be part of a cache key, since no text identifies "
        "it exactly: pass arrays as arguments of the program, and bind only modules and plain settings"
    )


def _name(code: type | FunctionType) -> str:
    name = f"{code.__module__}.{code.__qualname__}"
    if not name.startswith("sdjax."):
        raise ForeignCode(f"{name} is not part of sdjax: no cache key covers its code")
    if "<" in name:
        raise TypeError(f"{name} cannot be part of a cache key: its name does not say which variables it closes over")
    return name


@lru_cache
def _code() -> str:
    """A digest of this package's source and of the versions of the libraries below it."""
    digest = sha256(json.dumps([metadata.version(library) for library in LIBRARIES]).encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
