"""One setting: its type, its range and its words."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from sdjax import limits
from sdjax.errors import InputError, brief

Kind = Literal["text", "choice", "flag", "whole", "number", "numbers", "interval", "pair", "levels", "image", "hints"]


@dataclass(frozen=True)
class Setting:
    """What a field of `Picture` says beside its type and its default, which are filled in from the field.

    help: for people. panel: the group of options in `--help`.
    low, high: bounds, inclusive. above: a lower bound, exclusive. choices: the only values.
    unset: how the model chooses where the value is None.
    short: the name in PNGs, as a column and as an option, where it is not the field's.
    flag: the option's name where it is another one; "" where commands have an argument instead of an option.
    infotext: the name in A1111's text.
    needs: the setting (or UPSCALE) without which this one has no effect.
    alike: whether all pictures of a batch must have the same value.
    """

    help: str
    panel: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    unset: str = ""
    short: str = ""
    flag: str | None = None
    infotext: str = ""
    needs: str = ""
    alike: bool = False
    name: str = ""
    kind: Kind = "text"
    default: Any = None

    @property
    def label(self) -> str:
        """Its name in PNGs, and as a column."""
        return self.short or self.name

    @property
    def option(self) -> str:
        """Its option on the command line; "" where there is none."""
        return f"--{self.label.replace('_', '-')}" if self.flag is None else self.flag

    @property
    def allowed(self) -> str:
        """The values that it takes, for people: "a whole number from 1"."""
        noun = f"one of {', '.join(self.choices)}" if self.choices else KINDS[self.kind].noun
        high = "to" if self.above is None else "and at most"
        bounds = (("above", self.above), ("from", self.low), (high, self.high))
        return " ".join([noun, *(f"{word} {bound}" for word, bound in bounds if bound is not None)])

    def is_set(self, value: Any) -> bool:
        """Whether a value is another than the default."""
        return value is not None and (self.kind == "image" or value != self.default)

    def check(self, value: Any) -> None:
        """Raises InputError, which names the setting, the value and what is allowed."""
        if value is None and self.default is None:
            return
        if not (KINDS[self.kind].fits(value) and self._is_within_bounds(value)):
            raise InputError(f"{self.name} must be {self.allowed}, not {brief(value)}")
        if self.kind == "text" and len(value) > limits.TEXT:
            raise InputError(f"{self.name} has {len(value):,} characters: {limits.TEXT:,} are the most")
        if self.kind == "text" and any("\ud800" <= letter <= "\udfff" for letter in value):
            # Python holds bytes that are not UTF-8 as surrogates.
            raise InputError(f"{self.name} {brief(value)} is not valid Unicode: is the terminal set to UTF-8?")
        if isinstance(value, tuple | list) and len(value) > limits.STEPS:
            raise InputError(f"{self.name} has {len(value):,} values: {limits.STEPS:,} are the most")

    def _is_within_bounds(self, value: Any) -> bool:
        return (
            (not self.choices or value in self.choices)
            and (self.low is None or all(each >= self.low for each in self._parts(value)))
            and (self.above is None or value > self.above)
            and (self.high is None or all(each <= self.high for each in self._parts(value)))
        )

    def _parts(self, value: Any) -> Any:
        return value if self.kind in ("levels", "pair") else [value]

    def schema(self) -> dict[str, Any]:
        """Its JSON Schema."""
        bounds = {"minimum": self.low, "exclusiveMinimum": self.above, "maximum": self.high}
        more: dict[str, Any] = {name: bound for name, bound in bounds.items() if bound is not None}
        if self.choices:
            more["enum"] = list(self.choices)
        if self.default is not None:
            more["default"] = list(self.default) if isinstance(self.default, tuple) else self.default
        return {**KINDS[self.kind].schema, **more, "description": self.help}


KIND_OF: dict[Any, Kind] = {
    str: "text",
    bool: "flag",
    int: "whole",
    float: "number",
    float | tuple[float, ...]: "numbers",
    tuple[float, float]: "interval",
    tuple[int, int]: "pair",
    tuple[float, ...]: "levels",
    tuple[Any, ...]: "hints",
    Any: "image",
}


def kind_of(annotation: Any, choices: tuple[str, ...]) -> Kind:
    """The kind of a field from its type, with or without `| None`."""
    return "choice" if choices else next(KIND_OF[kind] for kind in KIND_OF if annotation in (kind, kind | None))


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of Python or of numpy, and no truth value."""
    return type(value) is not bool and isinstance(value, Integral)


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number that float32 holds, of Python or of numpy, and no truth value."""
    if type(value) is bool or not isinstance(value, Real):
        return False
    size: Any = abs(value)
    return bool(size <= limits.NUMBER)


def _are_finite(value: Any) -> bool:
    return all(map(is_finite, value)) if isinstance(value, tuple | list) and value else is_finite(value)


def _is_interval(value: Any) -> bool:
    is_pair = isinstance(value, tuple | list) and len(value) == 2 and all(map(is_finite, value))
    return is_pair and 0 <= value[0] < value[1] <= 1


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(is_whole, value))


@dataclass(frozen=True)
class _Kind:
    """The values of a kind: a noun for them, whether a value is one, and their JSON Schema."""

    noun: str
    fits: Callable[[Any], bool]
    schema: dict[str, Any]


NUMBER, TEXT = {"type": "number"}, {"type": "string"}
KINDS: dict[Kind, _Kind] = {
    "text": _Kind("a text", lambda value: isinstance(value, str), TEXT),
    "choice": _Kind("one of some texts", lambda value: isinstance(value, str), TEXT),
    "flag": _Kind("true or false", lambda value: isinstance(value, bool), {"type": "boolean"}),
    "whole": _Kind("a whole number", is_whole, {"type": "integer"}),
    "number": _Kind("a finite number", is_finite, NUMBER),
    "numbers": _Kind(
        "a finite number, or a list of one for each step",
        _are_finite,
        {"oneOf": [NUMBER, {"type": "array", "items": NUMBER, "minItems": 1}]},
    ),
    "levels": _Kind(
        "falling finite numbers",
        lambda value: isinstance(value, tuple | list) and _are_finite(value),
        {"type": "array", "items": NUMBER, "minItems": 1},
    ),
    "interval": _Kind(
        "a start and an end, 0 <= start < end <= 1",
        _is_interval,
        {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2},
    ),
    "pair": _Kind(
        "two whole numbers",
        _is_pair,
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
    ),
    # Hints are made, and refused, by `sdjax.pipeline.conditions`.
    "hints": _Kind("a list of hints", lambda value: isinstance(value, tuple), {"type": "array"}),
    # Images are read, and refused, by `sdjax.pipeline.images`. In JSON they are base64, as in A1111's API.
    "image": _Kind("a picture", lambda value: True, TEXT | {"contentEncoding": "base64"}),
}
