"""Conditions by picture: what they change, what they leave alone, and what is refused."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_training import PAINTING

import sdjax
from benchmarks.scorer import read_picture
from sdjax.cli import main
from sdjax.errors import InputError
from sdjax.files.checkpoint import read_model
from sdjax.files.infotext import read_infotext, write_infotext
from sdjax.files.layout import embedded_models
from sdjax.files.pictures import read_settings
from sdjax.loading import net_opener
from sdjax.models import ControlNetUnionConfig, ControlNetUnionModel, build
from sdjax.pipeline.hints import ConditionNet, Hint, fitted
from sdjax.settings import Picture
from sdjax.settings.unit import FITS, MODES, Unit, read_unit, unit_of, units_of
from sdjax.training.models import fresh, write_model

NET = {
    **{name: value for name, value in PAINTING["unet"].items() if name not in ("sample_size", "up_block_types")},
    "conditioning_embedding_out_channels": [4, 4, 4],
}
ADAPTER = {"channels": [8], "num_res_blocks": 1, "downscale_factor": 4, "in_channels": 1}
SIDE = 64
HOW = {"num_inference_steps": 4, "output_type": "np", "guidance_scale": 3.0}


def net_of(name, class_name="ControlNetModel", config=NET, seed=0):
    module = build(class_name, config)
    return ConditionNet(name, module, fresh(module, seed))


@pytest.fixture(scope="module")
def edges():
    return net_of("edges")


@pytest.fixture(scope="module")
def colours():
    return net_of("colours", "T2IAdapter", ADAPTER, 1)


def picture(seed=0, size=(SIDE, SIDE)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def drawn(pipe, *conditions, prompt="a red heart", **more):
    return pipe(prompt, seed=1, conditions=conditions, **HOW | more).images


def test_hints_change_the_picture_and_windows_and_weights_compile_nothing(pipe, edges, colours, compilations):
    plain = drawn(pipe)
    first = drawn(pipe, edges(picture()), colours(picture()))
    assert np.abs(first - plain).max() > 1e-3
    del compilations[:]
    others = [
        drawn(pipe, edges(picture(1), scale=0.5, end=0.5), colours(picture(2), scale=[0.1, 0.2, 0.3, 0.4])),
        drawn(pipe, edges(picture(1, (30, 50)), mode="guess", fit="crop"), colours(picture(2), mode="prompt")),
        drawn(pipe, edges(picture(3), mode="control", start=0.3), colours(picture(2), start=0.1)),
    ]
    assert not compilations
    assert len({image.tobytes() for image in [plain, first, *others]}) == 5


@pytest.mark.long
def test_another_number_of_hints_in_a_bucket_compiles_nothing(pipe, edges, compilations):
    drawn(pipe, *(edges(picture(k)) for k in range(3)))
    del compilations[:]
    drawn(pipe, *(edges(picture(k)) for k in range(4)))
    assert not compilations


@pytest.mark.long
def test_a_net_that_does_not_count_is_not_computed(pipe):
    """Its numbers would be everywhere: they are not finite."""
    broken = net_of("broken")
    broken.params["controlnet_mid_block"]["bias"] = np.full(8, np.nan, np.float32)
    with pytest.raises(sdjax.errors.CheckpointError, match=r"overflowed|not finite"):
        drawn(pipe, broken(picture()))
    np.testing.assert_allclose(drawn(pipe, broken(picture(), end=0.2)), drawn(pipe), atol=1e-5)  # no whole step
    np.testing.assert_allclose(drawn(pipe, broken(picture(), scale=0)), drawn(pipe), atol=1e-5)


@pytest.mark.long
def test_pictures_of_a_batch_have_conditions_of_their_own(pipe, edges, colours):
    hints = [(edges(picture()), colours(picture())), (edges(picture(1)),), ()]
    together = pipe(["a", "b", "c"], seed=1, conditions=hints, **HOW).images
    for k, (own, prompt) in enumerate(zip(hints, "abc")):
        alone = pipe(prompt, seed=1 + k, conditions=own, **HOW).images[0]
        np.testing.assert_allclose(together[k], alone, atol=2e-5)


def test_pictures_with_the_same_nets_are_a_group(pipe, edges, colours):
    def key(*conditions):
        return pipe.prepare([Picture("a", conditions=conditions)]).key

    assert key(edges(picture())) == key(edges(picture(3), scale=0.2, end=0.3, mode="guess"))
    assert len({key(), key(edges(picture())), key(colours(picture())), key(edges(picture()), colours(picture()))}) == 4


@pytest.mark.long
def test_a_second_pass_sees_the_hint_enlarged(pipe, edges):
    image = drawn(pipe, edges(picture()), hires_scale=2.0, hires_steps=2)
    assert image.shape == (1, 2 * SIDE, 2 * SIDE, 3)
    assert np.abs(image - drawn(pipe, hires_scale=2.0, hires_steps=2)).max() > 1e-3


def test_only_the_masked_part_of_a_hint_is_seen(edges):
    """With padding_mask_crop, of a hint for the whole picture."""
    from sdjax.pipeline.images import Repaint

    mask = Image.new("L", (128, 128))
    mask.paste(255, (80, 80, 100, 100))
    part = Repaint.prepare(picture(0, (128, 128)), mask, (SIDE, SIDE), 0, 8)
    hint = edges(picture(1, (128, 128)))
    expected = picture(1, (128, 128)).crop(part.box).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(hint.pixels((SIDE, SIDE), part), np.asarray(expected, np.float32) / 255)


def test_what_an_inpainting_net_is_to_invent_is_minus_one(edges):
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (0, 0, 10, SIDE))
    pixels = edges(picture(), mask=mask).pixels((SIDE, SIDE), None)
    assert (pixels[:, :10] == -1).all()
    np.testing.assert_array_equal(pixels[:, 10:], np.asarray(picture(), np.float32)[:, 10:] / 255)


@pytest.mark.parametrize("size", [(64, 64), (40, 100), (100, 40), (7, 9)])
def test_fits(size):
    image = Image.new("RGB", size, "red")
    for fit in ("stretch", "crop", "fill"):
        assert fitted(image, (64, 48), fit, "a net").size == (64, 48)
        assert np.ptp(np.asarray(fitted(image, (64, 48), fit, "a net"))[..., 0]) == 0  # the border has its colour
    with pytest.raises(InputError, match="64 x 48"):
        fitted(image, (64, 48), "exact", "a net")


def test_a_net_for_another_model_is_refused_by_its_widths(pipe, compilations):
    other = net_of("other", config={**NET, "block_out_channels": [16], "norm_num_groups": 2})
    adapter = net_of("wide", "T2IAdapter", {**ADAPTER, "channels": [12]})
    compilations.clear()  # their parameters' shapes, where no test before it needed them
    with pytest.raises(InputError, match=r"other is made for another model: its widths are \[16, 8\], here \[8, 8\]"):
        drawn(pipe, other(picture()))
    with pytest.raises(InputError, match="wide is made for another model"):
        drawn(pipe, adapter(picture()))
    assert not compilations


BAD = {
    "scale": ({"scale": float("nan")}, "scale of a hint"),
    "large scale": ({"scale": 1000}, "up to 100"),
    "no scales": ({"scale": []}, "scale of a hint"),
    "window": ({"start": 0.6, "end": 0.4}, "start < end"),
    "window beyond": ({"end": 1.5}, "start < end"),
    "mode": ({"mode": "strong"}, "balanced, guess, prompt, control"),
    "fit": ({"fit": "squeeze"}, "stretch, crop, fill, exact"),
    "annotator": ({"annotator": "cany"}, "did you mean 'canny'"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_hints(edges, what):
    settings, message = BAD[what]
    with pytest.raises(InputError, match=message):
        edges(picture(), **settings)


def test_the_kind_of_a_hint_is_for_unions_and_needed_there(edges):
    own = dict.fromkeys(("num_trans_channel", "num_proj_channel"), NET["block_out_channels"][0])
    own |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 56}
    config = ControlNetUnionConfig.from_dict(NET | own | {"addition_embed_type": "text_time"})
    net = ConditionNet("union", ControlNetUnionModel(config), {})
    assert net(picture(), kind="seg").kind == "seg"
    for said, of, says in (
        ({}, net, "the kind is not given, it is openpose, depth"),
        ({"kind": "tile"}, net, "the kind is 'tile', it is openpose"),  # of ProMax, which has eight kinds
        ({"kind": "pose"}, net, "the kind of a hint is 'pose'"),
        ({"kind": "canny"}, edges, "which edges is not"),
    ):
        with pytest.raises(InputError, match=says):
            of(picture(), **said)


def test_bad_pictures_and_numbers(pipe, edges, colours, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="no picture that can be read"):
        edges(tmp_path / "text.png")
    with pytest.raises(InputError, match="there is no file"):
        edges(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="from 0 to 1"):
        edges(np.full((SIDE, SIDE, 3), np.inf))
    with pytest.raises(InputError, match="guess mode is of ControlNets"):
        colours(picture(), mode="guess")
    with pytest.raises(InputError, match="3 scales were given to a hint for a picture of 4 steps"):
        drawn(pipe, edges(picture(), scale=[1, 2, 3]))
    with pytest.raises(InputError, match=r"has shape \(8, 8, 3\)"):
        drawn(pipe, edges(np.zeros((8, 8, 3))))
    with pytest.raises(InputError, match="at most 8 conditions"):
        drawn(pipe, *[edges(picture())] * 9)
    with pytest.raises(InputError, match="what a net"):
        drawn(pipe, "edges.png")
    with pytest.raises(InputError, match="dpm_adaptive"):
        drawn(pipe, edges(picture(), end=0.5), sampler="dpm_adaptive")


@given(
    scale=st.floats(-100, 100).map(lambda x: round(x, 3)),
    window=st.tuples(st.integers(0, 99), st.integers(1, 100)).filter(lambda both: both[0] < both[1]),
    mode=st.sampled_from(MODES),
    fit=st.sampled_from(FITS),
)
def test_a_unit_in_one_line_is_the_unit_in_json(scale, window, mode, fit):
    start, end = (each / 100 for each in window)
    text = f"org/net:a picture.png:{scale}:{start}-{end}:mode={mode}:fit={fit}"
    expected = Unit("org/net", "a picture.png", scale, start, end, mode, fit)
    assert read_unit(text) == expected == unit_of(json.loads(json.dumps(expected.settings())))


@given(st.text(max_size=40))
def test_any_text_is_a_unit_or_refused(text):
    for read in (read_unit, units_of):
        with suppress(InputError):
            read(text)


def test_conditions_in_a1111s_text():
    units = [
        Unit("lllyasviel/control_v11p_sd15_canny", "a.png", 0.8, 0.1, 0.6, "prompt", "crop", "canny").settings(),
        Unit("colours", "b.png").settings(),
    ]
    base = {"prompt": "a", "steps": 3, "sampler": "Euler", "seed": 1, "width": 64, "height": 64}
    text = write_infotext(base | {"conditions": units})
    assert 'ControlNet 0: "Module: canny, Model: control_v11p_sd15_canny, Weight: 0.8, Resize Mode: Crop and' in text
    assert "Control Mode: My prompt is more important" in text
    first, second = read_infotext(text)[0]["conditions"]
    read = {name: value for name, value in units[0].items() if name != "image"}
    assert first == read | {"net": "control_v11p_sd15_canny"}
    assert second["net"] == "colours" and second["scale"] == 1
    by_the_extension = (
        'a\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512, ControlNet 0: "Module: canny, Model: '
        "control_v11p_sd15_canny [d14c016b], Weight: 0.75, Resize Mode: Crop and Resize, Processor Res: 512, Threshold "
        "A: 100.0, Threshold B: 200.0, Guidance Start: 0.0, Guidance End: 0.8, Pixel Perfect: True, Control Mode: "
        'ControlNet is more important", Version: v1.10.0'
    )
    settings, not_followed = read_infotext(by_the_extension)
    assert settings["conditions"][0]["net"] == "control_v11p_sd15_canny"
    assert settings["conditions"][0] | {"end": 0.8, "mode": "control", "scale": 0.75} == settings["conditions"][0]
    assert not not_followed


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    """A net's directory and a hint, as files."""
    from dataclasses import replace

    from sdjax.files.checkpoint import Component, read_model

    place = tmp_path_factory.mktemp("files")
    module = build("ControlNetModel", NET)
    model = read_model(small)
    index = model.index | {"condition": ["diffusers", "ControlNetModel"]}
    own = replace(model, components={"unet": model.unet, "condition": Component(module, fresh(module, 0))}, index=index)
    write_model(place / "edges", own, ["condition"], "a test", {"condition": NET | {"_class_name": "ControlNetModel"}})
    picture().save(place / "hint.png")
    return place


