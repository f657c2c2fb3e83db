"""From scores to a report's numbers and its words about the data."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import make_summary

from cancernet import InputError
from cancernet.config import Experiment
from cancernet.data.dataset import Patch
from cancernet.evaluation.decision import ValidationRates, save_decision
from cancernet.evaluation.predictions import Predictions, Scores
from cancernet.evaluation.results import as_json
from cancernet.evaluation.smoothing import fit_on_validation
from cancernet.reporting.content import (
    ReportContext,
    describe_data,
    evaluate_split,
    find_confident_errors,
    flatten,
    list_settings,
    pool_folds,
    read_images,
    summarise_distances,
)
from cancernet.reporting.schema import DistantImage, OutOfDistribution
from cancernet.run import Seen, Settings, describe_seen, find_seen, write_predictions

SETTINGS = Settings(
    Experiment(),
    ("0", "1"),
    "1",
    "float32",
    "balanced",
    True,
    "",
    False,
    "50x50",
    4.0,
    {},
    {},
    {"1": "IDC"},
    Seen(("p",), ""),
)
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


def evaluate(patches, scores, **options):
    scored = Scores(patches, scores)
    decision = fit_on_validation(scored, classes=["0", "1"], positive="1", operating_point="0.5", neighbours=True)
    context = ReportContext("run", "testing", describe_data(patches, make_summary()), **options)
    return decision, *evaluate_split(scored, decision, context)[:2]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"step": 33}, "Two patches of slide b overlap: b_x1_y1.png at x 1, y 1 and b_x34_y1.png at x 34, y 1; "),
        ({"step": 10**8}, "The patches of slide b span 8000001 x 8000001 cells, more than 25,000,000. Check x"),
    ],
)
def test_a_slide_that_cannot_be_laid_out_is_evaluated_patch_by_patch_and_the_report_says_so(spoil, reason):
    whole, spoilt = make_slide("a"), make_slide("b", **spoil)
    alone, _, plain = evaluate(*spoilt)
    assert alone.neighbour_sigma == 0
    patches, scores = whole[0] + spoilt[0], np.concatenate([whole[1], spoilt[1]])
    decision, report, predictions = evaluate(patches, scores)
    assert decision.neighbour_sigma > 0  # the other slide has neighbours
    (warning,) = report.warnings
    assert warning.startswith(
        f"1 slide evaluated patch by patch, without smoothing and without a map. Reason: {reason}"
    )
    np.testing.assert_array_equal(predictions.predicted[25:], plain.predicted)
    assert [patch.x for patch in predictions.patches] == [patch.x for patch in patches]
    assert evaluate(*whole)[1].warnings == []


def test_the_effect_of_neighbours_is_a_paired_difference():
    slides = [make_slide(patient) for patient in "abcdefgh"]
    patches = [patch for each, _ in slides for patch in each]
    scores = np.concatenate([each for _, each in slides])
    scores[:25] = RIGHT[[int(patch.label) for patch in patches[:25]]]  # patient a needs no neighbours
    effect = evaluate(patches, scores)[1].neighbours
    accuracy = {name: effect[name]["accuracy"].value for name in ("without", "with", "difference")}
    assert accuracy["difference"] == pytest.approx(accuracy["with"] - accuracy["without"])
    assert effect["difference"]["accuracy"].verdict == "better"
    assert tuple(effect["difference"]) == tuple(effect["with"])


def test_results_by_a_column_are_those_of_its_images():
    slides = [make_slide(patient) for patient in "abcdefgh"]
    patches = [
        patch._replace(more=(("site", "n" if patch.patient < "d" else "s"),)) for each, _ in slides for patch in each
    ]
    scores = np.concatenate([each for _, each in slides])
    _, report, predictions = evaluate(patches, scores, group="site")
    assert [(each.value, each.patients) for each in report.groups.values] == [("n", 3), ("s", 5)]
    missed = sum(label == 1 != decided for label, decided in zip(predictions.labels[:75], predictions.predicted[:75]))
    positive = predictions.labels[:75].sum()
    assert report.groups.values[0].metrics["sensitivity"].value == pytest.approx(1 - missed / positive)
    with pytest.raises(InputError, match="The images have no column scanner, only site."):
        evaluate(patches, scores, group="scanner")


def test_reports_warn_where_the_results_differ_from_what_is_expected_unless_the_images_chose_the_model():
    slides = [make_slide(patient) for patient in "abcdefgh"]
    patches, scores = [patch for each, _ in slides for patch in each], np.concatenate([each for _, each in slides])
    scores[:25] = RIGHT[[int(patch.label) for patch in patches[:25]]]
    decision, training, _ = evaluate(patches, scores)
    spoilt = dataclasses.replace(decision, expected_on_validation=ValidationRates(0.01, 0.01))
    context = ReportContext("run", "testing", training.data)
    warnings = evaluate_split(Scores(patches, scores), spoilt, context).report.warnings
    assert warnings[0].startswith("Not as expected from the validation set: sensitivity (recall) is ")
    chosen = dataclasses.replace(context, chose_model=True)
    assert evaluate_split(Scores(patches, scores), spoilt, chosen).report.warnings == []


@pytest.mark.parametrize(
    ("way", "weights", "shown", "unused"),
    [
        ({"model": "densenet121", "strategy": "frozen"}, "/home/me/w.h5", "w.h5", {"epochs", "optimizer"}),
        ({"model": "densenet121", "strategy": "finetune"}, "imagenet", "imagenet", {"dropout"}),
        ({}, "none", "none", set()),
    ],
)
def test_settings_that_the_training_did_not_use_are_not_listed(way, weights, shown, unused):
    settings = dataclasses.replace(SETTINGS, experiment=Experiment(weights=weights, **way))
    listed = flatten(list_settings(settings))
    assert listed["experiment.weights"] == shown
    absent = {field.name for field in dataclasses.fields(Experiment)} - {"augmentation"}
    absent -= {name.removeprefix("experiment.") for name in listed}
    assert unused <= absent
    assert ("experiment.learning_rate" in listed) == ("epochs" not in unused)
    assert "experiment.members" in listed
    assert not [name for name in listed if "seen" in name or "class_names" in name]


def test_the_images_that_are_smoothed_are_counted():
    whole, sample = make_slide("a"), make_slide("b")
    patches, scores = whole[0] + sample[0][::6], np.concatenate([whole[1], sample[1][::6]])
    assert evaluate(patches, scores)[1].smoothed_images == 25
    assert evaluate(sample[0][::6], sample[1][::6])[1].smoothed_images in (None, 0)


def test_an_evaluation_has_a_title_and_warns_where_the_results_differ_from_validation():
    patches, scores = make_slide("a")
    decision, training, _ = evaluate(patches, scores)
    assert training.title is None
    spoilt = dataclasses.replace(decision, expected_on_validation=ValidationRates(0.01, 0.01))
    context = ReportContext("run", "testing", training.data, dataset="elsewhere", warnings=["Its own."])
    evaluation = evaluate_split(Scores(patches, scores), spoilt, context).report
    assert evaluation.title == "Evaluation of run on elsewhere"
    assert evaluation.warnings[-1] == "Its own."
    assert evaluation.outside is None  # the distances were not measured


@pytest.mark.parametrize(
    ("patients", "split_by", "options", "statement"),
    [
        ("aa", "patient", {}, "Tested on 2 images from 1 patient that the model was not trained on."),
        ("ab", "image", {}, "Tested on 2 images that the model was not trained on."),
        (["", ""], "patient", {}, "Tested on 2 images that the model was not trained on."),
        (
            ["a", ""],
            "patient",
            {},
            "Tested on 2 images (1 from 1 known patient); the model was trained on none of these images and known "
            "patients.",
        ),
        (
            "ab",
            "patient",
            {"chose_model": True},
            "There is no testing split: these results are over-optimistic, because the same 2 images from 2 patients "
            "were used to choose the model.",
        ),
        (
            "ab",
            "patient",
            {"seen": ["a"]},
            "Not an independent test: the training or validation data of the run include 1 of these patients or "
            "images.",
        ),
    ],
)
def test_the_statement_claims_of_the_test_what_is_true(patients, split_by, options, statement):
    patches = [Patch(f"{n}.png", str(n), patient, None, None, "testing", "") for n, patient in enumerate(patients)]
    decision, *_ = evaluate(*make_slide("a"))
    context = ReportContext("run", "testing", describe_data(patches, make_summary(split=split_by)), **options)
    assert evaluate_split(Scores(patches, RIGHT), decision, context).report.statement == statement


def test_near_duplicates_in_two_splits_are_a_warning_and_others_only_a_count():
    patches, scores = make_slide("a")
    decision, *_ = evaluate(patches, scores)
    for across in (0, 1):
        summary = make_summary(near_duplicates=(("a", "b"), ("c", "d")), near_duplicates_across_splits=across)
        data = describe_data(patches, summary)
        assert data.near_duplicates == 2
        report = evaluate_split(Scores(patches, scores), decision, ReportContext("run", "testing", data)).report
        text = "Probable data leakage: 1 group of near-duplicate images of different patients in two splits."
        assert any(warning.startswith(text) for warning in report.warnings) == across


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
        (
            "ab",
            "patient",
            "each of the 50 images from 2 patients was predicted by a model that was not trained on its patient.",
        ),
        ("ab", "image", "each of the 50 images was predicted by a model that was not trained on it."),
        (["", ""], "patient", "each of the 50 images was predicted by a model that was not trained on it."),
        (
            ["a", ""],
            "patient",
            "each of the 50 images (25 from 1 known patient) was predicted by a model that was trained neither on it "
            "nor on its known patient.",
        ),
    ],
)
def test_folds_claim_of_patients_what_is_true(tmp_path, patients, split_by, ending):
    everything = []
    for number, patient in enumerate(patients):
        patches, scores = make_slide("ab"[number])
        patches = [patch._replace(patient=patient) for patch in patches]
        everything += patches
        decision, report, predictions = evaluate(patches, scores)
        folder = tmp_path / f"fold_{2 * number + 1}"
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps(as_json(report)))
        write_predictions(folder, predictions, report.classes)
        alone, limit = decision.without_neighbours, {"uncertain_below": 1.0 - number}  # all images, then none
        alone = alone and dataclasses.replace(alone, **limit)
        save_decision(dataclasses.replace(decision, without_neighbours=alone, **limit), folder / "decision.json")
    data = describe_data(everything, make_summary(split=split_by))
    context = ReportContext("folds", "all folds", data)
    folds = {1: tmp_path / "fold_1", 3: tmp_path / "fold_3"}
    report = pool_folds(folds, everything, context).report
    assert report.statement == f"Cross-validated in 2 folds: {ending}"
    assert report.referral.band.share == 0.5  # each fold refers images by its own decision
    some = pool_folds(folds, everything, dataclasses.replace(context, evaluated_on="folds 1, 3 of 5")).report
    assert some.statement == f"Cross-validated on folds 1, 3 of 5: {ending}"
    assert [fold.fold for fold in some.cross_validation.folds] == [1, 3]
    by_site = dataclasses.replace(context, evaluated_on="every site", left_out="site")
    found = pool_folds({"Bonn": folds[1], "Köln": folds[3]}, everything, by_site).report
    assert found.statement.startswith("Cross-validated by site (2 folds): each of the ")
    assert found.statement.endswith(" was predicted by a model that was trained on no image of the same site.")
    assert [fold.fold for fold in found.cross_validation.folds] == ["Bonn", "Köln"]
    assert found.cross_validation.left_out == "site"


def test_the_first_error_of_several_classes_is_the_most_confident_not_the_one_with_the_least_probable_truth():
    patches = [Patch(f"{name}.png", "a", "", None, None, "testing", "") for name in "xyz"]
    probabilities = np.array([[0.05, 0.5, 0.45], [0.1, 0.9, 0.0], [0.8, 0.1, 0.1]])
    predictions = Predictions(patches, np.array([0, 0, 0]), probabilities, np.array([1, 1, 0]))
    errors = find_confident_errors(predictions, ["a", "b", "c"], None)
    assert [(error.file, error.kind, error.probability) for error in errors] == [
        ("y.png", "wrong", 0.9),
        ("x.png", "wrong", 0.5),
    ]


def test_errors_of_two_classes_are_the_six_most_confident_of_each_kind_with_the_probability_of_the_positive_one():
    """At a low threshold most errors are false alarms, and the misses are more confident: each kind gets its place."""
    truth = np.array([1] * 8 + [0] * 8 + [1])
    of_positive = np.array([*np.arange(8) / 100, *(0.3 + np.arange(8) / 100), 0.9])
    patches = [Patch(f"{row}.png", str(label), "", None, None, "testing", "") for row, label in enumerate(truth)]
    predictions = Predictions(
        patches, truth, np.stack([1 - of_positive, of_positive], axis=1), (of_positive >= 0.2).astype(int)
    )
    errors = find_confident_errors(predictions, ["0", "1"], "1")
    assert [(error.kind, error.file) for error in errors] == [
        *(("missed", f"{row}.png") for row in range(6)),
        *(("false alarm", f"{row}.png") for row in range(15, 9, -1)),
    ]
    assert [error.probability for error in errors] == pytest.approx(
        [0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.37, 0.36, 0.35, 0.34, 0.33, 0.32]
    )
    mirrored = find_confident_errors(predictions, ["0", "1"], "0")
    assert [error.probability for error in mirrored[:6]] == pytest.approx(
        [1 - p for p in (0.37, 0.36, 0.35, 0.34, 0.33, 0.32)]
    )


def test_a_file_that_changed_since_it_was_evaluated_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(b"another")
    predictions = Predictions([Patch("x.png", "a", "", None, None, "testing", "0" * 64)], *[np.array([0])] * 3)
    with pytest.raises(InputError, match=r"x\.png: differs from the file that the manifest lists"):
        read_images(["x.png"], predictions, tmp_path)


def test_out_of_distribution_images_are_counted_and_the_most_distant_named():
    patches = [Patch(f"{name}.png", "a", "", None, None, "testing", "") for name in "abc"]

    def summarise(distances):
        return summarise_distances(Scores(patches, np.zeros((3, 2)), distances))

    assert summarise(np.array([0.5, 2.0, 1.5])) == OutOfDistribution(
        3, 2, [DistantImage("b.png", 2.0), DistantImage("c.png", 1.5)]
    )
    assert summarise(None) is None
    assert summarise(np.full(3, np.nan)) is None
