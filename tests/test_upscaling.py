"""Networks that enlarge: which file is which, tiles, sizes, and what is refused. PyTorch is compared in parity."""

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from upscaling_files import compact, esrgan, swinir, write

from sdjax.cli import main
from sdjax.errors import CheckpointError, InputError, SdjaxError
from sdjax.files.pictures import read_settings
from sdjax.upscaling import UpscalerFolder, apply, enlarge, open_upscaler

KINDS = {"compact": compact, "esrgan": esrgan, "swinir": swinir}
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def upscalers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("upscalers")
    return {name: open_upscaler(write(folder / f"{name}.safetensors", make())) for name, make in KINDS.items()}


def pixels(height: int, width: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width, 3), np.uint8)


def whole(upscaler, picture: np.ndarray) -> np.ndarray:
    """What the network makes of a picture at once."""
    made = jax.jit(partial(apply.upscale, upscaler.module))(upscaler.params, picture[None].astype(np.float32) / 255)
    levels = np.round(255 * np.asarray(made[0]).clip(0, 1)).astype(np.uint8)
    assert levels.std() > 10
    return levels


@given(size=st.integers(1, 400), tile=st.integers(1, 50), around=st.integers(0, 20))
def test_spans_cover_a_side_once_with_their_surroundings(size, tile, around):
    found = apply.spans(size, tile, around)
    length = min(size, tile + 2 * around)
    assert [pixel for span in found for pixel in range(span.kept.start, span.kept.stop)] == list(range(size))
    for start, kept in found:
        assert start >= 0 and start + length <= size
        assert start == 0 or kept.start - start >= around
        assert start + length == size or start + length - kept.stop >= around


def test_tiles_give_what_the_whole_gives_where_the_network_looks_no_farther(upscalers, monkeypatch, compilations):
    """To the last bit, but for where a sum's rounding meets that to 8 bits: a level in one of 100,000 pixels or so."""
    upscaler, picture = upscalers["compact"], pixels(61, 47)
    monkeypatch.setattr(apply, "TILE", 16)
    compilations.clear()
    seen = []
    tiled = apply.enlarged_once(upscaler, picture, lambda *at: seen.append(at))
    assert seen == [(i, 12) for i in range(13)]
    count = len(compilations)
    apply.enlarged_once(upscaler, pixels(80, 100))
    assert len(compilations) == count  # all tiles, and those of another picture, are of one shape
    different = tiled != whole(upscaler, picture)
    assert tiled.shape == (122, 94, 3) and different.mean() < 1e-4


def test_tiles_of_other_networks_differ_by_little(upscalers, monkeypatch):
    upscaler, picture = upscalers["esrgan"], pixels(61, 47)
    monkeypatch.setattr(apply, "TILE", 24)
    monkeypatch.setattr(apply, "MOST_AROUND", 4)
    monkeypatch.setattr(apply, "AROUND", 8)
    difference = np.abs(apply.enlarged_once(upscaler, picture).astype(int) - whole(upscaler, picture))
    assert 0 < difference.max() <= 8 and difference.mean() < 0.1


def test_sides_that_are_no_multiples_are_mirrored(upscalers):
    picture = pixels(9, 14)
    padded = np.pad(picture, ((0, 3), (0, 2), (0, 0)), "reflect")
    made = apply.enlarged_once(upscalers["swinir"], picture).astype(int)
    assert made.shape == (18, 28, 3) and np.abs(made - whole(upscalers["swinir"], padded)[:18, :28]).max() <= 1


def test_a_size_is_reached_as_a1111_does(upscalers):
    image, upscaler = Image.fromarray(pixels(8, 10)), upscalers["compact"]
    once = enlarge(upscaler, image)
    assert once.size == (20, 16)
    assert enlarge(upscaler, image, (15, 12)).tobytes() == once.resize((15, 12), Image.Resampling.LANCZOS).tobytes()
    twice = enlarge(upscaler, once)
    assert enlarge(upscaler, image, (40, 32)).tobytes() == twice.tobytes()
    assert enlarge(upscaler, image, (25, 20)).tobytes() == twice.resize((25, 20), Image.Resampling.LANCZOS).tobytes()


def test_results_are_bounded(upscalers):
    with pytest.raises(InputError, match="too large"):
        apply.enlarged_once(upscalers["compact"], np.broadcast_to(np.uint8(0), (2**13 + 1, 2**13, 3)))
    with pytest.raises(InputError, match="too large"):
        enlarge(upscalers["compact"], Image.new("RGB", (8, 8)), (2**15, 2**15))


def test_numbers_that_overflow_are_refused(tmp_path):
    tensors = {name: tensor * np.float32(1e25) for name, tensor in compact().items()}
    with pytest.raises(CheckpointError, match="not finite"):
        apply.enlarged_once(open_upscaler(write(tmp_path / "net.safetensors", tensors)), pixels(8, 8))


