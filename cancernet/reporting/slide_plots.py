"""Plots of slides and of Grad-CAM maps: numbers in, Matplotlib figure out; nothing is shown or saved here.

Maps are grids with one cell a patch, [rows, columns], NaN where there is no patch. Colours are from Okabe and Ito
(2008), are safe for colour-blind readers, and also differ in lightness.
"""

import math
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch as Swatch
from matplotlib.transforms import ScaledTranslation

from cancernet.data.grid import find_edges
from cancernet.evaluation.referral import UNCERTAIN
from cancernet.reporting import plots
from cancernet.reporting.plots import BLUE, GREY, NOTE_SIZE, ORANGE, TEXT_SIZE, TITLE_SIZE, break_lines, shorten
from cancernet.reporting.wording import plural

PALE, YELLOW, DARK = "#D9D9D9", "#F0E442", "#111111"
MAX_OPACITY = 0.65  # of a probability of 1 over the tissue; a probability of 0 is transparent
PROBABILITY = LinearSegmentedColormap.from_list("probability", [to_rgba(ORANGE, 0), to_rgba(ORANGE, MAX_OPACITY)])
PAPER = LinearSegmentedColormap.from_list(
    "probability on white", ["white", tuple(MAX_OPACITY * np.array(to_rgba(ORANGE)[:3]) + 1 - MAX_OPACITY)]
)
WIDTH = 9.6  # inches
HEADING, LEGEND = 104, 50  # characters that fit across the figure in a title, and across a panel in a legend
UNDER_MAP = 0.17  # inches below the map of probabilities around its legend
CAPTION, LINE = 11.5, 0.17  # of text of NOTE_SIZE: characters an inch, and inches a line
PROPORTIONS = (0.45, 1.6)  # height by width of a panel; a slide beyond them gets white margins


class Explained(NamedTuple):
    """An image, the same with its Grad-CAM map, and a caption of one or two lines."""

    image: np.ndarray  # uint8 [h, w, 3]
    overlay: np.ndarray  # uint8 [h, w, 3]
    caption: str


class SlideMaps(NamedTuple):
    """One slide as grids with a cell a patch, [rows, columns], NaN where there is no patch."""

    tissue: np.ndarray  # the stitched picture, uint8 [height, width, 3]
    tile_pixels: int  # of a patch in it
    probabilities: np.ndarray  # of the positive class, 0 to 1
    predicted: np.ndarray  # 1 for the positive class, 0 for the other
    truth: np.ndarray | None = None  # likewise, where it is known
    uncertain: np.ndarray | None = None  # 1 for patches to be referred to a person, where the run refers any


