"""The settings of the schema as fields of a request: by name or label, as JSON has them or as texts of a form."""

import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sdjax.server.refusals import Refused
from sdjax.settings import SETTINGS, SHORT, Picture

SEEDS = 2**32  # a seed that nobody chose is below, as in A1111


def settings_of(fields: Mapping[str, Any], of_form: bool = False) -> dict[str, Any]:
    """The settings among the fields, checked one by one; null is left out. Those that name pictures are refused.

    of_form: whether values are texts, of which all but those of texts are read as JSON. Raises InputError.
    """
    found: dict[str, Any] = {}
    for given, value in fields.items():
        name = SHORT.get(given, given)
        setting = SETTINGS.get(name)
        if setting is None or value is None:
            continue
        if setting.kind in ("image", "hints"):  # which name files elsewhere
            raise Refused(f"{given} is not taken here: pictures are sent to /v1/images/edits, as files", param=given)
        if of_form and setting.kind not in ("text", "choice"):
            with suppress(ValueError, RecursionError):
                value = json.loads(value)
        setting.check(value)
        number = int if setting.kind == "pair" else float
        found[name] = tuple(map(number, value)) if isinstance(value, list) else value
    return found


def pictures_of(settings: Mapping[str, Any], count: int) -> list[Picture]:
    """Pictures that differ in the seed, which counts up; from any, where there is none. Raises InputError."""
    first = settings.get("seed", secrets.randbelow(SEEDS))
    if first + count > 2**64:
        raise Refused(f"the seeds of {count} pictures from {first} on are beyond 2**64 - 1", param="seed")
    return [Picture(**{**settings, "seed": first + k}) for k in range(count)]
