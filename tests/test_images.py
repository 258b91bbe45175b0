"""Images that a picture starts from: what files may be, what masks do, and what of a picture stays as it is."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from upscaling_files import compact
from upscaling_files import write as write_network

import sdjax
from sdjax.cli import main
from sdjax.errors import InputError
from sdjax.files.pictures import read_settings
from sdjax.pipeline.images import Repaint, bicubic, read_depth, read_image, read_mask, surroundings, to_array
from sdjax.settings import Picture
from sdjax.upscaling import UpscalerFolder, enlarge, open_upscaler

HEART = "a big red heart at the top left on a yellow background"
rng = np.random.default_rng(0)
PHOTO = rng.integers(0, 256, (64, 64, 3), np.uint8)


def mask_of(*box, size=(64, 64)):
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


def saved(folder: Path, image: Image.Image, name: str, **options) -> Path:
    image.save(folder / name, **options)
    return folder / name


def test_every_kind_of_picture_is_read_as_one_would_see_it(tmp_path):
    grey = np.linspace(0, 255, 16 * 16).astype(np.uint8).reshape(16, 16)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)  # a 16-bit PNG
    assert np.array_equal(to_array(read_image("image", saved(tmp_path, deep, "deep.png")))[..., 0] * 255, grey)
    palette = Image.fromarray(PHOTO).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(np.asarray(read_image("image", saved(tmp_path, palette, "palette.png"))), expected)
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    seen = np.asarray(read_image("image", saved(tmp_path, half, "alpha.png")))[0, 0]
    np.testing.assert_allclose(seen, (255, 127, 127), atol=1)  # red glass before white
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    seen = np.asarray(read_image("image", saved(tmp_path, cmyk, "cmyk.tif")))[0, 0]
    np.testing.assert_allclose(seen, (255, 0, 0), atol=2)
    lying = Image.fromarray(PHOTO[:32])
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to see it upright
    upright = read_image("image", saved(tmp_path, lying, "turned.png", exif=exif))
    assert upright.size == (32, 64)
    assert np.array_equal(np.asarray(read_image("image", PHOTO / np.float64(255))), PHOTO)


def test_of_a_picture_that_moves_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = saved(tmp_path, frames[0], "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="image moves: its first frame"):
        assert read_image("image", path).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent.png", "image: there is no file"),
        (lambda folder: folder, "cannot be read as a picture"),
        (lambda folder: write(folder / "text.png", b"no picture"), "is no picture that can be read"),
        (lambda folder: write(folder / "cut.png", cut_png(folder)), "cannot be read as a picture"),
        (lambda folder: write(folder / "bomb.png", bomb()), "has more than .* pixels"),
        (lambda folder: Image.new("RGB", (0, 5)), r"has no pixels \(0 x 5\)"),
        (lambda folder: np.zeros((0, 4, 3), np.uint8), r"not an array of shape \(0, 4, 3\)"),
        (lambda folder: np.zeros((4, 4, 2), np.uint8), r"not an array of shape \(4, 4, 2\)"),
        (lambda folder: np.full((4, 4, 3), 2.0), "must be from 0 to 1"),
        (lambda folder: np.full((4, 4, 3), np.nan), "must be from 0 to 1"),
        (lambda folder: np.zeros((4, 4, 3), np.int32), "must be of 8 bits"),
        (lambda folder: np.full((4, 4, 4), np.inf), "latents hold values that are not finite"),
        (lambda folder: 7, "7 cannot be read as a picture"),
    ],
)
def test_what_is_no_picture_is_said_in_a_line(tmp_path, make, message):
    with pytest.raises(InputError, match=message) as error:
        read_image("image", make(tmp_path))
    assert "\n" not in str(error.value)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def cut_png(folder: Path) -> bytes:
    return saved(folder, Image.fromarray(PHOTO), "whole.png").read_bytes()[:2000]


def bomb() -> bytes:
    """A PNG whose header promises 10^10 pixels."""

    def chunk(content: bytes) -> bytes:
        return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))

    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(header) + chunk(b"IDAT" + zlib.compress(bytes(1000)))


def test_masks_of_any_mode():
    for mode in ("1", "L", "RGB", "P", "I;16"):
        drawn = mask_of(10, 10, 20, 20)
        mask = Image.fromarray(np.asarray(drawn, np.uint16) * 257) if mode == "I;16" else drawn.convert(mode)
        assert np.array_equal(np.asarray(read_mask("mask_image", mask)), np.asarray(drawn)), mode
    painted = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    painted.paste("black", (10, 10, 21, 21))  # whatever its colour, what is painted is the mask
    assert np.array_equal(np.asarray(read_mask("mask_image", painted)), np.asarray(mask_of(10, 10, 20, 20)))


def test_depth_keeps_its_levels(tmp_path):
    levels = rng.integers(0, 65536, (5, 7), np.uint16)
    path = saved(tmp_path, Image.fromarray(levels), "depth.png")
    assert np.array_equal(read_depth("depth_map", path), levels)
    with pytest.raises(InputError, match="depth_map holds values that are not finite"):
        read_depth("depth_map", np.full((3, 3), np.nan))


@given(
    st.integers(1, 90),
    st.integers(1, 70),
    st.data(),
    st.integers(0, 40),
    st.sampled_from([(64, 64), (96, 32), (8, 64)]),
)
@settings(max_examples=200, deadline=None)
def test_the_surroundings_of_a_mask_hold_it_and_lie_in_the_picture(width, height, data, padding, size):
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left, width - 1)), data.draw(st.integers(top, height - 1))
    box = surroundings(mask_of(left, top, right, bottom, size=(width, height)), size, padding)
    assert 0 <= box[0] <= max(left - padding, 0) and min(right + 1 + padding, width) <= box[2] <= width
    assert 0 <= box[1] <= max(top - padding, 0) and min(bottom + 1 + padding, height) <= box[3] <= height
    across, down = box[2] - box[0], box[3] - box[1]
    if across < width and down < height:  # room enough to have the shape of the size
        assert abs(across * size[1] - down * size[0]) <= max(size)


def test_bicubic_keeps_what_a_cubic_keeps():
    """That it is PyTorch's is shown by depth in tests/parity."""
    flat = np.full((5, 9), 3.0)
    np.testing.assert_allclose(bicubic(flat, 13, 4), np.full((13, 4), 3.0), rtol=1e-12)
    image = rng.standard_normal((6, 7))
    np.testing.assert_allclose(bicubic(image, 6, 7), image, rtol=1e-12)


