"""Patches placed on the grid of their slide: smoothing over neighbours, whole-slide pictures and maps.

A slide is all patches of one patient; x and y are the left and top pixel of a patch, at the scale of the patch. A
patch without a patient or without x and y belongs to no slide and is left as it is.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.ndimage import convolve, gaussian_filter
from scipy.optimize import minimize
from scipy.spatial import cKDTree
from scipy.special import log_softmax

from cancernet import InputError

PATCH_STEP = 50  # pixels from one patch to the next, as the IDC set was cut
SIGMAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # patches; 0 is no smoothing
LEAST_NEIGHBOURS = 4.0  # of 8, on average: a complete slide has 5.5 to 7.5, a sample of a slide less than 1
MOST_CELLS = 25_000_000  # of one slide's grid: 250,000 pixels square at a step of 50
TIE = 1e-6  # log losses that differ by less are equal
KERNEL_REACH = 4.0  # the Gaussian is cut off at so many sigma


def smooth_scores(
    scores: np.ndarray,
    patients: Sequence[str],
    x: Sequence[float | None],
    y: Sequence[float | None],
    sigma: float,
    *,
    step: float = PATCH_STEP,
    files: Sequence[str] | None = None,
) -> np.ndarray:
    """Mean of each patch's score and its neighbours', weighted by a Gaussian of the distance on the grid.

    What is averaged are logits: with two classes the logit difference, whatever constant a row's scores share.
    Places without a patch weigh nothing: normalised convolution (Knutsson & Westin 1993). A slide
    is smoothed on its own.

    Args:
        scores: [n, k] log-probabilities of k classes, or logits; finite.
        patients: [n] the slide of each patch; "" is unknown.
        x, y: [n] left and top pixel; None or NaN is unknown.
        sigma: standard deviation in patches; 0 returns the scores unchanged.
        step: pixels from one patch to the next.
        files: [n] names for the error.

    Returns:
        float64 [n, k] log-probabilities. A patch without place keeps its row as it came.

    Raises:
        InputError: two patches of a slide overlap, or x and y span no plausible slide.
    """
    scores = np.asarray(scores, float)
    if sigma < 0:
        raise InputError(f"Sigma is {sigma}. Give 0 (no smoothing) or a number of patches above it.")
    if sigma == 0:
        return scores.copy()
    smoothed = scores.copy()
    for _, members, rows, columns in iterate_slides(patients, x, y, step=step, files=files):
        grid = np.zeros((rows.max() + 1, columns.max() + 1, scores.shape[1] + 1))
        grid[rows, columns, :-1] = scores[members]
        grid[rows, columns, -1] = 1  # occupied
        blurred = gaussian_filter(grid, (sigma, sigma, 0), mode="constant", truncate=KERNEL_REACH)[rows, columns]
        smoothed[members] = log_softmax(blurred[:, :-1] / blurred[:, -1:], axis=1)
    return smoothed


def choose_sigma(
    scores: np.ndarray,
    labels: Sequence[int],
    patients: Sequence[str],
    x: Sequence[float | None],
    y: Sequence[float | None],
    *,
    candidates: Sequence[float] = SIGMAS,
    step: float = PATCH_STEP,
    files: Sequence[str] | None = None,
) -> float:
    """Width of the smoothing that fits the validation slides best, from a short list; 0 where none helps.

    The criterion is the log loss of the placed patches after each candidate has had its own best calibration, a
    temperature and biases as in `cancernet.judging.decision`: smoothing draws scores together, and without that it
    would be praised or blamed for the calibration it happens to bring. Of equals the narrowest wins, and 0 is always
    among the candidates. 0 is also the answer where the patches have fewer than LEAST_NEIGHBOURS occupied places of the 8 around
    them on average: with gaps that large the slides say nothing of complete ones.

    Args:
        scores: [n, k] log-probabilities of validation patches.
        labels: [n] index of the true class.
        patients, x, y, step, files: as for smooth_scores.
        candidates: sigmas in patches.
    """
    if mean_neighbours(patients, x, y, step=step, files=files) < LEAST_NEIGHBOURS:
        return 0.0
    placed = ~np.isnan(_numbers(x) + _numbers(y)) & (np.asarray(patients, object) != "")
    labels = np.asarray(labels)[placed]
    best, least = 0.0, _calibrated_log_loss(np.asarray(scores, float)[placed], labels)
    for sigma in sorted(candidates):
        smoothed = smooth_scores(scores, patients, x, y, sigma, step=step)
        loss = _calibrated_log_loss(smoothed[placed], labels)
        if loss < least - TIE:
            best, least = float(sigma), loss
    return best


def mean_neighbours(
    patients: Sequence[str],
    x: Sequence[float | None],
    y: Sequence[float | None],
    *,
    step: float = PATCH_STEP,
    files: Sequence[str] | None = None,
) -> float:
    """Mean number, 0 to 8, of patches in the eight places around a placed patch; 0 where none is placed."""
    ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    counts = []
    for _, _, rows, columns in iterate_slides(patients, x, y, step=step, files=files):
        occupied = np.zeros((rows.max() + 1, columns.max() + 1), int)
        occupied[rows, columns] = 1
        counts.append(convolve(occupied, ring, mode="constant")[rows, columns])
    return float(np.concatenate(counts).mean()) if counts else 0.0


def stitch_slide(
    tiles: Sequence[np.ndarray],
    x: Sequence[float],
    y: Sequence[float],
    *,
    step: float = PATCH_STEP,
    tile_pixels: int | None = None,
    background: int = 255,
) -> tuple[np.ndarray, tuple[float, float]]:
    """Puts the patches of one slide side by side.

    Args:
        tiles: [n] uint8 images [h, w, channels]; edge tiles may be smaller than the others.
        x, y: [n] left and top pixel of each, at the patches' own scale.
        step: pixels from one patch to the next, at that scale.
        tile_pixels: side of a whole tile in `tiles` where it was resized, so that the picture is drawn at its scale;
            `step` if None.
        background: grey level where there is no patch.

    Returns:
        uint8 [height, width, channels], and the origin (x, y) of its top-left pixel at the patches' scale. Pixel
        [row, column] of the picture is (origin + (column, row) * step / tile_pixels).

    Raises:
        InputError: no patch, overlapping ones, or a tile larger than tile_pixels.
    """
    tile_pixels = int(step) if tile_pixels is None else tile_pixels
    x, y, _, _ = _place_on_one_grid(x, y, step)
    large = [i for i, tile in enumerate(tiles) if max(tile.shape[:2]) > tile_pixels]
    if large:
        side = max(tiles[large[0]].shape[:2])
        raise InputError(f"Tile {large[0]} has {side} pixels a side, more than {tile_pixels}. Give tile_pixels={side}.")
    lefts = np.floor((x - x.min()) * tile_pixels / step + 0.5).astype(int)
    tops = np.floor((y - y.min()) * tile_pixels / step + 0.5).astype(int)
    shape = (tops.max() + tile_pixels, lefts.max() + tile_pixels, tiles[0].shape[2])
    picture = np.full(shape, background, np.uint8)
    for tile, left, top in zip(tiles, lefts, tops):
        picture[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return picture, (float(x.min()), float(y.min()))


def paint_grid(
    values: np.ndarray, x: Sequence[float], y: Sequence[float], *, step: float = PATCH_STEP
) -> tuple[np.ndarray, tuple[float, float]]:
    """A map of one slide with one cell a patch: of probabilities, true classes, or predicted minus true.

    Args:
        values: [n] or [n, c] numbers.
        x, y: [n] left and top pixel of each patch.
        step: pixels from one patch to the next.

    Returns:
        float64 [rows, columns] or [rows, columns, c], NaN where no patch is, and the origin (x, y) of the top-left
        cell: cell [row, column] begins at origin + (column, row) * step.

    Raises:
        InputError: no patch, or two on one place.
    """
    x, y, rows, columns = _place_on_one_grid(x, y, step)
    values = np.asarray(values, float)
    grid = np.full((rows.max() + 1, columns.max() + 1, *values.shape[1:]), np.nan)
    grid[rows, columns] = values
    return grid, (float(x.min()), float(y.min()))


def iterate_slides(
    patients: Sequence[str],
    x: Sequence[float | None],
    y: Sequence[float | None],
    *,
    step: float = PATCH_STEP,
    files: Sequence[str] | None = None,
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Each slide as (patient, indices of its patches [m], their rows [m], their columns [m]), in order of patient.

    Row 0 and column 0 are the topmost and leftmost patch's.

    Raises:
        InputError: two patches of a slide overlap, or x and y span more than MOST_CELLS.
    """
    x, y = _numbers(x), _numbers(y)
    for slide, members in _iterate_members(patients, x, y):
        labels = [files[i] for i in members] if files is not None else [f"patch {i}" for i in members]
        rows, columns = _find_cells(slide, x[members], y[members], step, labels)
        yield slide, members, rows, columns


