"""The real page in a real browser: a sample slide sent as a zip, its map, a moved threshold, and the table to keep."""

import csv
import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from conftest import ROOT, zip_files

from cancernet.judging.decision import expected_rates, load_decision
from cancernet.using.uploads import sample_uploads

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
STEPS = 12  # of the slider, to the right

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: apt-get install chromium"),
]


@pytest.fixture
def address(tiny_run, tmp_path):
    """Where the page of the tiny run is served, from a folder that should stay empty."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app.py"), "--server.port", str(port)]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen([*command, "--", "--run", str(tiny_run)], cwd=ROOT, stdout=log, stderr=log)
        try:
            wait_for(f"http://localhost:{port}/_stcore/health")
            yield f"http://localhost:{port}"
        finally:
            server.terminate()
            server.wait(timeout=20)


@pytest.fixture
def page(address):
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport={"width": 1366, "height": 768}, accept_downloads=True)
        page.set_default_timeout(60_000)
        playwright.expect.set_options(timeout=30_000)
        page.goto(address)
        yield page
        browser.close()


def wait_for(url):
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError(f"no answer from {url}")


def test_a_slide_is_sent_looked_at_and_kept_as_predict_images_says(page, tiny_run, tmp_path):
    files = sample_uploads()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.locator("input[type=file]").set_input_files(
        {"name": "79001.zip", "mimeType": "application/zip", "buffer": zip_files(files)}
    )
    slide_map = page.get_by_test_id("stVegaLiteChart")
    slide_map.locator("canvas, svg").first.wait_for()
    threshold = move_threshold(page, tiny_run)
    click_a_patch(page, slide_map)
    with page.expect_download() as download:
        page.get_by_role("button", name="All patches as CSV").click()
    kept = read_table(download.value.path().read_text())
    expected = predict_images(tiny_run, files, threshold, tmp_path)
    assert len(kept) == len(expected) == len(files)
    assert {row["predicted"] for row in kept.values()} == {"0", "1"}
    for name, row in expected.items():
        assert (kept[name]["x"], kept[name]["y"], kept[name]["predicted"]) == (row["x"], row["y"], row["predicted"])
        assert float(kept[name]["probability_1"]) == pytest.approx(float(row["probability_1"]), abs=1e-5)
    assert [url for url in asked if "//localhost:" not in url and not url.startswith(("data:", "blob:"))] == []


def move_threshold(page, run):
    """Moves the slider and gives the threshold it then has; the expected rates move with it."""
    decision = load_decision(run / "decision.json")
    value = page.get_by_test_id("stSliderThumbValue").first
    playwright.expect(value).to_have_text(f"{decision.threshold:.1%}")
    page.get_by_role("slider").first.focus()
    for _ in range(STEPS):
        page.keyboard.press("ArrowRight")
    page.get_by_text("Back to the run's own threshold").wait_for()
    threshold = float(value.inner_text().rstrip("%")) / 100
    assert threshold > decision.threshold
    rates = expected_rates(decision, threshold)
    assert rates["specificity"] > decision.expected_on_validation["specificity"]
    for number, name in enumerate(("sensitivity", "specificity")):
        playwright.expect(page.get_by_test_id("stMetricValue").nth(number)).to_have_text(f"{rates[name]:.1%}")
    return threshold


def click_a_patch(page, slide_map):
    """Zooms in on the middle of the slide and clicks there: one patch is left to look at."""
    slide_map.scroll_into_view_if_needed()
    box = slide_map.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 3)
    page.mouse.wheel(0, -200)
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 3)
    page.get_by_text("The patch that you clicked on the map").wait_for()
    playwright.expect(page.get_by_test_id("stImage")).to_have_count(1)


def predict_images(run, files, threshold, tmp_path):
    folder = tmp_path / "patches"
    folder.mkdir()
    for name, data in files:
        (folder / name).write_bytes(data)
    command = [sys.executable, "predict_images.py", run, folder, "--output", tmp_path / "predictions"]
    subprocess.run(
        [*map(str, command), "--threshold", str(threshold)],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        check=True,
        capture_output=True,
    )
    return read_table((tmp_path / "predictions" / "predictions.csv").read_text())


def read_table(text):
    return {os.path.basename(row["file"]): row for row in csv.DictReader(io.StringIO(text))}
