"""A few hostile cases at every door; `python -m benchmarks fuzz` tries thousands."""

import tempfile

import numpy as np
import pytest
from hypothesis import strategies as st

from benchmarks.doors import doors
from benchmarks.fuzz import SHARE, Door, knock
from sdjax.errors import InputError

CASES = 5
DOORS = [door for door in doors() if door.name != "networks"]  # which are traced, for seconds


@pytest.mark.long
@pytest.mark.parametrize("door", DOORS, ids=[door.name for door in DOORS])
def test_what_comes_is_refused_in_one_line_or_read_rightly(door):
    assert not knock(door, 1 if door.name in SHARE else CASES).faults


def raises(error):
    def work(_value, _folder):
        raise error

    return work


def leaves(_value, folder):
    (folder / ".half.partial").touch()
    raise InputError("no")


def leaves_beside(_value, _folder):
    tempfile.NamedTemporaryFile("w", delete=False).close()


def grows(_value, _folder):
    np.ones(520_000_000, np.uint8).sum()


def is_wrong(value, _folder):
    assert value


@pytest.mark.parametrize(
    ("work", "fault"),
    [
        (raises(ZeroDivisionError("0")), "traceback: ZeroDivisionError"),
        (raises(OSError("one\ntwo")), "not one line"),
        (leaves, "left behind"),
        (leaves_beside, "left behind"),
        (grows, " MB"),
        (is_wrong, "wrong result"),
    ],
)
def test_a_fault_is_found(work, fault):
    (found,) = knock(Door("a door", st.just(0), work), 1).faults
    assert fault in found