def plot_slide(
    maps: SlideMaps,
    *,
    threshold: float,
    positive: str,
    negative: str,
    title: str,
    patch_micrometres: float | None = None,
) -> Figure:
    """Draw one slide: its tissue, and over it the probabilities and outlines of positive and uncertain patches; if the
    truth is known also that and the errors.

    The threshold is marked in the colour bar. Without the side of a patch in micrometres the scale bar is in patches.
    """
    _, _, probabilities, predicted, truth, uncertain = maps
    names = ["tissue", f"probability of {positive}"] + (["truth", "errors"] if truth is not None else [])
    rows, columns = probabilities.shape
    panel_rows = len(names) // 2
    width, height = max(columns, rows / PROPORTIONS[1]), max(rows, columns * PROPORTIONS[0])  # of a panel, in patches
    left, top = (columns - width) / 2, (rows - height) / 2
    inches = 0.4 + 2 * UNDER_MAP + panel_rows * (WIDTH / 2 * height / width + 1.0)
    figure = Figure(figsize=(WIDTH, inches), layout="constrained")
    figure.suptitle(break_lines(title, HEADING), fontsize=TITLE_SIZE + 1)
    panels = dict(zip(names, figure.subplots(panel_rows, 2, squeeze=False).flat, strict=True))
    for name, axes in panels.items():
        axes.set_title(shorten(name, HEADING // 2), fontsize=TITLE_SIZE)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color(PALE)
    first, second = list(panels.values())[:2]
    tissue_height, tissue_width = (side / maps.tile_pixels for side in maps.tissue.shape[:2])
    for axes in (first, second):
        axes.imshow(maps.tissue, extent=(0, tissue_width, tissue_height, 0))
    _draw_scale_bar(first, left, width, patch_micrometres)
    outlines = [(f"classified as {positive}", DARK, predicted == 1)]
    if uncertain is not None:
        outlines = [(*outlines[0][:2], (predicted == 1) & (uncertain != 1)), (UNCERTAIN, BLUE, uncertain == 1)]
    lines = _outline_patches(second, outlines, points=72 * WIDTH / 2 / width)
    figure.set_figheight(inches + LINE * (lines - 1))
    _draw_probabilities(second, probabilities, threshold, drop=UNDER_MAP + LINE * lines)
    if truth is not None:
        _draw_kinds(panels["truth"], truth, [(negative, PALE), (positive, BLUE)])
        outcomes = [
            (f"true positive: {positive} classified as {positive}", BLUE),
            (f"missed: {positive} classified as {negative}", ORANGE),
            (f"false alarm: {negative} classified as {positive}", YELLOW),
            (f"true negative: {negative} classified as {negative}", PALE),
        ]
        # Rows of `outcomes`: patches that are positive come first, and of these the detected ones.
        outcome = np.where(np.isnan(truth), np.nan, 2 * (truth != 1) + (predicted != 1))
        _draw_kinds(panels["errors"], outcome, outcomes)
        more = sum(text.get_text().count("\n") for text in panels["errors"].get_legend().get_texts())
        figure.set_figheight(figure.get_figheight() + LINE * more)
    for axes in panels.values():
        axes.set(xlim=(left, left + width), ylim=(top + height, top), aspect="equal")
    return figure


def plot_explained(*, groups: dict[str, list[Explained]], columns: int = 4) -> Figure:
    """Show pairs of an image and the same with its Grad-CAM map, at most `columns` in a row, under its heading."""
    across = int(WIDTH / columns * CAPTION)
    headings = [break_lines(heading, HEADING) for heading in groups]
    captions = [
        ["\n".join(break_lines(line, across) for line in each.caption.split("\n")) for each in explained[:columns]]
        for explained in groups.values()
    ]
    heights = [_row_height(*texts, WIDTH / columns / 2) for texts in zip(headings, captions, strict=True)]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.6), layout="constrained")
    *parts, foot = figure.subfigures(len(groups) + 1, 1, squeeze=False, height_ratios=[*heights, 0.6]).flat
    for part, heading, explained, below in zip(parts, headings, groups.values(), captions, strict=True):
        part.suptitle(heading, fontsize=TITLE_SIZE, x=0.01, ha="left")
        panels = part.subplots(1, columns)
        for axes in panels:
            axes.axis("off")
            axes.set_anchor("N")
        if not explained:
            panels[0].text(0, 1, "none", fontsize=TEXT_SIZE, va="top", transform=panels[0].transAxes)
        for axes, each, caption in zip(panels, explained, below):
            axes.imshow(np.concatenate([each.image, each.overlay], axis=1))
            axes.axvline(each.image.shape[1] - 0.5, color="white", linewidth=2)
            text = axes.text(0.5, -0.04, caption, transform=axes.transAxes, fontsize=NOTE_SIZE, ha="center", va="top")
            text.set_in_layout(False)  # its room is in the row's height; the images stay as large as they can
    place = foot.add_axes((0.3, 0.65, 0.4, 0.2))
    bar = foot.colorbar(ScalarMappable(cmap="viridis"), cax=place, orientation="horizontal")
    bar.set_ticks([0, 1], labels=["no contribution", "largest contribution to the predicted class"], fontsize=NOTE_SIZE)
    return figure


def round_length(length: float) -> float:
    """Round down to 1, 2 or 5 times a power of ten; at least 1."""
    power = 10.0 ** math.floor(math.log10(max(length, 1)))
    return max(step * power for step in (1, 2, 5) if step * power <= max(length, 1))


def format_length(micrometres: float) -> str:
    """Format as `500 µm` or `2 mm`."""
    return f"{micrometres / 1000:g} mm" if micrometres >= 1000 else f"{micrometres:g} µm"


