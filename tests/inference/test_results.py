"""The table, the regions and the map of predicted patches."""

import json
from dataclasses import replace

import numpy as np
import pytest
import shapely
from red_run import (
    as_predictions,
    as_scored,
    as_scores,
    make_decision,
    make_network,
    make_red_run,
    patch,
    three_classes,
    write_picture,
)

from cancernet.data.annotations import classify_cells, read_regions
from cancernet.data.tiles import Tile
from cancernet.inference import prediction, results
from cancernet.inference.reading import OpenItem
from cancernet.inference.work_list import LARGE, SLIDE, WorkItem


@pytest.fixture(scope="module")
def run():
    return make_red_run(make_network())


def test_the_table_has_four_decimals_names_threshold_slide_and_unknown_values():
    given = {"distances": np.array([1.23456, np.nan]), "file_scale": 2.5}
    scores = as_scored(np.zeros((2, 2)), "7", [None, 101], [None, 51], ["a.png", "b.png"], **given)
    predictions = as_predictions(scores, np.array([[1 / 3, 2 / 3], [0.75, 0.25]]), np.array([1, 0]), 0.41999)
    names = ["benign", "IDC"]
    assert results.list_columns(make_decision(), names) == (
        ["file", "x", "y", "probability_benign", "probability_IDC", "predicted", "threshold", "slide", "distance"]
    )
    assert results.list_rows(predictions, names) == [
        ["a.png", None, None, 0.3333, 0.6667, "IDC", 0.42, "7", 1.2346],
        ["b.png", 252, 128, 0.75, 0.25, "benign", 0.42, "7", None],  # 101 x 2.5 and 51 x 2.5
    ]
    assert results.list_rows(replace(predictions, threshold=None), names)[0][6] is None


def test_uncertain_is_a_third_answer_in_the_table_the_regions_and_the_line_of_a_slide():
    run = make_red_run(make_network(), make_decision(uncertain_below=0.3))
    odds = np.log(np.array([0.9, 0.6, 0.45, 0.1, 0.95]) / np.array([0.1, 0.4, 0.55, 0.9, 0.05]))
    distances = np.array([0.5, 0.5, 0.5, 0.5, 1.5])  # the last is out of distribution
    scored = as_scored(as_scores(odds), "s", [1, 51, 101, 151, 201], [1] * 5, distances=distances)
    decided = prediction.decide_item(run, scored)
    assert results.list_columns(run.decision, ["benign", "IDC"])[-2:] == ["distance", "answer"]
    rows = results.list_rows(decided, ["benign", "IDC"])
    assert [(row[5], row[-1]) for row in rows] == [
        ("IDC", "IDC"),
        ("IDC", "uncertain"),
        ("benign", "uncertain"),
        ("benign", "benign"),
        ("IDC", "uncertain"),
    ]
    found = {}
    for each in results.find_regions(run, decided)["features"]:
        kind = each["properties"]["classification"]
        found.setdefault((kind["name"], *kind["color"]), []).append(each["properties"]["measurements"]["Patches"])
    assert found == {("uncertain", 240, 228, 66): [2, 1], ("IDC", 200, 0, 0): [1]}
    assert results.describe_slide(run, decided) == "s: 5 patches, 3 uncertain, 3 classified as IDC"
    at_another = prediction.decide_item(run, scored, threshold=0.92)
    assert at_another.uncertain.tolist() == [True, False, False, False, True]


def test_the_regions_and_the_table_of_a_large_image_are_in_its_own_pixels(run, tmp_path):
    path = str(write_picture(tmp_path / "large.png"))
    scored = prediction.score_item(run, WorkItem(LARGE, path, "large", [path]), mpp=2.0)
    decided = prediction.decide_item(run, scored)
    (feature,) = results.find_regions(run, decided)["features"]
    corners = np.array(feature["geometry"]["coordinates"][0])
    assert corners.min(axis=0).tolist() == [300, 100]
    assert corners.max(axis=0).tolist() == [400, 200]
    assert feature["properties"]["classification"] == {"name": "IDC", "color": [200, 0, 0]}
    assert feature["properties"]["measurements"]["Area mm^2"] == pytest.approx(0.2**2)  # 100 pixels of 2 micrometres
    assert feature["properties"]["measurements"]["Mean probability"] == decided.probabilities[3, 1]
    assert results.list_rows(decided, ["benign", "IDC"])[3][:3] == [path, 300, 100]


def test_a_slide_is_tiled_into_patches_of_the_runs_size(run, tmp_path):
    path = str(write_picture(tmp_path / "large.png"))
    coarse = replace(run, settings=replace(run.settings, mpp=2.0, patch_pixels=100))
    scored = prediction.score_item(coarse, WorkItem(LARGE, path, "large", [path]), mpp=2.0)
    assert [(patch.x, patch.y) for patch in scored.patches] == [(x, y) for y in (0, 100, 200) for x in (200, 300)]
    assert scored.grid.shape == (3, 2)
    (feature,) = results.find_regions(coarse, prediction.decide_item(coarse, scored))["features"]
    corners = np.array(feature["geometry"]["coordinates"][0])
    assert (corners.min(axis=0).tolist(), corners.max(axis=0).tolist()) == ([300, 100], [400, 200])
    assert feature["properties"]["measurements"]["Area mm^2"] == pytest.approx(0.2**2)


