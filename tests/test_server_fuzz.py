"""Whatever is sent to the server, it answers: no fault, no path of this machine, and hostile pictures are refused.

`pytest -s tests/test_server_fuzz.py --requests 2000` sends more, and prints how often it was answered with what.
"""

import base64
import io
import json
import re
import struct
import zlib
from collections import Counter
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from serving import edges_net, served

from sdjax.server.a1111_wishes import NUMBERS, REFUSED
from sdjax.server.openai import OWN, UNUSED
from sdjax.server.refusals import Refused
from sdjax.server.uploads import opened
from sdjax.settings import SETTINGS, SHORT

HOME = str(Path.home()).encode()
A1111 = (
    *NUMBERS,
    *REFUSED,
    *[
        "prompt",
        "negative_prompt",
        "seed",
        "subseed",
        "subseed_strength",
        "steps",
        "width",
        "height",
        "batch_size",
        "n_iter",
        "sampler_name",
        "scheduler",
        "eta",
        "enable_hr",
        "hr_scale",
        "hr_upscaler",
        "hr_resize_x",
        "hr_second_pass_steps",
        "denoising_strength",
        "override_settings",
        "alwayson_scripts",
        "infotext",
        "init_images",
        "mask",
        "mask_blur",
        "inpainting_fill",
        "inpaint_full_res",
        "inpaint_full_res_padding",
        "resize_mode",
        "image",
        "imageList",
        "upscaler_1",
        "upscaling_resize",
        "sd_model_checkpoint",
        "randn_source",
        "force_task_id",
    ],
)
PICTURE = io.BytesIO()
Image.linear_gradient("L").resize((64, 64)).save(PICTURE, "PNG")
PNG = base64.b64encode(PICTURE.getvalue()).decode()
WORDS = ["64x64", "euler", "Euler a", "Karras", "png", "url", "/etc/passwd", "../..", "a1111", "torch", PNG, "1e400"]
PROMPTS = ["a [b:c:0.5]", "a AND b", "(a:1.5)", "<lora:x:1>", "http://localhost", "data:image/png;base64,AA=="]
FIGURES = st.integers(-(2**70), 2**70) | st.integers(-2, 70) | st.floats()
SCALARS = st.none() | st.booleans() | FIGURES | st.text(max_size=20) | st.sampled_from(WORDS + PROMPTS)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def bodies(names) -> st.SearchStrategy[dict]:
    fields = st.dictionaries(st.sampled_from(sorted(names)), VALUES, max_size=4)
    return st.booleans().flatmap(lambda has: fields.map(lambda more: {"prompt": "a", **more} if has else more))


UNITS = st.fixed_dictionaries(
    {"model": st.just("edges") | VALUES, "image": st.just(PNG) | VALUES},
    optional={
        "module": st.sampled_from(["canny", "invert", "threshold", "normal_bae", "inpaint_only", "shuffle"]) | VALUES,
        "pixel_perfect": st.booleans(),
        **dict.fromkeys(["weight", "guidance_start", "guidance_end", "control_mode", "resize_mode", "mask"], VALUES),
        **dict.fromkeys(["processor_res", "threshold_a", "threshold_b", "enabled", "hr_option", "guessmode"], VALUES),
    },
)
SCRIPTS = st.lists(UNITS | VALUES, max_size=2).map(lambda args: {"alwayson_scripts": {"ControlNet": {"args": args}}})
DETECT = ("controlnet_module", "controlnet_input_images", "controlnet_processor_res", "controlnet_threshold_a")
REQUESTS = st.one_of(
    st.tuples(st.just("/sdapi/v1/txt2img"), SCRIPTS),
    st.tuples(st.just("/controlnet/detect"), bodies(DETECT)),
    st.tuples(st.just("/v1/images/generations"), bodies({*OWN, *UNUSED, *SETTINGS, *SHORT})),
    st.tuples(st.just("/v1/images/edits"), bodies({*OWN, *SETTINGS, "images", "image", "mask"})),
    st.tuples(
        st.sampled_from(["txt2img", "img2img", "extra-single-image", "extra-batch-images", "png-info", "options"]).map(
            "/sdapi/v1/{}".format
        ),
        bodies(A1111),
    ),
)


@pytest.fixture(scope="module")
def url(pipe):
    """A server that looks at all of a request and then has no room for it, so that nothing is compiled."""
    with served(pipe, nets=[edges_net()], queue=0, upload=128 * 128, body=2**20) as running:
        yield running.url


def sent(url: str, path: str, body: bytes | None, kind: str = "application/json", method=None) -> tuple[int, bytes]:
    try:
        with urlopen(Request(url + path, body, {"content-type": kind}, method=method), timeout=60) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, error.read()


