"""Units of A1111's ControlNet extension, with the client of that name; and models that enlarge."""

import time
from dataclasses import fields

import numpy as np
import pytest
import requests
import webuiapi
from PIL import Image
from safetensors.numpy import save_file
from serving import NET, SLOTS, edges_net, served
from upscaling_files import compact

from sdjax.annotators import annotate
from sdjax.errors import InputError, SdjaxError
from sdjax.models import ControlNetUnionConfig, ControlNetUnionModel
from sdjax.pipeline import ConditionNet
from sdjax.pipeline.hints import Hint
from sdjax.server.a1111_extras import enlarged, enlarging_of
from sdjax.server.a1111_lists import upscalers
from sdjax.server.controlnet import hints_of
from sdjax.server.journal import Journal, KeptHint
from sdjax.server.limits import Limits
from sdjax.server.nets import Nets
from sdjax.server.work import Job, units_of
from sdjax.settings import Picture
from sdjax.upscaling import UpscalerFolder, enlarge, open_upscaler

SMALL = {"width": 64, "height": 64, "steps": 3, "sampler_name": "Euler"}


def photo(size=(64, 48), seed=0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


@pytest.fixture(scope="module")
def edges():
    return edges_net()


@pytest.fixture(scope="module")
def nets(edges):
    return Nets({"edges": lambda: edges})


@pytest.fixture(scope="module")
def server(pipe, edges):
    with served(pipe, nets=[edges], upload=256 * 256) as running:
        yield running


@pytest.fixture(scope="module")
def api(server):
    host, _, port = server.url.removeprefix("http://").partition(":")
    return webuiapi.WebUIApi(host=host, port=int(port), sampler="Euler", steps=3)


def hint(nets, seen=None, fields=None, **unit):
    own = {"image": seen and webuiapi.raw_b64_img(seen), "model": "Edges [abc]", **unit}
    request = {"alwayson_scripts": {"ControlNet": {"args": [own]}}, **(fields or {})}
    (found,) = hints_of(request, None, nets, Limits())
    return found


def test_units_are_read_as_the_extension_reads_them(nets):
    image = photo()
    found = hint(nets, image, weight=0.5, guidance_start=0.1, guidance_end=0.7, control_mode=2, resize_mode=0)
    assert (found.scale, found.start, found.end, found.mode, found.fit) == (0.5, 0.1, 0.7, "control", "stretch")
    usual = hint(nets, image)
    assert (usual.net.name, usual.mode, usual.fit) == ("edges", "balanced", "crop")
    np.testing.assert_array_equal(np.asarray(usual.image), np.asarray(image))
    grey = np.asarray(hint(nets, image, module="invert", resize_mode="Resize and Fill").image)
    np.testing.assert_array_equal(grey, annotate("invert", np.asarray(image), 512))
    perfect = hint(nets, image, {"width": 128, "height": 128}, module="threshold", threshold_a=50, pixel_perfect=True)
    np.testing.assert_array_equal(
        np.asarray(perfect.image), annotate("threshold", np.asarray(image), 128, threshold=50)
    )
    masked = hint(nets, image, module="inpaint_only", mask=webuiapi.raw_b64_img(Image.new("L", image.size, 255)))
    assert masked.seen_mask.getextrema() == (255, 255)
    assert not hints_of({"alwayson_scripts": {"controlnet": {"args": [{"enabled": False, "model": "x"}]}}}, None, nets,
                        Limits())  # fmt: skip


def test_a_unit_says_what_its_hint_is_for_a_union():
    """As webuiapi sends it: the names of the control types; units for other nets say "Unknown"."""
    own = dict.fromkeys(("num_trans_channel", "num_proj_channel"), NET["block_out_channels"][0])
    own |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 56}
    config = ControlNetUnionConfig.from_dict(NET | own | {"addition_embed_type": "text_time"})
    nets = Nets({"edges": lambda: ConditionNet("edges", ControlNetUnionModel(config), {})})
    for name, kind in {"OpenPose": "openpose", "Soft Edge": "softedge", "Hard Edge": "canny", "mlsd": "canny"}.items():
        assert hint(nets, photo(), union_control_type=name).kind == kind
    with pytest.raises(InputError, match="several kinds of hints"):
        hint(nets, photo(), union_control_type="Unknown")
    with pytest.raises(InputError, match="kind"):
        hint(nets, photo(), union_control_type="Tile")  # which nets of the first release do not know


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ({"model": "/etc/passwd"}, "there is no net"),
        ({"module": "openpose"}, "there is no module"),
        ({"image": None}, "needs an image"),
        ({"image": "http://127.0.0.1/"}, "fetches nothing"),
        ({"weight": "much"}, "weight"),
        ({"guidance_start": 0.9, "guidance_end": 0.1}, "start < end"),
        ({"control_mode": 7}, "control_mode"),
        ({"resize_mode": []}, "resize_mode"),
        ({"module": "invert", "processor_res": 10**6}, "processor_res"),
        ({"module": "threshold", "threshold_a": 10**6}, "threshold"),
        ({"hr_option": "Low res only"}, "hr_option"),
        ({"mask": webuiapi.raw_b64_img(Image.new("L", (8, 8)))}, "inpaint"),
    ],
)
def test_units_that_cannot_be_followed_are_refused(nets, unit, expected):
    with pytest.raises(SdjaxError, match=expected):
        hint(nets, photo(), **unit)


