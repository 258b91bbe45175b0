"""What is seen of a job: its pictures as they come, and what becomes of them, as HTML."""

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.server.refusals import Stopped
from sdjax.server.work import Job, Unit

SMALL = 256  # pixels: what is smaller is enlarged without a blur
EMPTY = '<div class="stage hint">Say what to paint, or click on an example.</div>'


def stage(job: Job, ahead: int, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> str:
    """All pictures of a job and how far they are, in a table where rows and columns have names.

    ahead: pictures that are drawn before.
    """
    figures = [_figure(unit) for unit in job.units]
    if not rows:
        shape = "one" if len(figures) == 1 else "many"
        return f'<div class="stage {shape}">{"".join(figures)}</div>{_progress(job, ahead)}'
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr><th>{escape(row)}</th>"
        + "".join(f"<td>{figure}</td>" for figure in figures[k * len(columns) : (k + 1) * len(columns)])
        + "</tr>"
        for k, row in enumerate(rows)
    )
    return f'<div class="stage sheet"><table><tr><th></th>{head}</tr>{body}</table></div>{_progress(job, ahead)}'


def _figure(unit: Unit) -> str:
    if not unit.future.done():
        if unit.preview is None:
            return "<figure class='blank'></figure>"
        return f'<figure class="{_kind(unit.preview.width)} coming"><img alt="" src="{_inline(unit.preview)}"></figure>'
    if error := unit.future.exception():
        message = str(error) if isinstance(error, SdjaxError) else "this was a fault of the server"
        return f'<figure class="blank"><figcaption>{escape(message)}</figcaption></figure>'
    settings = unit.future.result().settings
    address, alt = f"results/{unit.job.id}/{unit.index}", escape(str(settings.get("prompt", "")), quote=True)
    image = f'<img alt="{alt}" src="{address}">'
    return f'<figure class="{_kind(settings["width"])}"><a href="{address}" target="_blank">{image}</a></figure>'


def _kind(width: int) -> str:
    return "pixels" if width < SMALL else ""


def _inline(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _progress(job: Job, ahead: int) -> str:
    units = job.units
    if job.is_done:
        errors = [error for unit in units if (error := unit.future.exception())]
        stopped = any(isinstance(error, Stopped) for error in errors) or any(unit.stop for unit in units)
        seeds = list(dict.fromkeys(str(unit.picture.seed) for unit in units))
        said = "interrupted" if stopped else f"seed {', '.join(seeds[:4])}" + (", …" if len(seeds) > 4 else "")
        return f'<div class="progress"><span>{said}</span></div>'
    total = sum(unit.nfe for unit in units)
    share = sum(unit.nfe if unit.future.done() else unit.done for unit in units) / total
    done = sum(unit.future.done() for unit in units)
    if any(unit.begun for unit in units) and not share:
        said = "getting ready: the first picture of a size takes longest"
    elif share:
        said = f"{share:.0%}" + (f", {done} of {len(units)} pictures" if len(units) > 1 else "")
    else:
        said = f"waiting, {ahead} pictures are before" if ahead else "about to begin"
    return f'<div class="progress"><div style="width:{share:.1%}"></div><span>{said}</span></div>'
