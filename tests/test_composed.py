"""Prompts of several conditions, against A1111's own expression for them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdjax.errors import InputError
from sdjax.prompts import bucket, parts_of

A1111 = re.compile(r"^((?:\s|.)*?)(?:\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+)))?\s*$")


def test_parts_and_their_weights():
    assert parts_of("a cat") == [("a cat", 1)]
    assert parts_of("a cat AND a dog :1.2") == [("a cat", 1), (" a dog", 1.2)]
    assert parts_of("a:0.5 AND b : -.25 AND c:2.") == [("a", 0.5), (" b", -0.25), (" c", 2)]
    assert parts_of("SAND AND LAND") == [("SAND", 1), (" LAND", 1)]
    assert [text.strip() for text, _ in parts_of("(a:1.2) AND")] == ["(a:1.2)", ""]


@given(st.text(alphabet="aAND:.5-+ \n()", max_size=30))
def test_any_text_is_split_as_a1111_splits_it(prompt):
    found = [A1111.search(text).groups() for text in re.split(r"\bAND\b", prompt)]
    expected = [(text, 1.0 if weight is None else float(weight)) for text, weight in found]
    if len(expected) > 8:
        with pytest.raises(InputError, match="8 parts"):
            parts_of(prompt)
    else:
        assert parts_of(prompt) == expected


def test_buckets():
    assert [bucket(count) for count in range(1, 9)] == [1, 2, 4, 4, 8, 8, 8, 8]
