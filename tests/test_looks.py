"""Pictures that are looked at: what they change, what they cost, where their encoder is, and what is refused."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_adapters import plain_adapter, write_encoder, write_repository
from PIL import Image
from safetensors.numpy import save_file

import sdjax
from sdjax.cli import main
from sdjax.errors import CheckpointError, InputError
from sdjax.files.pictures import read_settings
from sdjax.models import UNetConfig
from sdjax.pipeline.looks import by_layer
from sdjax.settings import Picture
from sdjax.settings.unit import Unit, read_unit

HOW = {"num_inference_steps": 4, "output_type": "np", "guidance_scale": 3.0, "seed": 1}
CHANNELS = [8] * 4  # one layer down, two up, one in the middle
SD1 = tuple(UNetConfig().attentions)
XL = UNetConfig(
    block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2, 10),
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return write_repository(tmp_path_factory.mktemp("ip-adapter"), CHANNELS, 8)


@pytest.fixture(scope="module")
def style(repository):
    return sdjax.load_condition(repository, subfolder="models", weight_name="one.safetensors")


def picture(seed=0, size=(40, 30)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def half(side):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64) if side == "left" else (32, 0, 64, 64))
    return mask


def test_pictures_scales_and_masks_change_the_picture_and_compile_nothing(pipe, style, compilations):
    first = pipe("a", **HOW, conditions=[style(picture())]).images
    del compilations[:]
    found = [
        pipe("a", **HOW, conditions=[style(picture(*seed), **how)]).images
        for *seed, how in (
            (1, {}),
            (0, {"scale": 0.5}),
            (0, {"scale": [1, 1, 0, {"up": 1}]}),
            (0, {"scale": {"mid": 2.0, "up": {"block_0": [0, 1]}}}),
            (0, {"end": 0.5}),
            (0, {"mask": half("left")}),
            (0, {"mask": half("right")}),
            (0, {"scale": 0}),
        )
    ]
    assert not compilations
    assert len({image.tobytes() for image in [first, *found]}) == 9
    np.testing.assert_allclose(found[-1], pipe("a", **HOW).images, atol=1e-5)  # at 0 it is not looked at


@pytest.mark.long
def test_pictures_that_share_a_softmax(pipe, style, compilations):
    """Twice the same is as once; others are beside them in a batch; and there may be no more than 8."""
    a, b = picture(), picture(1)
    together = pipe(list("abc"), **HOW, conditions=[[style([a, a])], [style([a, b])], [style(b)]]).images
    looks = [style(a), style([a, b]), style(b)]
    for k, (look, prompt) in enumerate(zip(looks, "abc")):
        alone = pipe(prompt, **HOW | {"seed": 1 + k}, conditions=[look]).images[0]
        np.testing.assert_allclose(together[k], alone, atol=2e-5)
    del compilations[:]
    pipe("b", **HOW, conditions=[style([b, a], scale=0.3)])
    assert not compilations
    for pictures in ([], [a] * 9):
        with pytest.raises(InputError, match="looks at 1 to 8 pictures at once, not"):
            style(pictures)


@pytest.mark.long
def test_each_picture_of_a_batch_looks_at_its_own(pipe, style, repository):
    other = sdjax.load_condition(repository / "models" / "other.safetensors")
    looks = [(style(picture(), scale=0.7), other(picture(1), mask=half("left"))), (style(picture(2)),), ()]
    together = pipe(["a", "b", "c"], **HOW, conditions=looks).images
    for k, (own, prompt) in enumerate(zip(looks, "abc")):
        alone = pipe(prompt, **HOW | {"seed": 1 + k}, conditions=own).images[0]
        np.testing.assert_allclose(together[k], alone, atol=2e-5)


@pytest.mark.long
def test_the_command_line(small, repository, style, pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture().save("seen.png")
    text = f"{repository}/models/one.safetensors:seen.png:0.7:0-0.5"
    command = ["generate", "a", "--model", str(small), "--steps", "4", "--guidance-scale", "3", "--seed", "1"]
    assert main([*command, "--control", text, "-o", "one.png"]) == 0
    expected = np.round(pipe("a", **HOW, conditions=[style(picture(), scale=0.7, end=0.5)]).images[0] * 255)
    assert np.abs(np.asarray(Image.open("one.png"), int) - expected).max() <= 1
    net = f"{repository}/models/one.safetensors"
    assert read_settings("one.png")["conditions"] == [{"net": net, "image": "seen.png", "scale": 0.7, "end": 0.5}]


@given(st.floats(-2, 2))
def test_a_number_counts_in_every_layer(scale):
    assert by_layer(scale, SD1) == [scale] * 16
    assert by_layer({"down": scale, "mid": scale, "up": scale}, SD1) == [scale] * 16


def test_scales_by_block_are_those_of_diffusers():
    """InstantStyle's, as its authors write it: layout and style of Stable Diffusion XL."""
    layers = tuple(XL.attentions)
    scale = {"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}}
    expected = {"down_blocks_2/attentions_1", "up_blocks_0/attentions_1"}
    assert {name for name, each in zip(layers, by_layer(scale, layers)) if each} == expected


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ({"down": {"block_3": 1}}, "no attention in down block_3"),
        ({"middle": 1}, "no attention in middle"),
        ({"up": {"block_1": [1, 2]}}, "2 scales were given to up block_1, which has 3"),
    ],
)
def test_blocks_that_there_are_not(scale, message):
    with pytest.raises(InputError, match=message):
        by_layer(scale, SD1)


