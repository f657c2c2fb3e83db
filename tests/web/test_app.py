"""The page, each flow without a browser."""

import csv
import dataclasses
import functools
import io
import json
import shutil
import sys
from types import SimpleNamespace

import cv2
import keras
import numpy as np
import pytest
from conftest import zip_files
from streamlit.components.v2 import manifest_scanner
from streamlit.runtime.scriptrunner import script_runner
from streamlit.testing.v1 import AppTest

from cancernet.data.dataset import Patch
from cancernet.data.sample import make_slide
from cancernet.evaluation.decision import fit_decision, load_decision, save_decision
from cancernet.evaluation.predictions import Scores
from cancernet.inference.prediction import decide_item
from cancernet.reporting.schema import Report
from cancernet.reporting.wording import name_fit
from cancernet.run import (
    DECISION,
    MODEL,
    OUT_OF_DISTRIBUTION,
    SAMPLES,
    load_run,
    read_report,
    read_settings,
    write_settings,
)
from cancernet.training.scoring import log_scores
from cancernet.web import launch, uploads
from cancernet.web import page as page_work
from cancernet.web.page import ORDERS, Shown, answer_uploads, describe_patch, list_patches, predictions_csv

PNG, ZIP = "image/png", "application/zip"
sample_uploads = functools.cache(uploads.sample_uploads)


@pytest.fixture(autouse=True)
def nothing_twice(monkeypatch):
    """Paint the sample once, and do not search installed packages for page components."""
    monkeypatch.setattr(uploads, "sample_uploads", sample_uploads)
    monkeypatch.setattr(manifest_scanner, "scan_component_manifests", list)


@pytest.fixture
def page(tiny_run, monkeypatch):
    """The page of the tiny run, opened."""
    return open_page(tiny_run, monkeypatch)


def open_page(run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["app.py", str(run)])
    page = AppTest.from_file(str(launch.SCRIPT), default_timeout=60).run()
    assert not page.exception
    return page


def send(page, *files):
    page.file_uploader[0].set_value(list(files)).run()
    assert not page.exception
    return page


def find_button(page, words):
    return next(button for button in page.button if words in button.label)


def texts(page):
    """All text on the page, without the escapes of Markdown."""
    elements = [*page.markdown, *page.caption, *page.info, *page.warning, *page.error, *page.title, *page.subheader]
    return "\n".join(str(element.value) for element in elements).replace("\\", "")


def describe_expected(decision):
    images, patients = decision.fitted_on.images, decision.fitted_on.patients
    rates = ", ".join(f"{name} {value:.1%}" for name, value in vars(decision.expected_on_validation).items())
    return f"({images:,} images from {patients} patients): {rates}"


def maps(page):
    return page.get("vega_lite_chart")


@pytest.mark.parametrize("cleared", [True, False])
def test_the_compiled_network_survives_a_click_on_the_launched_page(cleared, tiny_run, monkeypatch):
    """Streamlit clears Keras after each run of the script unless `keep_compiled_models` stops it."""
    calls = []
    monkeypatch.setattr(keras.backend, "clear_session", lambda: calls.append(True))
    monkeypatch.setattr(script_runner, "_clean_problem_modules", script_runner._clean_problem_modules)
    if not cleared:
        launch.keep_compiled_models()
    open_page(tiny_run, monkeypatch).run()
    assert bool(calls) == cleared


def test_the_sidebar_shows_the_performance_of_the_run(page, tiny_run):
    report = json.loads((tiny_run / "report.json").read_text())
    said = texts(page)
    metric = report["metrics"]["sensitivity"]
    assert "For research and teaching, not for diagnosis." in said
    assert report["statement"] in said
    assert f"| sensitivity | {metric['value']:.3f} | too few patients for an interval |" in said
    assert "Training data.** 73 images from 2 patients" in said
    assert "- 1 (IDC): 19" in said
    assert not maps(page)
    assert not page.download_button


