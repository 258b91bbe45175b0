"""The table of annotators: A1111's names, what each does and its settings, with their bounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from sdjax.errors import InputError, did_you_mean
from sdjax.limits import ANNOTATED

if TYPE_CHECKING:  # numpy and Pillow are imported when a picture is there: `--help` shows the settings without
    import numpy as np


@dataclass(frozen=True)
class Option:
    """A setting of an annotator: a number with bounds, a flag, or a file (whose default is None)."""

    name: str
    default: float | bool | None
    help: str
    low: float = 0
    high: float = 0

    @property
    def kind(self) -> type:
        """The type of its values."""
        return str if self.default is None else type(self.default)

    def checked(self, value: Any) -> Any:
        """The value as the function takes it. Raises InputError, which says what is allowed."""
        if self.kind in (str, bool):
            if value is not None and not isinstance(value, self.kind):
                raise InputError(
                    f"{self.name} must be {'a file' if self.kind is str else 'true or false'}, not {value!r}"
                )
            return value
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and self.low <= value <= self.high and (self.kind is float or value == int(value))):
            noun = "a number" if self.kind is float else "a whole number"
            raise InputError(f"{self.name} must be {noun} from {self.low:g} to {self.high:g}, not {value!r}")
        return self.kind(value)


@dataclass(frozen=True)
class Annotator:
    """One of the table: what it reads (a picture, or a map of nearness [height, width]), and the extra it needs.

    function: its module in this package, and its name there.
    """

    name: str
    function: str
    help: str
    options: tuple[Option, ...] = ()
    reads: Literal["picture", "depth"] = "picture"
    extra: str = ""

    def checked(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """All settings, those that are given checked. Raises InputError."""
        known = {option.name: option for option in self.options}
        for name in settings:
            if name not in known:
                has = f"it has {', '.join(known)}" if known else "it has none"
                raise InputError(f"{self.name} has no setting {name}: {has}{did_you_mean(name, known)}")
        return {name: option.checked(settings.get(name, option.default)) for name, option in known.items()}


RESOLUTION = Option("resolution", 512, "Shorter side at which to look at the picture.", 8, 4096)
_BRIGHT = Option("threshold", 127.0, "Level where a stroke, or white, begins.", 0, 255)
_GAMMA = Option("gamma", 1.0, "Power of the brightness: below 1 is brighter.", 0.1, 10)
_DARK = Option("threshold", 32.0, _BRIGHT.help, 1, 64)
_SIGMA = "Deviation of the Gaussian, in pixels."
_ROWS = (
    Annotator("canny", "lines.canny", "Thin edges, with OpenCV's bits.", (
        Option("low", 100.0, "Weaker edges are dropped.", 0, 2048),
        Option("high", 200.0, "Stronger edges are kept, and what goes on from them.", 0, 2048)), extra="conditions"),
    Annotator("lineart_standard", "lines.lineart_standard", "Lines that are darker than around them; a filter.", (
        Option("sigma", 6.0, _SIGMA, 0.5, 64),
        Option("intensity_threshold", 8.0, "Fainter lines do not count for brightness.", 0, 255))),
    Annotator("softedge_gradient", "lines.softedge_gradient", "Soft edges by gradients; a filter, no HED."),
    Annotator("scribble_xdog", "lines.scribble_xdog", "Rough strokes from a photo; a filter.", (_DARK,)),
    Annotator("scribble", "lines.scribble", "Dark strokes on paper as white on black.", (_BRIGHT,)),
    Annotator("threshold", "tones.threshold", "White where bright, black elsewhere.", (_BRIGHT,)),
    Annotator("invert", "tones.invert", "Black for white."),
    Annotator("blur_gaussian", "tones.blur_gaussian", "A blur.", (Option("sigma", 9.0, _SIGMA, 0.1, 100),)),
    Annotator("tile_resample", "tones.tile_resample", "The picture with less detail.", (
        Option("down_sampling_rate", 1.0, "How many times smaller in between; below 1.1 as it is.", 1, 64),)),
    Annotator("t2ia_color_grid", "tones.t2ia_color_grid", "A palette of colours by place, diffusers' recipe.", (
        Option("cells", 8, "Cells along the shorter side.", 1, 256),)),
    Annotator("intensity", "tones.intensity", "Grey levels."),
    Annotator("recolor_luminance", "tones.recolor_luminance", "Lightness (CIELAB).", (_GAMMA,)),
    Annotator("recolor_intensity", "tones.recolor_intensity", "The brightest of red, green and blue.", (_GAMMA,)),
    Annotator("shuffle", "tones.shuffle", "Colours and textures without their places.", (
        Option("seed", 0, "Another seed, another shuffle.", 0, 2**32 - 1),)),
    Annotator("seg_ade20k", "segments.seg_ade20k", "A map of classes, or a coloured sketch, in ADE20K's colours."),
    Annotator("depth", "depth.depth", "A map of nearness from black to white.", reads="depth"),
    Annotator("normal_bae", "depth.normal_bae", "Normals of a map of nearness, for ControlNet 1.1.", (
        Option("strength", 1.0, "Depth of the whole range in shorter sides.", 0.01, 100),), reads="depth"),
    Annotator("normal_midas", "depth.normal_midas", "Normals of a map of nearness, for ControlNet 1.0.", (
        Option("background", 0.1, "What is farther counts as flat: a share of the range.", 0, 1),), reads="depth"),
    Annotator("depth_anything_v2", "networks.depth_anything_v2", "Depth by an ONNX file of yours.", (
        Option("model", None, "Depth Anything, or MiDaS 2.1."),), extra="conditions"),
    Annotator("dw_openpose_full", "pose.dw_openpose_full", "Skeletons of people by two ONNX files of yours.", (
        Option("detector", None, "YOLOX, which finds people."), Option("pose", None, "DWPose or RTMPose, 133 points."),
        Option("hands", True, "Draw hands."), Option("face", True, "Draw faces.")), extra="pose"),
)  # fmt: skip
ANNOTATORS: Mapping[str, Annotator] = {each.name: each for each in _ROWS}


def annotator(name: str) -> Annotator:
    """One of the table. Raises InputError for a name that is not there."""
    if name not in ANNOTATORS:
        raise InputError(f"there is no annotator {name!r}{did_you_mean(name, ANNOTATORS)}; `sdjax annotate --list`")
    return ANNOTATORS[name]


def annotate(name: str, picture: "np.ndarray", resolution: int | None = None, **settings: Any) -> "np.ndarray":
    """What an annotator makes of a picture: uint8 [height, width, 3], RGB, in and out, of the same size.

    name: of `ANNOTATORS`, those that read depth take [height, width] floats, larger where nearer. resolution: the
    picture is brought to this shorter side first, and comes back so (by averaging, or cubic where it grows); its own
    where None. settings: of the annotator. Raises InputError for what it cannot take or lacks, CheckpointError for
    files of networks that cannot be read.
    """
    chosen = annotator(name)
    values = chosen.checked(settings)
    if chosen.reads == "depth":
        fits, kind = picture.ndim == 2, "a map of nearness [height, width]"
    else:
        fits, kind = picture.dtype == "uint8" and picture.shape[2:] == (3,), "uint8 [height, width, 3]"
    if not fits:
        raise InputError(f"{name} reads {kind}, not {picture.dtype} of shape {picture.shape}")
    if 0 in picture.shape or picture.shape[0] * picture.shape[1] > ANNOTATED:
        raise InputError(
            f"{name} takes pictures of 1 to {ANNOTATED:,} pixels, not {picture.shape[0]} x {picture.shape[1]}"
        )
    if resolution is not None:
        picture = _at(RESOLUTION.checked(resolution), picture)
    module, function = chosen.function.split(".")
    return getattr(import_module(f"{__package__}.{module}"), function)(picture, **values)


def _at(resolution: int, picture: "np.ndarray") -> "np.ndarray":
    """A picture, or a map, with another shorter side."""
    import numpy as np
    from PIL import Image

    image = Image.fromarray(picture if picture.ndim == 3 else picture.astype(np.float32))
    scale = resolution / min(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    if width * height > ANNOTATED:
        raise InputError(f"at a resolution of {resolution} the picture has {width} x {height} pixels: too many")
    return np.asarray(image.resize((width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC))
