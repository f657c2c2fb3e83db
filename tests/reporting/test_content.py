"""From scores to a report's numbers and its words about the data."""

import json

import numpy as np
import pytest
from conftest import make_summary

from cancernet import InputError
from cancernet.data.dataset import Patch
from cancernet.evaluation.predictions import Predictions, Scores
from cancernet.evaluation.smoothing import fit_on_validation
from cancernet.reporting.content import (
    Subject,
    assess,
    describe_data,
    describe_outside,
    find_worst_errors,
    pool_folds,
    read_pictures,
)
from cancernet.reporting.wording import warn_of_change
from cancernet.run import describe_seen, find_seen, write_predictions

RIGHT = np.log([[0.8, 0.2], [0.3, 0.7]])


def make_slide(patient, step=50, side=5, split="testing"):
    """Square slide with a tumour in its lower half, and the scores of a network that is right of most patches."""
    patches, scores = [], []
    for number in range(side**2):
        x, y = step * (number % side) + 1, step * (number // side) + 1
        label = int(number > side**2 // 2)
        patches.append(
            Patch(f"{patient}_x{x}_y{y}.png", str(label), patient, x, y, split, f"{number:016}{patient:0<48}")
        )
        scores.append(RIGHT[label ^ (number % 5 == 2)])
    return patches, np.array(scores)


def judge(patches, scores, **options):
    decision = fit_on_validation(
        Scores(patches, scores), classes=["0", "1"], positive="1", operating_point="0.5", neighbours=True
    )
    subject = Subject("run", "testing", describe_data(patches, make_summary()), **options)
    return decision, *assess(patches, scores, decision, subject)[:2]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"step": 33}, "Two patches of slide b overlap: b_x1_y1.png at x 1, y 1 and b_x34_y1.png at x 34, y 1; "),
        ({"step": 10**8}, "The patches of slide b span 8000001 x 8000001 places. Check x and y of b_"),
    ],
)
def test_a_slide_that_cannot_be_laid_out_is_judged_patch_by_patch_and_the_report_says_so(spoil, reason):
    whole, spoilt = make_slide("a"), make_slide("b", **spoil)
    alone, _, plain = judge(*spoilt)
    assert alone.neighbour_sigma == 0
    patches, scores = whole[0] + spoilt[0], np.concatenate([whole[1], spoilt[1]])
    decision, report, predictions = judge(patches, scores)
    assert decision.neighbour_sigma > 0  # the other slide has neighbours
    (warning,) = report["warnings"]
    assert warning.startswith(f"1 slide(s) are judged patch by patch, without neighbours or a map. First: {reason}")
    np.testing.assert_array_equal(predictions.predicted[25:], plain.predicted)
    assert [patch.x for patch in predictions.patches] == [patch.x for patch in patches]
    assert judge(*whole)[1]["warnings"] == []


def test_neighbours_are_told_by_the_difference_that_they_make_to_each_patient():
    slides = [make_slide(patient) for patient in "abcdefgh"]
    patches = [patch for each, _ in slides for patch in each]
    scores = np.concatenate([each for _, each in slides])
    scores[:25] = RIGHT[[int(patch.label) for patch in patches[:25]]]  # patient a needs no neighbours
    told = judge(patches, scores)[1]["neighbours"]
    accuracy = {name: told[name]["accuracy"]["value"] for name in ("without", "with", "difference")}
    assert accuracy["difference"] == pytest.approx(accuracy["with"] - accuracy["without"])
    assert told["difference"]["accuracy"]["verdict"] == "better"
    assert tuple(told["difference"]) == tuple(told["with"])


def test_an_evaluation_has_a_title_and_warns_where_figures_leave_what_validation_led_to_expect():
    patches, scores = make_slide("a")
    assert judge(patches, scores, dataset="elsewhere")[1]["title"] == "Evaluation of run on elsewhere"
    assert "title" not in judge(patches, scores)[1]
    sure = {"value": 0.6, "low": 0.5, "high": 0.7}
    metrics = {
        "sensitivity": sure,
        "specificity": sure | {"low": None, "high": None},
        "calibration_slope": sure,
        "calibration_intercept": {"value": 0.1, "low": -0.1, "high": 0.3},
    }
    first, second = warn_of_change(metrics, {"sensitivity": 0.8, "specificity": 0.9})
    assert first.startswith(
        "Not as validation led to expect: sensitivity (recall) is 0.600 (interval 0.500 to 0.700), expected was 0.800;"
    )
    assert "calibration slope is 0.600 (interval 0.500 to 0.700), expected was 1.000" in second
    assert warn_of_change(metrics, {"sensitivity": 0.7, "specificity": 0.0}) == [second]
    assert warn_of_change({}, None) == []


def test_an_image_that_was_trained_on_is_known_whatever_its_patient_is_called():
    seen = make_slide("a", split="training")[0] + make_slide("b", split="validation")[0]
    seen = [patch._replace(sha256=f"{number:064x}"[::-1]) for number, patch in enumerate(seen)]
    known = describe_seen(seen)
    assert find_seen(known, seen) == ["a", "b"]
    renamed = [patch._replace(patient=f"patient_{patch.patient}", split="testing") for patch in seen[:2]]
    unknown = [patch._replace(patient="", split="testing") for patch in seen[-2:]]
    assert find_seen(known, renamed + unknown) == sorted(patch.file for patch in renamed + unknown)
    assert find_seen(known, [renamed[0]._replace(sha256="f" * 64)]) == []


