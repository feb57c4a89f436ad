"""Tests of the local page in a real browser: `se-fused fracture serve` as a process, and headless Chromium."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

from se_fused.apps.fracture.synth import draw

REQUIRED = os.environ.get("SE_FUSED_REQUIRE_BROWSER") == "1"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SHOTS = os.environ.get("SE_FUSED_SCREENSHOTS")
"""Folder for screenshots of the page; without it, none are saved."""
WAIT = 60


def _missing() -> str | None:
    for module in ("selenium", "fastapi", "uvicorn", "PIL"):
        try:
            __import__(module)
        except ImportError:
            return f"{module} is not installed"
    return None if CHROMIUM and DRIVER else "needs chromium and chromedriver on the PATH"


_WHY = _missing()
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(_WHY is not None and not REQUIRED, reason=_WHY or ""),
]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two radiographs, one tall with 16 bits and one wide, and a text file."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("films")
    tall, _ = draw(3, 1, 256)
    Image.fromarray((tall[:, 50:200] * 65535).astype(np.uint16)).save(folder / "tall.png")
    Image.fromarray((tall[60:200] * 255).astype(np.uint8)).save(folder / "wide.jpg")
    (folder / "notes.txt").write_text("no radiograph")
    return {name: folder / name for name in ("tall.png", "wide.jpg", "notes.txt")}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The page's address, and the server process."""
    assert _WHY is None, _WHY
    model = os.environ.get("SE_FUSED_SERVED_MODEL")  # for screenshots of a trained model
    if model is None:
        from support.classifier import classifier

        model = str(tmp_path_factory.mktemp("model") / "model.pt")
        classifier(source="synthetic").save(model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "se_fused",
        "fracture",
        "serve",
        model,
        "--port",
        str(port),
        "--max-megabytes",
        "1",
    ]
    root = str(ROOT)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(WAIT * 5):
            assert process.poll() is None, process.stdout and process.stdout.read()
            try:
                urllib.request.urlopen(f"{address}healthz", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        else:
            pytest.fail("se-fused fracture serve does not answer")
        yield address, process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(20)


@pytest.fixture
def browser(tmp_path: Path):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*OPTIONS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_window_size(1280, 900)
    try:
        yield driver
    finally:
        driver.quit()


def find(browser, selector: str):
    from selenium.webdriver.common.by import By

    return browser.find_element(By.CSS_SELECTOR, selector)


def every(browser, selector: str):
    from selenium.webdriver.common.by import By

    return browser.find_elements(By.CSS_SELECTOR, selector)


def until(browser, condition, what: str):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, WAIT, 0.05).until(condition, what)


def shot(browser, name: str, width: int, height: int, scheme: str = "light") -> None:
    if SHOTS:
        feature = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        time.sleep(0.6)  # the bars are animated
        browser.save_screenshot(str(Path(SHOTS, f"{name}-{width}-{scheme}.png")))
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def pixels(browser, canvas: str) -> tuple[int, int, int]:
    """Width and height of a canvas, and its largest alpha value."""
    return tuple(
        browser.execute_script(
            "const c = document.querySelector(arguments[0]);"
            "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "return [c.width, c.height, d.reduce((m, v, i) => i % 4 == 3 ? Math.max(m, v) : m, 0)];",
            canvas,
        )
    )


def test_a_radiograph_is_chosen_and_explained(browser, served, films) -> None:
    address, _ = served
    browser.get(address)
    assert "Research use only. Not a medical device." in find(browser, "#notice").text
    until(browser, lambda b: "seresnet18" in find(b, "#model").text, "the model's name")
    assert "up to 1 MB" in find(browser, "#limits").text
    assert "no clinical meaning" in find(browser, "#notice").text
    shot(browser, "empty", 1280, 900)
    shot(browser, "empty", 390, 844)
    find(browser, "#files").send_keys(str(films["tall.png"]))
    until(browser, lambda b: find(b, "#detail").is_displayed(), "the result")
    percents = [float(one.text.split()[0]) for one in every(browser, "#classes .percent") if "<" not in one.text]
    assert len(every(browser, "#classes button")) >= 3 and abs(sum(percents) - 100) < 0.5
    best = find(browser, "#predicted").text
    assert best in find(browser, "#classes .first").text and best in find(browser, "#said").get_attribute("textContent")
    assert pixels(browser, "#picture")[:2] == (150, 256) and find(browser, "#size").text == "150 × 256 pixels"
    width, height, alpha = pixels(browser, "#heat")
    assert (width, height) == (150, 256) and alpha > 200
    first, second = (find(browser, name).rect for name in ("#picture", "#heat"))
    assert first == second, "the heat map lies on the picture"
    assert "ms" in find(browser, "#time").text
    assert "Research use only" in find(browser, "#notice").text and find(browser, "#notice").is_displayed()
    for width, height in ((1280, 900), (390, 844)):
        for scheme in ("light", "dark"):
            shot(browser, "result", width, height, scheme)


