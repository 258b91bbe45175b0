"""Texts from files on a terminal, where some letters are commands: to clear it, to rename it, to write backwards."""

import unicodedata

HARMLESS = "\u200c\u200d"  # what joins letters and emoji is of the category of those that turn the writing around


def safe(text: object) -> str:
    """A text in one line, what controls a terminal or hides written out: "\\x1b[2J"."""
    return "".join(letter if _is_harmless(letter) else _escaped(letter) for letter in str(text))


def _is_harmless(letter: str) -> bool:
    return letter.isprintable() or letter in HARMLESS or unicodedata.category(letter) in ("Zs", "Cn", "Co")


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
