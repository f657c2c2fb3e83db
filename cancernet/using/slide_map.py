"""The map of a slide in a browser, which can be zoomed and clicked, as a Vega-Lite specification."""

import base64
from collections.abc import Sequence

import cv2
import numpy as np

from cancernet import InputError
from cancernet.data.grid import SlideGrid

HEIGHT = 460  # pixels on the screen
SCHEME, CALLED, OTHERS = "viridis", "#d55e00", "#5f6b73"  # of probabilities, of the positive class, of the others
LAYERS = ("Tissue", "Probability", "Decision")  # what is laid over the tissue
OPACITY = 0.7  # of the probabilities over the tissue, and in their legend
QUALITY = 88  # of the picture, a JPEG


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


def map_specification(
    picture: np.ndarray,
    frame: tuple[float, float, float, float],
    *,
    event: str,
    decisions: Sequence[str],
    layer: str = "Probability",
) -> dict:
    """Specify a map: the wheel zooms, dragging moves it, a double click shows the whole slide.

    The rows (see map_rows) are given apart from it, so that the view does not jump when only they change. A pixel is
    as wide as it is high at every width of the screen. The selection `clicked` holds the row of a patch.

    Args:
        picture: uint8 [height, width, 3] of the slide.
        frame: left, top, right and bottom of the picture, in the pixels of the rows.
        event: the class of the probability, for the legend.
        decisions: the words for a decision, that for the drawn class first.
        layer: one of LAYERS.

    Raises:
        InputError: an unknown layer.
    """
    if layer not in LAYERS:
        raise InputError(f"Unknown layer {layer!r}. Choose one of {', '.join(LAYERS)}.")
    left, top, right, bottom = frame
    scale = f"max({right - left} / width, {bottom - top} / height)"  # pixels of the slide for one of the screen
    x = _axis("left", (left + right) / 2, scale, "width", reverse=False)
    y = _axis("top", (top + bottom) / 2, scale, "height", reverse=True)
    tissue = {
        "data": {"values": [{"left": left, "top": top, "right": right, "bottom": bottom, "url": _encode(picture)}]},
        "mark": {"type": "image", "aspect": False, "clip": True},
        "encoding": {"x": x, "y": y, "x2": {"field": "right"}, "y2": {"field": "bottom"}, "url": {"field": "url"}},
    }
    return {
        "height": HEIGHT,
        "layer": [tissue, _patches(x, y, event, decisions, layer)],
        "config": {"view": {"stroke": "#d5dadd", "fill": "#ffffff"}},
    }


def _patches(x: dict, y: dict, event: str, decisions: Sequence[str], layer: str) -> dict:
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
        "fillOpacity": {"value": 0 if layer == "Tissue" else OPACITY},
    }
    below = {"orient": "bottom", "direction": "horizontal"}
    if layer == "Decision":
        encoding["fill"] = {
            "field": "decision",
            "type": "nominal",
            "scale": {"domain": list(decisions), "range": [CALLED, *([OTHERS] * (len(decisions) - 1))]},
            "legend": {**below, "title": None, "symbolOpacity": 1, "symbolStrokeWidth": 0},
        }
        encoding["fillOpacity"] = {
            "condition": {"test": {"field": "decision", "equal": decisions[0]}, "value": 0.55},
            "value": 0.12,
        }
    elif layer == "Probability":
        encoding["fill"] = {
            "field": "probability",
            "type": "quantitative",
            "scale": {"scheme": SCHEME, "domain": [0, 1]},
            "legend": {
                **below,
                "title": f"probability of {event}",
                "format": ".0%",
                "gradientLength": 220,
                "gradientOpacity": OPACITY,
                "values": [0, 0.25, 0.5, 0.75, 1],
            },
        }
    return {
        "params": [
            {"name": "clicked", "select": {"type": "point", "fields": ["patch"], "on": "click", "toggle": False}},
            {"name": "view", "select": {"type": "interval", "encodings": ["x", "y"]}, "bind": "scales"},
        ],
        "mark": {"type": "rect", "clip": True, "cursor": "pointer"},
        "encoding": encoding,
    }


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