def many(request, strategy):
    """Decorates what is tried with as many examples as are wanted."""
    count = request.config.getoption("--requests")
    return lambda check: settings(max_examples=count, suppress_health_check=list(HealthCheck))(given(strategy)(check))


@pytest.fixture
def seen():
    """How often each status came; they are printed."""
    found: Counter[int] = Counter()
    yield found
    print(f"{found.total()} requests: " + ", ".join(f"{status} x {count}" for status, count in sorted(found.items())))


def looked_at(status: int, answer: bytes) -> int:
    assert status < 500, answer
    assert HOME not in answer and b"/tmp/" not in answer and b"Traceback" not in answer
    assert status < 400 or len(json.loads(answer)) in (1, 4)  # each API's own form
    return status


@pytest.mark.long
def test_no_request_is_a_fault(url, request, seen):
    @many(request, REQUESTS)
    def check(wish):
        path, body = wish
        seen[looked_at(*sent(url, path, json.dumps(body).encode("utf-8", "surrogatepass")))] += 1

    check()
    assert {400, 429} <= seen.keys()  # some of them would have been drawn


@pytest.mark.long
def test_no_address_is_a_fault(url, request, seen):
    """Every route that there is, and its parameters; OpenAPI's description of the server lists them."""
    routes = json.loads(sent(url, "/openapi.json", None)[1])["paths"]
    assert len(routes) > 40
    words = st.text(max_size=12) | st.sampled_from(
        ["..", "../../etc/passwd", "%2e%2e%2f", "small", "0", "-1", "1" * 40]
    )
    methods = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]

    @many(request, st.tuples(st.sampled_from(sorted(routes)), st.sampled_from(methods), words, words, st.booleans()))
    def check(asked):
        route, method, first, second, escaped = asked
        filled = re.sub(r"\{\w+\}", lambda _: quote(first, "" if escaped else "/.%"), route, count=1)
        filled = re.sub(r"\{\w+\}", lambda _: quote(second, ""), filled)
        status, answer = sent(url, f"{filled}?skip_current_image={quote(second)}", None, method=method)
        seen[looked_at(status, answer) if method != "HEAD" else status] += 1
        assert status < 500

    check()
    assert {200, 404, 405} <= seen.keys()


def multipart(fields: dict[str, tuple[bool, bytes]]) -> bytes:
    """A form. fields: by name, whether it is a file, and what is in it."""
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="{name}"'.encode()
        + (b'; filename="a.png"\r\n\r\n' if is_file else b"\r\n\r\n")
        + value
        for name, (is_file, value) in fields.items()
    ]
    return b"\r\n".join([*parts, b"--edge--\r\n"])


@pytest.mark.long
def test_no_form_is_a_fault(url, request, seen):
    names = st.sampled_from(sorted({*OWN, *UNUSED, *SETTINGS, "image", "image[]", "mask", "images"}))
    values = st.sampled_from([PICTURE.getvalue(), PICTURE.getvalue()[:60], b"1", b"[1, 2]", b"64x64"]) | st.binary()
    some = st.dictionaries(names, st.tuples(st.booleans(), values), max_size=5)
    with_image = some.map(lambda more: {"image": (True, PICTURE.getvalue()), "prompt": (False, b"a"), **more})

    @many(request, st.tuples(st.sampled_from(["edits", "variations"]), some | with_image, st.booleans()))
    def check(asked):
        path, fields, whole = asked
        body = multipart(fields)
        body = body if whole else body[: len(body) // 2]
        seen[looked_at(*sent(url, f"/v1/images/{path}", body, "multipart/form-data; boundary=edge"))] += 1

    check()
    assert {400, 429} <= seen.keys()


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG that says it has this size, with this for its pixels."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


HOSTILE = {
    "100 megapixels in the header": png(10_000, 10_000, b""),
    "the largest header": png(2**31 - 1, 2**31 - 1, b""),
    "a bomb": png(16_000, 16_000, zlib.compress(bytes(3 * 16_000 * 1000))),
    "no pixels": png(64, 64, b""),
    "an SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
    "an archive": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures_are_refused(name):
    with pytest.raises(Refused):
        opened("image", HOSTILE[name], 4096 * 4096)


@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]), st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
@pytest.mark.long
def test_damaged_pictures_are_refused_or_read(kind, where, damage):
    file = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(file, kind)
    data = bytearray(file.getvalue())
    place = where % len(data)
    data[place : place + len(damage)] = damage
    try:
        image = opened("image", bytes(data), 128 * 128)
    except Refused:
        return
    assert image.width * image.height <= 128 * 128
