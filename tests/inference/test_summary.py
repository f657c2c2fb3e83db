"""The tables of all items together, and what is printed of them."""

from dataclasses import replace

import numpy as np
import pytest
from red_run import as_predictions, as_scored, make_network, make_red_run, three_classes

from cancernet.inference import summary
from cancernet.inference.summary import ItemResult, Outlier, describe_results, summarise_item
from cancernet.inference.work_list import LARGE, SINGLE, SLIDE, WorkItem


@pytest.fixture(scope="module")
def settings():
    return make_red_run(make_network()).settings


def make_result(kind, slide, counts, sums, **fields):
    item = WorkItem(kind, slide, slide, [f"{slide}.png"])
    return ItemResult(item, fields.pop("rejected", ()), sum(counts), counts, sums, **fields)


SLIDE_7 = make_result(SLIDE, "7", (3, 1), (2.5, 1.5), has_map=True, outside=0)
SINGLES = make_result(SINGLE, "", (1, 1), (1.25, 0.75), outside=0)
MORE_SINGLES = make_result(SINGLE, "", (0, 1), (0.1, 0.9), outside=0)


def test_an_item_is_reduced_to_counts_sums_and_its_first_images(settings):
    distances = np.array([0.5, 1.5, 3.0, 1.0])
    rejected = [("4.png", "cannot be decoded")]
    scores = as_scored(np.zeros((4, 2)), "", [None] * 4, [None] * 4, distances=distances, rejected=rejected)
    probabilities = np.array([[0.9, 0.1], [0.25, 0.75], [0.5, 0.5], [0.3, 0.7]])
    predictions = as_predictions(scores, probabilities, np.array([0, 1, 0, 1]), 0.6)
    item = WorkItem(SINGLE, "", "", ["0.png", "1.png", "2.png", "3.png", "4.png"])
    result = summarise_item(settings, item, predictions, has_map=False)
    assert (result.item, result.rejected, result.patches) == (item, (("4.png", "cannot be decoded"),), 4)
    assert result.class_counts == (2, 2)
    assert result.probability_sums == pytest.approx((1.95, 2.05))
    assert result.listed == (
        ("0.png", "benign", "0.100"),
        ("1.png", "IDC", "0.750"),
        ("2.png", "benign", "0.500"),
        ("3.png", "IDC", "0.700"),
    )
    assert result.outside == 2  # a distance of exactly 1 is inside
    assert result.outliers == (Outlier(3.0, "2.png", 2), Outlier(1.5, "1.png", 1))
    with_map = summarise_item(settings, item, predictions, has_map=True)
    assert (with_map.has_map, with_map.listed) == (True, ())
    unknown = replace(predictions, scores=replace(scores, distances=np.full(4, np.nan)))
    assert summarise_item(settings, item, unknown, has_map=False).outside is None


def test_of_many_patches_ten_are_listed_and_twelve_outliers_kept_with_their_place(settings):
    distances = np.arange(20.0)
    scores = as_scored(np.zeros((20, 2)), "s", list(range(0, 1000, 50)), [1] * 20, distances=distances)
    predictions = as_predictions(scores, np.tile([0.5, 0.5], (20, 1)), np.zeros(20, int), 0.6)
    result = summarise_item(settings, WorkItem(LARGE, "s", "s", ["s"]), predictions, has_map=False)
    assert [name for name, *_ in result.listed] == [f"{number}.png" for number in range(10)]
    assert [outlier.row for outlier in result.outliers] == list(range(19, 7, -1))
    assert result.outliers[0].name == "19.png at 950, 1"


def test_of_several_classes_the_probability_of_the_predicted_class_is_listed():
    run = make_red_run(make_network(), three_classes())
    settings = replace(run.settings, classes=("a", "b", "c"), positive=None)
    scores = as_scored(np.zeros((1, 3)), "", [None], [None])
    predictions = as_predictions(scores, np.array([[0.2, 0.3, 0.5]]), np.array([2]), None)
    result = summarise_item(settings, WorkItem(SINGLE, "", "", ["0.png"]), predictions, has_map=False)
    assert result.listed == (("0.png", "c", "0.500"),)
    assert [row[1:5] for row in summary.list_slides(settings, [result])] == [
        ["a", 1, 0, 0.0],
        ["b", 1, 0, 0.0],
        ["c", 1, 1, 1.0],
    ]
    assert "\nimage  classified as  probability\n" in describe_results(settings, [result])


