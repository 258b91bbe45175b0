"""`sdjax ui` in headless Chromium: it draws, inpaints, interrupts, and finds its pictures again.

Needs `pip install -e ".[browser]"` and a Chromium of the system: Playwright's own is not asked for.
"""

import io
import json
import shutil
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image
from serving import SLOTS, served

pytest.importorskip("gradio")
api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.long, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]
EXAMPLE = "a green star on a blue background"
PATIENCE = 240_000  # milliseconds: the first picture compiles


@pytest.fixture(scope="module")
def server(pipe):
    from sdjax.page.mounting import put_page

    with served(pipe, names=("shapes",), dress=put_page, upload=512 * 512, seconds=3600) as running:
        yield running


@pytest.fixture(scope="module")
def page(server):
    """The page, in one browser for all tests; `page.elsewhere` are the other addresses that it asked."""
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(PATIENCE)
        page.elsewhere = []
        own = (server.url, "data:", "blob:")
        page.on("request", lambda sent: sent.url.startswith(own) or page.elsewhere.append(sent.url))
        page.goto(server.url)
        yield page
        browser.close()


def say(page, name: str, value: str) -> None:
    page.locator(f"#{name} textarea, #{name} input").first.fill(value)


SHOWN = "[...document.querySelectorAll('#stage a img')].map(image => image.getAttribute('src'))"


def paint(page, server, pictures: int = 1) -> list[np.ndarray]:
    """Clicks on Paint, and gives the pictures that come of it."""
    before = page.evaluate(SHOWN)
    page.locator("#paint").click()
    return come(page, server, pictures, before)


def come(page, server, pictures: int = 1, before: list[str] = ()) -> list[np.ndarray]:
    """So many pictures, as soon as they are there. before: the addresses of those that were there."""
    page.wait_for_function(
        f"""([count, before]) => {{ const now = {SHOWN}; return now.length == count
            && !now.some(each => before.includes(each)) && document.querySelector('#stop').disabled }}""",
        arg=[pictures, list(before)],
    )
    return [np.asarray(Image.open(io.BytesIO(urlopen(f"{server.url}/{each}").read()))) for each in page.evaluate(SHOWN)]


def test_the_first_click_draws(page, server, pipe):
    page.get_by_text(EXAMPLE).click()
    (image,) = come(page, server)
    page.wait_for_selector("#gallery img")
    (job,) = server.engine.journal._base.execute("SELECT id FROM jobs").fetchone()
    asked = server.engine.journal.picture(job, 0)
    assert asked.prompt == EXAMPLE
    np.testing.assert_array_equal(image, np.asarray(pipe.draw([asked] * SLOTS).images[0]))


def test_inpaints_where_somebody_draws(page, server, tmp_path):
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(path)
    page.get_by_role("tab", name="Picture").click()
    page.locator("#editor canvas").first.wait_for()
    page.wait_for_timeout(2000)
    page.locator("#editor input[type=file]").first.set_input_files(path)
    page.wait_for_selector("#editor button[aria-label='Undo']:enabled")
    page.wait_for_timeout(1000)
    box = page.locator("#editor canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 15, y)
    page.mouse.down()
    page.mouse.move(x + 15, y, steps=8)
    page.mouse.up()
    page.wait_for_timeout(1000)
    say(page, "mask_blur", "0")
    say(page, "num_inference_steps", "6")
    (image,) = paint(page, server)
    changed = (image != np.asarray(Image.open(path))).any(-1)
    assert changed[24:40, 28:36].any() and not changed[:, :4].any() and not changed[:4].any()


def test_interrupts(page, server):
    page.get_by_role("tab", name="Text").click()
    say(page, "num_inference_steps", "150")
    before = page.evaluate(SHOWN)
    page.locator("#paint").click()
    page.wait_for_selector("#stage .coming img")  # a preview
    page.locator("#stop").click()
    (image,) = come(page, server, 1, before)
    assert image.shape == (64, 64, 3) and "interrupted" in page.locator("#stage").inner_text()


def test_compares(page, server):
    page.get_by_role("tab", name="Compare").click()
    images = paint(page, server, 9)
    assert len({image.tobytes() for image in images}) == 9
    assert "dpmpp_2m" in page.locator("#stage").inner_text()


def test_paints_the_rows_of_a_file(page, server, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,steps,seed\na red heart,3,1\na star,4,2\n")
    page.get_by_role("tab", name="File").click()
    page.locator("#rows input[type=file]").set_input_files(path)
    page.get_by_text("rows.csv").wait_for()
    assert len(paint(page, server, 2)) == 2


def test_says_what_is_wrong(page):
    page.get_by_role("tab", name="Text").click()
    say(page, "num_inference_steps", "many")
    page.locator("#paint").click()
    page.get_by_text("num_inference_steps must be a whole number").first.wait_for()
    say(page, "num_inference_steps", "5")


def test_finds_its_pictures_again_and_paints_one_again(page, server):
    page.reload()
    page.wait_for_selector("#gallery img")
    pictures = page.locator("#gallery button.thumbnail-lg, #gallery .thumbnail-item")
    pictures.last.click()  # the oldest
    page.wait_for_function(f"document.querySelector('#how textarea')?.value.startsWith('{EXAMPLE}')")
    address = pictures.last.locator("img").get_attribute("src")
    before = np.asarray(Image.open(io.BytesIO(urlopen(address).read())))
    page.locator("#again").click()
    page.wait_for_function(f"document.querySelector('#prompt textarea').value == '{EXAMPLE}'")
    np.testing.assert_array_equal(paint(page, server)[0], before)


def test_nobody_else_is_asked(page):
    assert not page.elsewhere


def test_a_token_is_asked_for(pipe):
    from sdjax.page.mounting import put_page

    with served(pipe, ("secret",), dress=put_page) as closed, pytest.raises(HTTPError) as refused:
        urlopen(closed.url)
    assert refused.value.code == 401 and "Basic" in refused.value.headers["www-authenticate"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/gradio_api/file=http://127.0.0.1:1/", None, 404),
        ("/gradio_api/file=/etc/passwd", None, 403),
        ("/gradio_api/proxy=http://127.0.0.1:1/", None, 404),
        ("/gradio_api/info", None, 404),
        ("/gradio_api/queue/join", {"data": [{"path": "http://x/", "meta": {"_type": "gradio.FileData"}}]}, 400),
        ("/gradio_api/run/predict", {"data": [{"background": {"path": " HTTPS://x"}}]}, 400),
    ],
)  # fmt: skip
def test_the_page_opens_no_further_doors(server, path, body, status):
    data = None if body is None else json.dumps(body).encode()
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(server.url + path, data, {"content-type": "application/json"}))
    assert refused.value.code == status