def test_the_untouched_part_comes_back_bit_for_bit(pipe):
    for padding in (None, 8):
        mask = mask_of(20, 24, 40, 44)
        out = pipe(
            HEART, image=PHOTO, mask_image=mask, padding_mask_crop=padding, mask_blur=2.0, num_inference_steps=4
        ).images[0]
        soft = Repaint.prepare(Image.fromarray(PHOTO), mask, (64, 64), 2.0, padding).weights[..., 0]
        assert np.array_equal(np.asarray(out)[soft == 0], PHOTO[soft == 0])
        assert (soft == 0).mean() > 0.5
        assert np.abs(np.asarray(out)[soft == 1].astype(int) - PHOTO[soft == 1]).mean() > 10  # and this is new


def test_the_surroundings_are_cut_out_whatever_size_the_picture_has():
    """Also where the picture happens to have the size at which the model works."""
    photo = Image.fromarray(PHOTO)
    cut = Repaint.prepare(photo, mask_of(20, 24, 40, 44), (64, 64), 0, 4)
    assert cut.box == (16, 20, 45, 49)
    assert np.array_equal(
        np.asarray(cut.image), np.asarray(photo.crop(cut.box).resize((64, 64), Image.Resampling.LANCZOS))
    )


def test_only_the_masked_part_of_a_larger_picture(pipe):
    """The output has the picture's own size, and the model worked at its own."""
    photo = rng.integers(0, 256, (150, 200, 3), np.uint8)
    mask = mask_of(100, 50, 140, 90, size=(200, 150))
    out = pipe(HEART, image=photo, mask_image=mask, padding_mask_crop=10, mask_blur=0, num_inference_steps=2)
    assert out.images[0].size == (200, 150)
    changed = np.any(np.asarray(out.images[0]) != photo, axis=-1)
    assert changed[50:91, 100:141].mean() > 0.95
    assert changed.sum() == changed[50:91, 100:141].sum()


