"""The map of a slide in a browser, which can be zoomed and clicked, as a Vega-Lite specification.

It shows what the pictures of cancernet.reporting.slide_plots show: the tissue, the probability over it from transparent
to orange, an outline of what is called, and a scale bar.
"""

import base64
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.colors import to_rgb

from cancernet import InputError
from cancernet.data.grid import SlideGrid, find_edges, paint_grid
from cancernet.reporting.plots import ORANGE
from cancernet.reporting.slide_plots import DARK, SURE, name_length, round_length

HEIGHT = 460  # pixels on the screen
OVER_TISSUE = ("Probability", "Nothing")  # what is laid over the tissue, below the outline
PATCHES, OUTLINE = "patches", "outline"  # the data sets of the specification
BELOW = 0.07  # of the frame's height: room for the scale bar
QUALITY = 88  # of the picture, a JPEG


class Frame(NamedTuple):
    """Where the picture of a slide lies, in the pixels of its rows."""

    left: float
    top: float
    right: float
    bottom: float


def map_rows(
    grid: SlideGrid, *, files: Sequence[str], probability: Sequence[float], decision: Sequence[str]
) -> dict[str, list]:
    """Tell Vega-Lite the m patches of a slide, as columns with one row for each patch; `patch` counts them from 0.

    Args:
        files: [m].
        probability: [m] 0 to 1, of the class that is drawn.
        decision: [m] in words.
    """
    return {
        "patch": list(range(len(grid.x))),
        "left": grid.x.tolist(),
        "top": grid.y.tolist(),
        "right": (grid.x + grid.step).tolist(),
        "bottom": (grid.y + grid.step).tolist(),
        "file": list(files),
        "probability": np.asarray(probability, float).tolist(),
        "decision": list(decision),
    }


def outline_rows(grid: SlideGrid, called: np.ndarray) -> dict[str, list]:
    """The sides of the called patches that have no called neighbour, a row each.

    Args:
        called: bool [m].
    """
    edges = find_edges(paint_grid(called, grid) == 1) * grid.step + np.array(grid.origin)
    (x, y), (u, v) = edges.transpose(1, 2, 0).tolist()
    return {"x": x, "y": y, "u": u, "v": v}


def map_specification(
    picture: np.ndarray, frame: Frame, *, event: str, over: str = OVER_TISSUE[0], mpp: float | None = None
) -> dict:
    """Specify a map: the wheel zooms, dragging moves it, a double click shows the whole slide.

    The rows are given apart from it, as the data sets PATCHES (see map_rows) and OUTLINE (see outline_rows), so that
    the view does not jump when only they change. A pixel is as wide as it is high at every width of the screen. The
    selection `clicked` holds the row of a patch.

    Args:
        picture: uint8 [height, width, 3] of the slide.
        event: the class of the probability and of the outline, for the legend.
        over: one of OVER_TISSUE.
        mpp: micrometres a pixel of the rows, for the scale bar; None for no bar.

    Raises:
        InputError: an unknown layer.
    """
    if over not in OVER_TISSUE:
        raise InputError(f"Unknown layer {over!r}. Choose one of {', '.join(OVER_TISSUE)}.")
    left, top, right, bottom = frame
    height = (bottom - top) * (1 + BELOW * (mpp is not None))
    scale = f"max({right - left} / width, {height} / height)"  # pixels of the slide for one of the screen
    x = _axis("left", (left + right) / 2, scale, "width", reverse=False)
    y = _axis("top", top + height / 2, scale, "height", reverse=True)
    tissue = {
        "data": {"values": [{**frame._asdict(), "url": _encode(picture)}]},
        "mark": {"type": "image", "aspect": False, "clip": True},
        "encoding": {"x": x, "y": y, "x2": {"field": "right"}, "y2": {"field": "bottom"}, "url": {"field": "url"}},
    }
    return {
        "height": HEIGHT,
        "layer": [
            tissue,
            _patches(x, y, event, over),
            *_outline(x, y),
            *(_scale_bar(x, y, frame, mpp) if mpp else ()),
        ],
        "config": {"view": {"stroke": "#d5dadd", "fill": "#ffffff"}},
    }


