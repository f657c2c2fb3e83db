"""Exports: what the file holds, that it predicts as the run does, and that one that does not is deleted."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import cv2
import keras
import numpy as np
import pytest
from conftest import ROOT, write_image, write_slides

import build_dataset
from cancernet import InputError
from cancernet.__main__ import main
from cancernet.data.images import ImageStore
from cancernet.evaluation.decision import calibrate
from cancernet.inference import export
from cancernet.run import load_run
from cancernet.training.scoring import predict_scores


@pytest.fixture
def run(tiny_run, tmp_path):
    """A run that smooths over neighbours, in a folder of its own."""
    shutil.copytree(tiny_run, tmp_path / "run")
    return load_run(tmp_path / "run")


@pytest.fixture
def images(tmp_path):
    return ImageStore([write_image(tmp_path / f"{seed}.png", seed) for seed in range(5)], image_size=48, channels=3)


def of(name):
    for package in export.FORMATS[name].packages:
        pytest.importorskip(package)
    return name


@pytest.mark.parametrize("name", export.FORMATS)
def test_an_export_predicts_as_the_run_does_without_neighbours(run, images, name):
    experiment = run.settings.experiment
    alone = dataclasses.replace(run.decision.without_neighbours, threshold=0.4, uncertain_below=0.25)
    run = dataclasses.replace(run, decision=dataclasses.replace(run.decision, without_neighbours=alone))
    file, checked, difference = export.export_run(run, of(name), images)
    assert (file, checked) == (run.folder / name / export.FORMATS[name].file, 5)
    expected = calibrate(alone, predict_scores(run.model, images, views=experiment.views))
    predict = export.OPEN[name](file)
    np.testing.assert_allclose(predict(images.fetch(np.arange(5)).astype(np.float32)), expected, atol=1e-5)
    about = json.loads((run.folder / name / "model.json").read_text())
    assert about["checked"] == {"images": 5, "largest_difference": difference}
    assert (about["threshold"], about["classes"], about["positive"]) == (0.4, ["0", "1"], "1")
    assert about["uncertain_between"] == pytest.approx([0.3, 0.55])


def test_an_export_that_predicts_otherwise_is_deleted(run, images, monkeypatch):
    wrong = np.tile([0.5, 0.5], (5, 1))
    monkeypatch.setitem(export.OPEN, "saved_model", lambda path: lambda images: wrong)
    with pytest.raises(InputError, match=r"saved_model export gives probabilities that differ by up to 0\.\d+ from"):
        export.export_run(run, "saved_model", images)
    assert not list(run.folder.glob("saved_model*"))


def test_views_are_averaged_and_then_calibrated():
    image = keras.Input((2, 2, 1))
    positive = keras.layers.Flatten()(image)[:, :1] / 255  # the pixel in the upper left corner
    model = keras.Model(image, keras.ops.concatenate([1 - positive, positive], axis=1))
    pixels = np.array([[[[51], [102]], [[153], [204]]]], np.float32)  # shares 0.2 0.4 0.6 0.8
    decision = SimpleNamespace(temperature=2.0, bias=(0.0, 1.0))
    for views, mean in (("one", 0.2), ("mirror", 0.3), ("eight", 0.5)):
        odds = np.sqrt(mean / (1 - mean)) * np.e  # temperature 2 is a square root, a bias of 1 a factor of e
        found = export.build_predictor(model, decision, views).predict(pixels, verbose=0)
        np.testing.assert_allclose(found, [[1 / (1 + odds), odds / (1 + odds)]], rtol=1e-5)


def test_constants_of_a_layer_within_are_no_inputs_of_the_file(run, tmp_path, images):
    of("onnx")
    inner = keras.Sequential([keras.Input((48, 48, 3)), keras.layers.Normalization(mean=(1, 2, 3), variance=(4, 5, 6))])
    image = keras.Input((48, 48, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(inner(image))
    model = keras.Model(image, keras.layers.Dense(2, activation="softmax", kernel_initializer="zeros")(pooled))
    result = export.export_run(dataclasses.replace(run, model=model), "onnx", images)
    assert result.largest_difference < 1e-6


def test_a_missing_package_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    message = '--format litert needs ai_edge_litert, which is not installed: pip install ".[export]"'
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        export.check_packages("litert")
    export.check_packages("saved_model")


def test_the_ten_lines_of_the_guide_work_without_tensorflow(run, images, tmp_path):
    folder = export.export_run(run, of("onnx"), images).file.parent
    guide = (ROOT / "docs/export.md").read_text()
    lines = [line.strip() for line in guide.partition("without TensorFlow\n")[2].splitlines() if line[:4] == "    "]
    assert len(lines) == 10
    script = "\n".join(lines).replace("runs/cancernet/onnx", str(folder)).replace("patch.png", str(tmp_path / "3.png"))
    script += "\nimport sys; assert not {'tensorflow', 'keras'} & set(sys.modules)"
    command = [sys.executable, "-c", script]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    alone = run.decision.without_neighbours
    share = calibrate(alone, predict_scores(run.model, images, views=run.settings.experiment.views))[3, 1]
    assert re.fullmatch(r"(\d\.\d+) (positive|negative)\n", said)
    assert float(said.split()[0]) == pytest.approx(share, abs=1e-4)
    assert said.split()[1] == ("positive" if share >= alone.threshold else "negative")
    assert cv2.imread(str(tmp_path / "3.png")).shape == (50, 50, 3)  # it was scaled
    about = json.loads((folder / "model.json").read_text()) | {"uncertain_between": [share - 0.01, share + 0.01]}
    (folder / "model.json").write_text(json.dumps(about))
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.split(maxsplit=1)[1] == "uncertain: refer to a person\n"


@pytest.fixture
def dataset(tmp_path):
    write_slides(tmp_path / "source", patients=10)
    build_dataset.main(["--source", str(tmp_path / "source"), "--output", str(tmp_path / "dataset")])
    return tmp_path / "dataset"


def test_an_export_lies_in_the_run_and_says_how_equal_it_is(tiny_run, dataset, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    decision = json.loads((run / "decision.json").read_text())
    for each in (decision, decision["without_neighbours"]):
        each["uncertain_below"] = 0.2
    (run / "decision.json").write_text(json.dumps(decision))
    main(["export", str(run), "--format", "saved_model", "--dataset", str(dataset)])
    said = capsys.readouterr().out
    assert "differs by more than" in said
    assert "from the run's on 60 images." in said
    assert "It also has the limits of uncertain images. An export does not find those that are out of" in said
    assert {"saved_model.pb", "model.json"} <= {path.name for path in (run / "saved_model").iterdir()}


def test_an_export_without_a_dataset_is_verified_on_the_samples_of_the_run(tiny_run, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    files = sorted((run / "samples").glob("*/*"))
    if not files:
        (run / "samples" / "0").mkdir(parents=True)
        for name in ("a", "b"):
            cv2.imwrite(str(run / "samples" / "0" / f"{name}.png"), np.full((50, 50, 3), 200, np.uint8))
        files = ["a", "b"]
    main(["export", str(run), "--format", "saved_model"])
    said = capsys.readouterr().out
    assert f"from the run's on {len(files)} images." in said
    assert "uncertain" not in said
    about = json.loads((run / "saved_model" / "model.json").read_text())
    assert about["checked"]["images"] == len(files)
    assert about["uncertain_between"] is None
    assert about["output"].startswith("calibrated probabilities")


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        ("none", [], "There is no run .*none. Train one with train_model.py"),
        ("run", ["--dataset", "nowhere"], "nowhere has no manifest.csv"),
        ("run", ["--format", "h5"], "argument --format: invalid choice: 'h5'"),
    ],
)
def test_what_cannot_be_exported_is_told_at_once(tiny_run, tmp_path, run, options, message):
    (tmp_path / "run").symlink_to(tiny_run)
    with pytest.raises(InputError, match=message):
        main(["export", str(tmp_path / run), "--format", "onnx", *options])