@pytest.mark.long
def test_low_strength_keeps_the_picture_and_high_strength_does_not():
    pipe = sdjax.load()
    scene = pipe(HEART, seed=3).images[0]
    distances = []
    for strength in (0.1, 0.5, 1.0):
        out = pipe("a green square on a black background", image=scene, strength=strength, seed=4, output_type="np")
        distances.append(np.abs(out.images[0] - to_array(scene)).mean())
    assert distances[0] < distances[1] < distances[2]
    assert distances[0] < 0.1


def test_latents_may_be_the_image(pipe):
    latents = pipe(HEART, output_type="latent").images
    again = pipe(HEART, image=latents[0], strength=0.05, num_inference_steps=20, output_type="latent").images
    assert np.abs(again - latents).mean() < 0.2 * np.abs(latents).mean()


def test_pictures_with_and_without_images_share_a_batch(pipe):
    """Each as if it were alone."""
    scene = Image.fromarray(PHOTO)
    pictures = [
        Picture("a star", seed=1, num_inference_steps=4),
        Picture("a ring", seed=2, num_inference_steps=6, image=scene, strength=0.5),
        Picture("a cross", seed=3, num_inference_steps=5, image=scene, mask_image=mask_of(8, 8, 40, 40), strength=1.0),
    ]
    batch = pipe.draw(pictures, output_type="np").images
    for picture, image in zip(pictures, batch):
        assert np.abs(pipe.draw([picture], output_type="np").images[0] - image).max() <= 1 / 255


def test_other_images_masks_and_strengths_compile_nothing(pipe, compilations):
    pipe(HEART, num_inference_steps=2)
    pipe(HEART, image=PHOTO, mask_image=mask_of(4, 4, 30, 30), num_inference_steps=3)
    compilations.clear()
    pipe("a star", image=PHOTO[::-1].copy(), strength=0.3, num_inference_steps=10, sampler="euler_ancestral")
    pipe("a ring", image=PHOTO, mask_image=mask_of(9, 9, 60, 60), strength=1.0, num_inference_steps=2, mask_blur=0)
    pipe("a ring", image=PHOTO, mask_image=mask_of(9, 9, 20, 20), padding_mask_crop=4, num_inference_steps=2)
    pipe("a cross", num_inference_steps=3, sampler="heun")
    assert len(compilations) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_image": mask_of(1, 1, 5, 5)}, "give the image too"),
        ({"image": PHOTO, "mask_image": Image.new("L", (64, 64), 0)}, "mask_image is black"),
        ({"image": PHOTO, "strength": 0}, "strength must be a finite number above 0"),
        ({"image": PHOTO, "strength": 1.2}, "strength must be a finite number above 0 and at most 1"),
        ({"image": PHOTO, "strength": 0.01, "num_inference_steps": 20}, "leave a step"),
        ({"image": PHOTO, "depth_map": PHOTO[..., 0]}, "does not follow depth"),
        ({"image": PHOTO, "padding_mask_crop": 3}, "padding_mask_crop is a border around a mask"),
        ({"image": PHOTO, "mask_blur": -1}, "mask_blur must be a finite number from 0"),
        ({"image": [PHOTO, PHOTO]}, "2 of image were given for 1 prompts"),
        ({"image": np.zeros((16, 16, 5), np.float32)}, r"latents of shape \(16, 16, 5\)"),
        ({"prompt": ["a", "b"], "image": [PHOTO, PHOTO[:32]]}, "the pictures of a batch have one size"),
        ({"noise_level": -1}, "noise_level must be a whole number"),
    ],
)
def test_wrong_images_are_named_before_any_work(pipe, compilations, arguments, message):
    compilations.clear()
    with pytest.raises(InputError, match=message):
        pipe(**{"prompt": HEART, **arguments})
    assert len(compilations) == 0