def test_a_patch_is_answered_with_probabilities_decision_and_grad_cam(page, tiny_run):
    name, data = sample_uploads()[40]
    send(page, ("one.png", data, PNG))
    run = load_run(tiny_run)
    (scored,), *_ = answer_uploads(run, [(name, data)])
    benign, idc = decide_item(run, scored, neighbours=False).probabilities[0]
    (answer,) = [each.proto.body for each in page.get("html") if 'class="predicted"' in each.proto.body]
    assert (answer.index(f"{idc:.1%}") < answer.index(f"{benign:.1%}")) == (idc > benign)
    assert "**1 patch**, classified as" in texts(page)
    assert len(page.get("image")) == 1
    assert [each.value for each in page.subheader] == ["Patch", "Download the results"]
    assert [each.label for each in page.selectbox] == ["Run"]  # a single patch has no order
    assert not maps(page)
    assert [button.label for button in page.download_button] == ["All patches (CSV)", "Report of the run"]
    assert not page.toggle  # a patch without a position is not smoothed
    plain = load_decision(tiny_run / "decision.json").without_neighbours
    tested = read_report(tiny_run, Report).neighbours["without"]
    assert [metric.label for metric in page.metric] == [
        f"{rate} (test set, single patches)" for rate in ("Sensitivity", "Specificity")
    ]
    assert [metric.value for metric in page.metric] == [
        f"{tested[name].value:.1%}" for name in ("sensitivity", "specificity")
    ]
    assert (
        f"Expected from {name_fit(plain.fitted_on)} {describe_expected(plain)}. These are rates of single patches."
        in texts(page)
    )
    assert "apply to smoothed slides" not in texts(page)


def test_a_zip_of_a_patient_makes_a_map_with_neighbours(page, tiny_run):
    send(page, ("patient.zip", zip_files(sample_uploads()), ZIP))
    assert len(maps(page)) == 1
    assert "Slide 79001" in texts(page)
    assert page.toggle[0].value
    own = load_decision(tiny_run / "decision.json")
    assert page.select_slider[0].value == own.threshold
    page.toggle[0].set_value(False).run()
    assert page.select_slider[0].value == own.without_neighbours.threshold
    assert describe_expected(own.without_neighbours) in texts(page)
    labels = [button.label for button in page.download_button]
    assert labels[:3] == [
        "All patches (CSV)",
        "Map of 79001 (JPEG)",
        "Regions of the slide (GeoJSON)",
    ]


def test_annotations_of_a_slide_are_compared_with_the_answers(page):
    ring = [[0, 0], [10_000, 0], [10_000, 10_000], [0, 10_000], [0, 0]]
    tumour = {
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "Tumor"}},
    }
    given = json.dumps(tumour).encode()
    send(page, ("patient.zip", zip_files(sample_uploads()), ZIP), ("79001.geojson", given, "application/geo+json"))
    table = page.table[-1].value
    assert table["annotated as"].tolist() == ["Tumor"]
    assert table["area"].str.replace("\\", "").tolist() == [f"{len(sample_uploads()) * 0.04:,.2f} mm²"]


def test_a_patch_without_a_slide_has_its_own_threshold(page, tiny_run):
    own = load_decision(tiny_run / "decision.json")
    send(page, ("patient.zip", zip_files(sample_uploads()), ZIP), ("one.png", sample_uploads()[40][1], PNG))
    assert describe_expected(own) in texts(page)
    assert f"Not smoothed, from a probability of {own.without_neighbours.threshold:.1%}: 1 patch." in texts(page)
    page.select_slider[0].set_value(1.0).run()
    assert "Not smoothed: 1 patch." in texts(page)


