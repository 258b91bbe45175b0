"""Emphasis, as A1111's web UI writes it: which words of a prompt count how much."""

import re

BREAK = ("BREAK", -1.0)  # among the parts of a prompt: a new chunk begins here

ROUND, SQUARE = 1.1, 1 / 1.1  # what brackets without a number multiply by

TOKENS = re.compile(
    r"""\\[\\()\[\]]?                                 # an escaped bracket or backslash; alone, a backslash is dropped
    |   :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\) # the end of (word:1.3)
    |   [()\[\]:]
    |   [^\\()\[\]:]+""",
    re.VERBOSE,
)


def parse_emphasis(prompt: str) -> list[tuple[str, float]]:
    r"""The parts of a prompt and the weight of each; neighbours of one weight are one part.

    `(word)` multiplies by 1.1, `(word:1.3)` by 1.3, `[word]` by 1/1.1; brackets nest. A backslash takes a bracket
    literally: `\(`. A bracket that nothing closes holds to the end; one that nothing opened is text. `BREAK` outside of
    brackets is a part of its own, with weight -1.
    """
    parts: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # the part that each bracket begins at

    def multiply(bracket: str, factor: float) -> None:
        start = opened[bracket].pop()
        parts[start:] = [(text, weight * factor) for text, weight in parts[start:]]

    for match in TOKENS.finditer(prompt):
        token = match[0]
        if token.startswith("\\"):
            parts.append((token[1:], 1.0))
        elif token in opened:
            opened[token].append(len(parts))
        elif match["weight"] and opened["("]:
            multiply("(", float(match["weight"]))
        elif token == ")" and opened["("]:
            multiply("(", ROUND)
        elif token == "]" and opened["["]:
            multiply("[", SQUARE)
        else:
            first, *rest = re.split(r"\s*\bBREAK\b\s*", token)
            parts.append((first, 1.0))
            for text in rest:
                parts += [BREAK, (text, 1.0)]
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        while opened[bracket]:
            multiply(bracket, factor)
    return _merged(parts) or [("", 1.0)]


def _merged(parts: list[tuple[str, float]]) -> list[tuple[str, float]]:
    merged: list[tuple[str, float]] = []
    for text, weight in parts:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    return merged