def test_regions_without_a_scale_have_no_area():
    run = make_red_run(make_network(), mpp=None)
    scored = as_scored(np.zeros((1, 2)), "s", [1], [1])
    decided = as_predictions(scored, np.array([[0.2, 0.8]]), np.array([1]), 0.5)
    (feature,) = results.find_regions(run, decided)["features"]
    assert set(feature["properties"]["measurements"]) == {"Patches", "Mean probability", "Highest probability"}


def test_regions_of_several_classes_have_a_name_and_colour_each():
    run = make_red_run(make_network(), three_classes())
    scored = as_scored(np.zeros((3, 3)), "s", [1, 51, 101], [1, 1, 1])
    decided = as_predictions(scored, np.eye(3)[[2, 0, 2]], np.array([2, 0, 2]), None)
    kinds = [each["properties"]["classification"] for each in results.find_regions(run, decided)["features"]]
    assert [kind["name"] for kind in kinds] == ["a", "c", "c"]
    assert kinds[0]["color"] != kinds[1]["color"] == kinds[2]["color"]


def test_regions_of_a_run_on_annotations_are_all_classes_in_their_colours(run):
    of_annotations = replace(run, settings=replace(run.settings, class_names=None, class_colours={"0": (1, 2, 3)}))
    scored = as_scored(np.zeros((2, 2)), "s", [1, 51], [1, 1])
    decided = as_predictions(scored, np.array([[0.8, 0.2], [0.2, 0.8]]), np.array([0, 1]), 0.5)
    found = [each["properties"]["classification"] for each in results.find_regions(of_annotations, decided)["features"]]
    assert found == [{"name": "0", "color": [1, 2, 3]}, {"name": "1", "color": [0, 114, 178]}]


def test_the_regions_of_a_slide_are_annotations_for_the_next_dataset(run, tmp_path):
    settings = replace(run.settings, class_names=None, class_colours={"0": (1, 2, 3), "1": (4, 5, 6)})
    path = str(write_picture(tmp_path / "large.png"))
    scored = prediction.score_item(run, WorkItem(LARGE, path, "large", [path]), mpp=2.0)
    decided = prediction.decide_item(run, scored)
    written = results.find_regions(replace(run, settings=settings), decided)
    for feature in written["features"]:
        polygon = shapely.from_geojson(json.dumps(feature["geometry"]))
        assert polygon.is_valid
        assert shapely.is_ccw(polygon.exterior)  # RFC 7946, 3.1.6
        assert {"objectType", "classification", "measurements"} <= feature["properties"].keys()
    (tmp_path / "large.geojson").write_text(json.dumps(written))
    regions = read_regions(tmp_path / "large.geojson")
    assert [(each.label, each.colour, each.shape.area) for each in regions] == [
        ("1", (4, 5, 6), 100**2),
        ("0", (1, 2, 3), 5 * 100**2),
    ]
    cells = classify_cells(regions, (3, 4), 100, 0.5)
    assert [regions[cells[patch.y // 50, patch.x // 50]].label for patch in decided.patches] == [
        settings.classes[index] for index in decided.predicted
    ]
    assert (cells >= 0).sum() == len(decided.patches)


def score_square(run, side, thumbnail_pixels=50):
    tiles = [Tile(patch(200), "a", "s", 50 * (i % side), 50 * (i // side)) for i in range(side**2)]
    return prediction.decide_item(run, prediction.score_tiles(run, OpenItem(tiles, thumbnail_pixels)))


def test_a_slide_of_few_patches_gets_no_files_and_a_large_image_always(run, tmp_path):
    decided = score_square(run, 4)
    said = results.write_slide(run, WorkItem(SLIDE, "s", "s", []), decided, tmp_path)
    assert said == ""
    assert list(tmp_path.iterdir()) == []
    said = results.write_slide(run, WorkItem(LARGE, "s", "s_2", []), decided, tmp_path)
    assert said == "s: 16 patches, 0 classified as IDC; s_2.geojson, s_2.jpg"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s_2.geojson", "s_2.jpg"]


def test_a_picture_has_the_threshold_that_was_applied(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(results.illustration, "plot_slide", lambda *_, threshold, **__: drawn.append(threshold))
    monkeypatch.setattr(results.illustration, "save_picture", lambda *_: None)
    alone = make_decision(threshold=0.4)
    run = make_red_run(make_network(), make_decision(neighbour_sigma=1.0, without_neighbours=alone))
    scored = score_square(run, 5).scores
    for options in ({}, {"neighbours": False}, {"threshold": 0.7}):
        decided = prediction.decide_item(run, scored, **options)
        results.write_slide(run, WorkItem(SLIDE, "s", "s", []), decided, tmp_path)
    assert drawn == [0.5, 0.4, 0.7]


def test_the_tissue_in_a_picture_has_no_gaps_where_much_of_the_image_was_background(run, tmp_path, monkeypatch):
    """Thumbnails are made before it is known how much of an image has tissue."""
    pictures = []
    monkeypatch.setattr(results.illustration, "plot_slide", lambda maps, **_: pictures.append(maps.tissue))
    monkeypatch.setattr(results.illustration, "save_picture", lambda *_: None)
    results.write_slide(run, WorkItem(LARGE, "s", "s", []), score_square(run, 5, thumbnail_pixels=16), tmp_path)
    assert pictures[0].shape == (5 * 16, 5 * 16, 3)
    assert (pictures[0] == (200, 0, 0)).all()