def test_the_patches_closest_to_the_threshold_come_first():
    run = SimpleNamespace(classes=("0", "1"), positive="1")
    shares = np.array([[0.1, 0.9], [0.8, 0.2], [0.6, 0.4]])
    for threshold, expected in ((0.0, [1, 2, 0]), (0.45, [2, 1, 0]), (1.0, [0, 2, 1])):
        decided = SimpleNamespace(probabilities=shares, predicted=np.array([1, 0, 0]), threshold=threshold)
        assert [patch.row for patch in list_patches(run, [decided], ORDERS[1])] == expected


def test_the_bar_of_the_positive_class_has_the_threshold_that_explains_the_class():
    run = SimpleNamespace(
        classes=("0", "1"), positive="1", settings=SimpleNamespace(class_names={"0": "no", "1": "IDC"})
    )
    given = {"probabilities": np.array([[0.65, 0.35]]), "predicted": np.array([1]), "threshold": 0.25}
    shown = describe_patch(run, Shown(SimpleNamespace(**given, uncertain=None), 0))
    assert ">classified as IDC</div>" in shown
    uncertain = SimpleNamespace(**given, uncertain=np.array([True]))
    assert ">uncertain (otherwise IDC): refer to a person</div>" in describe_patch(run, Shown(uncertain, 0))
    assert shown.count('<i style="left: 25.0%">') == 1
    idc = shown.index("<span>IDC</span>")
    assert idc > shown.index("<span>no</span>")  # the bars are in the order of the probabilities
    assert shown.index("<i ") > idc
    assert shown.endswith("<small>Mark: IDC from 25.0%</small>")


def test_the_sample_is_one_click_away_and_files_replace_it(page):
    find_button(page, "sample").click().run()
    assert not page.exception
    assert len(maps(page)) == 1
    assert f"**{len(sample_uploads()):,} patches**" in texts(page)
    write = cv2.imencode(".png", np.full((50, 50, 3), 200, np.uint8))[1].tobytes()
    send(page, ("grey.png", write, PNG))
    assert not maps(page)
    assert "**1 patch**, classified as" in texts(page)


def test_the_threshold_moves_the_expected_rates_and_the_decisions_and_comes_back(page, tiny_run):
    find_button(page, "sample").click().run()
    own = load_decision(tiny_run / "decision.json")
    report = read_report(tiny_run, Report)
    assert page.metric[1].value == f"{report.metrics['specificity'].value:.1%}"
    page.select_slider[0].set_value(1.0).run()
    assert not page.metric
    assert "patients): sensitivity 0.0%, specificity 100.0%." in texts(page)
    assert "classified as: **0** IDC (0%, 0.0 mm²)" in texts(page)
    page.select_slider[0].set_value(0.0).run()
    assert "patients): sensitivity 100.0%, specificity 0.0%." in texts(page)
    assert "**0** benign (0%" in texts(page)
    find_button(page, "Default").click().run()
    assert page.select_slider[0].value == own.threshold
    assert describe_expected(own) in texts(page)


def test_fewer_false_positives_are_one_click_away_and_tested(page, tiny_run):
    find_button(page, "sample").click().run()
    point = load_decision(tiny_run / "decision.json").other_points["specificity=0.95"]
    find_button(page, "Fewer false positives").click().run()
    assert page.select_slider[0].value == point
    row = next(each for each in read_report(tiny_run, Report).operating_points if each.name == "specificity=0.95")
    assert page.metric[1].value == f"{row.specificity.value:.1%}"


def test_images_are_scored_once(page, monkeypatch):
    find_button(page, "sample").click().run()
    monkeypatch.setattr(page_work, "answer_uploads", None)
    page.select_slider[0].set_value(0.5).run()
    page.selectbox(key="order").set_value(ORDERS[2]).run()
    assert not page.exception


def test_a_broken_file_is_named_and_the_others_stay(page):
    files = sample_uploads()[:3]
    send(page, *((name, data, PNG) for name, data in files), ("bad_[x](y).png", b"\x89PNG\r\n\x1a\n no more", PNG))
    assert "**3 patches**" in texts(page)
    assert page.expander[0].label == "1 file could not be used"
    table = page.table[0].value
    assert table["file"].tolist() == [r"bad\_\[x\]\(y\)\.png"]  # Markdown would turn it into a link
    assert "not an image" in table["why"][0]


