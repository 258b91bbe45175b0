"""How the studies are drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.report import in_a_folder

PlotOption = Annotated[
    Path | None,
    typer.Option(
        "--plot", metavar="FILE", dir_okay=False, callback=in_a_folder, help="Also draw them: a .png, .svg or .pdf."
    ),
]

# Those that people know best, each on the spacing that it is mostly used with.
CURVES = (
    ("ddim", "leading"),
    ("euler", "karras"),
    ("heun", "karras"),
    ("lms", "karras"),
    ("dpmpp_2m", "karras"),
    ("dpmpp_3m", "karras"),
    ("unipc", "karras"),
    ("deis", "karras"),
    ("res_multistep", "karras"),
)


def error_curves(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Error over evaluations, both logarithmic, for the samplers of CURVES that were measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for sampler, spacing in CURVES:
        line = [row for row in rows if (row["sampler"], row["spacing"]) == (sampler, spacing)]
        if line:
            axes.loglog(
                [row["nfe"] for row in line], [row["error"] for row in line], "o-", ms=4, label=f"{sampler}, {spacing}"
            )
    axes.set_xlabel("evaluations of the network (NFE)")
    axes.set_ylabel("median error, in deviations of the data")
    axes.set_xticks(
        [4, 5, 6, 8, 10, 15, 20, 50, 100, 200], labels=["4", "5", "6", "8", "10", "15", "20", "50", "100", "200"]
    )
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)


def speed_bars(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """sdjax's time over another framework's, a bar for each case; left of the line at 1 sdjax is faster."""
    from matplotlib.figure import Figure

    names = [f"{row['part']}, batch {row['batch']}, {row['pixels']} px, {row['dtype']}" for row in rows]
    figure = Figure(figsize=(8, 1 + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    others = list(dict.fromkeys(row["beside"] for row in rows))
    colours = ["C0" if row["beside"] == others[0] else f"C{others.index(row['beside'])}" for row in rows]
    bars = axes.barh(range(len(rows)), [row["ratio"] for row in rows], color=colours)
    axes.bar_label(bars, [f"{row['ratio']:.2f} of {row['beside']}" for row in rows], padding=3)
    axes.axvline(1, color="0.3", lw=1)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.4 * max(1, *(row["ratio"] for row in rows)))
    axes.set_xlabel("sdjax's time over the other's")
    figure.savefig(file, dpi=150)
