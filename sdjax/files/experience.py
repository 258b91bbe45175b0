"""How long programs took to compile here, so that it can be said how long the next one will take."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from sdjax.files.atomic import replaced
from sdjax.files.cache import cache_directory

log = logging.getLogger("sdjax")

CALLED = {
    "encode_text": "the text encoder",
    "denoise": "the denoising loop",
    "encode": "the image encoder",
    "decode": "the image decoder",
    "encode_hint": "what reads hints",
}
SOON = 3.0  # seconds that nobody needs to be told of
MOST = 200  # kinds that are remembered
LONGEST = 1 << 16  # bytes of the file

_purpose: ContextVar[str] = ContextVar("purpose", default="")


@contextmanager
def compiling_for(pictures: str) -> Iterator[None]:
    """What is compiled inside is for such pictures, as "512 x 768" or "4 of 512 x 768"."""
    token = _purpose.set(pictures)
    try:
        yield
    finally:
        _purpose.reset(token)


@dataclass(frozen=True)
class Experience:
    """What is known of compiling a program.

    name: of its function. kind: tells it from others, but not by shapes. size: how much there is to compile, such as
    the number of its arguments' arrays.
    """

    name: str
    kind: str
    size: int

    def say(self) -> None:
        """Log that it is compiled now, for what, and about how long that takes, if it is not done at once."""
        seconds = self.expected()
        if seconds is not None and seconds < SOON:
            return
        what, pictures = CALLED.get(self.name, self.name), _purpose.get()
        size = f" for {pictures}" if pictures and self.name != "encode_text" else ""
        log.info("compiling %s%s,%s once", what, size, "" if seconds is None else f" about {rounded(seconds)},")

    def expected(self) -> float | None:
        """Seconds: those of the last program of this kind, else of the last with this name by their sizes, else None.

        Other shapes take about as long.
        """
        known = _read()
        if self.kind in known:
            return known[self.kind][1]
        others = [(size, seconds) for name, seconds, size in known.values() if name == self.name]
        return others[-1][1] * self.size / others[-1][0] if others else None

    def remember(self, seconds: float) -> None:
        """Keep how long it took, for the next one."""
        known = _read()
        known.pop(self.kind, None)
        known[self.kind] = (self.name, seconds, self.size)
        with suppress(OSError):  # a cache that can be read only
            _file().parent.mkdir(parents=True, exist_ok=True)
            with replaced(_file()) as partial:
                partial.write_text(json.dumps(dict(list(known.items())[-MOST:])))


def rounded(seconds: float) -> str:
    """8.2 as "8 s", 43 as "45 s", 250 as "4 min"."""
    if seconds < 10:
        return f"{seconds:.0f} s"
    return f"{5 * round(seconds / 5)} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _file() -> Path:
    return cache_directory() / "times"


def _read() -> dict[str, tuple[str, float, int]]:
    """(name, seconds, size) by kind, what was remembered last at the end; {} for a file that is not ours."""
    with suppress(OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        with _file().open("rb") as file:
            found = json.loads(file.read(LONGEST))
        return {kind: (str(name), float(seconds), max(1, int(size))) for kind, (name, seconds, size) in found.items()}
    return {}