def test_out_of_distribution_images_are_reported_and_shown(page):
    black = cv2.imencode(".png", np.zeros((50, 50, 3), np.uint8))[1].tobytes()
    name, data = sample_uploads()[40]
    send(page, (name, data, PNG), ("black.png", black, PNG))
    assert "1 of 2 patches (50.0%) is out of distribution" in texts(page)
    assert "The most distant images and their distances; 1 is the limit." in texts(page)
    assert len(page.get("image")) == 2 + 1  # and the distant one


def test_a_message_says_that_all_files_are_broken(page):
    send(page, ("bad.png", b"no image", PNG), ("bomb.zip", b"PK\x03\x04", ZIP))
    assert "None of the files could be used." in texts(page)
    assert page.expander[0].label == "2 files could not be used"
    assert not page.download_button


def test_overlapping_patches_are_rejected(page):
    files = sample_uploads()[:6]
    name = files[0][0]
    near = f"79001_idx5_x{int(name.split('_x')[1].split('_')[0]) + 10}_y{name.split('_y')[1]}"
    send(page, *((each, content, PNG) for each, content in [*files, (near, files[1][1])]))
    table = page.table[0].value
    assert "Two patches of slide 79001 overlap" in table["why"][0].replace("\\", "")
    assert table["file"][0].endswith(" and 6 more")
    assert "None of the files could be used." in texts(page)


def test_the_scale_of_a_large_image_is_requested(page):
    image = make_slide(5, 5, side=400).image
    send(page, ("large.png", cv2.imencode(".png", image[..., ::-1])[1].tobytes(), PNG))
    why = page.table[0].value["why"][0].replace("\\", "")
    assert "does not give its scale" in why
    assert f'Give "{page.selectbox(key="scale").label}", such as' in why
    assert "--" not in why
    page.selectbox(key="scale").set_value("4 (IDC patches)").run()
    assert not page.exception
    assert not page.table
    assert len(maps(page)) == 1
    assert "Slide large.png" in texts(page)


def test_two_slides_are_chosen_between(page):
    other = [(name.replace("79001", "79002"), data) for name, data in sample_uploads()]
    send(page, ("two.zip", zip_files([*sample_uploads(), *other]), ZIP))
    assert page.selectbox(key="slide").options == ["79001", "79002"]
    page.selectbox(key="slide").set_value("79002").run()
    labels = [button.label for button in page.download_button]
    assert labels[1:3] == ["Map of 79002 (JPEG)", "Regions of all slides (GeoJSON)"]


