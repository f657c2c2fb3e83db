"""Patches on the grid of their slide."""

import re

import cv2
import numpy as np
import pytest

from cancernet.data.dataset import Patch
from cancernet.data.grid import lay_out_patches, make_thumbnail, paint_grid, stitch_slide, thumbnail_side


def lay_out_places(x, y, patients=None, files=None):
    patients, files = patients or ["p"] * len(x), files or [f"patch {i}" for i in range(len(x))]
    return lay_out_patches([Patch(file, "0", *place, "", "") for file, *place in zip(files, patients, x, y)])


def one_slide(x, y):
    (grid,) = lay_out_places(x, y).slides
    return grid


def full_slide(rows, columns, first=1):
    """x and y of every place of a grid, row after row."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    return 50 * x + first, 50 * y + first


def test_slides_come_in_order_with_their_rows_and_columns():
    layout = lay_out_places([101, 51, 1, 1], [51, 101, 151, 1], ["b", "a", "b", ""])
    found = [(grid.slide, list(grid.members), list(grid.rows), list(grid.columns)) for grid in layout.slides]
    assert found == [("a", [1], [0], [0]), ("b", [0, 2], [0, 2], [2, 0])]
    assert [(grid.shape, grid.origin) for grid in layout.slides] == [((1, 1), (51, 101)), ((3, 3), (1, 51))]


def test_two_slides_of_a_patient_are_apart_and_patches_may_be_further_apart():
    of_slides = [Patch("1.png", "0", "p", 224, 0, "", "", (("slide", name),)) for name in ("a.svs", "b.svs")]
    layout = lay_out_patches([*of_slides, of_slides[0]._replace(x=448)], 224)
    assert [(grid.slide, grid.shape) for grid in layout.slides] == [("a.svs", (1, 2)), ("b.svs", (1, 1))]
    assert make_thumbnail(np.zeros((112, 224, 3), np.uint8), 25, 224).shape == (12, 25, 3)


def test_a_patch_without_a_position_is_on_no_slide():
    assert list(one_slide([1, None], [1, 1]).members) == [0]
    assert lay_out_places([None], [1]).slides == ()


def test_patches_off_the_grid_that_do_not_overlap_are_taken():
    grid = one_slide([1, 51, 130], [1, 26, 10])
    assert list(zip(grid.rows, grid.columns)) == [(0, 0), (1, 1), (0, 3)]  # each to the nearest place


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([51, 101, 51], [1, 1, 1], "Two patches of slide 8863 overlap: a.png at x 51, y 1 and c.png at x 51, y 1; "),
        ([1, 50, 300], [1, 26, 1], "Two patches of slide 8863 overlap: a.png at x 1, y 1 and b.png at x 50, y 26; "),
        (
            [1, 10**9 + 1, 51],
            [1, 10**9 + 1, 1],
            "The patches of slide 8863 span 20000001 x 20000001 cells, ",
        ),
    ],
)
def test_a_slide_that_cannot_be_placed_is_reported_beside_the_others(x, y, reason):
    layout = lay_out_places([*x, 1], [*y, 1], ["8863"] * 3 + ["other"], ["a.png", "b.png", "c.png", "d.png"])
    assert [grid.slide for grid in layout.slides] == ["other"]
    assert list(layout.unplaceable) == ["8863"]
    assert layout.unplaceable["8863"].startswith(reason)


def test_neighbours_by_hand():
    assert list(one_slide(*full_slide(3, 3)).neighbours) == [3, 5, 3, 5, 8, 5, 3, 5, 3]
    layout = lay_out_places([1, 51, 101], [1, 51, 1], ["p", "p", "q"])
    assert [list(grid.neighbours) for grid in layout.slides] == [[1, 1], [0]]


def test_a_complete_slide_has_four_neighbours_a_patch():
    assert one_slide(*full_slide(3, 3)).is_complete  # 40 / 9 on average
    assert not one_slide(*full_slide(2, 3)).is_complete  # 22 / 6
    assert not one_slide(*(2 * axis for axis in full_slide(5, 5))).is_complete


def test_a_thumbnail_is_as_large_as_the_longest_side_of_the_slide_allows():
    assert [thumbnail_side(shape) for shape in ((1, 1), (32, 20), (40, 64), (5, 10_000))] == [50, 50, 25, 4]
    assert make_thumbnail(np.zeros((50, 25, 1), np.uint8), 10).shape == (10, 5, 3)
    assert make_thumbnail(np.zeros((200, 200, 3), np.uint8), 25).shape == (25, 25, 3)


def test_stitching_puts_patches_at_their_coordinates():
    tiles = [np.full((50, 50, 3), level, np.uint8) for level in (10, 20)] + [np.full((50, 13, 3), 30, np.uint8)]
    tiles[0][0, 49] = 11  # its upper right corner
    picture = stitch_slide(tiles, one_slide([101, 151, 201], [51, 101, 51]), tile_pixels=50)
    assert picture.shape == (100, 150, 3)
    assert picture.dtype == np.uint8
    assert (picture[0, 49] == 11).all()
    assert (picture[1:50, :50] == 10).all()
    assert (picture[50:, 50:100] == 20).all()
    assert (picture[:50, 100:113] == 30).all()
    assert (picture[:50, 113:] == 255).all()
    assert (picture[50:, :50] == 255).all()


def test_stitching_resized_tiles_draws_at_their_scale():
    picture = stitch_slide([np.zeros((8, 8, 1), np.uint8)] * 2, one_slide([1, 101], [1, 1]), tile_pixels=8)
    np.testing.assert_array_equal(picture[..., 0], [[0] * 8 + [255] * 8 + [0] * 8] * 8)


def test_maps_hold_each_value_at_its_place_and_nan_elsewhere():
    nan = np.nan
    painted = paint_grid([0.1, 0.7, 0.4], one_slide([51, 151, 101], [101, 101, 151]))
    np.testing.assert_array_equal(painted, [[0.1, nan, 0.7], [nan, 0.4, nan]])


@pytest.mark.realdata
def test_a_real_slide_is_complete(shared):
    files = sorted((shared / "data/idc_slides/8864").rglob("*.png"))
    x, y = ([int(re.search(rf"_{axis}(\d+)", file.name)[1]) for file in files] for axis in "xy")
    tiles = [cv2.imread(str(file)) for file in files]
    grid = one_slide(x, y)
    picture = stitch_slide(tiles, grid, tile_pixels=50)
    assert len(files) == 805 + 328
    assert grid.neighbours.mean() == pytest.approx(5.54, abs=0.01)
    for tile, across, down in zip(tiles, x, y):
        row, column = down - int(grid.origin[1]), across - int(grid.origin[0])
        assert (picture[row : row + tile.shape[0], column : column + tile.shape[1]] == tile).all()
