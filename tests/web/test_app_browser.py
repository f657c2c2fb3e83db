"""The page in a browser: it answers as `cancernet predict` does, follows the slider, and fits the screen."""

import contextlib
import csv
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest
from conftest import ROOT, zip_files
from pyramid import write_small_pyramid
from tiny_run import make_run

from cancernet.evaluation.decision import load_decision
from cancernet.run import SAMPLES
from cancernet.web.uploads import sample_uploads

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: apt-get install chromium"),
]


@contextlib.contextmanager
def serve(run, log):
    """Serve the page of a run as its users do; yields the address."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cancernet", "app", str(run), "--port", str(port)]
    with log.open("w") as log:
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            wait_for(f"http://localhost:{port}/_stcore/health")
            yield f"http://localhost:{port}"
        finally:
            server.terminate()
            server.wait(timeout=20)


@contextlib.contextmanager
def browse(address):
    """A page in a browser."""
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport={"width": 1366, "height": 768}, accept_downloads=True)
        page.set_default_timeout(120_000)
        playwright.expect.set_options(timeout=60_000)
        page.goto(address)
        yield page
        browser.close()


@pytest.fixture(scope="module")
def address(tiny_run, tmp_path_factory):
    with serve(tiny_run, tmp_path_factory.mktemp("page") / "server.log") as address:
        yield address


@pytest.fixture
def page(address):
    with browse(address) as page:
        yield page


def wait_for(url):
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError(f"no answer from {url}")


def test_a_slide_is_sent_looked_at_and_kept_as_predict_images_says(page, tiny_run, tmp_path):
    """A zip of a slide, a patch without a place, and a pyramid whose coarse level is unlike its fine one."""
    slide, (_, patch) = sample_uploads(), sample_uploads()[40]
    write_small_pyramid(tmp_path / "pyramid.tif")
    others = [("patch.png", patch), ("pyramid.tif", (tmp_path / "pyramid.tif").read_bytes())]
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    sent = [("79001.zip", zip_files(slide)), *others]
    page.locator("input[type=file]").set_input_files(
        [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in sent]
    )
    slide_map = page.get_by_test_id("stVegaLiteChart")
    slide_map.locator("canvas, svg").first.wait_for()
    threshold = load_decision(tiny_run / "decision.json").threshold
    page.get_by_test_id("stStatusWidget").wait_for(state="detached")
    with page.expect_download() as download:
        page.get_by_role("button", name="All patches (CSV)").click()
    kept = read_table(download.value.path().read_text())
    expected = predict_images(tiny_run, [*slide, *others], threshold, tmp_path)
    assert len(kept) == len(expected) == len(slide) + 1 + 9
    for place, row in expected.items():
        assert kept[place]["predicted"] == row["predicted"]
        assert float(kept[place]["probability_IDC"]) == pytest.approx(float(row["probability_IDC"]), abs=1e-4)
    click_a_patch(page, slide_map)
    assert [url for url in asked if "//localhost:" not in url and not url.startswith(("data:", "blob:"))] == []


def test_the_outline_and_the_counts_follow_the_slider(page):
    page.get_by_role("button", name="Try a sample slide").click()
    slide_map = page.get_by_test_id("stVegaLiteChart")
    slide_map.locator("canvas, svg").first.wait_for()
    page.get_by_text("None", exact=True).click()  # the tissue without overlay
    dark = {}
    for key, count in (("End", "0 IDC"), ("Home", "0 benign")):
        move_slider(page, key, page.get_by_text(re.compile(rf"\b{count}")))
        dark[key] = count_dark(page, slide_map)
    page.get_by_role("button", name="Default").click()
    page.get_by_text("Expected from").first.wait_for()  # the old text may still be there while Streamlit redraws
    own = count_dark(page, slide_map)
    assert dark["End"] < min(dark["Home"], own)  # no outline; one around all, and around some, partly dashed


def move_slider(page, key, expected):
    """Press a key on the first slider until the page shows what it leads to: a key is lost while Streamlit redraws."""
    for _ in range(30):
        page.get_by_test_id("stStatusWidget").wait_for(state="detached")
        page.get_by_role("slider").first.press(key)
        with contextlib.suppress(playwright.TimeoutError):
            return expected.wait_for(timeout=4_000)
    raise AssertionError(f"{key} on the slider did not lead to {expected}")


def count_dark(page, slide_map):
    """Almost black pixels of the map: the outline, and a bit of the scale bar."""
    page.get_by_test_id("stStatusWidget").wait_for(state="detached")
    page.wait_for_timeout(1500)  # Vega draws after Streamlit is done
    image = cv2.imdecode(np.frombuffer(slide_map.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    return int((image.max(axis=2) < 40).sum())


def test_no_text_about_breast_tissue_with_a_run_of_other_images(tmp_path):
    run = make_run(tmp_path / "run", classes=("covid", "normal", "pneumonia_bacterial"), mpp=None)
    for number, (_, data) in enumerate(sample_uploads()[:4]):
        path = run / SAMPLES / "covid" / f"person{number}.png"  # a name without a position
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with serve(run, tmp_path / "server.log") as address, browse(address) as page:
        page.get_by_role("button", name="Try some test images").click()
        page.get_by_text("Download the results").wait_for()
        words = page.locator("body").inner_text().lower()
        assert "4 images" in words
        assert [word for word in ("breast", "tissue", "patch", "slide", "h&e", "idc") if word in words] == []
        assert page.get_by_test_id("stVegaLiteChart").count() == 0
        check_widths(page)


def test_nothing_is_wider_than_its_page_and_a_phone_tells_the_run(page, tiny_run):
    page.get_by_role("button", name="Try a sample slide").click()
    page.get_by_text("Download the results").wait_for()
    check_widths(page)
    page.set_viewport_size({"width": 390, "height": 844})
    playwright.expect(page.get_by_test_id("stMain").get_by_text(f"Run {tiny_run.name}.")).to_be_in_viewport()
    page.goto((tiny_run / "report.html").as_uri())
    check_widths(page)


def check_widths(page):
    """No table, and nothing else, reaches over the right edge at the widths of a laptop and of a phone."""
    for width in (1366, 390):
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_timeout(1000)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        wide = "tables => tables.map(table => table.getBoundingClientRect().right).filter(right => right > innerWidth)"
        assert page.locator("table").evaluate_all(wide) == []


def click_a_patch(page, slide_map):
    """Zooms in on the middle of the slide and clicks there: one patch is left to look at."""
    slide_map.scroll_into_view_if_needed()
    box = slide_map.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 3)
    page.mouse.wheel(0, -200)
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 3)
    page.get_by_text("The patch you clicked on the map").wait_for()
    playwright.expect(page.get_by_alt_text("Grad-CAM map")).to_have_count(1)


def predict_images(run, files, threshold, tmp_path):
    folder = tmp_path / "patches"
    folder.mkdir()
    for name, data in files:
        (folder / name).write_bytes(data)
    command = [sys.executable, "-m", "cancernet", "predict", run, folder, "--output", tmp_path / "predictions"]
    subprocess.run(
        [*map(str, command), "--threshold", str(threshold)],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        check=True,
        capture_output=True,
    )
    return read_table((tmp_path / "predictions" / "predictions.csv").read_text())


def read_table(text):
    return {(os.path.basename(row["file"]), row["x"], row["y"]): row for row in csv.DictReader(io.StringIO(text))}
