"""The work behind the page gives the same answers as `cancernet predict`, from memory instead of from disk."""

import json
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
from conftest import zip_files
from pyramid import write_small_pyramid
from red_run import make_decision, make_network, make_red_run, patch

from cancernet.data.dataset import Patch
from cancernet.explain.distances import find_outliers
from cancernet.inference import prediction, work_list
from cancernet.inference.prediction import decide_item
from cancernet.run import load_run
from cancernet.web import page, uploads


@pytest.fixture(scope="module")
def run():
    alone = make_decision(threshold=0.4)
    return make_red_run(make_network(), make_decision(neighbour_sigma=1.0, without_neighbours=alone))


@pytest.fixture(scope="module")
def trained(tiny_run):
    return load_run(tiny_run)


def encode(image):
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def answer_from_disk(run, folder):
    files = work_list.find_files([folder]).files
    planned = work_list.plan_work(files, run.settings, tile="auto")
    return [prediction.score_item(run, item, mpp=None) for item in planned]


def describe(run, scored, folder):
    """Name, place in the file, probabilities and class of every patch."""
    rows = {}
    for each in scored:
        decided = decide_item(run, each)
        for row, place_of in enumerate(each.patches):
            place = tuple(value and value * each.file_scale for value in (place_of.x, place_of.y))
            rows[place_of.file.removeprefix(f"{folder}/"), place] = (
                *decided.probabilities[row].tolist(),
                int(decided.predicted[row]),
            )
    return rows


def test_the_page_reads_and_answers_as_predict_does(run, tmp_path):
    """Patches of a slide, patches without a place, and a pyramid with an unlike coarse level."""
    slide = [(f"7_idx5_x{50 * i + 1}_y{50 * j + 1}.png", encode(patch(100 + 9 * (i + j)))) for i, j in np.ndindex(4, 4)]
    loose = sorted((f"loose {number}.png", encode(patch(90 + number, 60, 45))) for number in range(70))
    write_small_pyramid(tmp_path / "pyramid.tif")
    for name, data in [*slide, *loose]:
        (tmp_path / name).write_bytes(data)
    sent = [("7.zip", zip_files(slide)), *loose, ("pyramid.tif", (tmp_path / "pyramid.tif").read_bytes())]
    answer = page.answer_uploads(run, sent)
    assert answer.problems == []
    answers = describe(run, answer.scores, tmp_path)
    assert answers == describe(run, answer_from_disk(run, tmp_path), tmp_path)
    assert len(answers) == 16 + 70 + 9
    assert {predicted for *_, predicted in answers.values()} == {0, 1}


def annotate(name, left, top, right, bottom, **more):
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    kind = {"classification": {"name": name, **more}}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": kind}


def test_annotations_of_a_slide_are_outlined_and_compared_with_the_classes_of_its_patches(run):
    """Four columns of four patches, of which the run classifies the right two as IDC."""
    files = [
        (f"7_idx5_x{50 * i + 1}_y{50 * j + 1}.png", encode(patch(250 if i < 2 else 60))) for i, j in np.ndindex(4, 4)
    ]
    # The tumour covers the right three columns of the upper two rows, and less than half of the patches below; the
    # stroma covers the left column but for its uppermost patch.
    tumour, stroma = annotate("Tumor", 51, 1, 201, 115, color=[200, 0, 0]), annotate("Stroma", 1, 40, 51, 201)
    given = json.dumps({"type": "FeatureCollection", "features": [tumour, stroma]}).encode()
    answer = page.answer_uploads(run, [*files, ("7.geojson", given)])
    assert answer.problems == []
    (slide,) = page.find_slides([decide_item(run, each, neighbours=False) for each in answer.scores])
    assert (slide.predicted.reshape(4, 4) == [[0], [0], [1], [1]]).all()
    regions = answer.annotations["7"]
    assert page.tabulate_agreement(run, slide, regions) == {
        "annotated as": ["Stroma", "Tumor"],
        "area": ["0.12 mm²", "0.24 mm²"],  # 3 and 6 patches of 200 micrometres
        "classified as benign": ["100.0%", "33.3%"],
        "classified as IDC": ["0.0%", "66.7%"],
    }
    drawn = page.draw_map(run, slide, 1, regions=regions)
    edges = drawn["datasets"]["annotations"]
    corners = {*zip(edges["left"], edges["top"]), *zip(edges["right"], edges["bottom"])}
    assert corners == {(x, y) for x in (51, 201) for y in (1, 115)} | {(x, y) for x in (1, 51) for y in (40, 201)}
    assert edges["annotation"] == ["Stroma"] * 4 + ["Tumor"] * 4
    (colour,) = [
        color for layer in drawn["layer"] if (color := layer["encoding"].get("color", {})).get("field") == "annotation"
    ]
    assert colour["scale"]["domain"] == ["Stroma", "Tumor"]
    assert colour["scale"]["range"][1] == "#c80000"
    assert len(page.draw_map(run, slide, 1)["layer"]) == len(drawn["layer"]) - 1
    unsure = replace(slide, uncertain=np.arange(16) % 4 == 1)  # the second row
    assert page.tabulate_agreement(run, unsure, regions)["uncertain"] == ["33.3%", "50.0%"]
    probability = np.full(16, 0.69)  # 0.7 is halfway from the threshold to 100%
    probability[[0, 15]] = 0.99, 0.71  # of a patch that is benign, and of one that is IDC
    unsure = replace(unsure, probabilities=np.stack([1 - probability, probability], axis=1))
    lines = page.draw_map(run, unsure, 1)["datasets"]["outline"]["line"]
    assert Counter(lines) == {"uncertain": 10, "dashed": 6 + 8, "solid": 4}  # sides of patches; a row lies between


