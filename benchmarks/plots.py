"""How the studies are drawn."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.report import in_a_folder


def drawable(file: Path | None) -> Path | None:
    """A plot's file, if it can be drawn; asked before the work is done."""
    if file is not None and importlib.util.find_spec("matplotlib") is None:
        raise typer.BadParameter("drawing needs matplotlib: pip install 'sdjax[benchmarks]'")
    return in_a_folder(file)


PlotOption = Annotated[
    Path | None,
    typer.Option(
        "--plot", metavar="FILE", dir_okay=False, callback=drawable, help="Also draw them: a .png, .svg or .pdf."
    ),
]

TICKS = (4, 5, 6, 8, 10, 15, 20, 50, 100, 200)
MARKERS = "osv^Dd<>*p"
# What may be read of pictures, and the title of its panel.
READ = {"all": "captions that hold", "frechet": "Fréchet distance", "clip": "CLIP score", "fid": "FID"}
BOUNDS = {"rendered": ":", "converged": "--"}  # what else was read, and the line that says where it lies
SPACED = "dpmpp_2m"  # drawn on all spacings
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
    """Error over evaluations, both logarithmic: the samplers of CURVES; and one sampler on all spacings."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    one = [(SPACED, spacing) for spacing in dict.fromkeys(row["spacing"] for row in rows)]
    for axes, title, kinds in ((left, "samplers", CURVES), (right, f"{SPACED}, spacings", one)):
        for i, (sampler, spacing) in enumerate(kinds):
            line = [row for row in rows if (row["sampler"], row["spacing"]) == (sampler, spacing)]
            if line:
                label = spacing if axes is right else f"{sampler}, {spacing}"
                points = [(row["nfe"], row["error"]) for row in line]
                axes.loglog(*zip(*points), MARKERS[i % len(MARKERS)] + "-", ms=5, label=label)
        axes.set(title=title, xlabel="evaluations of the network (NFE)")
        axes.set_xticks(TICKS, labels=map(str, TICKS))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    left.set_ylabel("median error, in deviations of the data")
    figure.savefig(file, dpi=110)


def name_of(row: dict[str, Any]) -> str:
    """What a row of the speed benchmark measured."""
    return f"{row['part']}, {row['batch']} of {row['pixels']} px, {row['dtype']}, {row['beside']}"


def speed_bars(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """sdjax's time over another framework's, a bar for each case; left of the line at 1 sdjax is faster."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    others = list(dict.fromkeys(row["beside"] for row in rows))
    colours = ["C0" if row["beside"] == others[0] else f"C{others.index(row['beside'])}" for row in rows]
    axes.barh(range(len(rows)), [row["ratio"] for row in rows], color=colours)
    for i, row in enumerate(rows):
        axes.text(0.03, i, f"{row['ratio']:.2f}", color="white", va="center")
    axes.axvline(1, color="0.3", lw=1)
    axes.set_yticks(range(len(rows)), [name_of(row) for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.05 * max(1, *(row["ratio"] for row in rows)))
    axes.set_xlabel("sdjax's time over the other's")
    figure.savefig(file, dpi=150)


def quality_curves(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Of a trained model: error over evaluations at each scale of guidance; and what was read of the pictures.

    Over seconds where rows have them."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    scales = sorted({row["guidance"] for row in rows if "rmse" in row})
    panels = [(f"error at guidance {scale:g}", "rmse", scale) for scale in scales]
    for what, title in READ.items():
        read = sorted({row["guidance"] for row in rows if what in row and "guidance" in row})
        panels += [(f"{title}, guidance {scale:g}", what, scale) for scale in read]
    columns = min(3, len(panels))
    figure = Figure(figsize=(4.4 * columns, 3.6 * -(-len(panels) // columns)), layout="constrained")
    axes = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).ravel()
    kinds = list(dict.fromkeys((row["sampler"], row["spacing"]) for row in rows if "guidance" in row))
    budgets = sorted({row["budget"] for row in rows if "guidance" in row})
    timed = any("seconds" in row for row in rows)
    for panel, (title, what, scale) in zip(axes, panels):
        for i, kind in enumerate(kinds):
            line = [row for row in rows if (row["sampler"], row["spacing"]) == kind and row.get("guidance") == scale]
            points = [(row["seconds" if timed else "nfe"], row[what]) for row in line if what in row]
            if points:
                style = MARKERS[i % len(MARKERS)] + "-"
                panel.plot(*zip(*points), style, ms=5, color=f"C{i % 10}", label=", ".join(filter(None, kind)))
        panel.set(title=title, xscale="log", xlabel="seconds" if timed else "evaluations of the network (NFE)")
        if timed:
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter("{x:g}")
        else:
            panel.set_xticks(budgets, labels=[str(budget) for budget in budgets])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        if what == "rmse":
            panel.set_yscale("log")
        for row in rows:
            if row["sampler"] in BOUNDS and what in row:
                panel.axhline(row[what], color="black", ls=BOUNDS[row["sampler"]], label=f"{row['sampler']} pictures")
    handles = {label: handle for panel in axes for handle, label in zip(*panel.get_legend_handles_labels())}
    for panel in axes[len(panels) :]:
        panel.axis("off")
    figure.legend(handles.values(), handles.keys(), loc="outside right", fontsize=8)
    figure.savefig(file, dpi=110)