def _patches(x: dict, y: dict, event: str, over: str) -> dict:
    encoding = {
        "x": x,
        "y": y,
        "x2": {"field": "right"},
        "y2": {"field": "bottom"},
        "tooltip": [
            {"field": "file", "type": "nominal", "title": "file"},
            {"field": "probability", "type": "quantitative", "title": f"probability of {event}", "format": ".1%"},
            {"field": "decision", "type": "nominal", "title": "decision"},
        ],
        "strokeWidth": {"condition": {"param": "clicked", "empty": False, "value": 3}, "value": 0},
        "stroke": {"value": "#000000"},
    }
    if over == "Probability":
        red, green, blue = (round(255 * part) for part in to_rgb(ORANGE))
        encoding["fill"] = {
            "field": "probability",
            "type": "quantitative",
            "scale": {
                "domain": [0, 1],
                "range": [f"rgba({red}, {green}, {blue}, {opacity})" for opacity in (0, SURE)],
            },
            "legend": {
                "orient": "bottom",
                "direction": "horizontal",
                "title": f"probability of {event}; line: called {event}",
                "titleLimit": 400,
                "format": ".0%",
                "gradientLength": 220,
                "values": [0, 0.25, 0.5, 0.75, 1],
            },
        }
    else:
        encoding["fillOpacity"] = {"value": 0}  # not seen, but it can be clicked
    return {
        "data": {"name": PATCHES},
        "params": [
            {"name": "clicked", "select": {"type": "point", "fields": ["patch"], "on": "click", "toggle": False}},
            {"name": "view", "select": {"type": "interval", "encodings": ["x", "y"]}, "bind": "scales"},
        ],
        "mark": {"type": "rect", "clip": True, "cursor": "pointer"},
        "encoding": encoding,
    }


def _outline(x: dict, y: dict) -> list[dict]:
    """Dark lines on wider white ones."""
    places = {"x": {**x, "field": "x"}, "y": {**y, "field": "y"}, "x2": {"field": "u"}, "y2": {"field": "v"}}
    lines = (("white", 3.4), (DARK, 1.6))
    return [
        {
            "data": {"name": OUTLINE},
            "mark": {"type": "rule", "clip": True, "color": colour, "strokeWidth": width, "strokeCap": "square"},
            "encoding": places,
        }
        for colour, width in lines
    ]


def _scale_bar(x: dict, y: dict, frame: Frame, mpp: float) -> list[dict]:
    """A bar of a round length below the slide, which zooms with it, and its length in words."""
    length = round_length((frame.right - frame.left) * mpp / 4)
    height = frame.bottom + (frame.bottom - frame.top) * BELOW * 0.6
    bar = {"left": frame.left, "end": frame.left + length / mpp, "top": height, "words": name_length(length)}
    places = {"x": x, "y": y}
    words = {"type": "text", "align": "left", "baseline": "middle", "dx": 6, "clip": True, "fontSize": 12}
    return [
        {
            "data": {"values": [bar]},
            "mark": {"type": "rule", "clip": True, "color": DARK, "strokeWidth": 3},
            "encoding": {**places, "x2": {"field": "end"}},
        },
        {
            "data": {"values": [bar]},
            "mark": words,
            "encoding": {**places, "x": {**x, "field": "end"}, "text": {"field": "words"}},
        },
    ]


def _axis(field: str, middle: float, scale: str, side: str, *, reverse: bool) -> dict:
    half = f"{scale} * {side} / 2"
    domain = {"domainMin": {"expr": f"{middle} - {half}"}, "domainMax": {"expr": f"{middle} + {half}"}}
    return {
        "field": field,
        "type": "quantitative",
        "axis": None,
        "scale": {**domain, "nice": False, "zero": False, "reverse": reverse},
    }


def _encode(picture: np.ndarray) -> str:
    data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
