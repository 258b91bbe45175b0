"""Emphasis, against what A1111's `parse_prompt_attention` gives for the same prompts, and against its rules."""

import itertools
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sdjax.limits import NESTING
from sdjax.prompts import BREAK, parse_emphasis

# The right side is what version 1.10 of A1111's web UI gives.
A1111 = [
    ("", [("", 1.0)]),
    ("a", [("a", 1.0)]),
    ("normal text", [("normal text", 1.0)]),
    ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    ("unbalanced)", [("unbalanced)", 1.0)]),
    ("[unbalanced", [("unbalanced", 0.9090909090909091)]),
    ("unbalanced]", [("unbalanced]", 1.0)]),
    ("\\(literal\\]", [("(literal]", 1.0)]),
    ("\\[literal\\)", [("[literal)", 1.0)]),
    ("\\\\", [("\\", 1.0)]),
    ("a\\b", [("ab", 1.0)]),
    ("a\\", [("a", 1.0)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            ("a ", 1.0),
            ("house", 1.5730000000000004),
            (" ", 1.1),
            ("on", 1.0),
            (" a ", 1.1),
            ("hill", 0.55),
            (", sun, ", 1.1),
            ("sky", 1.4641000000000006),
            (".", 1.1),
        ],
    ),
    ("(a)", [("a", 1.1)]),
    ("((a))", [("a", 1.2100000000000002)]),
    ("(((a)))", [("a", 1.3310000000000004)]),
    ("[a]", [("a", 0.9090909090909091)]),
    ("[[a]]", [("a", 0.8264462809917354)]),
    ("[(a)]", [("a", 1.0)]),
    ("([a])", [("a", 1.0)]),
    ("(a:1.3)", [("a", 1.3)]),
    ("(a:0)", [("a", 0.0)]),
    ("(a:-1)", [("a", -1.0)]),
    ("(a:+2)", [("a", 2.0)]),
    ("(a:.5)", [("a", 0.5)]),
    ("(a:1.)", [("a", 1.0)]),
    ("(a: 1.3 )", [("a", 1.3)]),
    ("(a:1.3", [("a:1.3", 1.1)]),
    ("a:1.3)", [("a:1.3)", 1.0)]),
    ("a:1.3", [("a:1.3", 1.0)]),
    ("(a:b)", [("a:b", 1.1)]),
    ("(a:b:1.2)", [("a:b", 1.2)]),
    ("[a:1.3]", [("a:1.3", 0.9090909090909091)]),
    ("[a:b:0.5]", [("a:b:0.5", 0.9090909090909091)]),
    ("(a:)", [("a:", 1.1)]),
    ("()", [("", 1.0)]),
    ("[]", [("", 1.0)]),
    ("(:1.3)", [("", 1.0)]),
    ("((a:1.2) b:1.5)", [("a", 1.7999999999999998), (" b", 1.5)]),
    ("(a (b:2) c)", [("a ", 1.1), ("b", 2.2), (" c", 1.1)]),
    ("(a [b] c:2)", [("a ", 2.0), ("b", 1.8181818181818181), (" c", 2.0)]),
    ("x(a)y[b]z", [("x", 1.0), ("a", 1.1), ("y", 1.0), ("b", 0.9090909090909091), ("z", 1.0)]),
    ("(a))", [("a", 1.1), (")", 1.0)]),
    ("((a)", [("a", 1.2100000000000002)]),
    ("[a]]", [("a", 0.9090909090909091), ("]", 1.0)]),
    ("[[a]", [("a", 0.8264462809917354)]),
    ("(a]", [("a]", 1.1)]),
    ("[a)", [("a)", 0.9090909090909091)]),
    ("(a [b) c]", [("a ", 1.1), ("b", 1.0), (" c", 0.9090909090909091)]),
    ("(a\\):1.2)", [("a)", 1.2)]),
    ("\\((a)\\)", [("(", 1.0), ("a", 1.1), (")", 1.0)]),
    ("(\\(a\\):1.4)", [("(a)", 1.4)]),
    ("a BREAK b", [("a", 1.0), ("BREAK", -1), ("b", 1.0)]),
    ("BREAK", [("", 1.0), ("BREAK", -1), ("", 1.0)]),
    ("BREAK a", [("", 1.0), ("BREAK", -1), ("a", 1.0)]),
    ("a BREAK", [("a", 1.0), ("BREAK", -1), ("", 1.0)]),
    ("a BREAK BREAK b", [("a", 1.0), ("BREAK", -1), ("", 1.0), ("BREAK", -1), ("b", 1.0)]),
    ("aBREAKb", [("aBREAKb", 1.0)]),
    ("a,BREAK,b", [("a,", 1.0), ("BREAK", -1), (",b", 1.0)]),
    ("break", [("break", 1.0)]),
    ("(a BREAK b)", [("a", 1.1), ("BREAK", -1.1), ("b", 1.1)]),
    ("(a BREAK b:1.2)", [("a", 1.2), ("BREAK", -1.2), ("b", 1.2)]),
    ("a\nBREAK\nb", [("a", 1.0), ("BREAK", -1), ("b", 1.0)]),
    ("(a)\n(b)", [("a", 1.1), ("\n", 1.0), ("b", 1.1)]),
    ("a, (b, c:1.1), d", [("a, ", 1.0), ("b, c", 1.1), (", d", 1.0)]),
    ("(1girl:1.2), :3", [("1girl", 1.2), (", :3", 1.0)]),
    ("(a:1e3)", [("a:1e3", 1.1)]),
    ("(a:1,5)", [("a:1,5", 1.1)]),
    ("(a:2)(b:2)", [("ab", 2.0)]),
    ("(a:2) (b:2)", [("a", 2.0), (" ", 1.0), ("b", 2.0)]),
    ("((((a))))", [("a", 1.4641000000000006)]),
    ("(日本:1.2)語", [("日本", 1.2), ("語", 1.0)]),
    (":", [(":", 1.0)]),
    ("::", [("::", 1.0)]),
    ("(::1.2)", [(":", 1.2)]),
    ("time 12:30", [("time 12:30", 1.0)]),
    ("((a:1.1):1.1)", [("a", 1.2100000000000002)]),
    ("(a) (b) [c]", [("a", 1.1), (" ", 1.0), ("b", 1.1), (" ", 1.0), ("c", 0.9090909090909091)]),
]


