"""Pictures made of many images: errors, out-of-distribution images, augmentation, and a dataset at a glance."""

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from imutils import build_montages
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cancernet.reporting import plots
from cancernet.reporting.plots import NOTE_SIZE, TITLE_SIZE, break_lines
from cancernet.reporting.schema import ConfidentError
from cancernet.reporting.wording import cut

SPLIT_COLOURS = {"training": plots.BLUE, "validation": plots.AMBER, "testing": plots.GREEN}
TILE_PIXELS = 200  # side of one picture of a montage
IMAGE_INCHES, IMAGES_ACROSS = 1.6, 6  # size of one image, and how many are in a row
MISSED, FALSE_ALARM, WRONG = "missed", "false alarm", "wrong"  # kinds of errors; the last of more than two classes
HEADING = 100  # characters that fit across a group's heading

_Captioned = Sequence[tuple[str, np.ndarray]]


def plot_errors(
    *, images: Sequence[np.ndarray], errors: Sequence[ConfidentError], classes: Sequence[str] | None
) -> Figure:
    """Show misclassified images, a group for each kind of error, each with its file and probability.

    Images are uint8 [h, w, 3] RGB, or grey [h, w] or [h, w, 1], of any sizes, in the order of `errors`. `classes` are
    the names of the positive class, whose probability is given, and the other; None of more than two classes.
    """
    if not errors:
        figure, (axes,) = plots.new_figure(5.2, 1.6)
        axes.axis("off")
        axes.text(0.5, 0.5, "Every image was classified correctly.", ha="center", va="center", fontsize=TITLE_SIZE)
        return figure
    titles = {WRONG: "Most confident errors, with the probability of the predicted class"}
    if classes:
        positive, negative = (cut(name, 60) for name in classes)
        titles = {
            MISSED: f"Missed: {positive} classified as {negative}; lowest probability of {positive} first",
            FALSE_ALARM: f"False alarms: {negative} classified as {positive}; highest probability of {positive} first",
        }
    shown = list(zip(errors, images, strict=True))
    groups = {}
    for kind, title in titles.items():
        of_kind = [(_error_caption(error), image) for error, image in shown if error.kind == kind]
        groups[break_lines(title if of_kind else f"{title.partition(';')[0]}: none", HEADING)] = of_kind
    return _plot_groups(groups)


def plot_captioned(*, images: Sequence[np.ndarray], captions: Sequence[str]) -> Figure:
    """Show images, as for `plot_errors`, in the order given. Each caption has a few lines, the first for its name."""
    broken = ["\n".join(break_lines(line, 18, limit=54) for line in caption.split("\n")) for caption in captions]
    return _plot_groups({"": list(zip(broken, images, strict=True))})


def plot_augmentation(columns: Sequence[np.ndarray]) -> Figure:
    """Show training images, uint8 [n, h, w, 3] RGB or [n, h, w, 1] grey, in the first column, then augmentations."""
    rows, width = len(columns[0]), len(columns)
    figure = Figure(figsize=(width * 1.2, rows * 1.2 + 0.35))
    axes = figure.add_axes((0, 0, 1, rows * 1.2 / (rows * 1.2 + 0.35)))
    axes.imshow(_montage([column[row] for row in range(rows) for column in columns], columns=width, rows=rows))
    axes.axis("off")
    for place, words in ((0, "original"), (TILE_PIXELS, "as the network sees it, differently in each epoch")):
        axes.text(place + 4, -12, words, fontsize=TITLE_SIZE)
    return figure


