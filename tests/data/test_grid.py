"""Patches on the grid of their slide."""

import re
from time import perf_counter

import cv2
import numpy as np
import pytest
from scipy.special import log_softmax

from cancernet import InputError
from cancernet.data.grid import choose_sigma, iterate_slides, mean_neighbours, paint_grid, smooth_scores, stitch_slide


def full_slide(rows, columns, first=1):
    """x and y of every place of a grid, row after row."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    return 50 * x + first, 50 * y + first


def smooth_slowly(scores, patients, x, y, sigma):
    """The definition, one pair of patches at a time; a kernel reaches 4 sigma along each axis."""
    reach = int(4 * sigma + 0.5)
    smoothed = scores.copy()
    for i in range(len(scores)):
        total, weights = 0, 0
        for j in range(len(scores)):
            if None in (x[i], x[j]) or patients[i] != patients[j] or not patients[i]:
                continue
            across, down = (x[i] - x[j]) / 50, (y[i] - y[j]) / 50
            if abs(across) <= reach and abs(down) <= reach:
                weight = np.exp(-(across**2 + down**2) / (2 * sigma**2))
                total, weights = total + weight * (scores[j] - scores[j].mean()), weights + weight
        if weights:
            smoothed[i] = log_softmax(total / weights)
    return smoothed


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("sigma", [0.5, 1.5, 3.0])
def test_smoothing_equals_the_plain_loop(classes, sigma):
    rng = np.random.default_rng(3)
    places = [rng.choice(12 * 9, 60, replace=False) for _ in "ab"]  # half of the grid is missing
    x = [int(place % 12 * 50 + 1) for both in places for place in both] + [None, 51]
    y = [int(place // 12 * 50 + 101) for both in places for place in both] + [None, 51]
    patients = ["a"] * 60 + ["b"] * 60 + ["a", ""]
    order = rng.permutation(len(x))
    patients, x, y = ([values[i] for i in order] for values in (patients, x, y))
    scores = log_softmax(rng.normal(0, 3, (len(x), classes)), axis=1)
    expected = smooth_slowly(scores, patients, x, y, sigma)
    np.testing.assert_allclose(smooth_scores(scores, patients, x, y, sigma), expected, rtol=1e-10)


def test_two_neighbours_average_their_logit_difference():
    scores = log_softmax([[0.0, 0.0], [0.0, 3.0]], axis=1)
    smoothed = smooth_scores(scores, ["p", "p"], [1, 51], [1, 1], 1.0)
    weight = np.exp(-0.5)
    np.testing.assert_allclose(smoothed[:, 1] - smoothed[:, 0], [3 * weight / (1 + weight), 3 / (1 + weight)])
    np.testing.assert_allclose(np.exp(smoothed).sum(axis=1), 1)


def test_what_has_no_neighbour_or_no_place_stays_as_it_is():
    scores = log_softmax(np.random.default_rng(0).normal(0, 2, (6, 2)), axis=1)
    patients = ["p", "p", "q", "", "", "p"]
    x, y = [1, 51, 1, 1, 51, None], [1, 1, 1, 1, 1, 1]  # q is alone; "" is no slide; the last has no x
    smoothed = smooth_scores(scores, patients, x, y, 1.0)
    np.testing.assert_allclose(smoothed[2], scores[2])
    np.testing.assert_array_equal(smoothed[3:], scores[3:])
    assert not np.allclose(smoothed[:2], scores[:2])
    unchanged = smooth_scores(scores, patients, x, y, 0)
    np.testing.assert_array_equal(unchanged, scores)
    assert unchanged is not scores


def test_nan_is_an_unknown_place_too():
    scores = np.log([[0.2, 0.8], [0.9, 0.1]])
    np.testing.assert_array_equal(smooth_scores(scores, ["p", "p"], [1, np.nan], [1, 1], 1)[1], scores[1])


def test_smoothing_280_slides_takes_seconds():
    x, y = full_slide(25, 40)
    patients = np.repeat([str(i) for i in range(280)], 1000)
    start = perf_counter()
    smooth_scores(np.zeros((280_000, 2)), patients, np.tile(x, 280), np.tile(y, 280), 1.5)
    assert perf_counter() - start < 15  # half a second on a quiet machine


def test_two_patches_on_one_place_are_named():
    with pytest.raises(InputError, match=r"Two patches of slide 8863 overlap: a\.png at x 51, y 1 and c\.png at x 51"):
        smooth_scores(np.zeros((3, 2)), ["8863"] * 3, [51, 101, 51], [1, 1, 1], 1.0, files=["a.png", "b.png", "c.png"])


def test_patches_that_overlap_in_part_are_named():
    with pytest.raises(
        InputError, match=r"overlap: patch 0 at x 1, y 1 and patch 1 at x 50, y 26; patches are 50 pixels"
    ):
        list(iterate_slides(["p", "p"], [1, 50], [1, 26]))


def test_patches_off_the_grid_that_do_not_overlap_are_taken():
    _, _, rows, columns = next(iterate_slides(["p"] * 3, [1, 51, 130], [1, 26, 10]))
    assert list(zip(rows, columns)) == [(0, 0), (1, 1), (0, 3)]  # each to the nearest place


def test_implausible_coordinates_are_named():
    with pytest.raises(InputError, match=r"slide p span 20000001 x 20000001 places. Check x and y of far\.png"):
        smooth_scores(np.zeros((2, 2)), ["p", "p"], [1, 10**9 + 1], [1, 10**9 + 1], 1, files=["near.png", "far.png"])


def test_negative_sigma_is_refused():
    with pytest.raises(InputError, match="Sigma is -1"):
        smooth_scores(np.zeros((1, 2)), ["p"], [1], [1], -1)


def test_slides_come_in_order_with_their_rows_and_columns():
    slides = list(iterate_slides(["b", "a", "b", ""], [101, 51, 1, 1], [51, 101, 151, 1]))
    assert [(name, list(members), list(rows), list(columns)) for name, members, rows, columns in slides] == [
        ("a", [1], [0], [0]),
        ("b", [0, 2], [0, 2], [2, 0]),
    ]


def test_mean_neighbours_by_hand():
    x, y = full_slide(3, 3)
    assert mean_neighbours(["p"] * 9, x, y) == pytest.approx((4 * 3 + 4 * 5 + 8) / 9)
    assert mean_neighbours(["p", "p", "q"], [1, 51, 101], [1, 51, 1]) == pytest.approx(2 / 3)
    assert mean_neighbours(["", ""], [1, 51], [1, 1]) == 0
    assert mean_neighbours(["p"], [None], [None]) == 0


def blob_slides(noise, patients=3, side=20):
    """A tumour in the middle of each slide, seen by a network whose errors are independent from patch to patch."""
    rng = np.random.default_rng(1)
    x, y = full_slide(side, side)
    label = (np.hypot(x / 50 - side / 2, y / 50 - side / 2) < side / 4).astype(int)
    x, y, labels = np.tile(x, patients), np.tile(y, patients), np.tile(label, patients)
    logits = 2.0 * labels - 1 + rng.normal(0, noise, len(labels))
    names = np.repeat([f"p{i}" for i in range(patients)], side * side)
    return log_softmax(np.column_stack([-logits / 2, logits / 2]), axis=1), labels, names, x, y


def test_a_width_is_chosen_where_neighbours_help():
    scores, labels, patients, x, y = blob_slides(noise=2.0)
    assert choose_sigma(scores, labels, patients, x, y) in (1.0, 1.5, 2.0)
    assert choose_sigma(scores, labels, patients, x, y, candidates=(6.0, 1.5)) == 1.5


def test_no_width_is_chosen_where_none_is_better():
    """A tumour in every second place: a network without errors needs no neighbours, and they only mislead."""
    x, y = full_slide(10, 10)
    labels = (x // 50 + y // 50) % 2
    scores = np.log(np.column_stack([0.8 - 0.6 * labels, 0.2 + 0.6 * labels]))
    assert choose_sigma(scores, labels, ["p"] * 100, x, y) == 0.0


def test_no_width_is_chosen_where_validation_slides_are_sparse():
    scores, labels, patients, x, y = blob_slides(noise=2.0)
    kept = np.random.default_rng(0).random(len(labels)) < 0.2
    assert mean_neighbours(patients[kept], x[kept], y[kept]) < 2
    assert choose_sigma(scores[kept], labels[kept], patients[kept], x[kept], y[kept]) == 0.0


def test_no_width_is_chosen_without_coordinates():
    scores, labels, patients, _, _ = blob_slides(noise=2.0)
    nowhere = [None] * len(labels)
    assert choose_sigma(scores, labels, patients, nowhere, nowhere) == 0.0


def test_smoothing_is_not_praised_for_curing_overconfidence():
    """Classes without any order in space: smoothing only pulls overconfident scores together."""
    rng = np.random.default_rng(2)
    x, y = full_slide(20, 20)
    labels = rng.integers(0, 2, 400)
    logits = 40 * (labels - 0.5) + rng.normal(0, 30, 400)  # right in three of four, and always sure
    scores = log_softmax(np.column_stack([-logits / 2, logits / 2]), axis=1)

    def log_loss(sigma):
        smoothed = smooth_scores(scores, ["p"] * 400, x, y, sigma)
        return -smoothed[np.arange(400), labels].mean()

    assert log_loss(1.0) < log_loss(0)  # so that log loss alone would choose it
    assert choose_sigma(scores, labels, ["p"] * 400, x, y) == 0.0


def test_unplaced_patches_do_not_vote_on_the_width():
    scores, labels, patients, x, y = blob_slides(noise=2.0)
    chosen = choose_sigma(scores, labels, patients, x, y)
    wrong = np.log([[1e-9, 1 - 1e-9]] * 500)
    more = (np.vstack([scores, wrong]), np.append(labels, [0] * 500), [*patients, *["p0"] * 500])
    assert choose_sigma(*more, [*x, *[None] * 500], [*y, *[None] * 500]) == chosen


def test_stitching_puts_patches_at_their_coordinates():
    tiles = [np.full((50, 50, 3), level, np.uint8) for level in (10, 20)] + [np.full((50, 13, 3), 30, np.uint8)]
    tiles[0][0, 49] = 11  # its upper right corner
    picture, origin = stitch_slide(tiles, [101, 151, 201], [51, 101, 51])
    assert origin == (101, 51)
    assert picture.shape == (100, 150, 3)
    assert picture.dtype == np.uint8
    assert (picture[0, 49] == 11).all()
    assert (picture[1:50, :50] == 10).all()
    assert (picture[50:, 50:100] == 20).all()
    assert (picture[:50, 100:113] == 30).all()
    assert (picture[:50, 113:] == 255).all()
    assert (picture[50:, :50] == 255).all()


def test_stitching_resized_tiles_draws_at_their_scale():
    picture, origin = stitch_slide([np.zeros((8, 8, 1), np.uint8)] * 2, [1, 101], [1, 1], tile_pixels=8)
    assert origin == (1, 1)
    np.testing.assert_array_equal(picture[..., 0], [[0] * 8 + [255] * 8 + [0] * 8] * 8)


def test_stitching_refuses_what_does_not_fit():
    with pytest.raises(InputError, match="Tile 1 has 64 pixels a side, more than 50. Give tile_pixels=64"):
        stitch_slide([np.zeros((50, 50, 3)), np.zeros((64, 50, 3))], [1, 51], [1, 1])
    with pytest.raises(InputError, match="Two patches overlap: patch 0 at x 1, y 1 and patch 1"):
        stitch_slide([np.zeros((50, 50, 3))] * 2, [1, 1], [1, 1])
    with pytest.raises(InputError, match="no patch to draw"):
        stitch_slide([], [], [])
    with pytest.raises(InputError, match="Patch 1 has no x and y"):
        paint_grid([1, 2], [1, None], [1, 1])


def test_maps_hold_each_value_at_its_place_and_nan_elsewhere():
    grid, origin = paint_grid([0.1, 0.7, 0.4], [51, 151, 101], [101, 101, 151])
    nan = np.nan
    np.testing.assert_array_equal(grid, [[0.1, nan, 0.7], [nan, 0.4, nan]])
    assert origin == (51, 101)
    colours, _ = paint_grid([[1, 2, 3], [4, 5, 6]], [1, 51], [1, 1])
    np.testing.assert_array_equal(colours, [[[1, 2, 3], [4, 5, 6]]])


@pytest.mark.realdata
def test_a_real_slide_is_complete(shared):
    files = sorted((shared / "data/idc_slides/8864").rglob("*.png"))
    x, y = ([int(re.search(rf"_{axis}(\d+)", file.name)[1]) for file in files] for axis in "xy")
    tiles = [cv2.imread(str(file)) for file in files]
    picture, (left, top) = stitch_slide(tiles, x, y)
    assert len(files) == 805 + 328
    assert mean_neighbours(["8864"] * len(files), x, y) == pytest.approx(5.54, abs=0.01)
    for tile, across, down in zip(tiles, x, y):
        row, column = down - int(top), across - int(left)
        assert (picture[row : row + tile.shape[0], column : column + tile.shape[1]] == tile).all()
