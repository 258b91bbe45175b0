"""What `sdjax compile --target` and `sdjax info --fit` say: the bytes and the estimates of a model's programs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from sdjax.cli.progress import progress_bars
from sdjax.errors import InputError
from sdjax.files.eviction import format_size

if TYPE_CHECKING:
    import jax

    from sdjax.fitting import Wish
    from sdjax.models.precision import Precision
    from sdjax.reading import Reading
    from sdjax.targets import Target

PROGRAMS = {
    "encode_text": "text",
    "encode": "encoding",
    "denoise": "denoising",
    "decode": "decoding",
    "scores": "safety checker",
}


def precision_of(
    dtype: str | None, weights: str | None, offload: bool, shard_parameters: bool, target: str | None
) -> "Precision":
    """What is computed in: as is said, else as `sdjax.load` chooses on the devices of a target, or on those here."""
    from sdjax.loading import default_dtype
    from sdjax.models.precision import Precision

    return Precision.of(dtype or ("bfloat16" if target else default_dtype()), weights, offload, shard_parameters)


def compiled_for(wish: "Wish", devices: "Sequence[jax.Device]") -> "list[Reading]":
    """Compiles a wish, with progress."""
    from sdjax.fitting import programs_of

    stages = {"encode": "text", "compile": "denoising", "decode": "decoding"}
    with progress_bars() as report:
        return programs_of(wish, devices, lambda stage, done, total: report(stages[stage], done, total))


def show(readings: "Sequence[Reading]", target: "Target | None" = None) -> None:
    """A table of programs: their bytes, and for a TPU, whose clock is known, the compiler's estimate of time."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    estimates = ("est. ms", "matrix") if target and target.clock else ()
    for column in ("program", "compiled", "parameters", "temporary", "peak", "kernels", "collect.", *estimates):
        table.add_column(column, justify="left" if column == "program" else "right")
    for each in readings:
        sizes = map(format_size, (each.parameters, each.temporary, each.peak))
        row = [PROGRAMS[each.name], f"{each.seconds:.0f} s", *sizes, str(each.kernels), str(each.collectives)]
        if target and target.clock:
            spent = each.seconds_on(target)
            total = sum(spent.values())
            row += [f"{1000 * total:.1f}", f"{(spent['matrix'] + spent['kernels']) / total:.0%}"]
        table.add_row(*row)
    Console().print(table)
    if estimates:
        typer.echo(
            "est.: the compiler's estimate, of one step or one picture; kernels, to which it gives none, at the peak."
        )


def say_whether_it_fits(
    wish: "Wish", readings: "Sequence[Reading]", memory: int, where: str, devices: "Sequence[jax.Device]"
) -> None:
    """Says by how much a wish fits into so much memory of each device.

    Raises InputError where it does not, with what would.
    """
    from sdjax.fitting import REMEDIES, remedies
    from sdjax.reading import most_held

    program, size = most_held(readings, wish.precision.offload)
    doing, left = f"by {PROGRAMS[program.name]}", memory - size
    if left >= 0:
        typer.echo(f"fits {where}: at most {format_size(size)} are held, {doing}; {format_size(left)} are left")
        return
    would = [f"{options} ({format_size(size)})" for options, size in remedies(wish, readings, memory, devices).items()]
    raise InputError(
        f"does not fit {where}: {format_size(size)} would be held, {doing}, {format_size(-left)} too many; "
        + (f"what would fit: {', '.join(would)}" if would else f"none of {', '.join(REMEDIES)} would make it fit")
    )
