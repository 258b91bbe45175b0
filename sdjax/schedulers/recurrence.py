"""Steps that are taken several times, with fresh noise between: recurrence, as universal guidance has it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from sdjax.errors import InputError
from sdjax.schedulers.solvers.rows import Row, Z


def repeated(rows: Sequence[Row], times: int, solver: str) -> Iterator[Row]:
    """Each step taken `times` times: after all but the last, noise brings the sample back to the level it came from.

    Bansal et al. (2023), arXiv:2302.07121, equation 10. Raises InputError for solvers that keep something from row to
    row, which there would be of another sample.
    """
    if times == 1:
        yield from rows
        return
    for row in rows:
        kept = [each for each in (row.saved, row.d1, row.d2, row.d3, row.noise1) if each is not None]
        if not row.is_step or kept:
            raise InputError(
                f"recurrence is for samplers of one evaluation a step that keep nothing of earlier ones, such as ddim "
                f"and euler, not {solver!r}"
            )
        noise = np.sqrt((row.x @ Z) ** 2 + max(row.sigma**2 - row.target**2, 0.0))
        back = replace(row, target=row.sigma, x=row.x * (1 - Z) + noise * Z, is_step=False)
        yield from [back] * (times - 1)
        yield row
