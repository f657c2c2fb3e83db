"""An interactive map of a slide for the browser, like the static figures of cancernet.reporting.slide_plots."""

from collections.abc import Mapping, Sequence
from functools import partial

import altair as alt
import cv2
import numpy as np
import shapely
from matplotlib.colors import to_rgb

from cancernet.data.annotations import Region
from cancernet.data.grid import SlideGrid, find_edges, paint_grid
from cancernet.inference.prediction import ItemPredictions
from cancernet.reporting.plots import BLUE, COLOURS, ORANGE
from cancernet.reporting.report import embed
from cancernet.reporting.slide_plots import DARK, MAX_OPACITY, format_length, round_length

HEIGHT = 460  # pixels on the screen
PATCHES, OUTLINE, ANNOTATIONS = "patches", "outline", "annotations"  # names of the data sets in the specification
SCALE_BAR_SHARE = 0.07  # extra height for the scale bar, relative to the slide
JPEG_QUALITY = 88
DETAIL = 0.05  # of a patch: annotations are outlined this exactly

SIDES = ("left", "top", "right", "bottom")  # of a rectangle
LINES = ("dashed", "solid", "uncertain")

Table = dict[str, list]  # columns of equal length
legend_below = partial(alt.Legend, orient="bottom", direction="horizontal")


def tabulate_sides(sides: np.ndarray, **columns: list) -> Table:
    """Make a table of rectangles, or of lines from (left, top) to (right, bottom), from their SIDES, [n, 4]."""
    return dict(zip(SIDES, sides.T.tolist(), strict=True)) | columns


def map_rows(grid: SlideGrid, *, files: list[str], probability: np.ndarray, decision: list[str]) -> Table:
    """List the m patches of a slide with the probability of the displayed class, 0 to 1, and the predicted class."""
    sides = np.stack([grid.x, grid.y, grid.x + grid.step, grid.y + grid.step], axis=1)
    more = {"file": files, "probability": probability.astype(float).tolist(), "decision": decision}
    return {"patch": list(range(len(sides))), **tabulate_sides(sides), **more}


def outline_rows(grid: SlideGrid, outlined: Mapping[str, np.ndarray]) -> Table:
    """List the lines around patches, bool [m], by the name of their kind, one of LINES."""
    edges = {
        kind: find_edges(paint_grid(inside, grid) == 1) * grid.step + grid.origin for kind, inside in outlined.items()
    }
    kinds = [kind for kind, found in edges.items() for _ in found]
    return tabulate_sides(np.concatenate([*edges.values()]).reshape(-1, 4), line=kinds)


def list_edges(regions: Sequence[Region], slide: ItemPredictions) -> Table:
    """List the lines around annotations of a slide, with their class."""
    (grid,), scale = slide.scores.layout.slides, slide.scores.file_scale
    edges, labels = [np.empty((0, 4))], []
    for region in regions:
        parts = shapely.get_parts(shapely.simplify(region.shape, DETAIL * grid.step * scale))
        rings = shapely.get_parts(shapely.boundary(parts[shapely.area(parts) > 0]))
        corners, ring = shapely.get_coordinates(rings, return_index=True)
        edges.append(np.hstack([corners[:-1], corners[1:]])[ring[:-1] == ring[1:]] / scale)
        labels += [region.label] * len(edges[-1])
    return tabulate_sides(np.concatenate(edges), annotation=labels)


def choose_colours(regions: Sequence[Region]) -> dict[str, str]:
    """Return the colour of each class of annotations, as #rrggbb: QuPath's, if the file has it."""
    chosen = {}
    for number, region in enumerate(regions):
        own = region.colour and "#{:02x}{:02x}{:02x}".format(*(channel & 255 for channel in region.colour))
        chosen[region.label] = own or COLOURS[number % len(COLOURS)]
    return chosen


def map_specification(
    picture: np.ndarray,
    frame: tuple[float, float, float, float],
    *,
    event: str,
    show_probability: bool = True,
    mpp: float | None = None,
    annotations: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """Specify the map in Vega-Lite, without its data sets PATCHES (`map_rows`) and OUTLINE (`outline_rows`).

    `frame` are the SIDES of the picture, in the pixel coordinates of the patches.

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
    url = embed(cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes())
    data = alt.Data(values=[dict(zip(SIDES, frame, strict=True)) | {"url": url}])
    tissue = alt.Chart(data).mark_image(aspect=False, clip=True).encode(x, y, x2="right", y2="bottom", url="url:N")
    # Dark lines over wider white ones stand out on any tissue.
    dash = alt.StrokeDash("line:N", scale=alt.Scale(domain=LINES, range=[[2.5, 4], [1, 0], [1, 0]]), legend=None)
    colours = alt.Color("line:N", scale=alt.Scale(domain=LINES, range=[DARK, DARK, BLUE]), legend=None)
    outline = [
        alt.Chart(alt.NamedData(OUTLINE))
        .mark_rule(clip=True, strokeWidth=width, strokeCap="square")
        .encode(x, y, x2="right", y2="bottom", strokeDash=dash, color=colour)
        for colour, width in ((alt.ColorValue("white"), 3.4), (colours, 1.6))
    ]
    layers = [tissue, _patches(event, show_probability).encode(x, y, x2="right", y2="bottom"), *outline]
    if annotations:
        scale = alt.Scale(domain=list(annotations), range=list(annotations.values()))
        legend = legend_below(title="annotations", symbolType="stroke")
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
    shades = [f"rgba({red}, {green}, {blue}, {alpha})" for alpha in (0, MAX_OPACITY)]
    title = f"probability of {event}; outline: classified as {event}"
    values = [0, 0.25, 0.5, 0.75, 1]
    legend = legend_below(title=title, titleLimit=400, format=".0%", gradientLength=220, values=values)
    fill = alt.Fill("probability:Q", scale=alt.Scale(domain=[0, 1], range=shades), legend=legend)
    tooltip = ["file:N", alt.Tooltip("probability:Q", title=f"probability of {event}", format=".1%"), "decision:N"]
    frame = alt.condition(clicked, alt.value(3), alt.value(0), empty=False)
    chart = (
        alt.Chart(alt.NamedData(PATCHES), name="patches")
        .mark_rect(clip=True, cursor="pointer")
        .add_params(clicked, view)
    )
    shown = fill if show_probability else alt.FillOpacityValue(0)
    return chart.encode(shown, tooltip=tooltip, strokeWidth=frame, stroke=alt.value("#000000"))


def _scale(middle: float, half: str, *, reverse: bool) -> alt.Scale:
    low, high = (alt.ExprRef(f"{middle} {sign} {half}") for sign in "-+")
    return alt.Scale(domainMin=low, domainMax=high, nice=False, zero=False, reverse=reverse)
