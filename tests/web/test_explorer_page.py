"""The explorer in a real browser (Debian's chromium). Run: pytest tests/web/test_explorer_page.py"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from infogan_ray.training.load_model import load
from tests.conftest import tiny_images

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt install chromium)"),
]
USED = ("button", "slider", "radio", "checkbox", "textbox", "spinbutton", "combobox", "image", "link")
PATIENCE_MS = 20_000
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def store(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, a model folder, and their training images."""
    folder = tmp_path_factory.mktemp("explored")
    images, labels = tiny_images()
    np.savez(folder / "bars.npz", images=images, labels=labels)
    for name in ("tiny", "other"):
        shutil.copytree(finished, folder / "runs" / name)
    shutil.copytree(finished / "model", folder / "runs" / "pulled")
    # A pruned checkpoint keeps its sample image.
    os.unlink(folder / "runs" / "tiny" / "checkpoints" / "step_00000003" / "MANIFEST.json")
    Image.fromarray(images[5]).resize((40, 40)).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def address(store: Path) -> Iterator[str]:
    command = [
        sys.executable, "-m", "infogan_ray", "explore", str(store / "runs"), "--port", "0",
        "--data", str(store / "bars.npz"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Root in a container may not use the sandbox. The browser opens only our own page.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A new page. At the end: the page made no request to another machine and raised no script error."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    requested: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    elsewhere = [url for url in requested if not url.startswith((address, "blob:", "data:"))]
    assert requested and not elsewhere
    # The page shows refused requests.
    assert not [line for line in wrong if not line.startswith("Failed to load resource")]


def open_model(page: Page, address: str, rest: str = "") -> None:
    page.goto(f"{address}#model=tiny{rest}")
    expect(page.locator("#chosen")).to_contain_text("Chosen: image 1 of 64")


def shown_values(page: Page) -> dict:
    """The values that the first grid shows."""
    return json.loads(page.locator("#grid-a img").get_attribute("data-drawn") or "{}")


def pixels(page: Page, selector: str = "#grid-a img") -> str:
    return page.evaluate(
        """selector => { const image = document.querySelector(selector), canvas = document.createElement('canvas');
        canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
        canvas.getContext('2d').drawImage(image, 0, 0); return canvas.toDataURL(); }""",
        selector,
    )


def until(page: Page, condition: Callable[[dict], bool]) -> None:
    """Wait until the first grid meets a condition. The page's policy forbids playwright's own wait functions."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not condition(shown_values(page)):
        assert time.monotonic() < deadline, shown_values(page)
        page.wait_for_timeout(50)


def wait_for_codes(page: Page, **codes: float) -> None:
    until(page, lambda now: now.get("codes") == codes)


def test_moving_a_slider_changes_the_images(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_role("link", name="tiny", exact=True).click()
    expect(page.locator("#chosen")).to_contain_text("Chosen: image 1 of 64")
    before = pixels(page)
    slider = page.get_by_role("slider", name="uniform0")
    slider.focus()
    page.keyboard.press("End")
    wait_for_codes(page, uniform0=2)
    after = pixels(page)
    assert after != before
    page.keyboard.press("Home")
    wait_for_codes(page, uniform0=-2)
    assert pixels(page) not in (before, after)
    page.get_by_role("radio", name="cat0 2").check(force=True)
    wait_for_codes(page, cat0=2, uniform0=-2)
    expect(page.locator("#shell")).to_have_text(
        re.compile(
            r"^infogan sample .*/tiny/checkpoints/step_00000006 -n 64 --set uniform0=-2 cat0=2 --seed 0 -o samples.png$"
        )
    )
    held = pixels(page)
    page.reload()
    wait_for_codes(page, cat0=2, uniform0=-2)
    assert pixels(page) == held, "the URL stores the values"
    page.get_by_role("button", name="Free all").click()
    wait_for_codes(page)
    assert pixels(page) == before


def test_a_key_samples_a_new_z_and_the_lock_controls_it(page: Page, address: str) -> None:
    open_model(page, address)
    before = pixels(page)
    page.locator("body").press("r")
    until(page, lambda now: now["seed"] != 0)
    assert pixels(page) != before
    page.get_by_label("seed").fill("0")
    page.get_by_label("seed").press("Enter")
    until(page, lambda now: now["seed"] == 0)
    assert pixels(page) == before
    page.get_by_role("button", name="z locked").click()
    page.get_by_role("radio", name="cat0 1").check(force=True)
    wait_for_codes(page, cat0=1)
    assert shown_values(page)["seed"] != 0


def test_an_image_is_chosen_changed_along_a_code_and_used_in_a_walk(page: Page, address: str) -> None:
    open_model(page, address)
    page.get_by_role("button", name="A: chosen image").click()
    frame = page.get_by_role("group", name="64 samples; select one with the arrow keys")
    frame.focus()
    for key in ("ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    expect(page.locator("#chosen")).to_contain_text("image 10 of 64")
    page.get_by_role("button", name="Hold its codes").click()
    until(page, lambda now: len(now["codes"]) == 2)
    page.get_by_role("button", name="uniform0 1.5", exact=True).click()
    until(page, lambda now: now["codes"]["uniform0"] == 1.5)
    expect(page.get_by_role("button", name="uniform0 1.5", exact=True)).to_have_attribute("aria-current", "true")
    expect(page.locator("#chosen")).to_contain_text("uniform0=1.5")
    page.get_by_role("button", name="B: chosen image").click()
    walk = page.get_by_role("slider", name="from A to B")
    expect(walk).to_be_visible()
    now = page.locator("#walk-image")
    first = now.get_attribute("style")
    walk.focus()
    page.keyboard.press("End")
    assert now.get_attribute("style") != first
    expect(now).to_have_attribute("aria-label", "Image at 100% of the way from A to B")


def test_an_image_is_uploaded_and_its_codes_are_shown(page: Page, address: str, store: Path) -> None:
    open_model(page, address)
    page.locator("#upload").set_input_files(store / "photo.png")
    expect(page.locator("#original-note")).to_contain_text("photo.png")
    reading = page.locator("#reading")
    expect(reading).to_contain_text(re.compile(r"cat0 = \d.*%"))
    expect(reading).to_contain_text(re.compile(r"uniform0-?\d\.\d\d ± \d\.\d\d"))
    assert page.evaluate("document.getElementById('reconstructions').naturalWidth") == 8 * 16
    page.get_by_role("button", name="Use these codes").click()
    until(page, lambda now: len(now["codes"]) == 2)
    page.locator("#real-images button").nth(4).click()
    expect(page.locator("#original-note")).to_contain_text("label")
    page.locator("#upload").set_input_files(store / "bars.npz")
    expect(page.get_by_role("alert")).to_contain_text("this is not an image that can be read")


def test_the_name_of_a_code_is_stored(page: Page, address: str, store: Path) -> None:
    open_model(page, address)
    name = page.get_by_role("textbox", name="Name of uniform0")
    name.fill("slant")
    name.press("Enter")
    expect(page.get_by_role("slider", name="slant (uniform0)")).to_be_visible()
    page.get_by_role("slider", name="slant (uniform0)").focus()
    page.keyboard.press("End")
    expect(page.locator("#shell")).to_contain_text("--set slant=2")
    assert load(store / "runs" / "tiny").names == {"uniform0": "slant"}
    page.reload()
    expect(name).to_have_value("slant")
    name.fill("cat0")
    name.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("give another")
    expect(name).to_have_value("slant")
    name.fill("")
    name.press("Enter")
    expect(page.get_by_role("slider", name="uniform0", exact=True)).to_be_visible()


def test_training_steps_are_selected_and_two_models_are_shown_side_by_side(page: Page, address: str) -> None:
    open_model(page, address)
    expect(page.locator("#timeline-step")).to_contain_text("6")
    page.locator("body").press("[")
    expect(page.locator("#timeline-step")).to_contain_text("3, picture only")
    expect(page.locator("#grid-a figcaption")).to_contain_text("the checkpoint was deleted")
    expect(page.locator("#grid-a img")).to_have_attribute("src", re.compile("picture.*step=3"))
    page.locator("body").press("]")
    expect(page.locator("#grid-a figcaption")).to_contain_text("all codes free")
    page.get_by_label("compare with", exact=True).select_option(label="other")
    expect(page.locator("#grid-b figcaption")).to_contain_text("other, step 6: all codes free")
    assert pixels(page, "#grid-b img") == pixels(page), "the same weights, codes and noise"
    page.get_by_label("Checkpoint to compare with").select_option(label="step 3")
    expect(page.locator("#grid-b figcaption")).to_contain_text("other, step 3")
    assert pixels(page, "#grid-b img") != pixels(page)


def test_the_library_updates_by_itself(page: Page, address: str, store: Path) -> None:
    page.goto(address)
    expect(page.locator(".card")).to_have_count(3)
    shutil.copytree(store / "runs" / "other", store / "runs" / "new one")
    try:
        expect(page.locator(".card")).to_have_count(4)
        page.get_by_label("Filter").fill("new")
        expect(page.locator(".card")).to_have_count(1)
    finally:
        shutil.rmtree(store / "runs" / "new one")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_needs_no_horizontal_scrolling(browser: Browser, address: str, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    for path in ("", "#model=tiny"):
        page.goto(f"{address}{path}")
        page.reload()
        expect(page.locator(".card").first if not path else page.locator("#strips .strip").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    context.close()


def test_every_control_has_a_name_for_screen_readers(page: Page, address: str) -> None:
    open_model(page, address)
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    used = [
        node for node in nodes
        if not node.get("ignored")
        and node["role"]["value"] in USED
    ]  # fmt: skip
    assert len(used) > 30
    nameless = [node["role"]["value"] for node in used if not node.get("name", {}).get("value", "").strip()]
    assert not nameless


def test_a_lost_server_is_reported(page: Page, address: str) -> None:
    open_model(page, address)
    page.route("**/api/grid", lambda route: route.abort())
    page.locator("body").press("r")
    expect(page.get_by_role("alert")).to_contain_text("is 'infogan explore' still running?")
    page.unroute("**/api/grid")
    page.locator("body").press("r")
    expect(page.get_by_role("alert")).to_be_hidden()
