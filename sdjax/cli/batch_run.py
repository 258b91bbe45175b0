"""From the rows of a file to a run: judged, put into groups, and with all that its bits depend on."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from sdjax.cli.painting import Loading
from sdjax.cli.progress import Report
from sdjax.errors import InputError
from sdjax.settings.picture import UPSCALERS

if TYPE_CHECKING:
    from sdjax.batch.groups import Placed
    from sdjax.batch.output import Output
    from sdjax.batch.rows import Item, Problem
    from sdjax.batch.runner import Run
    from sdjax.pipeline import Pipeline

log = logging.getLogger("sdjax")


def judge(rows: Path, items: "list[Item]", problems: "list[Problem]", skip_bad: bool) -> None:
    """Raises InputError where there are bad rows that are not to be left out, or no others."""
    from sdjax.batch.rows import complain

    if problems and not (skip_bad and items):
        raise InputError(f"{rows}: {complain(problems)} (--skip-bad goes on without)")
    if not items:
        raise InputError(f"{rows}: there are no rows")


def place_all(pipe: "Pipeline", items: "list[Item]", problems: "list[Problem]", report: Report) -> "list[Placed]":
    """The pictures in their groups; what the model cannot draw is added to the problems."""
    from sdjax.batch.groups import Placed, place

    placed: list[Placed] = []
    for k, item in enumerate(items, start=1):
        if isinstance(each := place(item, pipe.facts), Placed):
            placed.append(each)
        else:
            problems.append(each)
        if k % 100 == 0 or k == len(items):
            report("check rows", k, len(items))
    return placed


def run_of(
    pipe: "Pipeline",
    loading: Loading,
    form: "Output",
    placed: "list[Placed]",
    problems: "list[Problem]",
    fingerprint: str,
    batch_size: int,
    versions: dict[str, str],
) -> "Run":
    """The run, with all that its bits depend on, such as the fingerprint of its rows; says which are left out."""
    from sdjax.batch.rows import complain
    from sdjax.batch.runner import Run
    from sdjax.files.identity import model_hash

    files = [(Path(path), scale) for path, scale in loading.loras] + [(path, 1.0) for path in loading.embeddings]
    named = {mention.name for each in placed for mention in each.key.loras}
    files += [(pipe.facts.loras.find(name), 1.0) for name in sorted(named) if pipe.facts.loras]
    enlarging = {each.item.settings.get("hires_upscaler", UPSCALERS[0]) for each in placed if each.key.second_pass}
    files += [
        (pipe.facts.upscalers.find(name), 1.0) for name in sorted(enlarging - {*UPSCALERS}) if pipe.facts.upscalers
    ]
    identity = {
        "rows": fingerprint,
        "pictures": len(placed),
        "model": loading.model,
        "model_hash": model_hash(pipe.model, files),
        "dtype": str(pipe.precision),
        "weights": pipe.precision.weights,
        "batch_size": batch_size,
        "container": form.container,
        "format": form.kind,
        "quality": form.quality,
        "shard_size": form.shard_size,
        **versions,
        **({"safety_checker": pipe.checker is not None} if pipe.model.names_checker else {}),
    }
    left_out = {problem.row: problem.reason for problem in problems}
    if problems:
        log.warning("%d rows are left out: %s", len(problems), complain(problems))
    of_model = {**loading.settings(), "version": versions["sdjax"]}
    return Run(placed, left_out, form, identity, of_model)
