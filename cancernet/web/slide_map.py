"""An interactive map of a slide for the browser, like the static figures of cancernet.reporting.slide_plots."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import altair as alt
import cv2
import numpy as np
from matplotlib.colors import to_rgb

from cancernet.data.grid import SlideGrid, find_edges, paint_grid
from cancernet.reporting.plots import BLUE, ORANGE
from cancernet.reporting.report import embed
from cancernet.reporting.slide_plots import DARK, MAX_OPACITY, format_length, round_length

HEIGHT = 460  # pixels on the screen
PATCHES, OUTLINE, ANNOTATIONS = "patches", "outline", "annotations"  # names of the data sets in the specification
SCALE_BAR_SHARE = 0.07  # extra height for the scale bar, relative to the slide
JPEG_QUALITY = 88

Table = dict[str, list]  # columns of equal length


class Frame(NamedTuple):
    """Edges of the slide picture, in the pixel coordinates of the patches."""

    left: float
    top: float
    right: float
    bottom: float


def map_rows(
    grid: SlideGrid, *, files: Sequence[str], probability: Sequence[float] | np.ndarray, decision: Sequence[str]
) -> Table:
    """List the m patches of a slide with the probability of the displayed class, 0 to 1, and the predicted class."""
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


def outline_rows(
    grid: SlideGrid, selected: np.ndarray, confident: np.ndarray, uncertain: np.ndarray | None = None
) -> Table:
    """List the line segments from (left, top) to (right, bottom) around the selected patches, bool [m], which are
    dashed, around those of them that are `confident`, bool [m], which are solid, and around `uncertain` ones."""
    rows: Table = {name: [] for name in ("left", "top", "right", "bottom", "line")}
    lines = [("dashed", selected), ("solid", selected & confident)]
    for line, inside in lines if uncertain is None else [("uncertain", uncertain), *lines]:
        edges = find_edges(paint_grid(inside, grid) == 1) * grid.step + np.array(grid.origin)
        (left, top), (right, bottom) = edges.transpose(1, 2, 0).tolist()
        for values, more in zip(rows.values(), (left, top, right, bottom, [line] * len(edges)), strict=True):
            values += more
    return rows


def map_specification(
    picture: np.ndarray,
    frame: Frame,
    *,
    event: str,
    show_probability: bool = True,
    mpp: float | None = None,
    annotations: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """Specify the map in Vega-Lite, without its data sets PATCHES (`map_rows`) and OUTLINE (`outline_rows`).

    The wheel zooms, dragging pans, and a double click resets the view. Pixels stay square at every screen width. The
    selection `clicked` holds the number of a patch. Because the data sets are separate, the view keeps its zoom when
    only they change. `mpp` is micrometres per pixel of the patch coordinates, for the scale bar; None draws no bar.
    `annotations` are the colours of classes of annotations, whose outlines are a third data set, ANNOTATIONS.
    """
    left, top, right, bottom = frame
    height = (bottom - top) * (1 + SCALE_BAR_SHARE * (mpp is not None))
    zoom = f"max({right - left} / width, {height} / height)"  # slide pixels per screen pixel
    x = alt.X("left:Q", axis=None, scale=_scale((left + right) / 2, f"{zoom} * width / 2", reverse=False))
    y = alt.Y("top:Q", axis=None, scale=_scale(top + height / 2, f"{zoom} * height / 2", reverse=True))
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    url = embed(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes())
    data = alt.Data(values=[{**frame._asdict(), "url": url}])
    tissue = alt.Chart(data).mark_image(aspect=False, clip=True).encode(x, y, x2="right", y2="bottom", url="url:N")
    # Dark lines over wider white ones stand out on any tissue.
    kinds = ["dashed", "solid", "uncertain"]
    dash = alt.StrokeDash("line:N", scale=alt.Scale(domain=kinds, range=[[2.5, 4], [1, 0], [1, 0]]), legend=None)
    colours = alt.Color("line:N", scale=alt.Scale(domain=kinds, range=[DARK, DARK, BLUE]), legend=None)
    outline = [
        alt.Chart(alt.NamedData(OUTLINE))
        .mark_rule(clip=True, strokeWidth=width, strokeCap="square")
        .encode(x, y, x2="right", y2="bottom", strokeDash=dash, color=colour)
        for colour, width in ((alt.ColorValue("white"), 3.4), (colours, 1.6))
    ]
    layers = [tissue, _patches(event, show_probability).encode(x, y, x2="right", y2="bottom"), *outline]
    if annotations:
        scale = alt.Scale(domain=list(annotations), range=list(annotations.values()))
        legend = alt.Legend(orient="bottom", direction="horizontal", title="annotations", symbolType="stroke")
        edges = alt.Chart(alt.NamedData(ANNOTATIONS)).mark_rule(clip=True, strokeWidth=2.5, strokeCap="round")
        colour = alt.Color("annotation:N", scale=scale, legend=legend)
        layers.append(edges.encode(x, y, colour, x2="right", y2="bottom"))
    if mpp:
        length = round_length((right - left) * mpp / 4)
        end, middle = left + length / mpp, bottom + (bottom - top) * SCALE_BAR_SHARE * 0.6
        bar = alt.Data(values=[{"left": left, "right": end, "top": middle, "bottom": middle}])
        words = alt.Data(values=[{"left": end, "top": middle, "words": format_length(length)}])
        text = alt.Chart(words).mark_text(align="left", baseline="middle", dx=6, clip=True, fontSize=12)
        rule = alt.Chart(bar).mark_rule(clip=True, color=DARK, strokeWidth=3)
        layers += [rule.encode(x, y, x2="right", y2="bottom"), text.encode(x, y, text="words:N")]
    return (
        alt.layer(*layers, height=HEIGHT)
        .resolve_scale(color="independent")
        .configure_view(stroke="#d5dadd", fill="#ffffff")
        .to_dict()
    )


def _patches(event: str, show_probability: bool) -> alt.Chart:
    """Draw the patches, which show their values and can be clicked; without probabilities they are transparent."""
    clicked = alt.selection_point("clicked", fields=["patch"], on="click", toggle=False)
    view = alt.selection_interval("view", encodings=["x", "y"], bind="scales")
    red, green, blue = (round(255 * part) for part in to_rgb(ORANGE))
    fill = alt.Fill(
        "probability:Q",
        scale=alt.Scale(domain=[0, 1], range=[f"rgba({red}, {green}, {blue}, {alpha})" for alpha in (0, MAX_OPACITY)]),
        legend=alt.Legend(
            orient="bottom",
            direction="horizontal",
            title=f"probability of {event}; outline: classified as {event}",
            titleLimit=400,
            format=".0%",
            gradientLength=220,
            values=[0, 0.25, 0.5, 0.75, 1],
        ),
    )
    tooltip = [
        alt.Tooltip("file:N", title="file"),
        alt.Tooltip("probability:Q", title=f"probability of {event}", format=".1%"),
        alt.Tooltip("decision:N", title="decision"),
    ]
    frame = alt.condition(clicked, alt.value(3), alt.value(0), empty=False)
    chart = alt.Chart(alt.NamedData(PATCHES), name="patches").mark_rect(clip=True, cursor="pointer")
    chart = chart.encode(fill if show_probability else alt.FillOpacityValue(0), tooltip=tooltip, strokeWidth=frame)
    return chart.encode(stroke=alt.value("#000000")).add_params(clicked, view)


def _scale(middle: float, half: str, *, reverse: bool) -> alt.Scale:
    low, high = (alt.ExprRef(f"{middle} {sign} {half}") for sign in "-+")
    return alt.Scale(domainMin=low, domainMax=high, nice=False, zero=False, reverse=reverse)
