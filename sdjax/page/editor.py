"""The editor of pictures and masks, within the server's bounds."""

from pathlib import Path
from typing import Any

import gradio as gr

from sdjax.errors import SdjaxError
from sdjax.server.uploads import opened


def editor_of(pixels: int, native: int) -> gr.ImageEditor:
    """Gradio's, which opens files only once they have been looked at.

    pixels: of a picture, at most. native: the side that the model was trained at, in pixels, or 0.
    """
    width = max(4, (native or 512) // 10)
    editor = gr.ImageEditor(
        type="pil", label="Picture and mask", elem_id="editor", height=420, canvas_size=(512, 512), format="png",
        brush=gr.Brush(default_size=width, colors=["#f0509a"], color_mode="fixed"),
        eraser=gr.Eraser(default_size=width), layers=False, transforms=(), sources=("upload", "clipboard"), buttons=[],
    )  # fmt: skip
    read = editor.preprocess

    def preprocess(payload: Any) -> Any:
        parts = [payload.background, payload.composite, *payload.layers] if payload else []
        try:
            for part in parts:
                if part is not None:
                    opened("the picture", Path(part.path).read_bytes(), pixels)
        except SdjaxError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return read(payload)

    editor.preprocess = preprocess
    return editor
