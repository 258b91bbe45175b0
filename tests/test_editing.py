"""Prompts that change while a picture is drawn, as A1111's `get_learned_conditioning_prompt_schedules` reads them."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sdjax.limits import NESTING
from sdjax.prompts import schedule, texts_of_rows

LANDSCAPE = (
    "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75][ in foreground::0.6]"
    "[ in background:0.25] [shoddy:masterful:0.5]"
)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        # The first dozen are the examples of A1111's own documentation of the function.
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a|(b:1.1)]", [(k, "a" if k % 2 else "(b:1.1)") for k in range(1, 11)]),
        ("[fe|]male", [(k, "female" if k % 2 else "male") for k in range(1, 11)]),
        ("[fe|||]male", [(k, "female" if k % 4 == 1 else "male") for k in range(1, 11)]),
        # The others were read by its grammar, with lark 1.3.1.
        ("[a:b:3 ]", [(3, "a"), (10, "b")]),
        ("[a::3]", [(3, "a"), (10, "")]),
        ("[:b:3]", [(3, ""), (10, "b")]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:0.05]", [(10, "b")]),
        ("[a:b:-2]", [(10, "b")]),
        ("[a:b:99]", [(10, "a")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:1]", [(1, "a"), (10, "b")]),
        ("[a:b:2e0]", [(2, "a"), (10, "b")]),
        ("[a:b:c]", [(10, "[a:b:c]")]),
        ("[a:b:c:0.5]", [(10, "[a:b:c:0.5]")]),
        ("[a]", [(10, "[a]")]),
        ("(a:1.2) [b:(c:1.3):0.5]", [(5, "(a:1.2) b"), (10, "(a:1.2) (c:1.3)")]),
        ("([a:b:0.5]:1.2)", [(5, "(a:1.2)"), (10, "(b:1.2)")]),
        ("[a:b:0.5] (c", [(5, "a (c"), (10, "b (c")]),
        ("[a:b:0.5] 12:30:45 :)", [(5, "a 12:30:45 :)"), (10, "b 12:30:45 :)")]),
        ("[x:[a:b]:3]", [(10, "[x:[a:b]:3]")]),
        ("[a [b:c:3] d", [(3, "[a b d"), (10, "[a c d")]),
        (r"[a\:b:c:3]", [(3, r"a\:b"), (10, "c")]),
        (r"[a:b:0.5] \[c:d:3\]", [(5, r"a \[c:d:3\]"), (10, r"b \[c:d:3\]")]),
        ("[[a|b]:c:2]", [(1, "a"), (2, "b"), *[(k, "c") for k in range(3, 11)]]),
        ("[a:b:0.5] | c", [(10, "[a:b:0.5] | c")]),  # its grammar has no place for a bar there
        ("[a:b:0.5] \\", [(10, "[a:b:0.5] \\")]),
        ("[a|b:0.5]", [(10, "[a|b:0.5]")]),
    ],
)
def test_texts_and_their_last_steps_are_those_of_a1111(prompt, texts):
    assert schedule(prompt, 10) == texts


def test_the_landscape_of_its_documentation():
    assert schedule(LANDSCAPE, 100) == [
        (25, "fantasy landscape with a mountain and an oak in foreground shoddy"),
        (50, "fantasy landscape with a lake and an oak in foreground in background shoddy"),
        (60, "fantasy landscape with a lake and an oak in foreground in background masterful"),
        (75, "fantasy landscape with a lake and an oak in background masterful"),
        (100, "fantasy landscape with a lake and a christmas tree in background masterful"),
    ]


def test_rows_are_counted_as_a1111_counts_them():
    # Its denoiser compares the number of evaluations before this one with the last step of each text.
    assert texts_of_rows("[a:b:3]", 6, 6) == ["a"] * 4 + ["b"] * 2
    assert texts_of_rows("[a:b:0.5]", 6, 11, per_step=2) == ["a"] * 7 + ["b"] * 4
    assert texts_of_rows("[a|b|c]", 5, 6) == ["a", "a", "b", "c", "a", "b"]
    assert texts_of_rows("[a:b:0.5]", 4, 9) == ["a"] * 3 + ["b"] * 6  # more evaluations than steps


@given(st.lists(st.sampled_from([*"()[]:|\\\n x", "0.5", "3", "[a:b:0.5]", "[a|b]"])), st.integers(1, 20))
@example(["["] * NESTING, 5)
@example(["[a:"] * NESTING + ["b"] + [":1]"] * NESTING, 5)
@example(["[a:b:1" + "9" * 400 + ".5]"], 5)
def test_nothing_crashes_and_every_step_has_a_text(pieces, steps):
    texts = schedule("".join(pieces), steps)
    ends = [end for end, _ in texts]
    assert ends == sorted(set(ends))
    assert ends[0] >= 1 and ends[-1] == steps


@given(st.text(max_size=30), st.text(max_size=30), st.integers(2, 50), st.data())
def test_an_edit_is_one_text_and_then_the_other(before, after, steps, data):
    when = data.draw(st.integers(1, steps - 1))
    before, after = ("".join(letter for letter in text if letter not in "()[]:|\\") for text in (before, after))
    assert schedule(f"[{before}:{after}:{when}]", steps) == [(when, before), (steps, after)]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("[a:b:0.5]", [(20, "b")]),
        ("[a:b:1.0]", [(20, "b")]),
        ("[a:b:1.5]", [(10, "a"), (20, "b")]),
        ("[a:b:2.0]", [(20, "a")]),
        ("[a:b:8]", [(20, "b")]),
        ("[a:b:14]", [(4, "a"), (20, "b")]),
        ("[a::14] [b|c]", [(k, f"{'a' if k <= 4 else ''} {'b' if k % 2 else 'c'}") for k in range(1, 21)]),
    ],
)
def test_a_second_pass_goes_on_counting(prompt, texts):
    """20 steps after 10: shares from 1.0, steps from 10, as in A1111."""
    assert schedule(prompt, 20, first_pass=10) == texts
    assert texts_of_rows("[a:b:1.5]", 20, 20, per_step=1, first_pass=10) == ["a"] * 11 + ["b"] * 9