@pytest.mark.few(1)
@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_a_second_pass_paints_over_the_enlarged_first(pipe, upscaler):
    """What it does by hand."""
    settings = {"num_inference_steps": 4, "seed": 3}
    got = pipe(HEART, hires_scale=1.5, hires_upscaler=upscaler, hires_strength=0.5, hires_steps=6, **settings)
    if upscaler == "latent":
        small = pipe(HEART, output_type="latent", **settings).images[0]
        larger = np.asarray(jax.image.resize(small, (24, 24, 4), "linear", antialias=False))
    else:
        larger = pipe(HEART, **settings).images[0].resize((96, 96), Image.Resampling.LANCZOS)
    by_hand = pipe(HEART, image=larger, strength=0.5, num_inference_steps=6, seed=3)
    assert got.images[0].size == (96, 96)
    assert np.array_equal(np.asarray(got.images[0]), np.asarray(by_hand.images[0]))
    assert got.nfe == pipe(HEART, **settings).nfe + by_hand.nfe
    assert got.settings[0]["width"] == 64 and got.settings[0]["hires_scale"] == 1.5


@pytest.mark.long
def test_a_second_pass_over_what_a_network_has_enlarged(pipe, small, tmp_path, capsys, monkeypatch):
    """What it does by hand; the name is in the picture, and `--like` wants to be told where the file is."""
    net = write_network(tmp_path / "tiny x2.safetensors", compact())
    monkeypatch.setattr(pipe, "facts", replace(pipe.facts, upscalers=UpscalerFolder(tmp_path)))
    how = {"num_inference_steps": 4, "seed": 3}
    got = pipe(HEART, hires_scale=1.5, hires_upscaler="tiny x2", hires_strength=0.5, **how).images[0]
    larger = enlarge(open_upscaler(net), pipe(HEART, **how).images[0], (96, 96))
    assert np.array_equal(np.asarray(got), np.asarray(pipe(HEART, image=larger, strength=0.5, **how).images[0]))
    made, again, other = (str(tmp_path / f"{name}.png") for name in ("made", "again", "other"))
    few = ["--model", str(small), "--steps", "4", "--seed", "3", "--hires-scale", "1.5", "--hires-strength", "0.5"]
    assert main(["generate", HEART, "-o", made, *few, "--hires-upscaler", str(net)]) == 0
    assert np.array_equal(np.asarray(Image.open(made)), np.asarray(got))
    assert "Hires upscaler: tiny x2" in Image.open(made).text["parameters"]
    assert read_settings(made)["hires_upscaler"] == "tiny x2"
    assert main(["generate", "--like", made, "--yes", "-o", again, "--upscaler-dir", str(tmp_path)]) == 0
    assert Path(again).read_bytes() == Path(made).read_bytes()
    capsys.readouterr()
    assert main(["generate", "--like", made, "-o", other, "--model", "no model"]) == 1
    assert "not followed: upscaler tiny x2" in capsys.readouterr().err
    assert main(["generate", HEART, "-o", other, *few, "--hires-upscaler", "tiny"]) == 1
    assert "say in which folder it is" in capsys.readouterr().err


def test_on_the_command_line(small, tmp_path, capsys):
    """One picture into the next: painted, painted over, and a part of it painted anew."""
    scene, over, anew, mask = (str(tmp_path / f"{name}.png") for name in ("scene", "over", "anew", "mask"))
    mask_of(20, 20, 50, 50).save(mask)
    few = ["--model", str(small), "--steps", "4", "--seed", "3"]
    assert main(["generate", HEART, "-o", scene, *few]) == 0
    assert main(["img2img", "a blue star", scene, "--strength", "0.5", "-o", over, *few]) == 0
    assert main(["inpaint", "a blue star", over, mask, "--mask-blur", "0", "-o", anew, *few]) == 0
    before, after = (np.asarray(Image.open(path)) for path in (over, anew))
    outside = np.asarray(Image.open(mask)) == 0
    assert np.array_equal(before[outside], after[outside]) and not np.array_equal(before, after)
    told = read_settings(anew)
    assert (told["image"], told["mask_image"], told["strength"]) == (over, mask, 0.8)
    assert capsys.readouterr().out.split() == [scene, over, anew]


def test_the_command_line_names_a_wrong_picture_before_loading_a_model(tmp_path, capsys):
    assert main(["img2img", "a star", str(tmp_path / "absent.png"), "--model", "no/model"]) == 1
    assert "image: there is no file" in capsys.readouterr().err