def test_annotations_are_in_the_pixels_of_the_slides_file(run, tmp_path):
    write_small_pyramid(tmp_path / "pyramid.tif")
    data = (tmp_path / "pyramid.tif").read_bytes()
    (scored,) = page.answer_uploads(run, [("pyramid.tif", data)]).scores
    scale, grid = scored.file_scale, scored.grid
    assert scale != 1
    left, top = (side * scale for side in grid.origin)
    one = annotate("Tumor", left, top, left + grid.step * scale, top + grid.step * scale)
    answer = page.answer_uploads(run, [("pyramid.tif", data), ("other name.geojson", json.dumps(one).encode())])
    (regions,) = answer.annotations.values()
    (slide,) = [decide_item(run, each) for each in answer.scores]
    table = page.tabulate_agreement(run, slide, regions)
    assert (table["annotated as"], table["area"]) == (["Tumor"], ["0.04 mm²"])  # one patch


def test_annotations_that_cannot_be_used_are_told(run, monkeypatch):
    files = [(f"{slide}_idx5_x{50 * i + 1}_y1.png", encode(patch(60))) for slide in (7, 8) for i in range(4)]
    given = [("9.geojson", b"{}"), ("8.geojson", b"x"), ("7.GEOJSON", b"[]")]
    answer = page.answer_uploads(run, [*files, *given])
    assert answer.annotations == {}
    reasons = {problem.name: problem.reason for problem in answer.problems}
    assert reasons["9.geojson"] == "belongs to none of the slides. Give it the name of its slide."
    assert reasons["8.geojson"].startswith("is not GeoJSON as QuPath exports it (")
    assert reasons["7.GEOJSON"] == "has no area with a class."
    monkeypatch.setattr(uploads, "ANNOTATION_BYTES", 2)
    (large,) = page.answer_uploads(run, [*files, ("8.geojson", b"[] ")]).problems
    assert large == ("8.geojson", "is larger than 0 MB. Export fewer annotations.")


def test_the_latest_pictures_with_grad_cam_are_kept(trained, monkeypatch):
    monkeypatch.setattr(page, "MAX_PICTURES", 3)
    (scored,), _, pictures, _ = page.answer_uploads(trained, uploads.sample_uploads()[:5])
    decided = prediction.decide_item(trained, scored, neighbours=False)
    patches = [page.Shown(decided, row) for row in range(5)]
    first = page.explain_patches(trained, patches[:2], pictures)
    page.explain_patches(trained, patches[2:], pictures)
    assert [row for _, row, _ in pictures] == [2, 3, 4]  # the oldest were evicted
    again = page.explain_patches(trained, patches[:2], pictures)
    assert all(map(np.array_equal, first, again))


def test_the_most_distant_images_come_first_with_distance_and_position(trained):
    files = uploads.sample_uploads()[:3]
    (slide,), *_ = page.answer_uploads(trained, files)
    grey = np.full((48, 48, 1), 7, np.uint8)
    places = [Patch(slide.slide, "", slide.slide, x, 0, "", "") for x in (0, 50, 100)]
    slide = replace(slide, distances=np.array([0.5, 1.25, 0.2]))
    scored = [slide, replace(slide, patches=places, images=[grey] * 3, distances=np.array([0.1, 0.2, 3.0]))]
    found = page.show_distant(scored, find_outliers(np.concatenate([each.distances for each in scored])))
    assert [name for _, name in found] == [f"3.0: x 100, y 0 of {slide.slide}", f"1.2: {files[1][0]}"]
    assert [picture.shape for picture, _ in found] == [(240, 240, 3)] * 2
    assert (found[0][0] == 7).all()


def test_a_download_holds_no_images(trained):
    (scored,), *_ = page.answer_uploads(trained, uploads.sample_uploads())
    decided = prediction.decide_item(trained, scored)
    light = page.without_images(decided)
    assert not light.scores.images
    assert len(scored.images) == len(uploads.sample_uploads())
    assert page.predictions_csv(trained, [light]) == page.predictions_csv(trained, [decided])
    (slide,), (light_slide,) = page.find_slides([decided]), page.find_slides([light])
    assert page.pack_regions(trained, [light_slide]) == page.pack_regions(trained, [slide])
    assert page.draw_picture(trained, light_slide) == page.draw_picture(trained, slide)


def test_the_bytes_of_an_answer_are_those_of_its_images(trained):
    answer = page.answer_uploads(trained, uploads.sample_uploads()[:2])
    pictures = page.MAX_PICTURES * 240 * (240 + 12 + 240) * 3
    thumbnails = sum(each.nbytes for each in answer.scores[0].thumbnails)
    kept = 2 * 48 * 48 * 3 + thumbnails + pictures  # images at the input size of the network
    assert page.count_bytes(answer) == kept