def plot_dataset(
    *,
    counts: Mapping[str, Mapping[str, int]],
    patients: Mapping[str, Sequence[int]],
    sizes: np.ndarray | Sequence[tuple[int, int]],
    samples: Mapping[str, Sequence[np.ndarray]],
) -> Figure:
    """Show a built dataset at a glance: images per class and split, image sizes, patients, and samples of each class.

    `counts` are images by split and class. `patients` are the numbers of images of each known patient by split; without
    any, patients are not shown. `sizes` are width and height of every image in pixels, [n, 2], and `samples` up to
    eight images of each class, as for `plot_errors`.
    """
    classes, columns = sorted(samples), 8
    known = {split: sorted(images, reverse=True) for split, images in patients.items() if images}
    heights = [1.1 + 0.17 * len(classes) * max(3, len(counts)), 0.5 + 1.05 * len(classes)]
    heights[1:1] = [2.2] if known else []
    figure = Figure(figsize=(9.6, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights, width_ratios=(3, 2))
    _draw_counts(figure.add_subplot(grid[0, 0]), counts, classes)
    figure.legend(loc="outside upper left", ncols=len(counts), fontsize=plots.TEXT_SIZE, frameon=False)
    _draw_sizes(figure.add_subplot(grid[0, 1]), np.asarray(sizes))
    if known:
        _draw_patients(figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1]), known)
    axes = figure.add_subplot(grid[-1, :])
    blank = np.full((1, 1), 255, np.uint8)
    padded = [image for name in classes for image in [*samples[name][:columns], *[blank] * columns][:columns]]
    axes.imshow(_montage(padded, columns=columns, rows=len(classes)))
    axes.set_yticks((np.arange(len(classes)) + 0.5) * TILE_PIXELS, _class_labels(classes))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("Samples of each class", fontsize=TITLE_SIZE)
    return figure


def _draw_counts(axes: Axes, counts: Mapping[str, Mapping[str, int]], classes: Sequence[str]) -> None:
    height = 0.8 / len(counts)
    for index, (split, by_class) in enumerate(counts.items()):
        values = [by_class.get(name, 0) for name in classes]
        places = np.arange(len(classes)) + (index - (len(counts) - 1) / 2) * height
        bars = axes.barh(places, values, height, label=split, color=SPLIT_COLOURS[split])
        axes.bar_label(bars, [f"{value:,}" for value in values], padding=3, fontsize=NOTE_SIZE)
    axes.set_yticks(range(len(classes)), _class_labels(classes))
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_title("Images per class and split", fontsize=TITLE_SIZE)


def _draw_patients(numbers: Axes, images: Axes, known: Mapping[str, Sequence[int]]) -> None:
    """Draw how many patients each split has, and the number of images of each patient."""
    end = 0
    for split, values in known.items():
        colour = SPLIT_COLOURS[split]
        images.bar(np.arange(end, end + len(values)), values, width=1, color=colour, edgecolor=colour, linewidth=0.5)
        end += len(values)
        bars = numbers.barh(split, len(values), color=colour)
        numbers.bar_label(bars, [f"{len(values):,}"], padding=3, fontsize=NOTE_SIZE)
    numbers.invert_yaxis()
    numbers.margins(x=0.18)
    numbers.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    numbers.set_title("Patients per split", fontsize=TITLE_SIZE)
    images.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    images.set_xticks([])
    images.set(xlabel="patients, most images first", ylabel="images")
    images.set_title(f"Images per patient: {min(map(min, known.values())):,} to {max(map(max, known.values())):,}")
    images.title.set_fontsize(TITLE_SIZE)


def _class_labels(classes: Sequence[str]) -> list[str]:
    return [break_lines(name, 16, limit=32) for name in classes]


def _draw_sizes(axes: Axes, sizes: np.ndarray) -> None:
    pairs, images = np.unique(sizes, axis=0, return_counts=True)
    (width, height), share = pairs[images.argmax()], images.max() / len(sizes)
    edges = np.linspace(0, 1.1 * sizes.max(), 25).tolist()
    axes.hist(sizes[:, 0], bins=edges, color=plots.SKY, label="width")
    axes.hist(sizes[:, 1], bins=edges, histtype="step", color="black", linewidth=1.5, linestyle="--", label="height")
    rare = share > 0.5  # then a logarithmic scale shows the few other sizes
    axes.set_yscale("symlog" if rare else "linear", **({"linthresh": 1} if rare else {}))
    axes.set_ylim(0, axes.get_ylim()[1] * (20 if rare else 1.3))  # room for the legend
    axes.set(xlabel="pixels", ylabel="images (log scale)" if rare else "images")
    axes.set_title(f"Image sizes: {share:.1%} are {width} x {height}", fontsize=TITLE_SIZE)
    axes.legend(loc="upper left", fontsize=NOTE_SIZE)


