"""What happens on the page: painting, interrupting, and the gallery."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr
from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.files.infotext import write_infotext
from sdjax.page import drawing
from sdjax.page.controls import said, shown_of
from sdjax.page.parts import COMPARE, PICTURE, TEXT, Asked, Page, Seen
from sdjax.page.stage import stage
from sdjax.server.gateway import client_of
from sdjax.server.work import Result
from sdjax.settings import SETTINGS

KEPT = 200  # jobs that a browser remembers
SILENT: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# On a telephone the picture is far below the button.
LOOK = "() => innerWidth < 800 && document.getElementById('stage').scrollIntoView({behavior: 'smooth'})"


def connect(page: Page, blocks: gr.Blocks, asked: Asked, seen: Seen) -> None:
    """Lets the parts of the page do what they are there for."""
    given = [asked.mode, asked.model, asked.count, asked.editor, asked.samplers, asked.steps, asked.file, seen.kept]
    runs: dict[str, Any] = {
        "fn": _painter(page),
        "inputs": [*given, *page.controls.values()],
        "outputs": [seen.stage, seen.kept, asked.paint, asked.stop],
        "concurrency_limit": None,
        **SILENT,
    }
    shows: dict[str, Any] = {
        "fn": _lister(page),
        "inputs": [seen.kept],
        "outputs": [seen.gallery, seen.listed],
        **SILENT,
    }
    prompt = page.controls["prompt"]
    asked.paint.click(**runs).then(**shows)
    asked.paint.click(None, js=LOOK, **SILENT)
    if asked.examples:
        asked.examples.click(None, js=LOOK, **SILENT)
        chosen = asked.examples.click(lambda each: (each[0], TEXT), [asked.examples], [prompt, asked.mode], **SILENT)
        chosen.then(**runs).then(**shows)
    asked.stop.click(_stopper(page), queue=False, **SILENT)
    blocks.load(**shows)
    _connect_gallery(page, asked, seen)


def _painter(page: Page) -> Callable[..., AsyncIterator[tuple[Any, ...]]]:
    names = list(page.controls)

    async def paint(
        request: gr.Request, mode: str, model: str, count: float, edited: Any, samplers: Any, steps: Any, file: Any,
        kept: list[Any], *values: Any,
    ) -> AsyncIterator[tuple[Any, ...]]:  # fmt: skip
        session, compared_by = str(request.session_hash), (samplers, steps)
        try:
            settings = said(dict(zip(names, values)))
            pictures = await drawing.wanted(
                page.gateway, model, mode, settings, int(count or 1), edited, compared_by, file
            )
            job = await drawing.started(page.gateway, client_of(request.request), model, pictures)
        except SdjaxError as error:
            raise gr.Error(str(error), title="That cannot be drawn", print_exception=False) from None
        rows, columns = (samplers, [f"{step} steps" for step in steps]) if mode == COMPARE else ((), ())
        page.running[session] = job
        kept = [[job.id, len(pictures)], *(kept or [])][:KEPT]
        off, on = gr.update(interactive=False), gr.update(interactive=True)
        try:
            shown = None
            async for _ in drawing.glances(job):
                seen = stage(job, drawing.ahead_of(page.gateway, job), rows, columns)
                if seen != shown:  # for what is said anew makes the browser send the editor's picture again
                    yield seen, kept, off, on
                shown = seen
            yield stage(job, 0, rows, columns), kept, on, off
        finally:
            if page.running.get(session) is job:
                del page.running[session]

    return paint


def _stopper(page: Page) -> Callable[[gr.Request], None]:
    def stop(request: gr.Request) -> None:
        if job := page.running.get(str(request.session_hash)):
            job.stop(keep=True)

    return stop


def _lister(page: Page) -> Callable[..., tuple[Any, ...]]:
    journal = page.gateway.engine.journal

    def listed(request: gr.Request, kept: list[Any]) -> tuple[Any, ...]:
        base, found = str(request.request.base_url), []
        for job, _ in (kept or [])[:KEPT]:
            results = (journal.find(str(job)) or {"results": {}})["results"]
            found += [[job, number] for number, settings in sorted(results.items()) if isinstance(settings, dict)]
        addresses = [(f"{base}results/{job}/{number}", None) for job, number in found]
        return gr.update(value=addresses, visible=bool(found)), found

    return listed


def _connect_gallery(page: Page, asked: Asked, seen: Seen) -> None:
    journal, settings = page.gateway.engine.journal, [SETTINGS[name] for name in page.controls]

    def select(listed: list[list[Any]], event: gr.SelectData) -> tuple[Any, ...]:
        job, number = listed[event.index]
        found = journal.result(job, number)
        if not isinstance(found, Result):
            raise gr.Error("this picture is no longer kept", print_exception=False)
        return [job, number], write_infotext(found.settings), gr.update(visible=True)

    def again(chosen: list[Any]) -> list[Any]:
        picture, job = journal.picture(*chosen), journal.find(chosen[0])
        if picture is None or job is None:
            raise gr.Error("how this picture was asked for is no longer kept", print_exception=False)
        mode = PICTURE if picture.image is not None else TEXT
        editor = edited(picture.image, picture.mask_image) if mode == PICTURE else gr.skip()
        return [editor, mode, gr.Tabs(selected=mode), job["model"], 1, *shown_of(picture, settings)]

    def edit(chosen: list[Any]) -> list[Any]:
        return [edited(drawing.picture_of(journal, *chosen)), PICTURE, gr.Tabs(selected=PICTURE)]

    seen.gallery.select(select, [seen.listed], [seen.chosen, seen.text, seen.details], **SILENT)
    places = [asked.editor, asked.mode, asked.tabs]
    seen.again.click(again, [seen.chosen], [*places, asked.model, asked.count, *page.controls.values()], **SILENT)
    seen.edit.click(edit, [seen.chosen], places, **SILENT)


def edited(image: Image.Image, mask: Image.Image | None = None) -> dict[str, Any]:
    """An image, and its mask as a drawing, as an editor has them, enlarged by a whole number where they are small."""
    times = max(1, drawing.SIDE // max(image.size))
    size = (image.width * times, image.height * times)
    background = image.resize(size, Image.Resampling.NEAREST).convert("RGBA")
    if mask is None:
        return {"background": background, "layers": [], "composite": background}
    layer = Image.new("RGBA", size, "white")
    layer.putalpha(mask.convert("L").resize(size, Image.Resampling.NEAREST))
    return {"background": background, "layers": [layer], "composite": Image.alpha_composite(background, layer)}
