"""Files of tuned and of linear plans: JSON that `sdjax tune` writes, and where samplers' names find them."""

import json
from collections.abc import Iterator
from functools import lru_cache
from os import PathLike
from pathlib import Path

import numpy as np

from sdjax.errors import InputError, brief
from sdjax.files.atomic import replaced
from sdjax.limits import TRAINED_TIMESTEPS
from sdjax.schedulers.linear import MOST_ROWS, LinearTable
from sdjax.schedulers.tuned import NAMED, ORDER, Table, TunedPlan

FORMATS: dict[str, type[Table] | type[LinearTable]] = {
    "sdjax tuned plan 2": Table,
    "sdjax linear plan 1": LinearTable,
}
BYTES = 1 << 20  # of a file
ROWS = 128  # the most rows of a plan: those of the smallest compiled program
CLOSE = 1e-6  # how far the weights of a row may add up to something else than 1

PLANS: dict[str, TunedPlan] = {}  # by their hashes, those that files were read of


def write_plan(plan: TunedPlan, path: str | PathLike[str]) -> None:
    """Writes a plan as JSON."""
    format_ = next(name for name, kind in FORMATS.items() if isinstance(plan.tables, kind))
    said = {"format": format_, **plan.numbers(), "hash": plan.hash, "about": dict(plan.about)}
    with replaced(path) as partial:
        partial.write_text(json.dumps(said, indent=1) + "\n")


def read_plan(path: str | PathLike[str]) -> TunedPlan:
    """Reads a file of `sdjax tune`. Raises InputError that says what is wrong with it."""
    path = Path(path)
    try:
        if path.stat().st_size > BYTES:
            raise InputError(f"{path} is no tuned plan: it is larger than {BYTES:,} bytes")
        said = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no tuned plan: it is no JSON ({brief(error)})") from error
    kind = FORMATS.get(str(said.get("format"))) if isinstance(said, dict) else None
    if kind is None:
        raise InputError(f"{path} is no tuned plan: `sdjax tune` makes them")
    try:
        scales, *tables = (np.array(said[name], np.float64) for name in ("scales", *kind._fields))
        plan = TunedPlan(scales, kind(*tables), dict(said["noise"]), dict(said.get("about", {})))
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path} is no whole tuned plan: {brief(error)}") from error
    for problem, is_so in _problems(plan):
        if is_so:
            raise InputError(f"{path}: {problem}")
    if said.get("hash") != plan.hash:
        raise InputError(
            f"{path}: its hash is {brief(said.get('hash'))}, that of its numbers {plan.hash}: it was changed"
        )
    return plan


def _problems(plan: TunedPlan) -> Iterator[tuple[str, bool]]:
    """What may be wrong with the numbers of a plan, and whether it is; each presumes that those before are not."""
    levels, is_linear = plan.tables.levels, isinstance(plan.tables, LinearTable)
    count, rows = plan.scales.size, levels.shape[-1] if levels.ndim else 0
    most = MOST_ROWS if is_linear else ROWS
    numbers = (plan.scales, *plan.tables)
    own = {"weights": (count, rows, ORDER)} | dict.fromkeys(("samples", "estimates"), (count, rows, rows))
    shapes = [(count,), *(own.get(name, (count, rows)) for name in plan.tables._fields)]
    yield "its tables have other shapes than its scales and rows", [x.shape for x in numbers] != shapes
    yield f"it has {rows} rows; from 2 to {most} are possible", not 2 <= rows <= most
    yield "it is for no guidance scale", count == 0
    yield "a linear plan is for one guidance scale", is_linear and count > 1
    yield "its numbers are not all finite", not all(np.isfinite(x).all() for x in numbers)
    yield (
        "its guidance scales do not rise, or begin below 1",
        bool((np.diff(plan.scales) <= 0).any() or plan.scales[0] < 1),
    )
    falls = bool((np.diff(levels) < 0).all() and (levels > 0).all())
    yield "its levels do not fall from each row to the next, to above 0", not falls
    numbers_of_noise = [plan.noise.get(name) for name in ("trained", "sigma_min", "sigma_max", "data_std")]
    is_described = all(isinstance(x, int | float) and 0 < x <= TRAINED_TIMESTEPS for x in numbers_of_noise)
    yield "its noise schedule is not described", not is_described
    if isinstance(plan.tables, Table):
        apart = np.abs(plan.tables.weights.sum(-1) - 1)
        row = int(apart.max(0).argmax())
        yield (
            f"the weights of row {row} add up to {1 + apart[:, row].max():.6g} and not to 1",
            bool(apart.max() > CLOSE),
        )


def use_plan(path: str | PathLike[str]) -> str:
    """Reads a file of `sdjax tune` and returns the name by which a picture's `sampler` may be it. See `read_plan`."""
    plan = read_plan(path)
    PLANS[plan.hash] = plan
    return f"{Path(path).name}@{plan.hash}"


def find_plan(name: str, folder: Path, steps: int) -> tuple[str, TunedPlan]:
    """The plan of a name: among those that were read, or those in a model's folder; and its name with its hash.

    "tuned" is the one in the folder whose evaluations are nearest to `steps`. Raises InputError where there is none.
    """
    named = NAMED.fullmatch(name)
    own = plans_in(folder)
    if named is not None:
        known = {plan.hash: plan for plan in own} | PLANS
        if named[2] not in known:
            raise InputError(f"the tuned plan {name} is not here: give its file as the sampler (--sampler FILE.json)")
        return name, known[named[2]]
    if not own:
        raise InputError(f"this model has no tuned plans: make some with `sdjax tune` and put them into {folder}")
    nearest = min(own, key=lambda plan: (abs(plan.nfe - steps), plan.nfe))
    return f"tuned@{nearest.hash}", nearest


@lru_cache
def plans_in(folder: Path) -> tuple[TunedPlan, ...]:
    """The tuned plans in a folder, which need not be there."""
    return tuple(read_plan(path) for path in sorted(folder.glob("*.json")))
