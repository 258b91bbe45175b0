"""People's poses: DWPose's and RTMPose's ONNX files through rtmlib, drawn as OpenPose draws them."""

import colorsys
import contextlib
import io

import numpy as np
from PIL import Image, ImageDraw

from sdjax.annotators.extras import needed
from sdjax.annotators.networks import given_size, opened
from sdjax.errors import InputError

# OpenPose's 18 points, nose 0, neck 1, then arms, legs, eyes and ears; which of them bones join; both in 18 hues.
BONES = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
HUES = [
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85)),
    *((0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255)),
    *((255, 0, 255), (255, 0, 170), (255, 0, 85)),
]
BODY, FACE, HANDS = slice(0, 18), slice(24, 92), (slice(92, 113), slice(113, 134))
POINTS = 134  # of a whole body
THRESHOLD = 0.3  # points of a lower score are not drawn
DETECTOR_SIZE, POSE_SIZE = (640, 640), (384, 288)  # height and width, where files leave them open


def dw_openpose_full(
    picture: np.ndarray, detector: str | None, pose: str | None, hands: bool, face: bool
) -> np.ndarray:
    """Skeletons of the people in a picture, on black.

    detector: YOLOX, which finds people. pose: RTMPose or DWPose for whole bodies, of 133 points. hands, face:
    whether they are drawn too. Raises InputError where files are missing or are no such networks.
    """
    sizes = []
    for path, what, size in (
        (detector, "a network that finds people", DETECTOR_SIZE),
        (pose, "a pose network", POSE_SIZE),
    ):
        sizes.append(given_size(opened(path, what)) or size)
    rtmlib = needed("rtmlib", "pose")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where it says which files it reads
            people = rtmlib.Wholebody(
                det=detector, det_input_size=sizes[0], pose=pose, pose_input_size=sizes[1][::-1], to_openpose=True
            )
            points, scores = people(np.ascontiguousarray(picture[..., ::-1]))  # OpenCV's order of colours
    except Exception as error:  # files of another interface raise nearly anything
        raise InputError(f"{detector} and {pose} are no networks for poses that rtmlib can run ({error})") from error
    if points.ndim != 3 or points.shape[1:] != (POINTS, 2):
        raise InputError(f"{pose} gives {points.shape[1:]} points: take a network for whole bodies (133 points)")
    return drawn(picture.shape[:2], points, scores, hands, face)


def drawn(size: tuple[int, ...], points: np.ndarray, scores: np.ndarray, hands: bool, face: bool) -> np.ndarray:
    """People as OpenPose draws them, [height, width, 3]; points [people, 134, 2], x and y, scores [people, 134]."""
    image = Image.new("RGB", (size[1], size[0]))
    draw = ImageDraw.Draw(image)
    for xy, score in zip(points, scores):
        seen = (score >= THRESHOLD) & np.isfinite(xy).all(-1)
        _draw_body(draw, xy[BODY], seen[BODY])
        for hand in HANDS if hands else ():
            _draw_hand(draw, xy[hand], seen[hand])
        for x, y in xy[FACE][seen[FACE]] if face else ():
            _dot(draw, x, y, 3, (255, 255, 255))
    return np.asarray(image)


def _draw_body(draw: ImageDraw.ImageDraw, xy: np.ndarray, seen: np.ndarray) -> None:
    turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    for (start, end), hue in zip(BONES, HUES):
        if not (seen[start] and seen[end]):
            continue
        middle, along = (xy[start] + xy[end]) / 2, (xy[end] - xy[start]) / 2
        across = 4 * np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-6)
        outline = middle + np.cos(turn)[:, None] * along + np.sin(turn)[:, None] * across
        draw.polygon([tuple(map(float, point)) for point in outline], fill=tuple(int(0.6 * level) for level in hue))
    for (x, y), hue in zip(xy[seen], (hue for hue, there in zip(HUES, seen) if there)):
        _dot(draw, x, y, 4, hue)


def _draw_hand(draw: ImageDraw.ImageDraw, xy: np.ndarray, seen: np.ndarray) -> None:
    """The wrist is point 0; each finger has four more, which bones of 20 hues join."""
    for bone in range(20):
        start, end = (0 if bone % 4 == 0 else bone), bone + 1
        if seen[start] and seen[end]:
            hue = tuple(round(255 * level) for level in colorsys.hsv_to_rgb(bone / 20, 1, 1))
            draw.line([*map(float, xy[start]), *map(float, xy[end])], fill=hue, width=2)
    for x, y in xy[seen]:
        _dot(draw, x, y, 4, (0, 0, 255))


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, radius: int, colour: tuple[int, ...]) -> None:
    draw.ellipse([float(x) - radius, float(y) - radius, float(x) + radius, float(y) + radius], fill=colour)