@pytest.mark.parametrize(("prompt", "parts"), A1111)
def test_parts_and_weights_are_those_of_a1111(prompt, parts):
    assert parse_emphasis(prompt) == parts


def plain_weights(prompt: str) -> list[float]:
    """The weight of every letter "a" of a prompt without numbers and escapes: the product over the brackets it is in.

    Each kind of bracket is matched by itself, as if the other were text.
    """
    weights = []
    for place, letter in enumerate(prompt):
        if letter == "a":
            depths = []
            for opening, closing in ("()", "[]"):
                depth = 0
                for before in prompt[:place]:
                    depth = depth + 1 if before == opening else max(depth - 1, 0) if before == closing else depth
                depths.append(depth)
            weights.append(1.1 ** depths[0] * 1.1 ** -depths[1])
    return weights


@given(st.text("a([])", max_size=30))
def test_brackets_multiply(prompt):
    got = [weight for text, weight in parse_emphasis(prompt) for letter in text if letter == "a"]
    assert got == pytest.approx(plain_weights(prompt))


@given(st.lists(st.sampled_from(["(", ")", "[", "]", ":", ":1.2)", "\\", "BREAK", " ", "x", "1.2.3", "\n", "é"])))
@example(["("] * NESTING)
@example(["(", "x", ":", "1.2.3", ")"])  # which A1111 itself does not survive
def test_nothing_is_lost_and_nothing_crashes(pieces):
    prompt = "".join(pieces)
    parts = parse_emphasis(prompt)
    assert prompt.count("x") == "".join(text for text, _ in parts).count("x")
    assert all(left[1] != right[1] for left, right in itertools.pairwise(parts))
    assert all(math.isfinite(weight) for _, weight in parts)


@given(st.text(st.characters(exclude_characters="\\()[]"), max_size=50).filter(lambda text: "BREAK" not in text))
def test_text_without_brackets_stays_as_it_is(prompt):
    assert parse_emphasis(prompt) == [(prompt, 1.0)]


def test_break_is_told_from_the_word():
    assert BREAK in parse_emphasis("a BREAK b")
    assert BREAK not in parse_emphasis("a break BREAKs b")