@pytest.mark.long
def test_lists_and_detect(api, server):
    assert api.has_controlnet and api.controlnet_version() == 2 and api.controlnet_model_list() == ["edges"]
    assert {"none", "canny", "inpaint_only"} <= set(api.controlnet_module_list())
    assert "dw_openpose_full" not in api.controlnet_module_list()  # which needs files
    (made,) = api.controlnet_detect([photo()], "invert").images
    np.testing.assert_array_equal(np.asarray(made), annotate("invert", np.asarray(photo()), 512))
    answer = requests.post(f"{server.url}/controlnet/detect", json={"controlnet_module": "none"})
    assert answer.status_code == 422 and "1 to 16 pictures" in answer.json()["detail"]


@pytest.mark.long
def test_a_journal_keeps_hints(pipe, nets, tmp_path):
    journal = Journal(tmp_path / "journal.sqlite")
    asked = Picture("a star", conditions=(hint(nets, photo(), weight=0.3), hint(nets, photo(seed=1))))
    journal.accept(Job("me", units_of("small", [asked], pipe.facts, Limits()), time.time() + 9, id="kept"))
    (kept,) = journal.left()
    assert KeptHint._fields == tuple(field.name for field in fields(Hint))
    for before, after in zip(asked.conditions, [each.opened(nets) for each in kept.pictures[0].conditions]):
        assert (before.scale, before.mode, before.net.name) == (after.scale, after.mode, after.net.name)
        np.testing.assert_array_equal(np.asarray(before.image), np.asarray(after.image))
    journal.close()


def test_models_that_enlarge(tmp_path):
    save_file(compact(), tmp_path / "twice.safetensors")
    folder, picture = UpscalerFolder(tmp_path), photo((12, 8))
    assert "twice" in [each["name"] for each in upscalers(folder)]
    fields = {"upscaler_1": "twice", "upscaling_resize": 2}
    wanted = enlarging_of(fields, webuiapi.raw_b64_img(picture), Limits(), folder)
    expected = enlarge(open_upscaler(tmp_path / "twice.safetensors"), picture, (24, 16))
    assert enlarged(wanted) == webuiapi.raw_b64_img(expected)
    with pytest.raises(SdjaxError, match="upscaler_1 must be one of None, Lanczos, Nearest, twice"):
        enlarging_of({"upscaler_1": "thrice"}, webuiapi.raw_b64_img(picture), Limits(), folder)


@pytest.mark.long
def test_pictures_with_units_are_the_librarys(api, pipe, edges):
    """Beside one without, and in both of img2img's ways."""
    unit = webuiapi.ControlNetUnit(image=photo(), module="invert", model="edges", weight=0.8, guidance_end=0.7)
    seen = Image.fromarray(annotate("invert", np.asarray(photo()), 512))
    ours = {"prompt": "a star", "negative_prompt": "", "seed": 2, "sampler": "Euler", "num_inference_steps": 3,
            "guidance_scale": 7.0, "rng": "philox"}  # fmt: skip
    result = api.txt2img(prompt="a star", seed=2, controlnet_units=[unit], **SMALL)
    follows = Picture(**ours, conditions=(edges(seen, scale=0.8, end=0.7, fit="fill"),))
    drawn = np.asarray(pipe.draw([follows] * SLOTS).images[0])
    np.testing.assert_array_equal(np.asarray(result.image), drawn)
    assert "edges" in result.info["infotexts"][0]
    image = photo((64, 64), 3)
    over = api.img2img(
        [image], prompt="a star", seed=2, denoising_strength=0.6, **SMALL,
        controlnet_units=[webuiapi.ControlNetUnit(model="edges", resize_mode="Just Resize")],
    )  # fmt: skip
    follows = Picture(**ours, image=image, strength=0.6, conditions=(edges(image),))
    np.testing.assert_array_equal(np.asarray(over.image), np.asarray(pipe.draw([follows] * SLOTS).images[0]))
