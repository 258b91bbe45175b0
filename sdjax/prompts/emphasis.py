"""Emphasis, as A1111's web UI writes it: which words of a prompt count how much."""

import re
from itertools import groupby

import numpy as np

from sdjax.errors import InputError
from sdjax.limits import NESTING

BREAK = ("BREAK", -1.0)  # among the parts of a prompt: a new chunk begins here

ROUND, SQUARE = 1.1, 1 / 1.1  # what brackets without a number multiply by

TOKENS = re.compile(
    r"""\\[\\()\[\]]?                                 # an escaped bracket or backslash; alone, a backslash is dropped
    |   :\s*(?P<weight>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\) # the end of (word:1.3)
    |   [()\[\]:]
    |   [^\\()\[\]:]+""",
    re.VERBOSE,
)
BREAKS = re.compile(r"\bBREAK\b")


@np.errstate(over="ignore", invalid="ignore")  # which is found when weights are used
def parse_emphasis(prompt: str) -> list[tuple[str, float]]:
    r"""The parts of a prompt and the weight of each; neighbours of one weight are one part.

    `(word)` multiplies by 1.1, `(word:1.3)` by 1.3, `[word]` by 1/1.1; brackets nest. A backslash takes a bracket
    literally: `\(`. A bracket that nothing closes holds to the end; one that nothing opened is text. `BREAK` outside of
    brackets is a part of its own, with weight -1. Raises InputError for more than limits.NESTING open brackets.
    """
    texts: list[str] = []
    weights = np.ones(2 * len(prompt) + 1)  # there are not more parts, for each letter may be followed by a BREAK
    opened: dict[str, list[int]] = {"(": [], "[": []}  # the part that each bracket begins at

    def multiply(bracket: str, factor: float) -> None:
        weights[opened[bracket].pop() : len(texts)] *= factor

    for match in TOKENS.finditer(prompt):
        token = match[0]
        if token.startswith("\\"):
            texts.append(token[1:])
        elif token in opened:
            opened[token].append(len(texts))
            if len(opened[token]) > NESTING:
                raise InputError(f"more than {NESTING} brackets {token!r} of the prompt are open at once: close some")
        elif match["weight"] and opened["("]:
            multiply("(", float(match["weight"]))
        elif token == ")" and opened["("]:
            multiply("(", ROUND)
        elif token == "]" and opened["["]:
            multiply("[", SQUARE)
        else:
            pieces = BREAKS.split(token)
            for k, text in enumerate(pieces):
                if k > 0:
                    text = text.lstrip()
                    weights[len(texts)] = BREAK[1]
                    texts.append(BREAK[0])
                texts.append(text.rstrip() if k < len(pieces) - 1 else text)
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        while opened[bracket]:
            multiply(bracket, factor)
    parts = groupby(zip(texts, weights.tolist()), key=lambda part: part[1])
    return [("".join(text for text, _ in equal), weight) for weight, equal in parts] or [("", 1.0)]
