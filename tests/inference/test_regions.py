"""Regions as GeoJSON: RFC 7946, and what QuPath expects."""

import json

import numpy as np
import pytest
import shapely
from scipy.ndimage import label

from cancernet.inference import regions

NAN = np.nan


def outline(grid, **given):
    """The regions as the GeoJSON file has them."""
    return {"type": "FeatureCollection", "features": regions.outline_regions(grid, colour=(200, 0, 0), **given)}


def as_map(mask):
    """A probability where the mask is true."""
    return np.where(mask, 0.5, NAN)


def signed_area(ring):
    """Shoelace formula; positive if counterclockwise with y upwards."""
    (x, y), (next_x, next_y) = np.array(ring)[:-1].T, np.array(ring)[1:].T
    return float((x * next_y - next_x * y).sum() / 2)


def polygon_area(feature):
    outer, *holes = feature["geometry"]["coordinates"]
    return signed_area(outer) + sum(map(signed_area, holes))


def check_schema(collection):
    """RFC 7946, sections 3.1.6, 3.2 and 3.3, and the annotations of QuPath 0.4 and later."""
    assert set(collection) == {"type", "features"}
    assert collection["type"] == "FeatureCollection"
    for feature in collection["features"]:
        assert set(feature) == {"type", "geometry", "properties"}
        assert feature["type"] == "Feature"
        assert set(feature["geometry"]) == {"type", "coordinates"}
        assert feature["geometry"]["type"] == "Polygon"
        for number, ring in enumerate(feature["geometry"]["coordinates"]):
            assert len(ring) >= 4
            assert ring[0] == ring[-1]
            assert all(len(position) == 2 and all(type(value) is float for value in position) for position in ring)
            assert (signed_area(ring) > 0) == (number == 0)  # right-hand rule
        properties = feature["properties"]
        assert properties["objectType"] == "annotation"
        assert type(properties["classification"]["name"]) is str
        assert all(type(value) is int and 0 <= value <= 255 for value in properties["classification"]["color"])
        assert len(properties["classification"]["color"]) == 3
        assert properties["isLocked"] is False
        assert all(type(value) in (int, float) for value in properties["measurements"].values())


def test_one_region_in_slide_pixels():
    grid = np.array([[NAN, 0.9, 0.8], [NAN, 0.7, NAN]])
    collection = outline(grid, patch_pixels=800, origin=(1600, 400), name="IDC", mpp=0.25)
    check_schema(collection)
    (feature,) = collection["features"]
    (ring,) = feature["geometry"]["coordinates"]
    corners = {(2400, 400), (4000, 400), (4000, 1200), (3200, 1200), (3200, 2000), (2400, 2000)}
    assert {tuple(position) for position in ring} == corners
    assert len(ring) == 7
    assert feature["properties"]["classification"] == {"name": "IDC", "color": [200, 0, 0]}
    assert feature["properties"]["measurements"] == pytest.approx(
        {"Patches": 3, "Mean probability": 0.8, "Highest probability": 0.9, "Area mm^2": 3 * 0.2**2}
    )


def test_a_hole_is_kept_and_an_island_in_it_is_a_region():
    mask = np.ones((5, 5), bool)
    mask[1:4, 1:4] = False
    mask[2, 2] = True
    collection = outline(as_map(mask), patch_pixels=10, name="1")
    check_schema(collection)
    ring, island = collection["features"]  # largest first
    assert [len(feature["geometry"]["coordinates"]) for feature in (ring, island)] == [2, 1]
    assert polygon_area(ring) == 16 * 100
    assert polygon_area(island) == 100
    assert set(map(tuple, ring["geometry"]["coordinates"][1])) == {(10, 10), (40, 10), (40, 40), (10, 40)}


def test_cells_that_touch_at_a_corner_are_two_regions():
    collection = outline(as_map(np.eye(3, dtype=bool)), patch_pixels=50, name="1")
    check_schema(collection)
    assert [polygon_area(feature) for feature in collection["features"]] == [2500] * 3


def test_no_region_is_an_empty_collection():
    assert outline([[NAN, NAN]], patch_pixels=50, name="1")["features"] == []


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_areas_equal_the_masks(share):
    """Whatever the shape, holes and pinched corners included, and for patches of a broken number of pixels."""
    rng = np.random.default_rng(4)
    for patch_pixels in (50, 792.0792):
        mask = rng.random((30, 40)) < share
        collection = outline(as_map(mask), patch_pixels=patch_pixels, origin=(3, 7), name="1")
        check_schema(json.loads(json.dumps(collection)))
        labels, expected = label(mask)
        sizes = sorted(np.bincount(labels.ravel())[1:], reverse=True)
        assert len(collection["features"]) == expected
        areas = [polygon_area(feature) for feature in collection["features"]]
        np.testing.assert_allclose(areas, np.array(sizes) * patch_pixels**2, rtol=1e-9)
        assert all(shapely.geometry.shape(feature["geometry"]).is_valid for feature in collection["features"])


def test_whole_pixels_give_whole_areas():
    mask = np.random.default_rng(5).random((20, 20)) < 0.6
    collection = outline(as_map(mask), patch_pixels=50, name="1")
    assert sum(polygon_area(feature) for feature in collection["features"]) == mask.sum() * 2500
