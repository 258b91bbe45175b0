"""The settings of the schema as controls of a page, and back."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import gradio as gr

from sdjax import a1111
from sdjax.pipeline.facts import Facts
from sdjax.schedulers import SOLVERS, SPACINGS
from sdjax.server.fields import settings_of
from sdjax.settings import EDIT, SETTINGS, UPSCALE, Picture, Setting
from sdjax.settings.picture import XL

WIDEST = 2**53  # whole numbers from here on lose their last digits in a browser
SLID = 16  # up to which numbers have a slider
TUPLES = ("numbers", "interval", "pair", "levels")
NAMES: Mapping[str, Iterable[str]] = {"sampler": ("tuned", *SOLVERS, *a1111.SAMPLERS), "spacing": SPACINGS}


def settings_for(facts: Facts) -> list[Setting]:
    """The settings that have an effect on pictures of a model and are no pictures themselves."""
    return [
        setting
        for setting in SETTINGS.values()
        if setting.kind not in ("image", "hints")
        and (setting.panel != XL or facts.time_ids)
        and (setting.needs not in (EDIT, UPSCALE) or setting.needs in facts.task.needs)
    ]


def control(setting: Setting, facts: Facts, helped: bool = True) -> gr.components.Component:
    """What a setting is said with; empty where the choice is left to the model. helped: whether it explains itself."""
    own = facts.defaults.get(setting.name)
    unset = f"{own:g}" if isinstance(own, int | float) else setting.unset if helped else "automatic"
    label = setting.label.replace("_", " ")
    shared: dict[str, Any] = {"label": label[0].upper() + label[1:], "elem_id": setting.name, "min_width": 110}
    shared["info"] = setting.help if helped else None
    if setting.name in NAMES:
        choices = [(unset, ""), *((name, name) for name in NAMES[setting.name])]
        return gr.Dropdown(choices, value="", allow_custom_value=True, **shared)
    if setting.kind == "choice":
        return gr.Dropdown(list(setting.choices), value=setting.default, **shared)
    if setting.kind == "flag":
        return gr.Checkbox(value=setting.default, **shared)
    low = setting.low if setting.above is None else setting.above
    if setting.kind == "number" and setting.default is not None and low is not None and (setting.high or 99) <= SLID:
        return gr.Slider(low, setting.high, value=setting.default, step=0.01, **shared)
    if setting.kind in ("whole", "number") and setting.default is not None and (setting.high or 0) < WIDEST:
        whole = {"precision": 0} if setting.kind == "whole" else {"step": 0.1}
        bounds = {"minimum": low, "maximum": setting.high}
        return gr.Number(value=setting.default, **bounds, **whole, **shared)
    if setting.name == "seed":
        return gr.Textbox(value="", placeholder="any", max_lines=1, **shared)
    lines = 3 if setting.name == "prompt" else 1
    hint = unset if setting.default is None and setting.kind != "text" else setting.help
    return gr.Textbox(
        value=shown(setting, setting.default), placeholder=hint, lines=lines, max_lines=max(2, lines), **shared
    )


def shown(setting: Setting, value: Any) -> Any:
    """A value as its control has it."""
    if value is None:
        return ""
    if setting.kind in TUPLES:
        return ", ".join(f"{each:.10g}" for each in (value if isinstance(value, tuple) else (value,)))
    is_text = setting.kind in ("whole", "number") and (setting.default is None or (setting.high or 0) >= WIDEST)
    return str(value) if is_text else value


def shown_of(picture: Picture, settings: Iterable[Setting]) -> list[Any]:
    """The values of the controls that say what a picture does."""
    return [shown(setting, getattr(picture, setting.name)) for setting in settings]


def said(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the controls say, as settings by name, without those that are empty. Raises InputError."""
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or value == "":
            continue
        if SETTINGS[name].kind in TUPLES and "," in str(value):
            value = f"[{value}]"
        fields[name] = value if isinstance(value, str) else json.dumps(value)
    return settings_of(fields, of_form=True)
