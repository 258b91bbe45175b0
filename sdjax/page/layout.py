"""The page: what is said on the left, what is drawn on the right."""

import gradio as gr

from sdjax.page.controls import NAMES, control, settings_for
from sdjax.page.editor import editor_of
from sdjax.page.events import connect
from sdjax.page.parts import COMPARE, FILE, PICTURE, TEXT, Asked, Page, Seen, Tabs
from sdjax.page.stage import EMPTY
from sdjax.pipeline.facts import Facts
from sdjax.server.gateway import Gateway
from sdjax.settings import SETTINGS
from sdjax.settings.picture import HIRES, IMAGES, PROMPT

EMBEDDED = "shapes"  # the model that the examples are for
EXAMPLES = (
    "a big red heart at the top left on a yellow background",
    "a green star on a blue background",
    "a purple ring on a yellow background",
    "a blue star right of a yellow square on a white background",
    "a cyan diamond at the top on a pink background",
)
FIRST = ("num_inference_steps", "guidance_scale", "sampler", "seed", "width", "height")  # shown at once
STEPS = ["5", "10", "20", "40"]
COMPARED = ["euler", "dpmpp_2m", "unipc"]


def page_of(gateway: Gateway, facts: Facts) -> gr.Blocks:
    """The page of a server. facts: of the model that is asked where nobody says."""
    page = Page(gateway, facts)
    with gr.Blocks(title="sdjax", analytics_enabled=False, delete_cache=(600, 3600), fill_width=True) as blocks:
        gr.Markdown("# sdjax", elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=380):
                asked = _asking(page)
            with gr.Column(scale=6, min_width=380):
                seen = _seeing()
        connect(page, blocks, asked, seen)
    return blocks


def _put(page: Page, *names: str, helped: bool = True) -> None:
    for name in names:
        page.controls[name] = control(SETTINGS[name], page.facts, helped)


def _asking(page: Page) -> Asked:
    panels: dict[str, list[str]] = {HIRES: []}  # which comes first
    for setting in settings_for(page.facts):
        panels.setdefault(setting.panel, []).append(setting.name)
    _put(page, "prompt", "negative_prompt", helped=False)
    tabs = _tabs(page, panels.pop(IMAGES))
    with gr.Row():
        paint = gr.Button("Paint", variant="primary", elem_id="paint", scale=3)
        stop = gr.Button("Interrupt", variant="stop", elem_id="stop", interactive=False, scale=1)
    with gr.Row():
        _put(page, *FIRST[:3], helped=False)
    with gr.Row():
        _put(page, *FIRST[3:], helped=False)
        count = gr.Number(1, label="Pictures", minimum=1, maximum=page.limits.pictures, precision=0, min_width=110)
    names = page.gateway.engine.models.names
    model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
    for panel, settings in panels.items():
        if left := [name for name in settings if name not in page.controls]:
            with gr.Accordion(f"More of {panel.lower()}" if panel == PROMPT else panel, open=False):
                _put(page, *left)
    return Asked(**vars(tabs), model=model, count=count, paint=paint, stop=stop)


def _tabs(page: Page, of_images: list[str]) -> Tabs:
    mode, examples = gr.State(TEXT), None
    with gr.Tabs(selected=TEXT) as tabs:
        with gr.Tab("Text", id=TEXT) as text:
            if EMBEDDED in page.gateway.engine.models.names:
                hidden = [gr.Textbox(visible=False)]
                examples = gr.Dataset(components=hidden, samples=[[each] for each in EXAMPLES], label="Examples")
        with gr.Tab("Picture", id=PICTURE) as picture:
            gr.Markdown("Draw where to paint anew; without a drawing all of the picture is painted over.")
            editor = editor_of(page.limits.upload, page.facts.native)
            _put(page, *of_images)
        with gr.Tab("Compare", id=COMPARE) as compare:
            names = list(NAMES["sampler"])
            samplers = gr.Dropdown(names, value=COMPARED, multiselect=True, label="Samplers", elem_id="samplers")
            steps = gr.Dropdown(STEPS, value=STEPS[:3], multiselect=True, allow_custom_value=True, label="Steps")
        with gr.Tab("File", id=FILE) as of_file:
            gr.Markdown("A line for each picture: prompts (.txt), or settings by name (.csv, .jsonl).")
            file = gr.File(file_types=[".txt", ".csv", ".jsonl"], label="Rows", elem_id="rows")
    for name, tab in ((TEXT, text), (PICTURE, picture), (COMPARE, compare), (FILE, of_file)):
        tab.select(lambda name=name: name, outputs=mode, api_visibility="private", queue=False)
    return Tabs(mode, tabs, editor, samplers, steps, file, examples)


def _seeing() -> Seen:
    canvas = gr.HTML(EMPTY, elem_id="stage")
    gallery = gr.Gallery(
        label="Your pictures", columns=6, fit_columns=False, height="auto", object_fit="contain", allow_preview=False,
        elem_id="gallery", buttons=[], visible=False,
    )  # fmt: skip
    with gr.Group(visible=False) as details:
        text = gr.Textbox(label="How it was made", lines=4, buttons=["copy"], elem_id="how")
        with gr.Row():
            again = gr.Button("Paint again", elem_id="again")
            edit = gr.Button("Start from it", elem_id="edit")
    kept = gr.BrowserState([], storage_key="sdjax-pictures", secret="sdjax")  # the same after the next start
    return Seen(canvas, gallery, kept, gr.State([]), gr.State(None), details, text, again, edit)