@pytest.mark.long
def test_the_command_line_and_rows_of_a_batch(small, folder, edges, pipe, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    text = "edges:hint.png:0.7:0-0.5:mode=prompt"
    common = ["--model", str(small), "--steps", "4", "--guidance-scale", "3"]
    assert main(["generate", "a red heart", *common, "--seed", "1", "--control", text, "-o", "one.png"]) == 0
    how = edges(picture(), scale=0.7, end=0.5, mode="prompt")
    expected = np.round(drawn(pipe, how)[0] * 255)
    one = np.asarray(Image.open("one.png"), int)
    assert np.abs(one - expected).max() <= 1
    found = read_settings("one.png")["conditions"]
    assert found == [{"net": "edges", "image": "hint.png", "scale": 0.7, "end": 0.5, "mode": "prompt"}]
    row = {"prompt": "a red heart", "seed": 1, "name": "row", "conditions": found}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"name": "text", "conditions": text}))
    assert main(["batch", "rows.jsonl", "-o", "out", *common]) == 0
    for name in ("row", "text"):
        image = next((folder / "out").rglob(f"{name}.png"))
        assert np.abs(np.asarray(Image.open(image), int) - one).max() <= 1
    capsys.readouterr()
    assert main(["generate", "--like", "one.png", "--yes", "-o", "again.png"]) == 0
    assert "not followed: edges:hint.png:0.7:0.0-0.5:mode=prompt (say it as --control)" in capsys.readouterr().err


