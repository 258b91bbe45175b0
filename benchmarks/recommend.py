"""Which sampler for so many evaluations: what a study says, put into a short table."""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from benchmarks.report import console, table_of
from sdjax.errors import InputError

By = Literal["error", "facts", "frechet", "clip", "fid"]
FIELDS = {
    "error": ("rmse", "error"),
    "noise": ("wasserstein",),
    "facts": ("all",),
    "frechet": ("frechet",),
    "clip": ("clip",),
    "fid": ("fid",),
}
HIGHER = ("facts", "clip")  # the more, the better


def recommend(
    study: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What `nfe` or `trained` has written.")],
    by: Annotated[
        By,
        typer.Option(
            help="What is compared; facts and frechet are in studies of the embedded model, clip and fid in those of "
            "models of one's own that measured them."
        ),
    ] = "error",
    top: Annotated[int, typer.Option(min=1, help="Samplers for each budget.")] = 3,
    noise: Annotated[
        bool, typer.Option("--noise", help="The samplers that draw noise, in the place of the others.")
    ] = False,
) -> None:
    """The best samplers for each number of evaluations, each with the spacing that suits it best there.

    The spread is that of the middle half of the pictures; of facts and CLIP scores, the standard error; of noise, what
    two samples of the data are apart. Where spreads overlap, take the sampler that you like.
    """
    console().print(table_of(best(load_rows(study), by, top, noise)))


def load_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of what a benchmark has written. Raises InputError for any other file."""
    try:
        rows = json.loads(file.read_text())["rows"]
    except (ValueError, KeyError, TypeError):
        rows = None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{file} is not what a benchmark writes with --json")
    return rows


def best(rows: Sequence[dict[str, Any]], by: By, top: int, noise: bool) -> list[dict[str, Any]]:
    """The `top` samplers of each scale of guidance and budget. Raises InputError where the study does not tell."""
    fields = FIELDS["noise" if noise and by == "error" else by]
    name = next((field for field in fields if any(field in row for row in rows)), "")
    told = [row for row in rows if name in row and row.get("stochastic") == noise and row.get("budget")]
    if not told:
        raise InputError(f"this study says nothing of {by} for samplers that {'draw' if noise else 'draw no'} noise")
    told.sort(key=lambda row: (row.get("guidance", 0), row["budget"]))
    found = []
    for (guidance, budget), group in groupby(told, key=lambda row: (row.get("guidance"), row["budget"])):
        scale = {} if guidance is None else {"guidance": guidance}
        for row in distinct(sorted(group, key=lambda row: -row[name] if by in HIGHER else row[name]), name)[:top]:
            about = {"NFE": budget, "sampler": row["sampler"], "spacing": row["spacing"], "steps": row["steps"]}
            found.append(scale | about | {by: row[name], "spread": spread_of(row, by)})
    return found


def distinct(ranked: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Each sampler once, and of those that are one method under two names the first."""
    kept: list[dict[str, Any]] = []
    for row in ranked:
        same = [other for other in kept if row["sampler"] == other["sampler"] or is_same(row, other, name)]
        kept += [row] * (not same)
    return kept


def is_same(row: dict[str, Any], other: dict[str, Any], name: str) -> bool:
    """Whether two samplers did the same, up to rounding, on the same levels."""
    if name not in ("error", "rmse", "wasserstein") or row["spacing"] != other["spacing"]:
        return False
    pairs = zip((row[name], *row.get("quartiles", ())), (other[name], *other.get("quartiles", ())))
    return all(abs(ours - theirs) <= 1e-4 * theirs for ours, theirs in pairs)


def spread_of(row: dict[str, Any], by: By) -> str:
    """How sure a number is, in words."""
    if by == "facts":
        return f"± {(row['all'] * (1 - row['all']) / row['pictures']) ** 0.5:.2f}"
    if by == "clip":
        return f"± {row['clip error']:.2g}"
    if by == "error" and "wasserstein" in row:
        return f"floor {row['floor']:.3g}"
    if by == "error" and "quartiles" in row:
        return f"{row['quartiles'][0]:.2g} to {row['quartiles'][2]:.2g}"
    return ""
