"""`sdjax serve`: the pictures of the library for the clients of OpenAI's API, and closed doors."""

import asyncio
import base64
import io
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import openai
import pytest
from PIL import Image
from serving import SLOTS, served

from sdjax.cli import main
from sdjax.errors import InputError
from sdjax.pipeline.previews import Previews
from sdjax.server.doors import TOGETHER, Doors
from sdjax.server.fields import settings_of
from sdjax.server.limits import Limits
from sdjax.server.refusals import Refused
from sdjax.server.warm import warm, warm_of
from sdjax.server.work import Job, units_of
from sdjax.settings import Picture

FEW = {"num_inference_steps": 3}


@pytest.fixture(scope="module")
def server(pipe):
    with served(pipe, pixels=128 * 128, upload=256 * 256, body=2**20, steps=40, pictures=4) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def drawn(pipe, **settings) -> np.ndarray:
    """The library's picture, in a batch of the server's size."""
    return np.asarray(pipe.draw([Picture(**{**FEW, **settings})] * SLOTS).images[0])


def file_of(image: Image.Image) -> tuple[str, bytes]:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "picture.png", file.getvalue()


def gradient() -> Image.Image:
    return Image.linear_gradient("L").resize((64, 64)).convert("RGB")


def test_pictures_are_the_librarys(client, pipe):
    """Of several users in one batch, each with settings of its own, to the bit."""
    wishes = [
        {"prompt": "a red heart", "seed": 7, "sampler": "heun", "guidance_scale": 3.0},
        {"prompt": "a star", "seed": 2**63, "sampler": "euler_ancestral", "num_inference_steps": 5},
        {"prompt": "a ring", "seed": 1, "sampler": "DPM++ 2M Karras", "negative_prompt": "blue"},
    ]

    def ask(wish):
        own = {name: value for name, value in wish.items() if name != "prompt"}
        return client.images.generate(prompt=wish["prompt"], extra_body={**FEW, **own})

    with ThreadPoolExecutor(3) as pool:
        for wish, response in zip(wishes, pool.map(ask, wishes)):
            np.testing.assert_array_equal(decoded(response.data[0].b64_json), drawn(pipe, **wish))


def test_a_short_request_does_not_wait_for_a_long_one(client, pipe, server):
    """It takes the place of a picture that is done, beside one that is under way, and neither changes by that."""
    long = {"prompt": "a ring", "seed": 1, "num_inference_steps": 40, "sampler": "euler"}
    short = {"prompt": "a star", "seed": 2, "num_inference_steps": 3, "sampler": "ddim", "guidance_scale": 2.0}
    done = []

    def ask(wish):
        own = {name: value for name, value in wish.items() if name != "prompt"}
        picture = decoded(client.images.generate(prompt=wish["prompt"], extra_body=own).data[0].b64_json)
        done.append(wish)
        return picture

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, long)
        while not server.engine.running:
            time.sleep(0.001)
        others = [pool.submit(ask, short) for _ in range(3)]
        np.testing.assert_array_equal(first.result(), drawn(pipe, **long))
        for other in others:
            np.testing.assert_array_equal(other.result(), drawn(pipe, **short))
    assert done[-1] is long


