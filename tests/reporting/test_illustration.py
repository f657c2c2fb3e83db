"""The pictures of a report that need the images again."""

import hashlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
from conftest import write_image
from made_reports import make_report

from cancernet import InputError, run
from cancernet.config import Augmentation, Experiment
from cancernet.data.dataset import Patch
from cancernet.data.grid import lay_out_patches
from cancernet.evaluation.predictions import Predictions
from cancernet.reporting import illustration
from cancernet.reporting.content import EvaluatedSplit
from cancernet.reporting.illustration import MOST_SLIDES, MOST_SUSPICIOUS, illustrate, is_worth_drawing
from cancernet.reporting.montages import TILE_PIXELS
from cancernet.reporting.schema import Picture

SIDE = 5  # patches of a synthetic slide


@pytest.fixture(scope="module")
def loaded(tiny_run):
    return run.load_run(tiny_run)


def make_predictions(folder, slides, *, wrong=lambda slide: 0):
    """Square slides, patches of noise; the first `wrong(slide)` patches of each got the other class."""
    rng = np.random.default_rng(1)
    (folder / "testing").mkdir(parents=True)
    patches, labels, predicted = [], [], []
    for slide in range(slides):
        for number in range(SIDE**2):
            x, y = 50 * (number % SIDE) + 1, 50 * (number // SIDE) + 1
            file = f"testing/{slide}_idx5_x{x}_y{y}_class{number % 2}.png"
            cv2.imwrite(str(folder / file), rng.integers(0, 256, (50, 50, 3), dtype=np.uint8))
            sha256 = hashlib.sha256((folder / file).read_bytes()).hexdigest()
            patches.append(Patch(file, str(number % 2), str(slide), x, y, "testing", sha256))
            labels.append(number % 2)
            predicted.append(number % 2 ^ (number < wrong(slide)))
    predicted = np.array(predicted)
    confidence = np.linspace(0.6, 0.9, len(patches))
    probabilities = np.where(np.arange(2) == predicted[:, None], confidence[:, None], 1 - confidence[:, None])
    return Predictions(patches, np.array(labels), probabilities, predicted)


def evaluated(predictions):
    return EvaluatedSplit(make_report(), predictions, lay_out_patches(predictions.patches))


def test_a_run_keeps_a_few_images_of_every_class_as_they_are(tmp_path, monkeypatch):
    predictions = make_predictions(tmp_path / "data", 1)
    monkeypatch.setattr(illustration, "SAMPLE_BYTES", 10_000)
    with (tmp_path / "data" / predictions.patches[0].file).open("ab") as file:
        file.write(bytes(10_000))  # the first of class 0 is too large
    for _ in range(2):  # a training that was cut off does it again
        illustration.copy_samples(predictions, tmp_path / "data", tmp_path / "run")
    kept = {path.parent.name: path for path in sorted((tmp_path / "run" / "samples").glob("*/*"), reverse=True)}
    assert {label: len(list(path.parent.iterdir())) for label, path in kept.items()} == {"0": 4, "1": 4}
    assert "0_idx5_x1_y1_class0.png" not in {path.name for path in kept["0"].parent.iterdir()}
    assert kept["1"].read_bytes() == (tmp_path / "data" / "testing" / kept["1"].name).read_bytes()


def test_slides_and_gradcam_are_drawn_and_listed(loaded, tmp_path):
    predictions = make_predictions(tmp_path / "data", 2, wrong=lambda slide: 5 * slide)
    report = illustrate(loaded, evaluated(predictions), tmp_path / "data", tmp_path / "run")
    assert report.slides == [  # the worse first
        Picture("Slide 1: 25 patches, accuracy 80.0%", "slides/1.jpg"),
        Picture("Slide 0: 25 patches, accuracy 100.0%", "slides/0.jpg"),
    ]
    assert [each.picture for each in report.gradcam] == ["gradcam.jpg"]
    for each in report.slides + report.gradcam:
        assert cv2.imread(str(tmp_path / "run" / each.picture)) is not None


def test_frozen_backbones_and_networks_without_maps_have_no_grad_cam(loaded):
    def explains(**changes):
        settings = replace(loaded.settings, experiment=replace(loaded.settings.experiment, **changes))
        return illustration.has_grad_cam(replace(loaded, settings=settings))

    assert explains(model="cancernet")
    assert explains(model="densenet121", strategy="finetune")
    assert not explains(model="densenet121", strategy="frozen")
    assert not explains(model="cancernet+densenet121", strategy="frozen")
    assert not explains(model="encoder", strategy="finetune")


def test_suspicious_labels_are_listed_and_the_first_are_drawn_with_label_probability_and_patient(tmp_path):
    predictions = make_predictions(tmp_path, 2, wrong=lambda slide: 15)
    report, drawn = illustration.check_labels(make_report(), predictions, tmp_path, tmp_path)
    header, *rows = (tmp_path / "labels_to_check.csv").read_text().splitlines()
    assert header == "file,patient,label,suggested,probability_of_label,probability_of_suggested"
    check = report.label_check
    assert (check.images, check.suspicious, len(check.shown)) == (50, len(rows), MOST_SUSPICIOUS)
    assert len(rows) > MOST_SUSPICIOUS
    assert rows[0].startswith("testing/1_idx5_x201_y101_class0.png,1,0,1,")
    captions = [text.get_text() for text in drawn["labels_to_check"].axes[0].texts]
    assert len(captions) == MOST_SUSPICIOUS
    probability = 1 - predictions.probabilities.max(axis=1)[39]
    assert (
        captions[0]
        == f"1_idx5_x201_y101_\nclass0.png\nlabel: 0 (benign)\nprobability of\nthis label: {probability:.3f}\npatient 1"
    )
    right = make_predictions(tmp_path / "right", 1)
    report, drawn = illustration.check_labels(make_report(), right, tmp_path / "right", tmp_path)
    assert (report.label_check.suspicious, drawn) == (0, {})
    assert (tmp_path / "labels_to_check.csv").read_text() == header + "\n"


def test_of_many_slides_the_report_shows_some_from_the_worst_to_the_best(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(illustration, "draw_slide", lambda *_, **__: None)
    monkeypatch.setattr(illustration, "save_picture", lambda *_: None)
    predictions = make_predictions(tmp_path, 23, wrong=lambda slide: slide)  # 23 slides: every other one of them
    titles = [each.title for each in illustration._draw_slides(loaded, evaluated(predictions), tmp_path, tmp_path)]
    assert len(titles) == MOST_SLIDES
    assert [title.split(":")[0] for title in titles] == [f"Slide {slide}" for slide in range(22, -1, -2)]


def test_a_slide_whose_patches_overlap_is_not_drawn(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(illustration, "draw_slide", lambda *_, **__: None)
    monkeypatch.setattr(illustration, "save_picture", lambda *_: None)
    predictions = make_predictions(tmp_path, 2)
    predictions.patches[0] = predictions.patches[0]._replace(x=34)
    drawn = illustration._draw_slides(loaded, evaluated(predictions), tmp_path, tmp_path)
    assert [each.picture for each in drawn] == ["slides/1.jpg"]


def test_a_file_that_changed_since_it_was_evaluated_is_not_drawn(loaded, tmp_path):
    predictions = make_predictions(tmp_path, 1)
    (tmp_path / predictions.patches[3].file).write_bytes(b"another")
    with pytest.raises(InputError, match="differs from the file that the manifest lists"):
        illustration._draw_slides(loaded, evaluated(predictions), tmp_path, tmp_path)


def test_the_most_confident_of_each_kind_are_explained(loaded, tmp_path):
    predictions = make_predictions(tmp_path, 1, wrong=lambda slide: 7)
    kinds = illustration._find_most_confident(loaded, predictions)
    assert [(heading.split(":")[0], rows.tolist()) for heading, rows in kinds.items()] == [
        ("Detected", [23, 21, 19, 17]),
        ("False alarms", [6, 4, 2, 0]),
        ("Missed", [5, 3, 1]),
    ]


def test_each_kind_shows_its_own_images_or_none(loaded, tmp_path, monkeypatch):
    shown = []
    plot = illustration.plot_explained
    monkeypatch.setattr(
        illustration,
        "plot_explained",
        lambda *, groups, columns: shown.append(groups) or plot(groups=groups, columns=4),
    )
    predictions = make_predictions(tmp_path, 1, wrong=lambda slide: 7)
    illustration._draw_explained(loaded, predictions, tmp_path, tmp_path)
    benign = [row for row, label in enumerate(predictions.labels) if label == 0 and row >= 7]
    correct = predictions.take(np.array(benign))
    illustration._draw_explained(loaded, correct, tmp_path, tmp_path)
    classes = [[each.caption.partition("class")[2][0] for each in group] for group in shown[0].values()]
    assert classes == [["1"] * 4, ["0"] * 4, ["1"] * 3]
    assert [list(group) for group in shown[1].values()] == [[], [], []]


def test_a_complete_slide_is_drawn_and_a_sample_is_not():
    y, x = 50 * np.array(np.divmod(np.arange(SIDE**2), SIDE))

    def grid(x, y):
        return lay_out_patches([Patch("", "0", "p", *place, "", "") for place in zip(x, y)]).slides[0]

    assert is_worth_drawing(grid(x, y))
    assert not is_worth_drawing(grid(x[:19], y[:19]))  # too few
    assert not is_worth_drawing(grid(3 * x, 3 * y))  # no neighbours


def test_training_images_are_shown_as_the_network_sees_them(tmp_path):
    patches = []
    for number in range(9):
        content = write_image(tmp_path / f"{number}.png", number, (16, 16, 3)).read_bytes()
        split, sha256 = "testing" if number % 3 == 0 else "training", hashlib.sha256(content).hexdigest()
        patches.append(Patch(f"{number}.png", "a", "", None, None, split, sha256))
    assert illustration.draw_augmentation(patches, tmp_path, Experiment()) == {}
    experiment = Experiment(image_size=16, augmentation=Augmentation(quarter_turns=True))
    figure = illustration.draw_augmentation(patches, tmp_path, experiment)["augmented"]
    (axes,) = figure.axes
    picture = axes.images[0].get_array()
    assert picture.shape == (3 * TILE_PIXELS, 8 * TILE_PIXELS, 3)
    tiles = picture.reshape(3, TILE_PIXELS, 8, TILE_PIXELS, 3).swapaxes(1, 2)
    turned = [np.rot90(tiles[0, 0], turns) for turns in range(4)]
    assert all(any(np.abs(tile.astype(int) - each).mean() < 2 for each in turned) for tile in tiles[0])
    assert not all((tile == tiles[0, 0]).all() for tile in tiles[0])