def test_an_encoder_lies_beside_or_with_those_of_the_other_models(repository, style):
    assert style.encoder.module.config.projection_dim == 6
    xl = sdjax.load_condition(repository / "sdxl_models" / "one_vit-h.safetensors")
    assert xl.encoder.module.config.projection_dim == 6
    given = repository / "sdxl_models" / "image_encoder"
    with pytest.raises(InputError, match=r"reads 6 features of a picture, .* gives 10 .*sdxl_models"):
        sdjax.load_condition(repository / "models" / "one.safetensors", image_encoder=given)


def test_what_cannot_be_looked_with(repository, style, pipe, tmp_path):
    save_file(plain_adapter(CHANNELS, 8), tmp_path / "alone.safetensors")
    with pytest.raises(InputError, match=r"has no image encoder beside it: say where"):
        sdjax.load_condition(tmp_path / "alone.safetensors")
    write_encoder(tmp_path / "image_encoder")
    face = plain_adapter(CHANNELS, 8) | {"image_proj.proj.2.bias": np.zeros(3, np.float32)}
    save_file(face, tmp_path / "face.safetensors")
    with pytest.raises(InputError, match="is a FaceID adapter"):
        sdjax.load_condition(tmp_path / "face.safetensors")
    del face["ip_adapter.1.to_k_ip.weight"]
    del face["image_proj.proj.2.bias"]
    save_file(face, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match="does not hold a to_k_ip and a to_v_ip"):
        sdjax.load_condition(tmp_path / "half.safetensors")
    for channels, width, message in (([8] * 16, 8, "16 layers of cross-attention, not 4"), ([4] * 4, 8, "layer 0 is")):
        save_file(plain_adapter(channels, width), tmp_path / "other.safetensors")
        with pytest.raises(InputError, match=f"made for another model: .*{message}"):
            prepared(pipe, sdjax.load_condition(tmp_path / "other.safetensors")(picture()))
    with pytest.raises(InputError, match="mode=prompt is of ControlNets and T2I adapters"):
        prepared(pipe, read_unit(f"{repository}/models/one.safetensors:{saved(tmp_path)}:mode=prompt"))
    with pytest.raises(InputError, match="3 scales were given"):
        prepared(pipe, style(picture(), scale=[1, 2, 3]))
    with pytest.raises(InputError, match=r"has shape \(8, 8, 4\)"):
        style(np.zeros((8, 8, 4), np.float32))
    with pytest.raises(InputError, match="scale of a hint"):
        style(picture(), scale={"up": {"block_0": {"deep": 1}}})


def prepared(pipe, condition):
    return pipe.prepare([Picture("a", num_inference_steps=4, conditions=(condition,))])


def saved(folder):
    picture().save(folder / "seen.png")
    return folder / "seen.png"


BLOCKS = st.sampled_from(["down", "mid", "up", "block_0", "block_7", ""])
SCALES = st.recursive(st.floats(), lambda inner: st.dictionaries(BLOCKS, inner, max_size=3) | st.lists(inner))


@given(SCALES)
def test_any_scale_is_one_or_refused(scale):
    try:
        unit = Unit("net", "a.png", scale)
    except InputError:
        return
    try:
        by_layer(unit.scale if not isinstance(scale, list) else scale[0], SD1)
    except InputError:
        return


CODE = """
import sys, sdjax
net = sdjax.load_condition(sys.argv[1])
print(net.name, net.encoder.module.config.projection_dim)
"""


@pytest.mark.long
def test_a_file_of_a_repository_on_the_hub(repository, hub, tmp_path):
    endpoint, served = hub("h94/IP-Adapter", repository)
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"SDJAX_CACHE": str(tmp_path / "sdjax"), "no_proxy": "*"}
    name = "h94/IP-Adapter/sdxl_models/one_vit-h.safetensors"
    run = subprocess.run([sys.executable, "-c", CODE, name], env=environment, capture_output=True, text=True)
    assert run.stdout.split() == [name, "6"], run.stderr
    assert "sdxl_models/image_encoder/model.safetensors" not in served  # which does not fit
    assert "models/image_encoder/model.safetensors" in served