def test_several_pictures_count_their_seeds_up(client, pipe):
    response = client.images.generate(prompt="a ring", n=3, size="64x64", extra_body={**FEW, "seed": 5})
    assert [each.seed for each in response.data] == [5, 6, 7] and response.size == "64x64"
    np.testing.assert_array_equal(decoded(response.data[2].b64_json), drawn(pipe, prompt="a ring", seed=7))
    unseeded = [client.images.generate(prompt="a ring", extra_body=FEW).data[0].seed for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_models(client):
    assert [model.id for model in client.models.list()] == ["small", "other"]
    assert client.models.retrieve("other").id == "other"
    with pytest.raises(openai.NotFoundError, match="there are: small, other"):
        client.models.retrieve("/etc/passwd")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_formats_and_addresses(client, kind):
    response = client.images.generate(
        prompt="a ring", output_format=kind, output_compression=50, response_format="url", extra_body={**FEW, "seed": 3}
    )
    with urlopen(response.data[0].url) as answer:
        assert answer.headers["content-type"] == f"image/{kind}"
        image = Image.open(io.BytesIO(answer.read()))
    assert image.format.lower() == kind and image.size == (64, 64)
    with urlopen(response.data[0].url.rpartition("/")[0]) as answer:
        told = json.load(answer)
    assert told["done"] and told["results"]["0"]["seed"] == 3 and told["results"]["0"]["batch_size"] == SLOTS


@pytest.mark.long
def test_a_stream_shows_pictures_on_the_way(client, pipe):
    events = list(
        client.images.generate(
            prompt="a heart",
            stream=True,
            partial_images=2,
            extra_body={"num_inference_steps": 6, "seed": 4, "sampler": "euler"},
        )
    )
    kinds = [event.type.rpartition(".")[2] for event in events]
    assert kinds == ["partial_image", "partial_image", "completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    shown, how = [], {"prompt": "a heart", "seed": 4, "num_inference_steps": 6, "sampler": "euler"}
    pipe.draw(
        [Picture(**how)] * SLOTS,
        previews=Previews({2, 4}, lambda _, images: shown.append(np.asarray(images[0]))),
    )
    for event, expected in zip(events, [*shown, drawn(pipe, **how)]):
        np.testing.assert_array_equal(decoded(event.b64_json), expected)


@pytest.mark.long
def test_edits(client, pipe):
    """A mask is transparent where it is painted, an image without one is painted over, and lists are of one image."""
    image, how = gradient(), {**FEW, "seed": 9}
    mask = Image.new("RGBA", image.size, "black")
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    white = Image.new("L", image.size, 0)
    white.paste(255, (0, 0, 32, 64))
    edited = client.images.edit(image=file_of(image), mask=file_of(mask), prompt="a star", extra_body=how)
    expected = drawn(pipe, prompt="a star", image=image, mask_image=white, seed=9)
    np.testing.assert_array_equal(decoded(edited.data[0].b64_json), expected)
    holed = image.convert("RGBA")
    holed.paste((255, 255, 255, 0), (0, 0, 32, 64))
    assert decoded(client.images.edit(image=file_of(holed), prompt="a star", extra_body=how).data[0].b64_json).any()
    over = client.images.edit(image=[file_of(image)], prompt="a star", extra_body={**how, "strength": 0.5})
    expected = drawn(pipe, prompt="a star", image=image, seed=9, strength=0.5)
    np.testing.assert_array_equal(decoded(over.data[0].b64_json), expected)
    *_, last = client.images.edit(
        image=file_of(image), prompt="a star", stream=True, partial_images=1, extra_body={**how, "strength": 0.5}
    )
    assert last.type == "image_edit.completed"
    np.testing.assert_array_equal(decoded(last.b64_json), expected)
    varied = client.images.create_variation(image=file_of(image), n=2, extra_body=how)
    assert len(varied.data) == 2


def post(url: str, body: bytes, **headers) -> tuple[int, dict, dict]:
    request = Request(url, body, {"content-type": "application/json", **headers})
    try:
        with urlopen(request) as answer:
            return answer.status, json.load(answer), dict(answer.headers)
    except HTTPError as error:
        return error.code, json.load(error), dict(error.headers)


BAD = {
    "no JSON": (b"{", "no JSON"),
    "no object": (b"[]", "JSON object"),
    "no number": (b'{"prompt": "a", "seed": NaN}', "NaN"),
    "long number": (b'{"prompt": "a", "guidance_scale": ' + b"9" * 500 + b"}", "digits"),
    "no prompt": (b"{}", "prompt is missing"),
    "unknown field": (b'{"prompt": "a", "stepz": 3}', "did you mean 'steps'"),
    "unknown model": (b'{"prompt": "a", "model": "/etc/passwd"}', "there are: small, other"),
    "unknown sampler": (b'{"prompt": "a", "sampler": "eulr"}', "did you mean euler"),
    "no size": (b'{"prompt": "a", "size": "large"}', "WIDTHxHEIGHT"),
    "odd size": (b'{"prompt": "a", "size": "65x64"}', "multiple of 4"),
    "large size": (b'{"prompt": "a", "size": "8192x64"}', "16384 pixels at most"),
    "enlarged": (b'{"prompt": "a", "hires_scale": 16}', "enlarged 16 times"),
    "many steps": (b'{"prompt": "a", "steps": 5000}', "40 at most"),
    "many levels": (b'{"prompt": "a", "sigmas": [' + b"1," * 99 + b"1]}", "40 at most"),
    "many pictures": (b'{"prompt": "a", "n": 5}', "from 1 to 4"),
    "long prompt": (b'{"prompt": "' + b"a " * 9000 + b'"}', "8000 at most"),
    "format": (b'{"prompt": "a", "output_format": "tiff"}', "one of png, jpeg, webp"),
    "background": (b'{"prompt": "a", "background": "transparent"}', "background"),
    "seed": (b'{"prompt": "a", "seed": -1}', "seed must be"),
    "a path": (b'{"prompt": "a", "image": "/etc/passwd"}', "not taken here"),
    "a depth map": (b'{"prompt": "a", "depth_map": "/etc/passwd"}', "not taken here"),
    "hints": (b'{"prompt": "a", "conditions": [{"net": "canny", "image": "/etc/passwd"}]}', "not taken here"),
    "lora": (b'{"prompt": "a <lora:x:1>"}', "LoRA"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_answered_in_one_sentence(server, name):
    body, expected = BAD[name]
    status, answer, _ = post(f"{server.url}/v1/images/generations", body)
    error = answer["error"]
    assert status == (404 if name == "unknown model" else 400) and expected in error["message"]
    assert "\n" not in error["message"] and error["type"] and {"param", "code"} <= error.keys()


@pytest.mark.parametrize(
    ("image", "mask", "expected"),
    [
        (b"no picture", None, "no picture that can be read"),
        (file_of(Image.new("L", (300, 300)))[1], None, "more than 65536"),
        (file_of(gradient())[1], file_of(Image.new("L", (32, 32), 255))[1], "as large as the image"),
        (file_of(gradient())[1], file_of(Image.new("L", (64, 64)))[1], "black"),
        (file_of(gradient())[1][:-40], None, "no picture"),
    ],
    ids=["text", "large", "another size", "black mask", "cut short"],
)
def test_bad_pictures_are_refused(client, image, mask, expected):
    files = {"mask": ("m.png", mask)} if mask else {}
    with pytest.raises(openai.BadRequestError, match=expected):
        client.images.edit(image=("a.png", image), prompt="a", **files)
    with pytest.raises(openai.BadRequestError, match="fetches nothing"):
        client.post(
            "/images/edits",
            body={"prompt": "a", "images": [{"image_url": "http://169.254.169.254/"}]},
            cast_to=object,
        )


def test_doors(pipe, server):
    status, answer, _ = post(f"{server.url}/v1/images/generations", b" " * (2**20 + 1))
    assert status == 413 and "bytes at most" in answer["error"]["message"]
    status, _, _ = post(f"{server.url}/v1/images/generations", b"{}", origin="https://example.com")
    assert status == 403
    with served(pipe, ("secret",), queue=1) as closed:
        url = f"{closed.url}/v1/images/generations"
        status, answer, headers = post(url, b"{}")
        assert status == 401 and answer["error"]["code"] == "invalid_api_key" and "Basic" in headers["www-authenticate"]
        for given in ("Bearer secret", f"Basic {base64.b64encode(b'me:secret').decode()}"):
            assert post(url, b"{}", authorization=given)[0] == 400
        for given in ("Bearer other", "Basic !", f"Basic {base64.b64encode(b'secret:').decode()}", "secret"):
            assert post(url, b"{}", authorization=given)[0] == 401
        with urlopen(f"{closed.url}/health") as health:
            assert json.load(health)["status"] == "ok"
        status, answer, headers = post(url, b'{"prompt": "a", "n": 2}', authorization="Bearer secret")
        assert status == 429 and int(headers["retry-after"]) > 0 and "queue is full" in answer["error"]["message"]


def test_what_is_sent_at_once_is_bounded():
    """All bodies together, also while their requests wait."""

    async def check():
        done = asyncio.Event()

        async def app(scope, receive, send):
            await receive()
            await done.wait()

        async def send(message):
            raise AssertionError(message)

        async def receive():
            return {"type": "http.request", "body": b"12"}

        doors = Doors(app, (), 2)
        scope = {"type": "http", "method": "POST", "path": "/v1/images", "headers": []}
        waiting = [asyncio.create_task(doors(scope, receive, send)) for _ in range(TOGETHER)]
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="at once") as full:
            await doors(scope, receive, send)
        assert full.value.status == 429 and full.value.retry_after
        done.set()
        await asyncio.gather(*waiting)
        await doors(scope, receive, send)

    asyncio.run(check())


def test_another_address_needs_a_token(capsys):
    assert main(["serve", "--host", "0.0.0.0"]) == 1
    assert "give a --token" in capsys.readouterr().err


def test_who_hangs_up_is_not_drawn_for(server):
    body = json.dumps({"prompt": "a ring", "n": 4, "num_inference_steps": 40}).encode()
    host, _, port = server.url.removeprefix("http://").partition(":")
    with closing(socket.create_connection((host, int(port)))) as connection:
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        while not server.engine.running:
            time.sleep(0.01)
        (job,) = server.engine.jobs.values()
    until = time.time() + 20
    while not job.is_done and time.time() < until:
        time.sleep(0.02)
    assert [type(unit.future.exception()).__name__ for unit in job.units] == ["Stopped"] * 4


def test_a_key_is_drawn_once(client, server):
    """However often it is asked for, while it is drawn and after."""
    key = {"idempotency-key": "mine"}

    def ask(_):
        how = {"num_inference_steps": 20}
        return client.images.generate(prompt="a ring", extra_headers=key, extra_body=how).data[0]

    before = server.engine.metrics.registry.get_sample_value("sdjax_pictures_total", {"outcome": "done"}) or 0
    with ThreadPoolExecutor(3) as pool:
        answers = [*pool.map(ask, range(3)), ask(3)]
    assert len({(each.seed, each.b64_json) for each in answers}) == 1
    assert server.engine.metrics.registry.get_sample_value("sdjax_pictures_total", {"outcome": "done"}) == before + 1
    with urlopen(f"{server.url}/metrics") as answer:
        text = answer.read().decode()
    assert "sdjax_evaluations_total" in text and "sdjax_seconds_bucket" in text and "sdjax_fill_sum" in text


@pytest.mark.long
def test_an_unused_connection_is_kept_for_longer_than_clients_keep_it(server):
    """A client that uses one again just when the server closes it gets no answer."""
    address = urlsplit(server.url)
    connection = HTTPConnection(address.hostname, address.port)
    connection.request("GET", "/metrics")
    connection.getresponse().read()
    kept = connection.sock
    time.sleep(6)
    connection.request("GET", "/metrics")
    assert connection.getresponse().status == 200 and connection.sock is kept


@pytest.mark.long
def test_nothing_is_compiled_behind_the_warm_up(pipe, server, compilations):
    """For mixed requests of a size that was warmed."""
    warm(pipe, warm_of("32x48", [SLOTS]), Limits())
    compilations.clear()
    image = gradient().resize((32, 48))
    mixed = [
        Picture("a", sampler="heun", num_inference_steps=7, width=32, height=48),
        Picture("b", sampler="DPM++ 2M SDE Karras", guidance_scale=1.0, width=32, height=48),
        Picture("c", image=image, strength=0.4, num_inference_steps=5),
        Picture("d", rng="philox", sampler="euler_ancestral", num_inference_steps=3, width=32, height=48),
        Picture("e", seed=2**64 - 1, subseed_strength=0.5, clip_skip=1, width=32, height=48),
        Picture("f", image=image, mask_image=Image.new("L", image.size, 255), num_inference_steps=4),
    ]
    units = units_of("small", mixed, pipe.facts, Limits())
    job = server.engine.submit(Job("me", units, time.time() + 100, previews=2))
    assert all(unit.future.result(60) for unit in job.units) and not compilations
    with pytest.raises(InputError, match="WIDTHxHEIGHT"):
        warm_of("32x48:3", [SLOTS])


def test_settings_of_forms_are_read_as_their_types():
    found = settings_of({"seed": "3", "steps": "4", "guidance_scale": "[1, 2]", "sampler": "euler", "eta": "0.5"}, True)
    assert found == {"seed": 3, "num_inference_steps": 4, "guidance_scale": (1.0, 2.0), "sampler": "euler", "eta": 0.5}
