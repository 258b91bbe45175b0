"""Annotators: the formulas that others run, what goes in and out, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from sdjax.annotators import ANNOTATORS, annotate
from sdjax.annotators.pose import drawn
from sdjax.annotators.segments import ADE20K
from sdjax.cli import main
from sdjax.errors import SdjaxError

cv2 = pytest.importorskip("cv2")
NETWORKS = {"depth_anything_v2", "dw_openpose_full"}
PLAIN = [name for name in ANNOTATORS if name not in NETWORKS]
PHOTO = np.asarray(  # smooth patches and noise, as photos have them
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)).resize((96, 72))
)


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_picture_gives_a_picture_of_its_size(name, data):
    shape = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    if ANNOTATORS[name].reads == "depth":
        picture = data.draw(arrays(np.float32, shape, elements=st.floats(-(2.0**60), 2.0**60, width=32)))
    else:
        picture = data.draw(arrays(np.uint8, (*shape, 3)))
    made = annotate(name, picture)
    assert made.shape == (*shape, 3) and made.dtype == np.uint8
    assert annotate(name, picture, resolution=24).shape[:2] == tuple(
        max(1, round(side * 24 / min(shape))) for side in shape
    )


def test_filters_are_those_of_opencv():
    """The formulas of A1111 and controlnet_aux, with OpenCV's own filters."""
    values = PHOTO.astype(np.float32)
    np.testing.assert_array_equal(annotate("canny", PHOTO)[..., 0], cv2.Canny(PHOTO, 100, 200))
    np.testing.assert_array_equal(annotate("canny", PHOTO, low=20, high=60)[..., 2], cv2.Canny(PHOTO, 20, 60))
    blurred = cv2.GaussianBlur(PHOTO, (0, 0), 3.0)
    assert np.abs(annotate("blur_gaussian", PHOTO, sigma=3.0).astype(int) - blurred).max() <= 1
    darker = np.min(cv2.GaussianBlur(values, (0, 0), 6.0) - values, axis=2).clip(0, 255)
    lines = (darker / max(16, np.median(darker[darker > 8])) * 127).clip(0, 255)
    assert np.abs(annotate("lineart_standard", PHOTO)[..., 0].astype(int) - lines.astype(np.uint8)).max() <= 1
    wide = np.min(cv2.GaussianBlur(values, (0, 0), 5.0) - cv2.GaussianBlur(values, (0, 0), 0.5), axis=2)
    strokes = 2 * (255 - (255 - wide).clip(0, 255).astype(np.uint8)) > 32
    assert (annotate("scribble_xdog", PHOTO)[..., 0] == 255 * strokes).mean() > 0.999
    light = cv2.cvtColor(PHOTO, cv2.COLOR_RGB2LAB)[..., 0]
    assert np.abs(annotate("recolor_luminance", PHOTO)[..., 0].astype(int) - light).max() <= 1
    reduced = cv2.resize(PHOTO, (48, 36), interpolation=cv2.INTER_AREA)
    back = np.asarray(Image.fromarray(reduced).resize((96, 72), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(annotate("tile_resample", PHOTO, down_sampling_rate=2) - back).max() <= 2


def test_normals_are_those_of_midas_and_of_scannet():
    """A ball: controlnet_aux's formula on MiDaS's scale; and red at the left, green at the top, blue in front."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    ball = np.sqrt(np.clip(0.8 - x**2 - y**2, 0, 1)).astype(np.float32)
    near = (ball - ball.min()) / np.ptp(ball)
    right, down = (cv2.Sobel(near * 1000, cv2.CV_32F, *order, ksize=3) for order in ((1, 0), (0, 1)))
    normal = np.stack(
        [np.where(near < 0.1, 0, right), np.where(near < 0.1, 0, down), np.full_like(right, 2 * np.pi)], 2
    )
    normal /= np.sum(normal**2, axis=2, keepdims=True) ** 0.5
    expected = (normal * 127.5 + 127.5).clip(0, 255).astype(np.uint8)
    assert np.abs(annotate("normal_midas", ball).astype(int) - expected).max() <= 1
    bae = annotate("normal_bae", 7 * ball + 3).astype(int)
    assert bae[32, 8, 0] > 200 > 60 > bae[32, 55, 0] and bae[8, 32, 1] > 200 > 60 > bae[55, 32, 1]
    assert (bae[0, 0] == [127, 127, 255]).all() and bae[32, 32, 2] > 250


def test_palettes():
    grid = annotate("t2ia_color_grid", PHOTO, cells=4)
    recipe = Image.fromarray(PHOTO).resize((5, 4)).resize((96, 72), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(grid, recipe)
    classes = np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 2, 3))
    coloured = annotate("seg_ade20k", classes)
    np.testing.assert_array_equal(coloured[:150, 0], ADE20K)
    assert not coloured[150:].any()
    sketch = ADE20K[[2, 4, 9, 12]].reshape(2, 2, 3).astype(int)  # sky, tree, grass, person, in nearly their colours
    np.testing.assert_array_equal(
        annotate("seg_ade20k", (sketch + np.array([1, 0, 1])).clip(0, 255).astype(np.uint8)), sketch
    )


def test_shuffle_keeps_colours_and_follows_its_seed():
    first, again, other = (annotate("shuffle", PHOTO, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5 and abs(first.mean() - PHOTO.mean()) < 40


def onnx_model(path: Path, inputs: list, nodes: list, outputs: dict, constants: dict) -> Path:
    onnx = pytest.importorskip("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(*node) for node in nodes],
        "tiny",
        [helper.make_tensor_value_info("picture", floats, inputs)],
        [helper.make_tensor_value_info(name, floats, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("sizes", [[1, 3, 28, 42], [1, 3, "height", "width"]])
def test_depth_by_a_network(tmp_path, sizes):
    """A network whose depth is the mean of the normalised colours: near where the picture is bright."""
    pytest.importorskip("onnxruntime")
    node = ("ReduceMean", ["picture"], ["nearness"])
    path = tmp_path / "depth.onnx"
    onnx_model(path, sizes, [node], {"nearness": [None, None, None, None]}, {})
    onnx = pytest.importorskip("onnx")
    model = onnx.load(path)
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("axes", [1]))
    onnx.save(model, path)
    ramp = np.tile(np.linspace(0, 255, 90, dtype=np.uint8)[None, :, None], (60, 1, 3))
    made = annotate("depth_anything_v2", ramp, model=str(path))
    assert made.shape == ramp.shape and np.abs(made.astype(int) - ramp).max() <= 6


def test_pose_through_rtmlib(tmp_path):
    """Networks that always find one person, of whom the nose is seen, both shoulders, an elbow and a face."""
    pytest.importorskip("rtmlib")
    box = [[[20.0, 20.0, 180.0, 180.0, 0.9]]]
    detector = onnx_model(
        tmp_path / "people.onnx",
        [1, 3, 200, 200],
        [("Identity", ["box"], ["boxes"])],
        {"boxes": [1, 1, 5]},
        {"box": box},
    )
    x, y = np.zeros((1, 133, 96), np.float32), np.zeros((1, 133, 128), np.float32)
    for point, column, row in ((0, 48, 20), (5, 70, 50), (6, 26, 50), (8, 20, 90), (30, 40, 24)):
        x[0, point, column] = y[0, point, row] = 1.0
    pose = onnx_model(
        tmp_path / "pose.onnx",
        [1, 3, 64, 48],
        [("Identity", ["cx"], ["x"]), ("Identity", ["cy"], ["y"])],
        {"x": list(x.shape), "y": list(y.shape)},
        {"cx": x, "cy": y},
    )
    made = annotate("dw_openpose_full", np.zeros((200, 200, 3), np.uint8), detector=str(detector), pose=str(pose))
    colours = {tuple(map(int, colour)) for colour in made.reshape(-1, 3)}
    assert {(255, 0, 0), (255, 85, 0), (255, 170, 0), (85, 255, 0), (255, 255, 0), (255, 255, 255)} <= colours
    assert (170, 0, 255) not in colours  # eyes were not seen
    nose = np.argwhere((made == [255, 0, 0]).all(-1)).mean(0)
    neck = np.argwhere((made == [255, 85, 0]).all(-1)).mean(0)
    assert nose[0] < neck[0] and abs(nose[1] - neck[1]) < 6
    plain = annotate(
        "dw_openpose_full", np.zeros((200, 200, 3), np.uint8), detector=str(detector), pose=str(pose), face=False
    )
    assert not (plain == 255).all(-1).any()


def test_hands_are_drawn_where_they_are_seen():
    points, scores = np.zeros((1, 134, 2)), np.zeros((1, 134))
    points[0, 92:97] = [(10, 40), (20, 30), (28, 24), (34, 20), (40, 12)]
    scores[0, 92:97] = 1
    made = drawn((50, 50), points, scores, hands=True, face=True)
    assert (made[12, 40] == [0, 0, 255]).all() and made.any(-1).sum() > 60
    assert not drawn((50, 50), points, scores, hands=False, face=True).any()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["cany", "photo.png"], "did you mean 'canny'"),
        (["canny", "photo.png", "--sigma", "3"], "canny has no setting sigma: it has low, high"),
        (["blur_gaussian", "photo.png", "--sigma", "1e9"], "sigma must be a number from 0.1 to 100"),
        (["blur_gaussian", "photo.png", "--sigma", "nan"], "sigma must be a number"),
        (["shuffle", "photo.png", "--seed", "-1"], "seed must be a whole number from 0"),
        (["invert", "photo.png", "--resolution", "100000"], "resolution must be a whole number from 8 to 4096"),
        (["invert", "wide.png", "--resolution", "4096"], "too many"),
        (["invert", "text.png"], "no picture"),
        (["invert", "missing.png"], "no file"),
        (["invert", "photo.png", "-o", "made.txt"], "a name that ends in .png"),
        (["invert", "photo.png", "-o", "photo.png/made.png"], "is a file, not a folder"),
        (["depth_anything_v2", "photo.png"], "say which ONNX file"),
        (["depth_anything_v2", "photo.png", "--model", "text.png"], "cannot be read as ONNX"),
        (["invert"], "say which annotator"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, words, reason):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PHOTO).save("photo.png")
    Image.new("RGB", (2000, 1)).save("wide.png")
    Path("text.png").write_text("no picture, nor a network")
    before = sorted(tmp_path.iterdir())
    assert main(["annotate", *words]) in (1, 2)
    said = capsys.readouterr().err.strip()
    assert reason in said and "\n" not in said and "fault of sdjax" not in said
    assert sorted(tmp_path.iterdir()) == before


def test_arrays_that_are_no_pictures_are_refused():
    for name, wrong in (
        ("invert", np.zeros((4, 4, 3))),
        ("invert", np.zeros((4, 4, 4), np.uint8)),
        ("invert", np.zeros((0, 4, 3), np.uint8)),
        ("depth", PHOTO),
        ("invert", np.broadcast_to(np.uint8(0), (2**14, 2**14, 3))),
    ):
        with pytest.raises(SdjaxError, match=r"uint8|nearness|pixels"):
            annotate(name, wrong)


def test_on_the_command_line(tmp_path, capsys):
    picture, edges = tmp_path / "photo.png", tmp_path / "edges.webp"
    Image.fromarray(PHOTO).save(picture)
    assert main(["annotate", "canny", str(picture), "--low", "20", "--high", "60", "--resolution", "144"]) == 0
    made = Image.open(tmp_path / "photo-canny.png")
    assert made.size == (192, 144) and set(np.unique(made)) == {0, 255}
    assert main(["annotate", "normal_bae", str(picture), "-o", str(edges)]) == 0 and Image.open(edges).size == (96, 72)
    capsys.readouterr()
    assert main(["annotate", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ANNOTATORS)


def test_a_missing_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    picture = tmp_path / "photo.png"
    Image.fromarray(PHOTO).save(picture)
    assert main(["annotate", "canny", str(picture)]) == 1
    assert "pip install 'sdjax[conditions]'" in capsys.readouterr().err
