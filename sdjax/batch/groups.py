"""Groups pictures into batches so that no bit of a picture depends on its batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sdjax.batch.rows import Item, Problem
from sdjax.errors import CheckpointError, InputError
from sdjax.pipeline.facts import Facts
from sdjax.pipeline.order import GroupKey
from sdjax.pipeline.ordering import order_of


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures that are drawn at once. There may be fewer than a batch has slots."""

    key: GroupKey
    items: Sequence[Item]
    nfe: Sequence[int]  # evaluations of the UNet that each picture needs


class Placed(NamedTuple):
    """A picture's place in the order of a run."""

    key: GroupKey
    nfe: int
    item: Item


def place(item: Item, facts: Facts) -> Placed | Problem:
    """The group of a picture, or why this model cannot draw it; no pixel of its images is read."""
    try:
        order = order_of([item.outline()], facts)
        return Placed(order.key, order.nfe, item)
    except (InputError, CheckpointError) as error:
        return Problem(item.row, str(error))


def batches_of(placed: Sequence[Placed], slots: int) -> Iterator[Batch]:
    """Batches of up to `slots` pictures. Groups come in the order of their first pictures.

    Within a group those of many evaluations come first: then a batch has hardly any slot that is done early, and the
    one that is not full is the shortest.
    """
    groups: dict[GroupKey, list[Placed]] = {}
    for each in placed:
        groups.setdefault(each.key, []).append(each)
    for key, members in groups.items():
        members.sort(key=lambda each: (-each.nfe, each.item.index))
        for i in range(0, len(members), slots):
            together = members[i : i + slots]
            yield Batch(key, [each.item for each in together], [each.nfe for each in together])
