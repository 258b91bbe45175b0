"""What strangers write costs time that grows with its length, and what is too much is refused in one line."""

import time

import pytest

from sdjax.a1111 import mentions_of, without_mentions
from sdjax.errors import InputError
from sdjax.files.infotext import read_infotext
from sdjax.limits import NESTING, TEXT
from sdjax.pipeline.few_steps import recognised
from sdjax.prompts import parse_emphasis, schedule

HALF = TEXT // 2


# Each took from a minute to hours where the time grew with the square of the length.
@pytest.mark.parametrize(
    ("read", "text"),
    [
        (read_infotext, "a cat\naa: b, cc: d, ee: f, " + " " * TEXT + "x"),
        (read_infotext, "a cat\n" + 'aa: "\\",' * (TEXT // 8)),
        (parse_emphasis, " " * TEXT + "x"),
        (parse_emphasis, "(a:" + "1" * TEXT),
        (parse_emphasis, ":" * TEXT),
        (parse_emphasis, "(a" * NESTING + "a:" * HALF + ")" * NESTING),
        (lambda text: schedule(text, 20), "[" + "a|" * HALF + "]"),
        (mentions_of, "<lora:" * (TEXT // 6)),
        (without_mentions, "<lora:" * (TEXT // 6)),
        (lambda name: recognised([name], {}, False), "hypersd" * (TEXT // 7)),
        (lambda name: recognised(["lcm" + name], {}, False), "1" * TEXT),
    ],
)
def test_the_worst_texts_are_read_at_once(read, text):
    start = time.process_time()
    read(text)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("read", [parse_emphasis, lambda text: schedule(text, 20)])
def test_brackets_without_end_are_refused(read):
    with pytest.raises(InputError, match="open at once"):
        read("(a" * TEXT)
