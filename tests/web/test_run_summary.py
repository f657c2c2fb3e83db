"""What the page says of a run before any image is there."""

import dataclasses

import pytest
from red_run import make_decision, make_red_run

from cancernet.evaluation.decision import ABOVE_ONE
from cancernet.web import run_summary

METRIC = {"value": 0.8, "low": None, "high": None}
PATCHES = make_red_run(None).settings
IMAGES = dataclasses.replace(PATCHES, mpp=None, class_names=None, classes=("covid", "normal"), images_are_grey=True)


def rates(sensitivity, specificity):
    return {"sensitivity": METRIC | {"value": sensitivity}, "specificity": METRIC | {"value": specificity}}


def test_the_nouns_are_those_of_the_run():
    assert [run_summary.count_images(PATCHES, number) for number in (1, 1133)] == ["1 patch", "1,133 patches"]
    assert [run_summary.count_images(IMAGES, number) for number in (1, 1133)] == ["1 image", "1,133 images"]
    assert "breast tissue" in run_summary.welcome(PATCHES)
    said = run_summary.welcome(IMAGES)
    assert "grey, usually 50x50 pixels, of the classes covid, normal." in said
    assert not any(word in said for word in ("tissue", "patch", "slide"))


def test_thresholds_one_click_away_are_those_that_a_probability_can_reach():
    decision = make_decision(other_points={"specificity=0.95": 0.7, "sensitivity=0.95": ABOVE_ONE, "highest F1": 0.4})
    assert run_summary.choose_points(decision) == {"The run's own": 0.5, "Fewer false alarms": 0.7}
    assert run_summary.choose_points(make_decision()) == {"The run's own": 0.5}  # of an older run


@pytest.mark.parametrize(
    ("threshold", "alone", "expected"),
    [
        (0.5, False, (0.8, 0.9)),  # the run's own
        (0.7, False, (0.6, 0.95)),  # another point of the report
        (0.6, False, None),  # not tested
        (0.5, True, (0.7, 0.85)),  # without neighbours
        (0.7, True, None),
    ],
)
def test_tested_figures_are_those_of_the_report_and_no_others(threshold, alone, expected):
    report = {
        "metrics": rates(0.8, 0.9),
        "operating_points": [{"name": "specificity=0.95", "threshold": 0.7, **rates(0.6, 0.95)}],
        "neighbours": {"without": rates(0.7, 0.85)},
    }
    found = run_summary.find_tested_rates(report, make_decision(), threshold, alone=alone)
    assert (found and tuple(metric["value"] for metric in found.values())) == expected


def test_it_is_said_on_how_much_validation_a_decision_rests():
    assert (
        run_summary.describe_fit(make_decision(fitted_on={"images": 456, "patients": 14}))
        == "456 images of 14 patients"
    )
    assert run_summary.describe_fit(make_decision(fitted_on={"images": 1456, "patients": None})) == "1,456 images"
