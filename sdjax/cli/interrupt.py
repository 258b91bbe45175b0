"""Ctrl-C and SIGTERM. Commands run in a second thread, while the first does nothing but listen for them.

Python hears signals in its first thread only, between two instructions. XLA compiles for minutes within one; and what
is raised in the wrong place, such as a callback of the garbage collector, is lost. So a signal sets a mark that is
looked at.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

from sdjax.files.atomic import remove_unfinished

T = TypeVar("T")

HEARD = (signal.SIGINT, signal.SIGTERM)  # the second is what those send who take machines back
PATIENCE = 5.0  # seconds that a command gets to see the mark
GLANCE = 0.05  # seconds between two looks at the mark

_requested = Event()
_seen = Event()
_nothing_to_tidy = Event()
_much_to_save = Event()


def listening(work: Callable[[], T]) -> T:
    """The result of `work()`. After a signal, once `work` has tidied up, KeyboardInterrupt(signal) is raised."""
    if threading.current_thread() is not threading.main_thread():  # which alone can hear
        return work()
    outcome: Future[T] = Future()
    received: list[int] = []

    def hear(number: int, _: object) -> None:
        received.append(number)
        _requested.set()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    previous = {number: signal.signal(number, hear) for number in HEARD}
    try:
        threading.Thread(target=run, daemon=True).start()
        while not outcome.done() and not _requested.is_set():
            wait([outcome], GLANCE)
    finally:
        for number, handler in previous.items():  # a second one is not waited for
            signal.signal(number, handler)
    if not _requested.is_set():
        return outcome.result()
    if _much_to_save.is_set():
        print("sdjax: saving; a second signal ends it at once", file=sys.stderr, flush=True)
    patient_until = time.monotonic() + PATIENCE
    while not outcome.done() and not _nothing_to_tidy.is_set():
        if not (_seen.is_set() or _much_to_save.is_set() or time.monotonic() < patient_until):
            break
        wait([outcome], GLANCE)
    if not outcome.done():
        remove_unfinished()
    raise KeyboardInterrupt(received[0])


def check() -> None:
    """Raise KeyboardInterrupt if there was a signal. For the thread that works, as often as it can.

    From then on that thread has all the time that it takes to tidy up, such as to save what was learned.
    """
    if _requested.is_set():
        _seen.set()
        raise KeyboardInterrupt


@contextmanager
def nothing_to_tidy() -> Iterator[None]:
    """Work that may be left in the middle at once."""
    _nothing_to_tidy.set()
    try:
        yield
    finally:
        _nothing_to_tidy.clear()


@contextmanager
def much_to_save() -> Iterator[Callable[[], None]]:
    """Yields a function: after it is called, the work inside has all the time that it takes to look at the mark."""
    try:
        yield _much_to_save.set
    finally:
        _much_to_save.clear()
