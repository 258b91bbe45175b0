"""Prompts of several conditions: "a cat AND a dog :0.5", as A1111's web UI reads them."""

import re
from typing import NamedTuple

from sdjax.errors import InputError

SEPARATOR = re.compile(r"\bAND\b")
WEIGHT = re.compile(r":\s*([-+]?(?:\d+\.?|\d*\.\d+))$")
BUCKETS = (1, 2, 4, 8)


class Part(NamedTuple):
    """One condition of a prompt, and the weight of its direction."""

    text: str
    weight: float


def parts_of(prompt: str) -> list[Part]:
    """The conditions of a prompt; a weight at the end of one is taken off, and is 1 where there is none.

    Raises InputError for more than eight.
    """
    texts = SEPARATOR.split(prompt)
    if len(texts) > BUCKETS[-1]:
        raise InputError(f"a prompt may have {BUCKETS[-1]} parts with AND between them, not {len(texts)}")
    return [_part(text.rstrip()) for text in texts]


def bucket(count: int) -> int:
    """How many conditions are computed for so many, so that programs serve more than one number."""
    return next(size for size in BUCKETS if size >= count)


def _part(text: str) -> Part:
    found = WEIGHT.search(text)
    return Part(text[: found.start()].rstrip(), float(found[1])) if found else Part(text, 1.0)
