"""What the page says about a run before any image is uploaded."""

import dataclasses
from types import SimpleNamespace

import pytest
from red_run import make_decision, make_red_run

from cancernet.evaluation.decision import ABOVE_ONE
from cancernet.evaluation.results import Estimate
from cancernet.web import run_summary

PATCHES = make_red_run(None).settings
IMAGES = dataclasses.replace(PATCHES, mpp=None, class_names=None, classes=("covid", "normal"), images_are_grey=True)


def rates(sensitivity, specificity):
    return {"sensitivity": Estimate(sensitivity, None, None), "specificity": Estimate(specificity, None, None)}


def test_the_nouns_depend_on_the_run():
    assert [run_summary.noun(PATCHES, number) for number in (1, 1133)] == ["patch", "patches"]
    assert [run_summary.noun(IMAGES, number) for number in (1, 1133)] == ["image", "images"]
    assert "breast tissue" in run_summary.welcome(PATCHES)
    assert "breast" not in run_summary.welcome(dataclasses.replace(PATCHES, class_names=None))
    said = run_summary.welcome(IMAGES)
    assert "grey, usually 50x50 pixels, of the classes covid, normal." in said
    assert not any(word in said for word in ("tissue", "patch", "slide"))


def test_only_thresholds_that_a_probability_can_reach_have_a_button():
    decision = make_decision(other_points={"specificity=0.95": 0.7, "sensitivity=0.95": ABOVE_ONE, "highest F1": 0.4})
    assert run_summary.list_thresholds(decision) == {"Default": 0.5, "Fewer false positives": 0.7}
    assert run_summary.list_thresholds(make_decision()) == {"Default": 0.5}  # an older run


@pytest.mark.parametrize(
    ("threshold", "unsmoothed", "expected"),
    [
        (0.5, False, (0.8, 0.9)),  # the default of the run
        (0.7, False, (0.6, 0.95)),  # another point of the report
        (0.6, False, ()),  # not in the report
        (0.5, True, (0.7, 0.85)),  # not smoothed
        (0.7, True, ()),
    ],
)
def test_rates_are_those_of_the_report_and_no_others(threshold, unsmoothed, expected):
    report = SimpleNamespace(
        metrics=rates(0.8, 0.9),
        operating_points=[SimpleNamespace(threshold=0.7, **rates(0.6, 0.95))],
        neighbours={"without": rates(0.7, 0.85)},
    )
    found = run_summary.find_test_rates(report, make_decision(), threshold, unsmoothed=unsmoothed)
    assert tuple(metric.value for metric in found.values()) == expected