def _row_height(heading: str, captions: list[str], image: float) -> float:
    """Inches of a row of images, each `image` inches high, with its heading and the longest caption."""
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    return 0.25 + 0.2 * (heading.count("\n") + 1) + (image if captions else 0.2) + LINE * lines


def _draw_probabilities(axes: Axes, probabilities: np.ndarray, threshold: float, *, drop: float) -> None:
    """Draw from transparent to orange over the tissue, with a colour bar `drop` inches below it."""
    rows, columns = probabilities.shape
    extent = (0, columns, rows, 0)
    axes.imshow(probabilities, vmin=0, vmax=1, cmap=PROBABILITY, extent=extent, interpolation="none")
    lower = ScaledTranslation(0, -drop, axes.figure.dpi_scale_trans)
    # An inset, so that the panel stays as large as its neighbour.
    below = axes.inset_axes((0, -0.035, 1, 0.035), transform=axes.transAxes + lower)
    bar = axes.figure.colorbar(ScalarMappable(cmap=PAPER), cax=below, orientation="horizontal")
    bar.ax.tick_params(labelsize=NOTE_SIZE)
    if 0 <= threshold <= 1:
        bar.ax.axvline(threshold, color="white", linewidth=3.5)
        bar.ax.axvline(threshold, color="black", linewidth=1.5)
    bar.set_label(f"probability; line: threshold {threshold:.3f}", fontsize=NOTE_SIZE)


def _outline_patches(axes: Axes, outlines: list[tuple[str, str, np.ndarray]], *, points: float) -> int:
    """Draw a line around patches and give their number in the legend; return the legend's lines.

    `outlines` are name, colour and bool [rows, columns], the last on top; a patch is `points` wide on paper.
    """
    thin, handles = float(np.clip(0.2 * points, 0.5, 1.3)), list[Line2D]()
    for name, line_colour, patches in outlines:
        lines = list(find_edges(patches))
        for colour, width in (("white", 2.2 * thin), (line_colour, thin)):
            outline = LineCollection(lines, colors=colour, linewidths=width, capstyle="projecting")
            axes.add_collection(outline, autolim=False)
        label = break_lines(f"{name}: {plural(int(patches.sum()), 'patch')}", LEGEND)
        handles.append(Line2D([], [], color=line_colour, linewidth=1.3, label=label))
    plots.legend_below(axes, 0, handles=handles)
    return sum(str(handle.get_label()).count("\n") + 1 for handle in handles)


def _draw_kinds(axes: Axes, kinds: np.ndarray, names: list[tuple[str, str]]) -> None:
    """Draw a map of indices into `names`, pairs of name and colour, with the count of each in the legend."""
    rows, columns = kinds.shape
    colours, extent = ListedColormap([colour for _, colour in names]), (0, columns, rows, 0)
    axes.imshow(kinds, cmap=colours, vmin=-0.5, vmax=len(names) - 0.5, extent=extent, interpolation="none")
    swatches = [
        Swatch(facecolor=colour, edgecolor=GREY, label=break_lines(f"{name}: {(kinds == index).sum():,}", LEGEND))
        for index, (name, colour) in enumerate(names)
    ]
    plots.legend_below(axes, 0.01, handles=swatches, ncols=1 if max(len(name) for name, _ in names) > 18 else 2)


def _draw_scale_bar(axes: Axes, left: float, width: float, patch_micrometres: float | None) -> None:
    """Draw a bar of a round length, about a quarter of the picture's width, below the picture."""
    side = patch_micrometres or 1  # of a patch, in micrometres or patches
    length = round_length(width * side / 4)
    text = plural(length, "patch") if patch_micrometres is None else format_length(length)
    across = axes.get_xaxis_transform()  # x in patches, y as a share of the panel
    ends = [left, left + length / side]
    axes.plot(ends, [-0.03] * 2, "k", linewidth=3, solid_capstyle="butt", transform=across, clip_on=False)
    axes.text(left, -0.05, text, transform=across, va="top", fontsize=TEXT_SIZE)