def test_a_slide_is_a_row_with_its_area_and_all_single_patches_are_one(settings):
    rows = summary.list_slides(settings, [SINGLES, SLIDE_7, MORE_SINGLES, ItemResult(SLIDE_7.item, ())])
    assert rows == [
        ["", "IDC", 3, 2, 0.6667, "", 0.55],  # (0.75 + 0.9) / 3
        ["7", "IDC", 4, 1, 0.25, 0.04, 0.375],  # 50 pixels of 4 micrometres: 0.2 mm a side
    ]
    (row,) = summary.list_slides(replace(settings, mpp=None), [SLIDE_7])
    assert row[5] == ""


def test_uncertain_patches_are_a_column_and_a_line_where_the_run_refers_any(settings, tmp_path):
    scores = as_scored(np.zeros((3, 2)), "s", [1, 51, 101], [1] * 3)
    decided = as_predictions(scores, np.tile([0.4, 0.6], (3, 1)), np.array([0, 1, 1]), 0.6)
    decided = replace(decided, uncertain=np.array([True, False, False]))
    result = summarise_item(settings, WorkItem(LARGE, "s", "s", ["s"]), decided, has_map=True)
    summary.write_tables(tmp_path, settings, [result, ItemResult(result.item, ())], [])
    assert (tmp_path / "summary.csv").read_text().splitlines() == [
        "slide,class,patches,predicted,share,mm2,mean_probability,uncertain",
        "s,IDC,3,2,0.6667,0.08,0.6,1",
    ]
    assert "Uncertain, to be referred to a person: 1 of them (33%)." in describe_results(settings, [result])


def test_the_tables_have_all_slides_and_all_that_was_rejected(settings, tmp_path):
    broken = ItemResult(WorkItem(SINGLE, "", "", ["ü,.png"]), (("ü,.png", "cannot be decoded"),))
    summary.write_tables(tmp_path, settings, [SLIDE_7, broken], [("gone.svs", "There is no gone.svs.")])
    assert (tmp_path / "summary.csv").read_text("utf-8") == (
        "slide,class,patches,predicted,share,mm2,mean_probability\n7,IDC,4,1,0.25,0.04,0.375\n"
    )
    assert (tmp_path / "rejected.csv").read_text("utf-8") == (
        'file,reason\ngone.svs,There is no gone.svs.\n"ü,.png",cannot be decoded\n'
    )


def test_the_printed_text_counts_classes_slides_without_map_and_lists_the_first(settings):
    sparse = make_result(SLIDE, "8", (2, 0), (1.5, 0.5), outside=0, listed=(("8.png", "benign", "0.250"),))
    text = describe_results(settings, [SLIDE_7, sparse, SINGLES])
    assert text.splitlines()[:2] == [
        "8 patches classified: 2 IDC (25%), 6 benign (75%).",
        "2 patches of 1 slide are too few or too far apart for a map.",
    ]
    assert text.splitlines()[2].split() == ["image", "classified", "as", "probability", "of", "IDC"]
    assert text.splitlines()[3].split() == ["8.png", "benign", "0.250"]
    one = make_result(SLIDE, "8", (1, 0), (0.75, 0.25), outside=0)
    assert describe_results(settings, [one]) == (
        "1 patch classified: 0 IDC (0%), 1 benign (100%).\n1 patch of 1 slide is too few or too far apart for a map."
    )
    two = describe_results(settings, [sparse, sparse])
    assert "4 patches of 2 slides are too few" in two
    assert describe_results(settings, [SINGLES]) == "2 images classified: 1 IDC (50%), 1 benign (50%)."
    assert describe_results(settings, [ItemResult(SINGLES.item, ())]) == "No image was predicted."


def test_a_warning_about_images_out_of_distribution_comes_first(settings):
    outliers = tuple(Outlier(distance, f"{distance}.png", 0) for distance in (1.5, 1.2))
    first = make_result(SINGLE, "", (5, 0), (4.0, 1.0), outside=2, outliers=outliers)
    second = make_result(SINGLE, "", (5, 0), (4.0, 1.0), outside=2, outliers=(Outlier(4.0, "far.png", 0),) * 2)
    lines = describe_results(settings, [first, second]).splitlines()
    assert "4 of 10 images" in lines[0]
    assert lines[1] == "The furthest, where 1 is the limit: far.png (4.0), far.png (4.0), 1.5.png (1.5)."
    unknown = make_result(SINGLE, "", (5, 0), (4.0, 1.0))
    assert "4 of" not in describe_results(settings, [first, unknown])
    assert "It is unknown whether" in describe_results(settings, [first, unknown]).splitlines()[0]