def test_the_embedded_net_is_for_the_embedded_model_and_sees_drawings(capsys):
    unet = read_model(embedded_models()["shapes"]).unet.module.config
    net, annotator = net_opener()("outline", unet)
    assert annotator == "scribble"  # dark lines on paper
    net.check(unet)
    assert main(["info", "outline"]) == 0
    assert "ControlNetModel" in capsys.readouterr().out
    assert main(["generate", "a red ring", "--model", "outline", "-o", "ring.png"]) == 1
    assert "lacks text_encoder, unet" in capsys.readouterr().err


@pytest.mark.long
def test_a_sketch_says_where_and_which_shape(tmp_path):
    """The README's drawing: a heart at the left, a ring at the right."""
    sketch = Path(__file__).parents[1] / "docs" / "sketch.png"
    pipe = sdjax.load()
    caption = "a red heart left of a blue ring on a white background"
    image = pipe(caption, conditions=[Unit("outline", str(sketch))], sampler="dpmpp_2m karras").images[0]
    seen = sorted(read_picture(np.asarray(image)).objects, key=lambda each: each.circle.x)
    assert [(each.colour, each.shape) for each in seen] == [("red", "heart"), ("blue", "ring")]
    for each, (x, y) in zip(seen, ((66 / 4, 122 / 4), (190 / 4, 134 / 4))):
        assert np.hypot(each.circle.x - x, each.circle.y - y) < 4


def test_hints_are_what_nets_make(edges):
    hint = edges(picture())
    assert isinstance(hint, Hint) and hint.net is edges and not hint.changes
