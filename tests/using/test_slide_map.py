"""The map's rows, and what its Vega-Lite specification says of a slide worked out by hand."""

import base64

import cv2
import numpy as np
import pytest

from cancernet import InputError
from cancernet.data.grid import lay_out
from cancernet.using.slide_map import CALLED, LAYERS, OPACITY, OTHERS, map_rows, map_specification

RED = (200, 30, 40)


def specify(**changes):
    picture = np.full((8, 16, 3), RED, np.uint8)
    words = {"event": "IDC", "decisions": ["IDC", "benign"], **changes}
    return map_specification(picture, (100, 50, 300, 150), **words)


def patches_of(specification):
    return specification["layer"][1]["encoding"]


def test_a_row_is_a_patch_and_reaches_one_step_to_the_right_and_down():
    files = ["a.png", "b.png"]
    (grid,) = lay_out(["7", "7"], [1, 51], [101, 151], files).slides
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
    assert np.abs(seen.astype(int) - RED).max() <= 4  # red stays red, but for what JPEG loses


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


def test_probabilities_are_coloured_from_0_to_1_as_their_legend_says():
    encoding = patches_of(specify())
    fill = encoding["fill"]
    assert (fill["field"], fill["scale"]["domain"]) == ("probability", [0, 1])
    assert fill["legend"]["title"] == "probability of IDC"
    assert encoding["fillOpacity"] == {"value": OPACITY}
    assert fill["legend"]["gradientOpacity"] == OPACITY


def test_of_the_decisions_only_the_drawn_class_is_bright():
    encoding = patches_of(specify(layer="Decision", decisions=["b", "a", "c"]))
    assert encoding["fill"]["scale"] == {"domain": ["b", "a", "c"], "range": [CALLED, OTHERS, OTHERS]}
    assert encoding["fillOpacity"]["condition"]["test"] == {"field": "decision", "equal": "b"}
    assert encoding["fillOpacity"]["condition"]["value"] > encoding["fillOpacity"]["value"]


def test_the_bare_tissue_is_not_coloured_but_can_be_clicked():
    specification = specify(layer="Tissue")
    assert "fill" not in patches_of(specification)
    assert patches_of(specification)["fillOpacity"] == {"value": 0}
    clicked, view = specification["layer"][1]["params"]
    assert (clicked["name"], clicked["select"]["fields"]) == ("clicked", ["patch"])
    assert view["bind"] == "scales"


def test_an_unknown_layer_is_named_with_the_known_ones():
    with pytest.raises(InputError, match=rf"Unknown layer 'Heat'. Choose one of {', '.join(LAYERS)}\."):
        specify(layer="Heat")
