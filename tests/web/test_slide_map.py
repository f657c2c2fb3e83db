"""The data sets of the map, and its Vega-Lite specification for a slide worked out by hand."""

import base64

import cv2
import numpy as np
import pytest

from cancernet.data.dataset import Patch
from cancernet.data.grid import lay_out_patches
from cancernet.reporting.slide_plots import MAX_OPACITY
from cancernet.web.slide_map import OUTLINE, map_rows, map_specification, outline_rows

RED = (200, 30, 40)


def specify(**changes):
    picture = np.full((8, 16, 3), RED, np.uint8)
    return map_specification(picture, (100, 50, 300, 150), **{"event": "IDC", **changes})


def patches_of(specification):
    return specification["layer"][1]["encoding"]


def test_a_row_is_a_patch_and_reaches_one_step_to_the_right_and_down():
    files = ["a.png", "b.png"]
    (grid,) = lay_out_patches([Patch("", "0", "7", *place, "", "") for place in ((1, 101), (51, 151))]).slides
    rows = map_rows(grid, files=files, probability=np.float32([0.25, 1]), decision=["benign", "IDC"])
    assert rows == {
        "patch": [0, 1],
        "left": [1.0, 51.0],
        "top": [101.0, 151.0],
        "right": [51.0, 101.0],
        "bottom": [151.0, 201.0],
        "file": ["a.png", "b.png"],
        "probability": [0.25, 1.0],
        "decision": ["benign", "IDC"],
    }
    assert {type(value) for value in rows["probability"]} == {float}  # what JSON can hold


def test_the_picture_fills_its_frame_below_the_patches():
    specification = specify()
    tissue, patches = specification["layer"][0], patches_of(specification)
    (values,) = tissue["data"]["values"]
    kind, data = values.pop("url").split(",")
    assert values == {"left": 100, "top": 50, "right": 300, "bottom": 150}
    assert (tissue["mark"]["type"], tissue["mark"]["aspect"]) == ("image", False)
    for layer in (tissue["encoding"], patches):
        fields = [layer[end]["field"] for end in ("x", "x2", "y", "y2")]
        assert fields == ["left", "right", "top", "bottom"]
    assert kind == "data:image/jpeg;base64"
    seen = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert seen.shape == (8, 16, 3)
    assert np.abs(seen.astype(int) - RED).max() <= 4  # JPEG loses little


@pytest.mark.parametrize(
    ("width", "height", "across", "down"),
    [
        (100, 100, (100, 300), (0, 200)),  # 2 pixels of the slide to one of the screen: the width decides
        (800, 100, (-200, 600), (50, 150)),  # 1 to 1: the height decides
    ],
)
def test_a_pixel_is_as_wide_as_high_and_the_slide_in_the_middle(width, height, across, down):
    encoding = patches_of(specify())
    for axis, ends in (("x", across), ("y", down)):
        scale = encoding[axis]["scale"]
        given = {"width": width, "height": height, "max": max}
        assert [eval(scale[end]["expr"], given) for end in ("domainMin", "domainMax")] == list(ends)
    assert (encoding["x"]["scale"]["reverse"], encoding["y"]["scale"]["reverse"]) == (False, True)  # y runs down


def test_a_probability_of_0_shows_the_tissue_and_one_of_1_is_orange():
    fill = patches_of(specify())["fill"]
    assert (fill["field"], fill["scale"]["domain"]) == ("probability", [0, 1])
    assert fill["scale"]["range"] == ["rgba(213, 94, 0, 0)", f"rgba(213, 94, 0, {MAX_OPACITY})"]
    assert fill["legend"]["title"] == "probability of IDC; outline: classified as IDC"


def test_the_outline_surrounds_the_predicted_class():
    (grid,) = lay_out_patches([Patch("", "0", "7", x, 101, "", "") for x in (1, 51, 101)]).slides
    rows = outline_rows(grid, {"dashed": np.array([True, True, False]), "solid": np.array([False, True, False])})
    lines = list(zip(*(rows[side] for side in ("left", "top", "right", "bottom")), rows["line"], strict=True))
    assert {tuple(sides) for *sides, line in lines if line == "solid"} == {  # of the second
        *((51, 101, 101, 101), (51, 151, 101, 151), (51, 101, 51, 151), (101, 101, 101, 151)),
    }
    assert {
        tuple(sides) for *sides, line in lines if line == "dashed"
    } == {  # of two neighbouring patches; none between them
        *((1, 101, 51, 101), (51, 101, 101, 101), (1, 151, 51, 151), (51, 151, 101, 151)),
        *((1, 101, 1, 151), (101, 101, 101, 151)),
    }
    assert not any(outline_rows(grid, {"dashed": np.zeros(3, bool)}).values())
    uncertain = outline_rows(grid, {"uncertain": np.array([False, False, True]), "solid": np.zeros(3, bool)})
    assert (uncertain["line"], sorted(uncertain["left"])) == (["uncertain"] * 4, [101, 101, 101, 151])
    wide, narrow = specify()["layer"][2:4]
    assert wide["data"] == narrow["data"] == {"name": OUTLINE}
    assert wide["mark"]["strokeWidth"] > narrow["mark"]["strokeWidth"]


def test_the_scale_bar_is_drawn_to_scale_below_the_slide():
    assert len(specify()["layer"]) == 4
    bar, words = specify(mpp=4.0)["layer"][4:]  # 200 pixels of 4 micrometres: a quarter is 200
    (drawn,), (text,) = bar["data"]["values"], words["data"]["values"]
    assert (drawn["left"], drawn["right"]) == (100, 150)
    assert 150 < drawn["top"] == drawn["bottom"] < 157
    assert text == {"left": 150, "top": drawn["top"], "words": "200 µm"}
    assert words["encoding"]["text"]["field"] == "words"


def test_the_bare_tissue_is_not_coloured_but_can_be_clicked():
    specification = specify(show_probability=False)
    assert "fill" not in patches_of(specification)
    assert patches_of(specification)["fillOpacity"] == {"value": 0}
    clicked, view = specification["params"]
    assert clicked["views"] == view["views"] == [specification["layer"][1]["name"]]
    assert (clicked["name"], clicked["select"]["fields"]) == ("clicked", ["patch"])
    assert view["bind"] == "scales"
