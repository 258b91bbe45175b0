"""Ctrl-C. Commands run in a second thread, while the first does nothing but listen for it.

Python hears Ctrl-C in its first thread only, between two instructions. XLA compiles for minutes within one; and heard
in the wrong place, such as a callback of the garbage collector, the interrupt is lost.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 5.0  # seconds that a command gets to tidy up

_requested = Event()
_nothing_to_tidy = Event()


def listening(work: Callable[[], T]) -> T:
    """The result of `work()`. After Ctrl-C, once `work` has tidied up, KeyboardInterrupt is raised."""
    done = Event()

    def run() -> T:
        try:
            return work()
        finally:
            done.set()

    try:  # Ctrl-C may come as soon as the thread runs
        return ThreadPoolExecutor(max_workers=1).submit(run).result()
    except KeyboardInterrupt:
        _requested.set()
        patient_until = time.monotonic() + PATIENCE
        while not done.is_set() and not _nothing_to_tidy.is_set() and time.monotonic() < patient_until:
            time.sleep(0.02)
        raise


def check() -> None:
    """Raise KeyboardInterrupt if there was a Ctrl-C. For the thread that works, as often as it can."""
    if _requested.is_set():
        raise KeyboardInterrupt


@contextmanager
def nothing_to_tidy() -> Iterator[None]:
    """Work that may be left in the middle at once."""
    _nothing_to_tidy.set()
    try:
        yield
    finally:
        _nothing_to_tidy.clear()
