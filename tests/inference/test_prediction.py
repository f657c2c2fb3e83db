"""A run applied to images without a known truth. The network goes by the mean red: log-odds (150 - red) / 10."""

import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from red_run import (
    as_scored,
    as_scores,
    make_decision,
    make_network,
    make_red_run,
    patch,
    three_classes,
    write_picture,
)

from cancernet import InputError
from cancernet.evaluation.smoothing import smooth_scores
from cancernet.inference import prediction, reading
from cancernet.inference.work_list import LARGE, SINGLE, SLIDE, WorkItem


@pytest.fixture(scope="module")
def network():
    return make_network()


@pytest.fixture
def run(network):
    return make_red_run(network)


def files_of(scores):
    return [patch.file for patch in scores.patches]


def log_odds(scores):
    return scores[:, 1] - scores[:, 0]


def test_images_of_any_size_are_scored_in_order_and_counted(run):
    reds = [100 + i for i in range(2 * prediction.BATCH + 3)]
    counted = []
    images = (patch(red, *((50, 50), (9, 120))[red % 2]) for red in reds)
    scores, distances = prediction.score_images(run, images, progress=counted.append)
    np.testing.assert_allclose(log_odds(scores), [(150 - red) / 10 for red in reds], atol=1e-4)
    assert counted == [prediction.BATCH, prediction.BATCH, 3]
    assert distances.shape == (len(reds),)
    assert np.isnan(distances).all()  # this run keeps nothing of what its images are like
    assert [each.shape for each in prediction.score_images(run, [])] == [(0, 2), (0,)]


def test_a_grey_image_is_scored_as_grey_in_all_channels(run):
    scores, _ = prediction.score_images(run, [patch(140, channels=1)])
    assert log_odds(scores)[0] == pytest.approx(1, abs=1e-4)


def test_views_in_prediction_are_those_of_the_run(network, monkeypatch):
    asked = []
    add_detector = prediction.add_detector
    monkeypatch.setattr(prediction, "add_detector", lambda *given: asked.append(given) or add_detector(*given))
    prediction.score_images(make_red_run(network, views="mirror"), [patch(1)])
    assert asked == [(network, None, "mirror")]