def test_the_heat_map_can_be_dimmed_hidden_and_asked_for_another_class(browser, served, films) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get(served[0])
    find(browser, "#files").send_keys(str(films["wide.jpg"]))
    until(browser, lambda b: find(b, "#detail").is_displayed(), "the result")
    opacity = lambda: float(find(browser, "#heat").value_of_css_property("opacity"))  # noqa: E731
    before = opacity()
    find(browser, "#strength").send_keys(Keys.ARROW_LEFT * 10)
    assert 0 < opacity() < before
    find(browser, "#toggle").click()
    assert opacity() == 0
    find(browser, "#toggle").click()
    assert opacity() > 0
    shown = find(browser, "#explained").text
    other = next(b for b in every(browser, "#classes button") if b.get_attribute("aria-pressed") == "false")
    name = other.find_element("css selector", "span").text
    other.send_keys(Keys.ENTER)
    until(browser, lambda b: find(b, "#explained").text == name, "the other class's heat map")
    assert name != shown and find(browser, "#predicted").text == shown
    assert browser.switch_to.active_element.text.startswith(name), "the focus stays where it was"


def test_several_files_and_one_that_is_no_radiograph(browser, served, films) -> None:
    browser.get(served[0])
    find(browser, "#files").send_keys("\n".join(map(str, films.values())))
    until(browser, lambda b: len(every(b, "#list button.done")) == 2 and every(b, "#list button.failed"), "all three")
    failed = find(browser, "#list button.failed")
    assert "notes.txt" in failed.text and "could not be read" in failed.text
    shot(browser, "several", 1280, 900)
    failed.click()
    assert "send a PNG, JPEG, TIFF, BMP or DICOM file" in find(browser, "#problem").text
    assert not find(browser, "#detail").is_displayed()
    shot(browser, "problem", 1280, 900)
    shot(browser, "problem", 390, 844, "dark")
    find(browser, "#list button.done").click()
    assert find(browser, "#detail").is_displayed() and not find(browser, "#problem").is_displayed()
    find(browser, "#clear").click()
    assert not find(browser, "#results").is_displayed() and every(browser, "#list button") == []


def test_a_file_is_dropped(browser, served, films) -> None:
    import base64

    browser.get(served[0])
    content = base64.b64encode(films["wide.jpg"].read_bytes()).decode()
    browser.execute_script(
        "const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));"
        "const data = new DataTransfer();"
        "data.items.add(new File([bytes], 'dropped.jpg'));"
        "for (const kind of ['dragover', 'drop']) document.getElementById('drop').dispatchEvent("
        "new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));",
        content,
    )
    until(browser, lambda b: find(b, "#detail").is_displayed(), "the result")
    assert find(browser, "#name").text == "dropped.jpg"


def test_too_large_is_said(browser, served, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    large.write_bytes(bytes(1_000_001))
    browser.get(served[0])
    find(browser, "#files").send_keys(str(large))
    until(browser, lambda b: find(b, "#problem").is_displayed(), "the reason")
    assert "larger than the limit of 1 MB" in find(browser, "#reason").text


@pytest.mark.parametrize("width", [320, 390, 800, 1280])
def test_the_page_fits(width: int, browser, served, films) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(served[0])
    find(browser, "#files").send_keys("\n".join(map(str, films.values())))
    until(browser, lambda b: find(b, "#detail").is_displayed(), "the result")
    wide = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter((e) => !e.closest('#list') && !e.closest('.unseen')"
        " && e.getBoundingClientRect().right > arguments[0] + .5).map((e) => e.outerHTML.slice(0, 80))",
        width,
    )
    assert wide == [] and browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    box = browser.execute_script("return document.getElementById('notice').getBoundingClientRect().toJSON()")
    assert box["top"] >= 0 and box["bottom"] <= 800 and box["right"] <= width, "always in sight"


def test_nothing_is_fetched_from_elsewhere_and_nothing_is_refused(browser, served, films) -> None:
    import json

    address, _ = served
    browser.get(address)
    find(browser, "#files").send_keys(str(films["tall.png"]))
    until(browser, lambda b: find(b, "#detail").is_displayed(), "the result")
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    sent = [a["request"]["url"] for a in asked if not a["documentURL"].startswith("chrome:")]  # not its first tab
    assert len(sent) >= 5 and all(url.startswith(address) for url in sent), sent
    assert not any("tall" in url for url in sent), "no file's name leaves the page"


def test_the_server_ends_at_a_signal_and_says_counts_only(served, films) -> None:
    """The server ends at a signal and prints only counts. This must be the last test, because it ends the server."""
    address, process = served
    with urllib.request.urlopen(urllib.request.Request(f"{address}predict", films["tall.png"].read_bytes())) as answer:
        assert answer.status == 200
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert "files predicted" in said and "Traceback" not in said
    assert "tall" not in said and "POST" not in said
