"""A1111's API, with the client of that name and with requests as Open WebUI sends them."""

import base64
import io
import json
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import requests
import webuiapi
from PIL import Image
from serving import SLOTS, served

from sdjax.server.a1111_wishes import filled
from sdjax.settings import Picture

PNG = webuiapi.raw_b64_img(Image.new("RGB", (8, 8)))
SMALL = {"width": 64, "height": 64, "steps": 3}


@pytest.fixture(scope="module")
def server(pipe):
    with served(pipe, pixels=128 * 128, upload=256 * 256, steps=60, pictures=4) as running:
        yield running


@pytest.fixture(scope="module")
def api(server):
    host, _, port = server.url.removeprefix("http://").partition(":")
    return webuiapi.WebUIApi(host=host, port=int(port), sampler="Euler", steps=3)


@pytest.fixture(scope="module")
def url(server):
    return f"{server.url}/sdapi/v1"


def drawn(pipe, **settings) -> np.ndarray:
    how = {"num_inference_steps": 3, "guidance_scale": 7.0, "rng": "philox", **settings}
    return np.asarray(pipe.draw([Picture(**how)] * SLOTS).images[0])


def gradient() -> Image.Image:
    return Image.linear_gradient("L").resize((64, 64)).convert("RGB")


def half() -> Image.Image:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    return mask


def test_text_to_image(api, pipe):
    result = api.txt2img(prompt="a red heart", negative_prompt="blue", seed=5, batch_size=2, n_iter=2, **SMALL)
    assert len(result.images) == 4 and result.info["all_seeds"] == [5, 6, 7, 8]
    assert result.info["sampler_name"] == "Euler" and "Steps: 3, Sampler: Euler" in result.info["infotexts"][0]
    assert result.parameters["seed"] == 5
    settings = {"prompt": "a red heart", "negative_prompt": "blue", "sampler": "Euler", "seed": 6}
    np.testing.assert_array_equal(np.asarray(result.images[1]), drawn(pipe, **settings))
    again = api.png_info(result.image)
    assert again.info == result.info["infotexts"][0] and again.parameters["Seed"] == "5"


@pytest.mark.long
def test_samplers_and_schedule_types_are_a1111s(api, pipe):
    result = api.txt2img(
        prompt="a star", seed=1, sampler_name="DPM++ 2M", scheduler="Exponential", subseed=3, subseed_strength=0.25,
        override_settings={"CLIP_stop_at_last_layers": 2, "randn_source": "CPU"}, **SMALL,
    )  # fmt: skip
    expected = drawn(
        pipe, prompt="a star", negative_prompt="", seed=1, sampler="DPM++ 2M", spacing="exponential", subseed=3,
        subseed_strength=0.25, clip_skip=1, rng="torch",
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(result.image), expected)


@pytest.mark.long
def test_second_pass(api, pipe):
    result = api.txt2img(
        prompt="a star", seed=1, enable_hr=True, hr_scale=1, hr_upscaler="Latent", denoising_strength=0.5,
        hr_second_pass_steps=2, **SMALL,
    )  # fmt: skip
    expected = drawn(
        pipe,
        prompt="a star",
        negative_prompt="",
        seed=1,
        sampler="Euler",
        hires_scale=1.0,
        hires_strength=0.5,
        hires_steps=2,
    )
    np.testing.assert_array_equal(np.asarray(result.image), expected)
    assert result.info["denoising_strength"] == 0.5


@pytest.mark.long
def test_image_to_image(api, pipe):
    image, settings = gradient(), {"prompt": "a star", "seed": 2, "sampler_name": "Euler", **SMALL}
    ours = {"prompt": "a star", "negative_prompt": "", "seed": 2, "sampler": "Euler"}
    over = api.img2img(images=[image], denoising_strength=0.6, **settings)
    np.testing.assert_array_equal(np.asarray(over.image), drawn(pipe, image=image, strength=0.6, **ours))
    masked = api.img2img(
        images=[image], mask_image=half(), inpainting_fill=1, inpaint_full_res=False, mask_blur=2, **settings
    )
    expected = drawn(pipe, image=image, mask_image=half(), mask_blur=2.0, strength=0.75, **ours)
    np.testing.assert_array_equal(np.asarray(masked.image), expected)
    # as the client sends it where nobody says more: only the masked part, filled
    only = np.asarray(api.img2img(images=[image], mask_image=half(), inpainting_mask_invert=1, **settings).image)
    assert (only[:, :8] == np.asarray(image)[:, :8]).all() and (only[:, 40:] != np.asarray(image)[:, 40:]).any()
    wide = api.img2img(images=[Image.new("RGB", (100, 50), "red")], resize_mode=2, **settings)
    assert wide.image.size == (64, 64)


def test_a_masked_part_is_filled_with_what_lies_around_it():
    image = Image.new("RGB", (64, 64), "red")
    image.paste((0, 0, 255), (16, 16, 48, 48))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    found = np.asarray(filled(image, mask))
    assert (np.abs(found.astype(int) - [255, 0, 0]) <= 3).all()


@pytest.mark.long
def test_extras(api):
    image = gradient()
    assert api.extra_single_image(image, upscaler_1="Lanczos", upscaling_resize=3).image.size == (192, 192)
    batch = api.extra_batch_images([image, image], upscaler_1="Nearest", upscaling_resize=2)
    assert [each.size for each in batch.images] == [(128, 128)] * 2
    fitted = api.extra_single_image(
        image, resize_mode=1, upscaler_1="Lanczos", upscaling_resize_w=50, upscaling_resize_h=30
    )
    assert fitted.image.size == (50, 30)


