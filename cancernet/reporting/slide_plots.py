"""Pictures of slides and of what the network looked at: numbers in, matplotlib figure out; nothing is shown or saved.

Maps are grids with one cell a patch, [rows, columns], NaN where there is no patch. Colours are Okabe and Ito's (2008),
which stay apart for colour-blind readers, and differ in lightness too.
"""

import math
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch as Swatch

from cancernet.reporting.captions import break_lines, shorten
from cancernet.reporting.plots import BLUE, GREY, NOTE_SIZE, ORANGE, TEXT_SIZE, TITLE_SIZE

PALE, YELLOW = "#D9D9D9", "#F0E442"
WIDTH = 9.6  # inches
HEADING, LEGEND = 104, 50  # characters that fit across the figure in a title, and across a panel in a legend
CAPTION, LINE = 11.5, 0.17  # of text of NOTE_SIZE: characters an inch, and inches a line
PROPORTIONS = (0.45, 1.6)  # height by width of a panel; a slide beyond them gets white margins
FOUND, MISSED, FALSE_ALARM, CLEARED = range(4)
OUTCOME_COLOURS = (BLUE, ORANGE, YELLOW, PALE)


class Explained(NamedTuple):
    """An image, what the network looked at in it, and a caption of a line or two."""

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


def plot_slide(
    maps: SlideMaps,
    *,
    threshold: float,
    positive: str,
    negative: str,
    title: str,
    patch_micrometres: float | None = None,
) -> Figure:
    """Draw one slide: its tissue and the map of probabilities; with a truth also that and the errors.

    Args:
        threshold: at or above it the positive class is said; marked in the colour bar.
        positive, negative: names of the classes.
        patch_micrometres: side of a patch, for the scale bar; without it the bar is told in patches.
    """
    tissue, tile_pixels, probabilities, predicted, truth = maps
    names = ["tissue", f"probability of {positive}"] + (["truth", "errors"] if truth is not None else [])
    rows, columns = probabilities.shape
    panel_rows = len(names) // 2
    width, height = max(columns, rows / PROPORTIONS[1]), max(rows, columns * PROPORTIONS[0])  # of a panel, in patches
    left, top = (columns - width) / 2, (rows - height) / 2
    figure = Figure(figsize=(WIDTH, 0.4 + panel_rows * (WIDTH / 2 * height / width + 1.0)), layout="constrained")
    figure.suptitle(break_lines(title, HEADING), fontsize=TITLE_SIZE + 1)
    panels = dict(zip(names, figure.subplots(panel_rows, 2, squeeze=False).flat, strict=True))
    for name, axes in panels.items():
        axes.set_title(shorten(name, HEADING // 2), fontsize=TITLE_SIZE)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(PALE)
    first, second = list(panels.values())[:2]
    first.imshow(tissue, extent=(0, tissue.shape[1] / tile_pixels, tissue.shape[0] / tile_pixels, 0))
    _draw_scale_bar(first, left, width, patch_micrometres)
    _draw_probabilities(second, probabilities, threshold)
    if truth is not None:
        _draw_kinds(panels["truth"], truth, [(negative, PALE), (positive, BLUE)])
        kinds = (f"found: {positive}, called {positive}", f"missed: {positive}, called {negative}")
        kinds += (f"false alarm: {negative}, called {positive}", f"cleared: {negative}, called {negative}")
        outcome = np.where(
            truth == 1, np.where(predicted == 1, FOUND, MISSED), np.where(predicted, FALSE_ALARM, CLEARED)
        )
        outcome = np.where(np.isnan(truth), np.nan, outcome)
        _draw_kinds(panels["errors"], outcome, list(zip(kinds, OUTCOME_COLOURS, strict=True)))
        more = sum(text.get_text().count("\n") for text in panels["errors"].get_legend().get_texts())
        figure.set_figheight(figure.get_figheight() + LINE * more)
    for axes in panels.values():
        axes.set(xlim=(left, left + width), ylim=(top + height, top), aspect="equal")
    return figure


def plot_explained(*, groups: dict[str, list[Explained]], columns: int = 4) -> Figure:
    """Pairs of an image and the same with its Grad-CAM heat, a row a group; at most `columns` of each are drawn.

    Args:
        groups: heading -> its images; an empty one says that there is none.
    """
    across = int(WIDTH / columns * CAPTION)
    headings = [break_lines(heading, HEADING) for heading in groups]
    captions = [
        ["\n".join(break_lines(line, across) for line in each.caption.split("\n")) for each in explained[:columns]]
        for explained in groups.values()
    ]
    heights = [_row_height(*texts, WIDTH / columns / 2) for texts in zip(headings, captions, strict=True)]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.6), layout="constrained")
    *parts, foot = figure.subfigures(len(groups) + 1, 1, height_ratios=[*heights, 0.6])
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
    bar = foot.colorbar(
        ScalarMappable(cmap="viridis"), cax=foot.add_axes((0.3, 0.65, 0.4, 0.2)), orientation="horizontal"
    )
    bar.set_ticks([0, 1], labels=["did not count", "spoke most for the answer"], fontsize=NOTE_SIZE)
    return figure