def _without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: {"a": np.zeros(3, np.float32)}, "none of the networks"),
        (lambda: _without(esrgan(), "body.0.rdb2.conv3.bias"), "1 missing"),
        (lambda: esrgan() | {"extra.weight": np.zeros(3, np.float32)}, "1 unexpected"),
        (lambda: esrgan() | {"body.0.rdb1.conv1x1.weight": np.zeros((2, 2, 1, 1), np.float32)}, r"is ESRGAN\+"),
        (lambda: esrgan() | {"conv_hr.weight": np.zeros((4, 5, 3, 3), np.float32)}, "does not fit the others"),
        (lambda: esrgan() | {"conv_first.weight": np.zeros((4, 7, 3, 3), np.float32)}, "reads 7 channels"),
        (lambda: esrgan() | {"body.7.rdb1.conv1.weight": np.zeros((4, 4, 3, 3), np.float32)}, "not numbered through"),
        (lambda: esrgan(doublings=6), "enlarges 6 times twofold"),
        (lambda: compact() | {"body.0.bias": np.full(4, np.nan, np.float32)}, "not finite"),
        (lambda: compact() | {"body.0.bias": np.zeros(4, np.int32)}, "not some floats"),
        (lambda: _without(compact(), "body.6.weight"), "body.6.weight"),
        (lambda: swinir() | {"layers.0.cpb_mlp.weight": np.zeros(3, np.float32)}, "is Swin2SR"),
        (lambda: _without(swinir(), "upsample.0.weight"), "restores pictures"),
        (lambda: swinir() | {"conv_first.bias": np.zeros(0, np.float32)}, "not some floats"),
        (lambda: swinir() | {"layers.0.residual_group.blocks.0.attn.qkv.weight": np.ones((1, 1), "f")}, "does not fit"),
    ],
)
def test_files_that_are_refused_in_one_line(make, reason, tmp_path):
    path = write(tmp_path / "net.safetensors", make())
    with pytest.raises(CheckpointError, match=reason) as refused:
        open_upscaler(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(kind, data, tmp_path_factory):
    """A tensor of another shape, of nothing, gone, or under another name: an error of ours, or a network that works."""
    tensors = KINDS[kind]()
    name = data.draw(st.sampled_from(sorted(tensors)))
    how = data.draw(st.sampled_from(["shape", "drop", "rename"]))
    tensor = tensors.pop(name)
    if how == "shape":
        tensors[name] = np.zeros(data.draw(st.lists(st.integers(0, 6), max_size=4)), np.float32)
    elif how == "rename":
        tensors[data.draw(st.sampled_from([name + "x", name.replace("0", "9"), "body.0.weight", "x"]))] = tensor
    path = write(tmp_path_factory.mktemp("damaged") / "net.safetensors", tensors)
    try:
        upscaler = open_upscaler(path)
    except SdjaxError:
        pass
    else:
        shape = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
        made = jax.eval_shape(lambda x: upscaler.module.apply({"params": upscaler.params}, x), shape)
        assert made.shape[1] == 16 * upscaler.config.scale


def test_names_in_a_folder(tmp_path):
    for name in ("4x-UltraSharp", "RealESRGAN_x4plus"):
        write(tmp_path / f"{name}.safetensors", compact())
    folder = UpscalerFolder(tmp_path)
    assert folder.open("4x-UltraSharp").name == folder.find("4x-UltraSharp.safetensors").stem == "4x-UltraSharp"
    assert folder.find("R-ESRGAN 4x+").stem == "RealESRGAN_x4plus"
    with pytest.raises(InputError, match="did you mean '4x-UltraSharp'"):
        folder.find("4x_UltraSharp")
    with pytest.raises(InputError, match="there is no upscaling model"):  # a stranger's picture may say it
        folder.find(str(tmp_path / "RealESRGAN_x4plus.safetensors"))
    with pytest.raises(InputError, match="no folder"):
        UpscalerFolder(tmp_path / "nowhere")
    assert UpscalerFolder(tmp_path / "4x-UltraSharp.safetensors").open("4x-UltraSharp").config.scale == 2


def test_upscale_without_a_prompt(tmp_path, capsys):
    net, picture, made = write(tmp_path / "net.safetensors", compact()), tmp_path / "small.png", tmp_path / "large.png"
    image = Image.fromarray(pixels(12, 20))
    image.save(picture)
    assert main(["upscale", str(picture), "--model", str(net), "-o", str(made)]) == 0
    assert Image.open(made).tobytes() == enlarge(open_upscaler(net), image).tobytes()
    assert read_settings(made)["upscaler"] == "net" and capsys.readouterr().out.strip() == str(made)
    assert main(["upscale", str(picture), "-m", str(net), "-o", str(made), "--width", "30", "--height", "18"]) == 0
    assert Image.open(made).size == (30, 18)
    made.unlink()
    (tmp_path / "text.pth").write_text("no network")
    for words, reason in (
        ([picture], "say by what to enlarge"),
        ([picture, "-m", net, "--steps", "3"], "--num-inference-steps is for painting: give a prompt"),
        ([picture, "-m", net, "--width", "30"], "both"),
        ([tmp_path / "absent.png", "-m", net], "there is no file"),
        ([picture, "-m", tmp_path / "absent.pth"], "there is no file"),
        ([picture, "-m", picture], "upscaling models end in"),
        ([picture, "-m", tmp_path / "text.pth"], "text.pth"),
        ([net, "-m", net], "is no picture"),
    ):
        assert main(["upscale", *map(str, words), "-o", str(made)]) == 1
        said = capsys.readouterr().err.strip()
        assert reason in said and "\n" not in said and "fault of sdjax" not in said and not made.exists()
