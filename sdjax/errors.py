"""The errors that sdjax raises on purpose. Each message is one line: what is wrong, and what to do about it."""

from collections.abc import Iterable
from difflib import get_close_matches

from sdjax.limits import SHOWN


class SdjaxError(ValueError):
    """Anything that a user can put right. The command line prints its message and exits with 1.

    Line breaks in what a message shows, such as the names in a stranger's file, become spaces.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class InputError(SdjaxError):
    """An argument that cannot work: a size that does not divide, an empty prompt list, an unknown sampler."""


class ConfigError(SdjaxError):
    """A checkpoint's configuration asks for something that sdjax does not implement."""


class CheckpointError(SdjaxError):
    """Files of a model that are missing, damaged, or do not fit each other."""


class SolverError(SdjaxError):
    """A sampling method that yields rows which cannot be run: the method is wrong, not its user."""


class TrainingError(SdjaxError):
    """A run that cannot go on, such as one whose loss is no number any more."""


def brief(value: object) -> str:
    """A value as a message shows it: as Python writes it, cut where it is long."""
    try:
        written = repr(value)
    except ValueError:  # of a whole number of thousands of digits
        written = f"a {type(value).__name__} that is too long to be shown"
    return written if len(written) <= SHOWN else f"{written[:SHOWN]}..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: ", did you mean 'x'?", or "" where nothing is close."""
    close = get_close_matches(name, list(known), 1)
    return f", did you mean {close[0]!r}?" if close else ""