def find_unplaceable(
    patients: Sequence[str],
    x: Sequence[float | None],
    y: Sequence[float | None],
    *,
    step: float = PATCH_STEP,
    files: Sequence[str],
) -> dict[str, str]:
    """The slides that `iterate_slides` would refuse, and its words for why."""
    x, y = _numbers(x), _numbers(y)
    reasons = {}
    for slide, members in _iterate_members(patients, x, y):
        try:
            _find_cells(slide, x[members], y[members], step, [files[i] for i in members])
        except InputError as error:
            reasons[slide] = str(error)
    return reasons


def _iterate_members(patients: Sequence[str], x: np.ndarray, y: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Each slide and the indices of its placed patches, in order of patient."""
    patients = np.asarray(patients, object)
    placed = np.flatnonzero(~np.isnan(x + y) & (patients != ""))
    names, slide_of = np.unique(patients[placed].astype(str), return_inverse=True)
    order = np.argsort(slide_of, kind="stable")
    ends = np.searchsorted(slide_of[order], np.arange(1, len(names)))
    for name, members in zip(names, np.split(placed[order], ends)):
        yield str(name), members


def _place_on_one_grid(x: Sequence[float], y: Sequence[float], step: float) -> tuple[np.ndarray, ...]:
    x, y = _numbers(x), _numbers(y)
    if not len(x):
        raise InputError("There is no patch to draw. Give the patches of one slide.")
    if np.isnan(x + y).any():
        raise InputError(f"Patch {np.isnan(x + y).argmax()} has no x and y. Give placed patches only.")
    rows, columns = _find_cells("", x, y, step, [f"patch {i}" for i in range(len(x))])
    return x, y, rows, columns


def _find_cells(
    slide: str, x: np.ndarray, y: np.ndarray, step: float, labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns [m]. Patches that do not overlap never share a cell, on the grid or off it."""
    of_slide = f" of slide {slide}" if slide else ""
    overlapping = cKDTree(np.column_stack([x, y])).query_pairs(np.nextafter(step, 0), p=np.inf, output_type="ndarray")
    if len(overlapping):
        i, j = overlapping[np.lexsort(overlapping.T[::-1])[0]]
        raise InputError(
            f"Two patches{of_slide} overlap: {labels[i]} at x {x[i]:g}, y {y[i]:g} and {labels[j]} at x {x[j]:g}, "
            f"y {y[j]:g}; patches are {step:g} pixels apart. Remove one of them."
        )
    rows = np.floor((y - y.min()) / step + 0.5)
    columns = np.floor((x - x.min()) / step + 0.5)
    if (rows.max() + 1) * (columns.max() + 1) > MOST_CELLS:
        far = np.argmax(rows + columns)
        raise InputError(
            f"The patches{of_slide} span {columns.max() + 1:.0f} x {rows.max() + 1:.0f} places. Check x and y of "
            f"{labels[far]}, x {x[far]:g}, y {y[far]:g}."
        )
    return rows.astype(int), columns.astype(int)


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)


def _calibrated_log_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean log loss of softmax(scores / temperature + bias) at the temperature and biases that make it least."""
    truth = np.eye(scores.shape[1])[labels]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        log_probabilities = log_softmax(scores * parameters[0] + np.append(0.0, parameters[1:]), axis=1)
        error = (np.exp(log_probabilities) - truth) / len(labels)
        slope = np.append((error * scores).sum(), error.sum(axis=0)[1:])
        return -float((truth * log_probabilities).sum() / len(labels)), slope

    start = np.append(1.0, np.zeros(scores.shape[1] - 1))
    bounds = [(0.01, 100.0), *[(-20.0, 20.0)] * (scores.shape[1] - 1)]
    return float(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12}).fun)
