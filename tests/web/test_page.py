"""The work behind the page gives the same answers as `cancernet predict`, from memory instead of from disk."""

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
    planned = work_list.plan_work(files, mpp=run.settings.mpp, tile="auto")
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


def test_the_latest_pictures_with_grad_cam_are_kept(trained, monkeypatch):
    monkeypatch.setattr(page, "MAX_PICTURES", 3)
    (scored,), _, pictures = page.answer_uploads(trained, uploads.sample_uploads()[:5])
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
    (slide,), (light_slide,) = page.find_slides(trained, [decided]), page.find_slides(trained, [light])
    assert page.pack_regions(trained, [light_slide]) == page.pack_regions(trained, [slide])
    assert page.draw_picture(trained, light_slide) == page.draw_picture(trained, slide)


def test_the_bytes_of_an_answer_are_those_of_its_images(trained):
    answer = page.answer_uploads(trained, uploads.sample_uploads()[:2])
    pictures = page.MAX_PICTURES * 240 * (240 + 12 + 240) * 3
    thumbnails = sum(each.nbytes for each in answer.scores[0].thumbnails)
    kept = 2 * 48 * 48 * 3 + thumbnails + pictures  # images at the input size of the network
    assert page.count_bytes(answer) == kept