def _montage(images: Sequence[np.ndarray], *, columns: int, rows: int, strip: int = 0) -> np.ndarray:
    """uint8 RGB [rows*(TILE_PIXELS+strip), columns*TILE_PIXELS, 3]; imutils copies channels, so RGB stays RGB."""
    blank = np.full((TILE_PIXELS + strip, TILE_PIXELS, 3), 255, np.uint8)
    tiles = [_tile(image, blank) for image in images]
    tiles += [blank] * (columns * rows - len(tiles))
    return build_montages(tiles, (TILE_PIXELS, TILE_PIXELS + strip), (columns, rows))[0]


def _tile(image: np.ndarray, blank: np.ndarray) -> np.ndarray:
    """The image as RGB, its proportions kept, in the middle of the square at the top of a copy of `blank`."""
    rgb = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2) if image.ndim == 2 or image.shape[2] == 1 else image
    scale = (TILE_PIXELS - 8) / max(rgb.shape[:2])
    height, width = (max(1, round(side * scale)) for side in rgb.shape[:2])
    rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    tile, top, left = blank.copy(), (TILE_PIXELS - height) // 2, (TILE_PIXELS - width) // 2
    tile[top : top + height, left : left + width] = rgb
    return tile


def _plot_groups(groups: Mapping[str, _Captioned]) -> Figure:
    """Show groups of captioned images, each below its heading; "" for none."""
    heads = [0.2 * (heading.count("\n") + 2) if heading else 0.0 for heading in groups]  # inches
    heights = [_count_rows(group) * IMAGE_INCHES * (1 + _strip(group) / TILE_PIXELS) for group in groups.values()]
    total = top = sum(heads) + sum(heights)
    figure = Figure(figsize=(IMAGES_ACROSS * IMAGE_INCHES, total))
    for (heading, group), head, height in zip(groups.items(), heads, heights, strict=True):
        figure.text(0.01, (top - 0.1) / total, heading, fontsize=TITLE_SIZE, va="top")
        top -= head + height
        if group:
            _draw_group(figure.add_axes((0, top / total, 1, height / total)), group)
    return figure


def _count_rows(group: _Captioned) -> int:
    return math.ceil(len(group) / IMAGES_ACROSS)


def _strip(group: _Captioned) -> int:
    """White pixels below each image for its caption."""
    return 12 + 20 * max((caption.count("\n") + 1 for caption, _ in group), default=0)


def _draw_group(axes: Axes, group: _Captioned) -> None:
    strip, images = _strip(group), [image for _, image in group]
    axes.imshow(_montage(images, columns=IMAGES_ACROSS, rows=_count_rows(group), strip=strip), aspect="auto")
    axes.axis("off")
    for index, (caption, _) in enumerate(group):
        row, column = divmod(index, IMAGES_ACROSS)
        left, top = column * TILE_PIXELS + 6, row * (TILE_PIXELS + strip) + TILE_PIXELS + 3
        axes.text(left, top, caption, va="top", fontsize=NOTE_SIZE, linespacing=1.15)


def _error_caption(error: ConfidentError) -> str:
    lines = [break_lines(error.file.replace("\\", "/").split("/")[-1], 18, limit=54)]
    if error.kind == WRONG:
        lines += [break_lines(f"true: {error.label}", 18, limit=36)]
        lines += [break_lines(f"predicted: {error.predicted}", 18, limit=36)]
    return "\n".join([*lines, f"probability {error.probability:.3f}"])