@pytest.mark.parametrize(
    ("patients", "split_by", "ending"),
    [
        ("ab", "patient", "each of the 50 images of 2 patients was judged by a model that had not seen its patient."),
        ("ab", "image", "each of the 50 images was judged by a model that had not seen it in training."),
        (["", ""], "patient", "each of the 50 images was judged by a model that had not seen it in training."),
        (
            ["a", ""],
            "patient",
            "each of the 50 images, 25 of them of 1 known patient, was judged by a model that had not seen it in "
            "training, nor its patient where that is known.",
        ),
    ],
)
def test_folds_claim_of_patients_what_is_true(tmp_path, patients, split_by, ending):
    everything = []
    for number, patient in enumerate(patients):
        patches, scores = make_slide("ab"[number])
        patches = [patch._replace(patient=patient) for patch in patches]
        everything += patches
        _, report, predictions = judge(patches, scores)
        folder = tmp_path / f"fold_{2 * number + 1}"
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps(report | {"settings": {}}))
        write_predictions(folder, predictions, report["classes"])
    data = describe_data(everything, make_summary(split=split_by))
    subject = Subject("folds", "all folds", data)
    folds = [tmp_path / "fold_1", tmp_path / "fold_3"]
    report = pool_folds(folds, everything, subject).report
    assert report["statement"] == f"Cross-validated in 2 folds: {ending}"
    some = pool_folds(folds, everything, subject._replace(evaluated_on="folds 1, 3 of 5")).report
    assert some["statement"] == f"Cross-validated on folds 1, 3 of 5: {ending}"
    assert [fold["fold"] for fold in some["cross_validation"]["folds"]] == [1, 3]


def test_the_worst_error_of_several_classes_is_the_surest_wrong_answer_not_the_one_that_leaves_the_truth_least():
    patches = [Patch(f"{name}.png", "a", "", None, None, "testing", "") for name in "xyz"]
    probabilities = np.array([[0.05, 0.5, 0.45], [0.1, 0.9, 0.0], [0.8, 0.1, 0.1]])
    predictions = Predictions(patches, np.array([0, 0, 0]), probabilities, np.array([1, 1, 0]))
    errors = find_worst_errors(predictions, ["a", "b", "c"], None)
    assert [(error["file"], error["kind"], error["probability"]) for error in errors] == [
        ("y.png", "wrong", 0.9),
        ("x.png", "wrong", 0.5),
    ]


def test_the_worst_errors_of_two_classes_are_six_of_each_kind_with_the_probability_of_the_positive_one():
    """Most errors are false alarms near a low threshold; misses, of which the model is surer, do not crowd them out."""
    truth = np.array([1] * 8 + [0] * 8 + [1])
    of_positive = np.array([*np.arange(8) / 100, *(0.3 + np.arange(8) / 100), 0.9])
    patches = [Patch(f"{row}.png", str(label), "", None, None, "testing", "") for row, label in enumerate(truth)]
    predictions = Predictions(
        patches, truth, np.stack([1 - of_positive, of_positive], axis=1), (of_positive >= 0.2).astype(int)
    )
    errors = find_worst_errors(predictions, ["0", "1"], "1")
    assert [(error["kind"], error["file"]) for error in errors] == [
        *(("missed", f"{row}.png") for row in range(6)),
        *(("false alarm", f"{row}.png") for row in range(15, 9, -1)),
    ]
    assert [error["probability"] for error in errors] == pytest.approx(
        [0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.37, 0.36, 0.35, 0.34, 0.33, 0.32]
    )
    mirrored = find_worst_errors(predictions, ["0", "1"], "0")
    assert [error["probability"] for error in mirrored[:6]] == pytest.approx(
        [1 - p for p in (0.37, 0.36, 0.35, 0.34, 0.33, 0.32)]
    )


def test_a_file_that_is_not_the_one_that_was_judged_is_no_picture_of_an_error(tmp_path):
    (tmp_path / "x.png").write_bytes(b"another")
    predictions = Predictions([Patch("x.png", "a", "", None, None, "testing", "0" * 64)], *[np.array([0])] * 3)
    with pytest.raises(InputError, match=r"x\.png: differs from the file that the manifest lists"):
        read_pictures([{"file": "x.png"}], predictions, tmp_path)


def test_images_outside_are_counted_and_the_furthest_named():
    patches = [Patch(f"{name}.png", "a", "", None, None, "testing", "") for name in "abc"]
    assert describe_outside(np.array([0.5, 2.0, 1.5]), patches) == {
        "images": 3,
        "outside": 2,
        "furthest": [{"file": "b.png", "distance": 2.0}, {"file": "c.png", "distance": 1.5}],
    }
    assert describe_outside(np.full(3, np.nan), patches) is None