def square(side):
    """Places of a complete square slide."""
    return [50 * (i % side) + 1 for i in range(side**2)], [50 * (i // side) + 1 for i in range(side**2)]


def test_only_patches_with_neighbours_are_smoothed_and_the_others_judged_by_their_own_decision(network):
    alone = make_decision(bias=(0.0, 2.0), threshold=0.4)
    run = make_red_run(network, make_decision(neighbour_sigma=1.0, without_neighbours=alone))
    odds = [-3.0] * 25
    odds[12] = 3.0  # alone in the middle of the slide
    full = as_scored(as_scores(odds), "full", *square(5))
    decided = prediction.decide_item(run, full)
    smoothed = np.exp(smooth_scores(full.log_probabilities, full.layout.slides, 1.0)[:, 1])
    np.testing.assert_allclose(decided.probabilities[:, 1], smoothed)
    np.testing.assert_allclose(decided.probabilities.sum(axis=1), 1)
    assert (decided.predicted[12], decided.threshold) == (0, 0.5)

    by_themselves = prediction.decide_item(run, full, neighbours=False)
    np.testing.assert_allclose(by_themselves.probabilities[:, 1], 1 / (1 + np.exp(-np.array(odds) - 2)))
    assert (by_themselves.predicted[12], by_themselves.threshold) == (1, 0.4)
    strict = prediction.decide_item(run, full, threshold=0.9)
    assert not strict.predicted.any()
    assert strict.threshold == 0.9

    for slide, x, y in (("sparse", [1, 501], [1, 501]), ("", [None] * 2, [None] * 2), ("overlaps", [1, 21], [1, 1])):
        decided = prediction.decide_item(run, as_scored(as_scores([-1.0, -3.0]), slide, x, y))
        np.testing.assert_allclose(decided.probabilities[:, 1], 1 / (1 + np.exp([-1.0, 1.0])))  # log-odds + 2
        assert (decided.predicted.tolist(), decided.threshold) == ([1, 0], 0.4)


def test_a_slide_tells_its_name_and_its_grid():
    whole = as_scored(as_scores([0, 0]), "s", [1, 51], [1, 1])
    assert (whole.slide, whole.grid.shape) == ("s", (1, 2))
    loose = as_scored(as_scores([0]), "", [None], [None])
    assert (loose.slide, loose.grid) == ("", None)


def test_a_threshold_needs_two_classes(network):
    run = make_red_run(network, three_classes())
    with pytest.raises(InputError, match="A threshold needs a run of two classes"):
        prediction.decide_item(run, as_scored(np.zeros((1, 3)), "", [None], [None]), threshold=0.5)


def test_a_part_is_scored_without_its_broken_files(run, tmp_path):
    files = [str(tmp_path / f"s_{number}.png") for number in range(3)]
    for number, file in enumerate(files):
        cv2.imwrite(file, patch(140 + 10 * number)[..., ::-1])
    (tmp_path / "s_1.png").write_bytes(b"no image")
    scored = prediction.score_item(run, WorkItem(SINGLE, "", "", files), mpp=None)
    assert files_of(scored) == [files[0], files[2]]
    np.testing.assert_allclose(log_odds(scored.log_probabilities), [1, -1], atol=1e-4)
    assert scored.rejected == [
        (files[1], "cannot be decoded: not an image of a supported type (PNG, JPEG, TIFF, BMP, PGM, DICOM)")
    ]


def test_what_is_no_file_no_image_or_too_large_costs_itself_only(run, tmp_path):
    names = ("pipe.png", "endless.png", "webp.png", "bomb.png", "good.png")
    pipe, endless, webp, bomb, good = files = [str(tmp_path / name) for name in names]
    os.mkfifo(pipe)
    os.symlink("/dev/zero", endless)
    (tmp_path / "webp.png").write_bytes(cv2.imencode(".webp", patch(150))[1].tobytes())
    cv2.imwrite(bomb, np.zeros((7200, 7200), np.uint8))
    cv2.imwrite(good, patch(150)[..., ::-1])
    part = WorkItem(SINGLE, "", "", files)
    scored = prediction.score_item(run, part, mpp=None)
    assert files_of(scored) == [good]
    assert dict(scored.rejected) == {
        pipe: "is not a regular file but a pipe or a device",
        endless: "is not a regular file but a pipe or a device",
        webp: "cannot be decoded: not an image of a supported type (PNG, JPEG, TIFF, BMP, PGM, DICOM)",
        bomb: "declares 7,200 x 7,200 pixels, more than the limit of 50 megapixels",
    }
    for file in (pipe, endless, webp):
        with pytest.raises(InputError, match=re.escape(file)):
            score_large(run, file, mpp=4.0)


def test_patches_that_overlap_are_rejected_before_they_are_read(run):
    files = ["7_idx5_x1_y1_class0.png", "7_idx5_x21_y1_class0.png"]
    with pytest.raises(InputError, match=rf"Two patches of slide 7 overlap: {files[0]} .* and {files[1]}"):
        prediction.score_item(run, WorkItem(SLIDE, "7", "7", files), mpp=None)


def score_large(run, path, mpp=None):
    return prediction.score_item(run, WorkItem(LARGE, path, "large", [path]), mpp=mpp)


def test_a_large_image_is_cut_at_the_scale_of_the_run_without_its_background(run, tmp_path):
    path = str(write_picture(tmp_path / "large.png"))
    scored = score_large(run, path, mpp=2.0)
    assert [patch[3:5] for patch in scored.patches] == [(x, y) for y in (0, 50, 100) for x in (100, 150)]
    assert set(files_of(scored)) == {scored.slide} == {path}
    assert (scored.file_scale, scored.thumbnail_pixels, scored.grid.origin) == (2.0, 50, (100, 0))
    np.testing.assert_allclose(log_odds(scored.log_probabilities), [-5, -5, -5, 6, -5, -5], atol=1e-3)
    assert prediction.decide_item(run, scored).predicted.tolist() == [0, 0, 0, 1, 0, 0]


def test_images_that_cannot_be_cut_are_rejected_with_a_reason(run, tmp_path):
    path, white = str(write_picture(tmp_path / "large.png")), str(tmp_path / "white.png")
    cv2.imwrite(white, np.full((300, 300, 3), 255, np.uint8))
    with pytest.raises(InputError, match="white.png: shows no stained tissue"):
        score_large(run, white, mpp=4.0)
    with pytest.raises(InputError, match="does not give its scale"):
        score_large(run, path)
    with pytest.raises(InputError, match="this run does not know the scale of its patches and cannot tile it"):
        score_large(make_red_run(run.model, mpp=None), path, mpp=4.0)


def test_what_is_in_memory_is_scored_as_what_is_on_disk_and_its_patches_are_kept(run, tmp_path):
    path = str(write_picture(tmp_path / "large.png"))
    (tmp_path / "s.png").write_bytes(cv2.imencode(".png", patch(140, 60, 60)[..., ::-1])[1].tobytes())
    files = [path, str(tmp_path / "s.png")]
    contents = {file: Path(file).read_bytes() for file in files}
    for part in (WorkItem(LARGE, path, "large", files[:1]), WorkItem(SINGLE, "", "", files[1:])):
        on_disk, in_memory = (prediction.score_item(run, part, mpp=2.0, contents=each) for each in (None, contents))
        np.testing.assert_array_equal(in_memory.log_probabilities, on_disk.log_probabilities)
        assert in_memory.patches == on_disk.patches
        assert on_disk.images == []
    assert [image.shape for image in in_memory.images] == [(48, 48, 3)]  # as the network takes it


def test_a_slide_with_more_places_than_memory_has_room_for_is_rejected(run, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_PLACES_IN_MEMORY", 11)
    data = write_picture(tmp_path / "large.png").read_bytes()
    part = WorkItem(LARGE, "x.png", "x", ["x.png"])
    with pytest.raises(InputError, match="has 12 patches, more than 11. Use `cancernet predict`"):
        prediction.score_item(run, part, mpp=2.0, contents={"x.png": data})


def test_patches_keep_their_places_and_get_thumbnails_of_one_scale(run, tmp_path):
    files = [str(tmp_path / name) for name in ("7_idx5_x1_y1.png", "7_idx5_x3951_y1.png")]  # 80 columns
    for file, image in zip(files, (patch(140), patch(160, 50, 25)), strict=True):
        cv2.imwrite(file, image[..., ::-1])
    item = WorkItem(SLIDE, "7", "7", files)
    scored = prediction.score_item(run, item, mpp=None)
    assert [patch[:5] for patch in scored.patches] == [(files[0], "", "7", 1, 1), (files[1], "", "7", 3951, 1)]
    assert scored.thumbnail_pixels == 20  # 1600 / 80
    assert [each.shape for each in scored.thumbnails] == [(20, 20, 3), (20, 10, 3)]
    assert (scored.slide, scored.grid.shape) == ("7", (1, 80))
    single = prediction.score_item(run, WorkItem(SINGLE, "", "", files), mpp=None)
    assert (single.slide, single.thumbnail_pixels) == ("", 50)