def make_three_classes(run, folder):
    """A copy of a run of two classes with a network of three that nobody trained, and no report."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("report.json"))
    layers = keras.layers
    keras.Sequential(
        [
            keras.Input(load_run(run).model.input_shape[1:]),
            layers.Conv2D(2, 3, strides=2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation="softmax"),
        ]
    ).save(folder / MODEL)
    scores = log_scores(np.array([[0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.4, 0.1, 0.5], [0.2, 0.5, 0.3]]))
    patches = [Patch("", label, patient, None, None, "", "") for label, patient in zip("abca", "1122")]
    fitted = fit_decision(Scores(patches, scores), classes=("a", "b", "c"), positive=None)
    save_decision(fitted, folder / DECISION)
    (folder / OUT_OF_DISTRIBUTION).unlink()  # of the other network
    write_settings(
        folder, dataclasses.replace(read_settings(run), classes=("a", "b", "c"), positive=None, model_sha256="")
    )
    return folder


def test_a_run_that_refers_images_says_which_are_uncertain(tiny_run, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_run, tmp_path / "refers")
    decision, limit = load_decision(folder / "decision.json"), {"refer": 0.5, "uncertain_below": 1.0}
    alone = dataclasses.replace(decision.without_neighbours, **limit)
    save_decision(dataclasses.replace(decision, without_neighbours=alone, **limit), folder / "decision.json")
    page = open_page(folder, monkeypatch)
    find_button(page, "sample").click().run()
    assert not page.exception
    assert f"Of these, **{len(sample_uploads()):,}** are uncertain: refer them to a person." in texts(page)
    assert "Blue lines surround uncertain patches." in texts(page)


def test_several_classes_have_no_threshold(tiny_run, tmp_path, monkeypatch):
    page = open_page(make_three_classes(tiny_run, tmp_path / "three"), monkeypatch)
    find_button(page, "sample").click().run()
    assert not page.exception
    assert not page.select_slider
    assert "Each image is assigned its most probable class." in texts(page)
    assert page.selectbox(key="class").options == ["a", "b", "c"]


def test_a_run_that_is_not_of_patches_has_its_own_words_and_samples_and_no_map(tiny_run, tmp_path, monkeypatch):
    folder = make_three_classes(tiny_run, tmp_path / "xray")
    grey = {"mpp": None, "images_are_grey": True, "usual_size": "256x256"}
    write_settings(folder, dataclasses.replace(read_settings(folder), **grey))
    page = open_page(folder, monkeypatch)
    assert not page.button  # the run keeps no samples
    for number, (_, data) in enumerate(sample_uploads()[:6]):
        path = folder / SAMPLES / "b" / f"person{number}.png"  # a name without a position
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    page.run()
    assert "grey, usually 256x256 pixels, of the classes a, b, c." in texts(page)
    find_button(page, "Try some test images").click().run()
    assert not page.exception
    assert "**6 images**" in texts(page)
    assert "b/person0.png" in texts(page)
    assert not maps(page)
    assert not any(word in texts(page) for word in ("patch", "tissue", "slide"))


def test_the_newest_run_is_taken_and_others_can_be_chosen(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = open_without_run(monkeypatch)
    assert "There is no finished run under runs." in texts(page)
    for name in ("old", "new"):
        shutil.copytree(tiny_run, tmp_path / "runs" / name, copy_function=shutil.copyfile)
    (tmp_path / "runs" / "unfinished").mkdir()
    (tmp_path / "runs/old/report.json").unlink()
    page = open_without_run(monkeypatch)
    assert page.selectbox(key="run").options == ["new", "old"]
    page.selectbox(key="run").set_value(page.selectbox(key="run").options[1]).run()
    assert "This run has no report.json" in texts(page)


def open_without_run(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["app.py"])
    return AppTest.from_file(str(launch.SCRIPT), default_timeout=60).run()


def test_a_missing_run_is_reported_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["app.py", str(tmp_path / "none")])
    page = AppTest.from_file(str(launch.SCRIPT), default_timeout=60).run()
    assert "There is no run" in texts(page)
    assert not page.exception


def test_the_table_has_the_probabilities_of_the_decision(tiny_run):
    run = load_run(tiny_run)
    (scored,), *_ = answer_uploads(run, sample_uploads())
    decided = decide_item(run, scored)
    rows = list(csv.DictReader(io.StringIO(predictions_csv(run, [decided]))))
    assert [float(row["probability_IDC"]) for row in rows] == decided.probabilities[:, 1].round(4).tolist()
    assert [row["predicted"] for row in rows] == [("benign", "IDC")[index] for index in decided.predicted]


def test_nothing_is_written_to_disk(page, monkeypatch):
    def refuse(*arguments, **_):
        raise AssertionError(f"written: {arguments}")

    for module, name in (("tempfile", "mkstemp"), ("tempfile", "NamedTemporaryFile"), ("pathlib", "Path.write_bytes")):
        monkeypatch.setattr(f"{module}.{name}", refuse)
    send(page, ("patient.zip", zip_files(sample_uploads()), ZIP))
    assert len(maps(page)) == 1
