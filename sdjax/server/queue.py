"""What waits: fair between clients, and bounded."""

from collections.abc import Callable, Iterable, Iterator

from sdjax.server.refusals import Refused
from sdjax.server.work import Job, Unit


class Queue:
    """Pictures that wait, by start-time fair queueing (Goyal et al., 1996): each client gets an equal share.

    A picture's tag is the time, counted in pictures of one client, at which it would begin if all clients took turns;
    the smallest is next. So a client that asks for one picture does not wait for the hundred of another one.
    most: pictures. pixels: of what was sent with them. Not safe for several threads at once.
    """

    def __init__(self, most: int, pixels: int):
        self.most, self.pixels = most, pixels
        self._waiting: list[Unit] = []
        self._now = 0.0
        self._ends: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Unit]:
        """In the order of their turns."""
        return iter(sorted(self._waiting, key=lambda unit: unit.tag))

    def check_room(self, job: Job, seconds: float) -> None:
        """Raises Refused where there is no room for another job. seconds: that a picture takes, about."""
        count = len(job.units)
        if len(self._waiting) + count > self.most:
            wait = max(1, min(600, round(seconds * (len(self._waiting) + count - self.most))))
            raise Refused(
                f"the queue is full: {len(self._waiting)} pictures wait, {self.most} can; try again in {wait} seconds",
                429,
                code="rate_limit_exceeded",
                retry_after=wait,
            )
        sent = sum(each.pixels for each in {unit.job for unit in self._waiting})
        if sent + job.pixels > self.pixels:
            raise Refused(
                f"the queue is full: what was sent with the pictures that wait has {sent} pixels already; try again",
                429,
                code="rate_limit_exceeded",
                retry_after=max(1, min(600, round(seconds))),
            )

    def add(self, units: Iterable[Unit]) -> None:
        """Put pictures in the queue."""
        for unit in units:
            unit.tag = max(self._now, self._ends.get(unit.job.client, 0.0))
            self._ends[unit.job.client] = unit.tag + 1
            self._waiting.append(unit)

    def take(self, most: int, wanted: Callable[[Unit], bool]) -> list[Unit]:
        """Takes out up to `most` pictures whose turn it is, among those that are wanted."""
        taken = [unit for unit in self if wanted(unit)][:most]
        for unit in taken:
            self._waiting.remove(unit)
            self._now = max(self._now, unit.tag)
        self._ends = {client: end for client, end in self._ends.items() if end > self._now}
        return taken
