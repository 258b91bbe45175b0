"""How much a request may ask for: looked at before any work is done."""

from dataclasses import dataclass
from typing import Any

from sdjax.server.refusals import Refused
from sdjax.settings import Picture


@dataclass(frozen=True)
class Limits:
    """The most that a request may ask for.

    pixels: of a picture, also after its second pass. steps: of a pass. pictures: of a request. prompt: letters of a
    text. scale: of guidance. body: bytes of a request. upload: pixels of a picture that is sent. queue: pictures that
    wait, of all clients. sent: pixels of all that was sent with them. seconds: from the request to its pictures.
    """

    pixels: int = 2048 * 2048
    steps: int = 150
    pictures: int = 16
    prompt: int = 8000
    scale: float = 1000.0
    body: int = 64 * 2**20
    upload: int = 4096 * 4096
    queue: int = 500
    sent: int = 16 * 4096 * 4096
    seconds: float = 600.0

    def check_settings(self, settings: dict[str, Any], count: int) -> None:
        """Raises Refused for settings, by the names of `Picture`, that would take too long even to look at."""
        if not 1 <= count <= self.pictures:
            raise Refused(f"a request is for 1 to {self.pictures} pictures, not {count}", param="n")
        for name in ("num_inference_steps", "hires_steps"):
            self._check(name, settings.get(name), self.steps)
        for name in ("timesteps", "sigmas"):
            self._check(f"the number of {name}", len(settings.get(name) or ()), self.steps, name)
        for name, value in settings.items():
            if isinstance(value, str):
                self._check(f"the length of {name}", len(value), self.prompt, name)
        scales = settings.get("guidance_scale")
        for scale in scales if isinstance(scales, tuple | list) else [scales]:
            if isinstance(scale, int | float) and abs(scale) > self.scale:
                raise Refused(f"guidance_scale can be {self.scale:g} at most, not {scale}", param="guidance_scale")
        for name in ("width", "height"):
            self._check(name, settings.get(name), self.pixels)

    def check_size(self, picture: Picture, width: int, height: int) -> None:
        """Raises Refused for a picture of more pixels."""
        scale = picture.hires_scale or 1
        if width * height * scale**2 > self.pixels:
            enlarged = f", enlarged {scale:g} times," if scale > 1 else ""
            raise Refused(
                f"a picture can have {self.pixels} pixels at most; {width} x {height}{enlarged} are too many",
                param="size",
            )

    def _check(self, what: str, value: Any, most: int, param: str | None = None) -> None:
        if isinstance(value, int) and value > most:
            raise Refused(f"{what} can be {most} at most, not {value}", param=param or what)