def _row_height(heading: str, captions: list[str], image: float) -> float:
    """Inches of a row of images `image` inches high, between its heading and the longest of its captions."""
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    return 0.25 + 0.2 * (heading.count("\n") + 1) + (image if captions else 0.2) + LINE * lines


def _draw_probabilities(axes: Axes, probabilities: np.ndarray, threshold: float) -> None:
    rows, columns = probabilities.shape
    drawn = axes.imshow(
        probabilities, vmin=0, vmax=1, cmap="viridis", extent=(0, columns, rows, 0), interpolation="none"
    )
    below = axes.inset_axes((0, -0.07, 1, 0.035))  # an inset, so that the panel stays as large as its neighbour
    bar = axes.figure.colorbar(drawn, cax=below, orientation="horizontal")
    bar.ax.tick_params(labelsize=NOTE_SIZE)
    if 0 <= threshold <= 1:
        bar.ax.axvline(threshold, color="white", linewidth=3.5)
        bar.ax.axvline(threshold, color="black", linewidth=1.5)
    bar.set_label(f"probability; line: threshold {threshold:.3f}", fontsize=NOTE_SIZE)


def _draw_kinds(axes: Axes, kinds: np.ndarray, names: list[tuple[str, str]]) -> None:
    """A map of indices into `names`, (name, colour) each, with the count of each in the legend."""
    rows, columns = kinds.shape
    colours = ListedColormap([colour for _, colour in names])
    axes.imshow(
        kinds, cmap=colours, vmin=-0.5, vmax=len(names) - 0.5, extent=(0, columns, rows, 0), interpolation="none"
    )
    counts = [int((kinds == index).sum()) for index in range(len(names))]
    swatches = [
        Swatch(facecolor=colour, edgecolor=GREY, label=break_lines(f"{name}: {count:,}", LEGEND))
        for (name, colour), count in zip(names, counts, strict=True)
    ]
    axes.legend(
        handles=swatches,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        fontsize=NOTE_SIZE,
        frameon=False,
        ncols=1 if max(len(name) for name, _ in names) > 18 else 2,
    )


def _draw_scale_bar(axes: Axes, left: float, width: float, patch_micrometres: float | None) -> None:
    """A bar below the picture, about a quarter of its width and of a round length."""
    side = patch_micrometres or 1  # of a patch, in what the bar is told in
    length = _round_length(width * side / 4)
    text = f"{length:g} patches" if patch_micrometres is None else f"{length:g} µm"
    if patch_micrometres and length >= 1000:
        text = f"{length / 1000:g} mm"
    across = axes.get_xaxis_transform()  # x in patches, y as a share of the panel
    ends = [left, left + length / side]
    axes.plot(ends, [-0.03] * 2, "k", linewidth=3, solid_capstyle="butt", transform=across, clip_on=False)
    axes.text(left, -0.05, text, transform=across, va="top", fontsize=TEXT_SIZE)


def _round_length(length: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is not above `length`; at least 1."""
    power = 10.0 ** math.floor(math.log10(max(length, 1)))
    return max(step * power for step in (1, 2, 5) if step * power <= max(length, 1))