def test_lists(api, url):
    assert {"Euler a", "DPM++ 2M"} <= {sampler["name"] for sampler in api.get_samplers()}
    assert {"Automatic", "Karras"} <= {scheduler["label"] for scheduler in api.get_schedulers()}
    assert api.util_get_model_names() == ["other", "small"] and api.util_get_current_model() == "small"
    api.util_set_model("othr")
    assert api.util_get_current_model() == "other"
    api.set_options({"sd_model_checkpoint": "small"})
    assert api.get_embeddings()["loaded"] == {} and api.get_memory()["ram"]["total"] > 0
    assert [upscaler["name"] for upscaler in api.get_upscalers()] == ["None", "Lanczos", "Nearest"]
    for listed in (
        api.get_sd_vae, api.get_loras, api.get_hypernetworks, api.get_face_restorers, api.get_realesrgan_models,
        api.get_prompt_styles,
    ):  # fmt: skip
        assert listed() == []
    assert api.get_latent_upscale_modes() == [{"name": "Latent"}] and api.get_cmd_flags()["api"]
    assert api.get_scripts() == {"txt2img": [], "img2img": []} and not api.has_controlnet
    assert api.refresh_checkpoints() == {} and api.get_progress()["progress"] == 0
    with closing(requests.get(f"{url}/progress?skip_current_image=true")) as answer:
        assert answer.json()["state"]["job_count"] == 0


@pytest.mark.long
def test_progress_and_interrupt(api):
    found = {}

    def ask():
        found["result"] = api.txt2img(prompt="a ring", batch_size=4, width=64, height=64, steps=60)

    thread = threading.Thread(target=ask)
    thread.start()
    until = time.time() + 30
    while not (progress := api.get_progress())["state"]["sampling_step"] and time.time() < until:
        time.sleep(0.01)
    assert 0 < progress["progress"] < 1 and progress["state"]["sampling_steps"] == 60
    assert api.interrupt() == {} and api.skip() == {}
    thread.join(30)
    assert len(found["result"].images) < 4 and len(found["result"].info["all_seeds"]) == 4


def test_requests_as_open_webui_sends_them(url, pipe):
    options = requests.get(f"{url}/options").json()
    titles = [(model["title"], model["model_name"]) for model in requests.get(f"{url}/sd-models").json()]
    assert (options["sd_model_checkpoint"],) * 2 in titles
    assert requests.post(f"{url}/options", json={**options, "sd_model_checkpoint": "small"}).ok
    data = {"prompt": "a ring", "batch_size": 1, "width": 64, "height": 64, "steps": 3, "negative_prompt": "red"}
    answer = requests.post(f"{url}/txt2img", json=data, headers={"authorization": "Basic bm9ib2R5Og=="}).json()
    image = Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))
    info = json.loads(answer["info"])
    expected = drawn(
        pipe, prompt="a ring", negative_prompt="red", seed=info["seed"], sampler="Euler", guidance_scale=None
    )
    np.testing.assert_array_equal(np.asarray(image), expected)


@pytest.mark.parametrize(
    ("where", "body", "status", "expected"),
    [
        ("txt2img", {"sampler_name": "Eulr"}, 404, "Sampler not found"),
        ("txt2img", {"scheduler": "Karas"}, 404, "Scheduler not found"),
        ("txt2img", {"override_settings": {"sd_model_checkpoint": "x"}}, 404, "no model 'x'"),
        ("txt2img", {"restore_faces": True}, 400, "restore_faces"),
        ("txt2img", {"script_name": "xyz plot"}, 400, "script_name"),
        ("txt2img", {"alwayson_scripts": {"ControlNet": {"args": [{"enabled": True}]}}}, 422, "names its model"),
        ("txt2img", {"alwayson_scripts": {"ADetailer": {"args": [{"ad_model": "x"}]}}}, 422, "no script"),
        ("txt2img", {"batch_size": 4, "n_iter": 4}, 400, "pictures"),
        ("txt2img", {"width": 4096, "height": 4096}, 400, "pixels at most"),
        ("txt2img", {"seed": "many"}, 400, "seed"),
        ("txt2img", {"cfg_scale": "x"}, 400, "guidance_scale"),
        ("txt2img", {"override_settings": "x"}, 400, "object"),
        ("img2img", {}, 404, "Init image not found"),
        ("img2img", {"init_images": ["http://localhost/"]}, 400, "fetches nothing"),
        ("img2img", {"init_images": ["!!"]}, 400, "no base64"),
        ("img2img", {"init_images": [base64.b64encode(b"GIF89a").decode()]}, 400, "no picture"),
        ("interrogate", {}, 404, "describes"),
        ("png-info", {"image": ""}, 400, "no picture"),
        ("options", {"randn_source": []}, 400, "randn_source"),
        ("extra-single-image", {"image": PNG, "upscaler_1": [1]}, 404, "upscaler_1"),
        ("options", {"sd_model_checkpoint": "../x"}, 404, "no model"),
        ("nothing", {}, 404, "Not Found"),
    ],
)
def test_bad_requests(url, where, body, status, expected):
    answer = requests.post(f"{url}/{where}", json={"prompt": "a", **body} if where == "txt2img" else body)
    assert answer.status_code == status and expected in answer.json()["detail"]
    assert answer.json().keys() == {"error", "detail", "body", "errors"}
