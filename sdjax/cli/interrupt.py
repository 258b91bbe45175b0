"""Ctrl-C. Commands run in a second thread, while the first does nothing but listen for it.

Python hears Ctrl-C in its first thread only, between two instructions. XLA compiles for minutes within one; and what
is raised in the wrong place, such as a callback of the garbage collector, is lost. So Ctrl-C sets a mark that is looked
at.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 5.0  # seconds that a command gets to tidy up
GLANCE = 0.05  # seconds between two looks at the mark

_requested = Event()
_nothing_to_tidy = Event()


def listening(work: Callable[[], T]) -> T:
    """The result of `work()`. After Ctrl-C, once `work` has tidied up, KeyboardInterrupt is raised."""
    if threading.current_thread() is not threading.main_thread():  # which alone can hear
        return work()
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    previous = signal.signal(signal.SIGINT, lambda *_: _requested.set())
    try:
        threading.Thread(target=run, daemon=True).start()
        while not outcome.done() and not _requested.is_set():
            wait([outcome], GLANCE)
    finally:
        signal.signal(signal.SIGINT, previous)  # a second Ctrl-C is not waited for
    if not _requested.is_set():
        return outcome.result()
    patient_until = time.monotonic() + PATIENCE
    while not outcome.done() and not _nothing_to_tidy.is_set() and time.monotonic() < patient_until:
        wait([outcome], GLANCE)
    raise KeyboardInterrupt


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
