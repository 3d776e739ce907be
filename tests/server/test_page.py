"""The page in a real browser: Chromium without a screen, from picture to verdict."""

import base64
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from blemish.types import Prediction
from served import artifact, listening, picture

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")
TOKEN = "open sesame"  # noqa: S105 - of a test
SHOTS = os.environ.get("BLEMISH_SHOTS", "")
"""Folder for screenshots, to be looked at."""


def brightest(images: np.ndarray) -> Prediction:
    maps = images.mean(axis=1)
    return Prediction(maps, maps.max(axis=(1, 2)))


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def serve(tmp_path):
    """Starts servers; each call gives the address of one."""
    with ExitStack() as running:
        yield lambda **options: running.enter_context(
            listening(tmp_path, artifact(run=brightest), keep=tmp_path / "kept", **options)
        )


@pytest.fixture
def page(browser):
    """A page that fails the test if its scripts fail or if it asks anything of another machine."""
    context = browser.new_context(viewport={"width": 1920, "height": 1080})
    found = context.new_page()
    troubles, hosts = [], set()
    found.on("pageerror", lambda error: troubles.append(str(error)))
    found.on("console", lambda said: troubles.append(said.text) if "Content Security" in said.text else None)
    found.on("request", lambda request: hosts.add(request.url.partition("//")[2].partition(":")[0]))
    found.set_default_timeout(60_000)  # a busy machine draws slowly
    yield found
    context.close()
    assert troubles == []
    assert {host for host in hosts if host and "," not in host} <= {"127.0.0.1"}


DROP = """([files]) => {
  const carried = new DataTransfer();
  for (const [name, text] of files) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    carried.items.add(new File([bytes], name, { type: "image/png" }));
  }
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true }));
}"""


def drop(page, **files: bytes) -> None:
    page.evaluate(DROP, [[[f"{name}.png", base64.b64encode(content).decode()] for name, content in files.items()]])


def shoot(page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


def texture(spot=None) -> bytes:
    return picture(45, (180, 240), spot=spot)


def decided(page, words: str, name: str) -> None:
    page.wait_for_function(
        "([words, name]) => document.getElementById('decision').textContent.includes(words)"
        " && document.getElementById('name').textContent.includes(name)",
        arg=[words, name],
    )


def test_drop_heatmap_slider_decision(serve, page):
    page.goto(serve())
    page.wait_for_selector("#threshold")
    drop(page, good=texture(), scratched=texture(spot=240))
    decided(page, "Defective", "scratched.png")
    page.wait_for_function("document.getElementById('heat').naturalWidth === 16")
    assert page.locator("#boxes rect").count() == 1
    assert page.locator("#regions td").all_inner_texts()[2] == "60 \N{MULTIPLICATION SIGN} 45"
    assert page.locator("#strip button").count() == 2
    page.locator("#opacity").fill("0")
    assert page.evaluate("getComputedStyle(document.getElementById('heat')).opacity") == "0"
    page.locator("#opacity").fill("80")
    assert page.locator("#opacity-value").inner_text() == "80 %"
    shoot(page, "desk")
    page.locator("#strip button").nth(1).click()
    decided(page, "Good", "good.png")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    shoot(page, "phone")


def test_the_threshold_can_be_dragged_and_says_what_it_would_do(serve, page):
    page.goto(serve())
    drop(page, good=texture())
    decided(page, "Good", "good.png")
    line = page.locator("#threshold line")
    real = page.locator("#threshold").get_attribute("aria-valuenow")
    box, frame = line.bounding_box(), page.locator("#histogram").bounding_box()
    page.mouse.move(box["x"], box["y"] + 30)
    page.mouse.down()
    page.mouse.move(frame["x"] + 0.1 * frame["width"], box["y"] + 30, steps=4)
    page.mouse.up()
    moved = float(page.locator("#threshold").get_attribute("aria-valuenow"))
    assert moved < float(real)
    said = page.locator("#trial").inner_text()
    assert "1 of the last 1 inspections would be decided otherwise" in said
    assert "This picture would be rejected" in said
    page.mouse.move(frame["x"] + 0.9 * frame["width"], box["y"] + 30)  # let go of: it stays
    assert float(page.locator("#threshold").get_attribute("aria-valuenow")) == moved
    shoot(page, "threshold")
    page.locator("#reset").click()
    assert page.locator("#threshold").get_attribute("aria-valuenow") == real


def test_an_inspection_counts_once_where_the_record_tells_of_it_before_the_answer_comes(serve, page):
    held = []
    page.route("**/predict?*", lambda route: held.append((route, route.fetch())))
    page.goto(serve())
    page.wait_for_selector("#threshold")
    drop(page, good=texture())
    while not held:
        page.wait_for_timeout(20)
    with page.expect_response("**/records?*") as told:
        page.locator("#category").dispatch_event("change")
    assert len(told.value.json()["records"]) == 1
    route, answer = held[0]
    route.fulfill(response=answer)
    decided(page, "Good", "good.png")
    page.locator("#threshold").press("ArrowLeft")
    assert "of the last 1 inspections" in page.locator("#trial").inner_text()


def test_everything_works_in_the_keyboard_alone(serve, page, tmp_path):
    (tmp_path / "part.png").write_bytes(texture(spot=116))
    page.goto(serve())
    page.wait_for_selector("#threshold")

    def reach(wanted: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("(wanted) => document.activeElement.matches(wanted)", wanted):
                return
        raise AssertionError(f"{wanted} can't be reached with the Tab key")

    # The browser must know that choosers are wanted well before a key opens one, else it drops it.
    page.on("filechooser", lambda chooser: None)
    reach("#files")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(tmp_path / "part.png")
    decided(page, "review", "part.png")
    reach("#opacity")
    page.keyboard.press("ArrowRight")
    assert page.locator("#opacity-value").inner_text() == "56 %"
    reach("#strip button")
    reach("#threshold")
    before = float(page.locator("#threshold").get_attribute("aria-valuenow"))
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert float(page.locator("#threshold").get_attribute("aria-valuenow")) < before
    reach("#reset")
    page.keyboard.press("Enter")
    assert float(page.locator("#threshold").get_attribute("aria-valuenow")) == before
    page.locator("body").press("Home")
    reach("#to-review")
    page.keyboard.press("Enter")
    page.wait_for_selector("#list li")
    reach("[data-verdict=good]")
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-verdict=good][aria-pressed=true]")
    reach("#list button:last-of-type")
    page.keyboard.press("Enter")
    page.wait_for_selector("#list .frame img")
    shoot(page, "review")


def test_a_token_is_asked_for(serve, page):
    page.goto(serve(token=TOKEN))
    page.locator("#token").fill(TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#threshold")


def test_what_is_wrong_is_said_and_the_rest_goes_on(serve, page):
    page.goto(serve())
    page.wait_for_selector("#threshold")
    drop(page, bad=b"hello", **{"<img src=x onerror=alert(1)>": texture()})
    decided(page, "Good", "<img src=x onerror=alert(1)>.png")
    drop(page, bad=b"hello")
    page.wait_for_selector("#error:not([hidden])")
    assert page.locator("#error").inner_text().startswith("bad.png: not a picture")


def test_a_watched_folder_is_followed(serve, page, tmp_path):
    folder = tmp_path / "camera"
    folder.mkdir()
    page.goto(serve(watch=folder))
    page.wait_for_selector("#threshold")
    page.locator("#follow").check()
    (folder / "0001.png").write_bytes(texture(spot=240))
    decided(page, "Defective", "0001.png")
    page.wait_for_function("document.getElementById('heat').naturalWidth === 16")
