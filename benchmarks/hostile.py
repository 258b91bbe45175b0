"""What comes to the doors of `python -m benchmarks fuzz`: texts, JSON and damaged bytes."""

import math
from typing import Any

from hypothesis import strategies as st

from sdjax.limits import TEXT as TEXT_LIMIT

PIECES = (
    *'()[]{}:|\\ \n,">a猫\u0301🦊\0',
    *(
        "<lora:",
        "__a__",
        "2$$",
        "BREAK",
        "AND",
        "1.5",
        "9" * 400,
        "1e9",
        "\x1b[2J",
        "Steps: 20",
        "Size: 8x8",
        "Seed: ",
        "Negative prompt:",
    ),
)
TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=60).map("".join)
LONG = st.tuples(st.sampled_from(PIECES), st.integers(1, TEXT_LIMIT)).map(lambda of: of[0] * (of[1] // len(of[0])))
TEXTS = TEXT | TEXT | TEXT | LONG
NUMBERS = (-1, 0, 1, 3, 1.5, 1e-9, 10**6, 2**63, 10**30, 10**400, math.nan, math.inf)
LISTS = ([], [1], [[]], {}, [10**6] * 4, ["x"] * 1000, [1.0] * 20_000)
ODD = st.sampled_from([None, True, "", "x", "1" * 5000, *NUMBERS, *LISTS])
JSON = ODD | st.recursive(ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
DAMAGES = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "repeat"]), st.floats(0, 1), st.binary(max_size=9)), max_size=4
)


def damaged(content: bytes, damages: list[tuple[str, float, bytes]]) -> bytes:
    """The bytes after some damages; the same where there are none."""
    for kind, where, new in damages:
        at = int(where * len(content))
        if kind == "flip":
            content = content[:at] + new + content[at + len(new) :]
        elif kind == "cut":
            content = content[:at]
        else:
            content = content[:at] + (new if kind == "insert" else content[at : at + 50] * 20) + content[at:]
    return content


def changed(config: dict[str, Any]) -> Any:
    """Configurations, some of their entries changed, left out or new."""
    keys = st.sampled_from(sorted(config)) | TEXT
    return st.dictionaries(keys, JSON, max_size=3).map(lambda changes: {**config, **changes})
