"""Synthetic H&E slides with known truth, for the demo and the tests; scale, layout and names are those of IDC.

A slide is painted as two maps, the concentrations of haematoxylin and eosin. The Beer-Lambert law turns them into
colours with the patient's own stain. One pixel is 4 micrometres, so a benign nucleus is about 2 pixels wide.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator as Random
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.special import expit, ndtri

from cancernet.data.images import encode_png
from cancernet.storage import FolderKind, claim_folder, fresh_folder

PATCH_PIXELS = 50
SIDE_PIXELS = 540  # of a slide: about 85 patches of tissue
FIRST_PATIENT = 70001  # above IDC's own numbers, which end at 16896

# Optical-density vectors (red, green, blue) in the manner of Ruifrok & Johnston 2001, "Quantification of
# histochemical staining by color deconvolution". Their printed eosin is more magenta than IDC's scanner shows; these
# are near the medians that the method of Macenko et al. 2009 finds over the patients of the IDC set.
HAEMATOXYLIN, EOSIN = (0.55, 0.72, 0.42), (0.11, 0.83, 0.55)


class Stain(NamedTuple):
    """How a patient's slide was stained and scanned."""

    vectors: np.ndarray  # float64 [2, 3], unit rows: haematoxylin, eosin
    strength: np.ndarray  # float64 [2]: factor on the two concentrations
    white: np.ndarray  # float64 [3]: intensity of empty glass, 0-255
    noise: float  # standard deviation of the scanner's noise, grey levels
    blur: float  # standard deviation of the scanner's blur, pixels


class Anatomy(NamedTuple):
    """How one patient's tissue is built; shares are 0-1, counts are per slide."""

    tumour_share: float  # of the tissue
    cellularity: float  # share of the tumour that is nests of tumour cells
    pleomorphism: float  # 0: all tumour nuclei small; 1: many large
    chromatin: float  # haematoxylin of a tumour nucleus
    fat_share: float
    fat_cell_pixels: float  # spacing of fat cells
    stroma_nuclei: float  # per pixel
    cellular_stroma: float  # share of benign stroma that is rich in nuclei
    glands: int  # in turn a lobule and a group of ducts
    infiltrates: int  # clumps of lymphocytes


LOWEST = Anatomy(0.12, 0.15, 0.1, 0.4, 0.0, 8.5, 0.004, 0.0, 4, 2)
HIGHEST = Anatomy(0.5, 0.7, 1.0, 0.75, 0.3, 13.0, 0.018, 0.45, 15, 9)


class Slide(NamedTuple):
    """One patient's tissue and its truth, all of the same height and width."""

    image: np.ndarray  # uint8 [h, w, 3], RGB
    tumour: np.ndarray  # bool [h, w]: inside the outline a pathologist would draw round the IDC
    tissue: np.ndarray  # bool [h, w]: not empty glass; fat and the lumen of a duct are tissue


def make_slide(seed: int, patient: int, *, side: int = SIDE_PIXELS) -> Slide:
    """Paint the slide of one patient. The same arguments give the same bytes.

    Height and width are drawn between side and side + 49 pixels, so that slides end in edge tiles.
    """
    rng = np.random.default_rng([seed, patient])
    stain, anatomy = draw_stain(rng), draw_anatomy(rng)
    height, width = (side + rng.integers(PATCH_PIXELS, size=2)).tolist()
    tissue = _outline_tissue(rng, (height, width))
    tumour = _outline_tumour(rng, tissue, anatomy.tumour_share)
    return Slide(scan(rng, paint_tissue(rng, tissue, tumour, anatomy), stain), tumour, tissue)


def cut_patches(slide: Slide) -> Iterator[tuple[np.ndarray, str, int, int]]:
    """Cut a slide into tiles of 50 x 50 pixels, fewer at its right and bottom edge, that are mostly not empty glass.

    Yields uint8 [h, w, 3] RGB, "1" if most of it is tumour, else "0", and the left and top pixel, counted from 1.
    """
    height, width = slide.tissue.shape
    for top in range(0, height, PATCH_PIXELS):
        for left in range(0, width, PATCH_PIXELS):
            tile = (slice(top, top + PATCH_PIXELS), slice(left, left + PATCH_PIXELS))
            if slide.tissue[tile].mean() > 0.5:
                yield slide.image[tile], "1" if slide.tumour[tile].mean() > 0.5 else "0", left + 1, top + 1


def write_sample(folder: Path, *, seed: int, patients: int = 30, side: int = SIDE_PIXELS) -> int:
    """Write patients as `<patient>/<0|1>/<patient>_idx5_x<X>_y<Y>_class<C>.png`; return the number of files."""

    def write_patient(patient: int) -> int:
        written = 0
        for image, label, x, y in cut_patches(make_slide(seed, patient, side=side)):
            file = partial / f"{patient}/{label}/{patient}_idx5_x{x}_y{y}_class{label}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode_png(image))
            written += 1
        return written

    with (
        claim_folder(folder, FolderKind.SAMPLE, force=False),
        fresh_folder(folder) as partial,
        ThreadPoolExecutor(os.cpu_count()) as pool,  # NumPy, SciPy and OpenCV compute without Python's lock
    ):
        return sum(pool.map(write_patient, range(FIRST_PATIENT, FIRST_PATIENT + patients)))


def draw_stain(rng: Random) -> Stain:
    """Draw a patient's stain, with about the variation between the patients of the IDC set."""
    vectors = np.array([HAEMATOXYLIN, EOSIN]) + rng.normal(0, [[0.02], [0.018]], (2, 3))
    return Stain(
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        strength=np.exp(rng.normal(0, [0.18, 0.2])),
        white=rng.normal([242, 240, 241], 1.5),
        noise=rng.uniform(1.5, 3.5),
        blur=rng.uniform(0.35, 0.6),
    )


def draw_anatomy(rng: Random) -> Anatomy:
    """Draw the anatomy of a patient. The ranges are wide, so that some patients are more difficult."""
    drawn = Anatomy(*rng.uniform(LOWEST, HIGHEST))
    return drawn._replace(glands=round(drawn.glands), infiltrates=round(drawn.infiltrates))


def absorb(concentrations: np.ndarray, stain: Stain) -> np.ndarray:
    """Compute the light through stained tissue, float [h, w, 2], by the Beer-Lambert law: RGB [h, w, 3], 0 to white."""
    return stain.white * 10.0 ** -((concentrations * stain.strength) @ stain.vectors)


def scan(rng: Random, concentrations: np.ndarray, stain: Stain) -> np.ndarray:
    """Scan stained tissue, float [h, w, 2], with the scanner's blur and noise: uint8 [h, w, 3] RGB."""
    light = cv2.GaussianBlur(absorb(concentrations, stain), (0, 0), stain.blur)
    return np.clip(np.rint(light + rng.normal(0, stain.noise, light.shape)), 0, 255).astype(np.uint8)


def paint_tissue(rng: Random, tissue: np.ndarray, tumour: np.ndarray, anatomy: Anatomy) -> np.ndarray:
    """Paint tissue and tumour, two bool [h, w], as concentrations of haematoxylin and eosin, float32 [h, w, 2]."""
    flow = _draw_flow(rng, tissue.shape)
    margin = cv2.GaussianBlur(tumour.astype(np.float32), (0, 0), 2.0)
    paint = _paint_stroma(rng, flow, margin, anatomy)
    _paint_lymphocytes(rng, paint, tissue, tumour, anatomy.infiltrates)
    _paint_glands(rng, paint, tissue & ~tumour, anatomy)
    _paint_fat(rng, paint, margin, anatomy)
    _paint_tumour(rng, paint, flow, margin, anatomy)
    return np.clip(paint, 0, None) * cv2.GaussianBlur(tissue.astype(np.float32), (0, 0), 0.7)[..., None]


def _outline_tissue(rng: Random, shape: tuple[int, int]) -> np.ndarray:
    """Outline one connected piece of about two thirds of the slide, usually across its right and lower edge."""
    rows, columns = np.mgrid[-1.0 : 0.85 : shape[0] * 1j, -1.0 : 0.85 : shape[1] * 1j]
    field = _smooth(rng, shape, 55) * 0.16 - (np.abs(rows) ** 2.6 + np.abs(columns) ** 2.6)
    return _largest_piece(field > np.quantile(field, rng.uniform(0.28, 0.42)))


def _outline_tumour(rng: Random, tissue: np.ndarray, share: float) -> np.ndarray:
    depth = ndimage.distance_transform_edt(np.pad(tissue, 1))[1:-1, 1:-1]
    row, column = rng.choice(np.argwhere(depth > 0.4 * depth.max()))
    rows, columns = np.indices(tissue.shape)
    distance = np.hypot(rows - row, columns - column) / np.sqrt(share * tissue.sum() / np.pi)
    field = 0.3 * _smooth(rng, tissue.shape, 40) + 0.06 * _smooth(rng, tissue.shape, 10) - distance
    return _largest_piece(tissue & (field > np.quantile(field[tissue], 1 - share)))


def _paint_stroma(rng: Random, flow: np.ndarray, margin: np.ndarray, anatomy: Anatomy) -> np.ndarray:
    """Paint wavy collagen with slits between its fibres and spindle-shaped nuclei along them; float32 [h, w, 2]."""
    shape = margin.shape
    fibre = _warp(_smooth(rng, shape, 7, 0.7), flow)
    rich = expit((_smooth(rng, shape, 30) - ndtri(1 - anatomy.cellular_stroma)) / 0.2) * (1 - margin)
    density = anatomy.stroma_nuclei * (1 + 6 * rich + 3 * margin * anatomy.cellularity)
    spindles = _warp(_scatter_nuclei(rng, 1, shape, 3, (1.9, 0.8)), flow)
    nuclei = spindles * (_smooth(rng, shape, 1.5, 1.5) > ndtri(1 - density * 4))
    eosin = 0.2 * (1 + 0.2 * fibre + 0.22 * _smooth(rng, shape, 22) + 0.13 * _smooth(rng, shape, 1))
    haematoxylin = 0.045 + 0.012 * (fibre + _smooth(rng, shape, 1)) + 0.07 * rich + 0.05 * margin
    slits = 0.85 * expit((-fibre - 1.9 + 0.5 * _smooth(rng, shape, 35)) / 0.12)
    paint = np.dstack([haematoxylin, eosin]) * (1 - slits)[..., None]
    return paint + np.dstack([0.5 * nuclei, 0.35 * expit((_smooth(rng, shape, 9) + 0.4 * fibre - 3) / 0.1)])  # blood


def _paint_lymphocytes(rng: Random, paint: np.ndarray, tissue: np.ndarray, tumour: np.ndarray, count: int) -> None:
    """Paint clumps of small dark round nuclei, half of them at the tumour's edge: dense, but benign."""
    border = tissue & (np.abs(cv2.GaussianBlur(tumour.astype(np.float32), (0, 0), 8) - 0.4) < 0.35)
    clumps = []
    for number in range(count):
        places = np.argwhere(border if number % 2 and border.any() else tissue & ~tumour)
        if len(places):
            clumps.append((*rng.choice(places), *rng.uniform(9, 34, 2), rng.uniform(0, 180)))
    crowd = expit((_depth(tissue.shape, clumps) + 5 * _smooth(rng, tissue.shape, 6)) / 1.5)
    paint[..., 0] += 0.08 * crowd + 0.7 * _scatter_nuclei(rng, crowd * 0.85, tissue.shape, 3, (0.95, 0.95))
    paint[..., 1] *= 1 - 0.35 * crowd


def _paint_glands(rng: Random, paint: np.ndarray, benign: np.ndarray, anatomy: Anatomy) -> None:
    """Paint lobules, close groups of small acini, and single ducts: rings of dark nuclei round a lumen."""
    places, lobules, rings = np.argwhere(benign), [], []
    for number in range(anatomy.glands if len(places) else 0):
        row, column = rng.choice(places)
        if number % 2:
            radius = rng.uniform(12, 32)
            lobules.append((row, column, radius, radius * rng.uniform(0.6, 1), rng.uniform(0, 180)))
            spread, smallest, largest, count = radius * 0.42, 2.2, 4.5, int(radius * 0.9)
        else:
            spread, smallest, largest, count = 12, 4, 13, int(rng.integers(1, 7))
        for outer in rng.uniform(smallest, largest, count):
            centre = rng.normal((row, column), spread)
            rings.append((*centre, outer * rng.uniform(1, 1.8), outer, rng.uniform(0, 180)))
    inside = cv2.GaussianBlur(benign.astype(np.float32), (0, 0), 1.5)
    lobule, gland = _depth(benign.shape, lobules), _depth(benign.shape, rings) + 0.6 * _smooth(rng, benign.shape, 4)
    nuclei = _scatter_nuclei(rng, 1, benign.shape, 3, (0.9, 0.9))
    secretion = expit(_smooth(rng, benign.shape, 25) * 6 - 4)
    _blend(paint, expit(lobule) * inside * 0.8, 0.13, 0.15)
    _blend(paint, expit(gland / 0.3) * inside, 0.3 + 0.4 * nuclei, 0.18)
    _blend(paint, expit((gland - rng.uniform(2.6, 3.6)) / 0.25) * inside, 0.06 * secretion, 0.12 * secretion)


def _paint_fat(rng: Random, paint: np.ndarray, margin: np.ndarray, anatomy: Anatomy) -> None:
    """Paint fat cells: polygons with thin walls where they are close to each other, single round holes elsewhere."""
    shape, spacing = margin.shape, anatomy.fat_cell_pixels
    grid = np.mgrid[-1 : shape[0] / spacing + 1, -1 : shape[1] / spacing + 1].reshape(2, -1).T * spacing
    centres = grid + rng.uniform(-0.4, 0.4, grid.shape) * spacing
    field = _smooth(rng, shape, 38) - ndtri(1 - anatomy.fat_share) - 1.2 * margin
    row, column = np.clip(np.rint(centres).astype(int), 0, np.array(shape) - 1).T
    is_fat = rng.random(len(centres)) < expit(field[row, column] * 5)
    near = np.argwhere(field > -0.9)
    distance, cell = cKDTree(centres).query(near, k=2)
    hole = np.clip((distance[:, 1] - distance[:, 0]) / 2 - 0.05, 0, 1) * np.clip(0.6 * spacing - distance[:, 0], 0, 1)
    paint *= (1 - 0.55 * expit((field - 0.1) * 8))[..., None]
    paint[tuple(near.T)] *= 1 - 0.97 * (hole * is_fat[cell[:, 0]])[:, None]


def _paint_tumour(rng: Random, paint: np.ndarray, flow: np.ndarray, margin: np.ndarray, anatomy: Anatomy) -> None:
    """Paint nests and cords of tumour cells along the fibres, with larger and more varied nuclei than benign ones."""
    shape = margin.shape
    field = _warp(_smooth(rng, shape, 5, rng.uniform(2, 3.5)), flow)
    share = np.clip(anatomy.cellularity + 0.25 * _smooth(rng, shape, 30), 0.04, 0.92)
    inside = (field - ndtri(1 - share)) / 0.2
    gaps = expit((_smooth(rng, shape, 3) - 1.1) / 0.15) * ((inside < 0) & (inside > -2)) * margin
    large, nuclei = anatomy.pleomorphism * 0.7, np.zeros(shape)
    for size, part in ((0.9, 1 - large), (1.25, large * 0.7), (1.7, large * 0.3)):
        nuclei = np.maximum(nuclei, _scatter_nuclei(rng, part, shape, 3 if size < 1 else 4, (size, 0.85 * size)))
    paint *= 1 - 0.8 * gaps[..., None]
    cytoplasm = 0.18 + 0.03 * _smooth(rng, shape, 1)
    _blend(paint, expit(inside) * margin, cytoplasm + anatomy.chromatin * nuclei, 0.17)


def _smooth(rng: Random, shape: tuple[int, ...], scale: float, across: float | None = None) -> np.ndarray:
    """Draw a field of mean 0, deviation 1, smooth over `scale` pixels, `across` down the columns; float32 [h, w]."""
    step = 1 if across else max(1, int(scale / 3))
    noise = rng.standard_normal((shape[0] // step + 8, shape[1] // step + 8), np.float32)
    coarse = cv2.GaussianBlur(noise, (0, 0), sigmaX=scale / step, sigmaY=(across or scale) / step)
    fine = cv2.resize(coarse, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    field = fine[step : step + shape[0], step : step + shape[1]]
    mean, deviation = cv2.meanStdDev(field)
    return (field - np.float32(mean.item())) / np.float32(deviation.item())


def _draw_flow(rng: Random, shape: tuple[int, int]) -> np.ndarray:
    """Draw the position of each pixel on a canvas of horizontal fibres: float32 [h, w, 2], x and y."""
    turn, rows, columns = rng.uniform(0, np.pi), *np.indices(shape, np.float32)
    x = np.cos(turn) * columns - np.sin(turn) * rows + 22 * _smooth(rng, shape, 45)
    y = np.sin(turn) * columns + np.cos(turn) * rows + 22 * _smooth(rng, shape, 45) + 3 * _smooth(rng, shape, 9)
    return np.dstack([x, y]).astype(np.float32)


def _warp(canvas: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Bend a canvas of straight fibres; it is mirrored beyond its edges."""
    # x and y are both in `flow`; OpenCV's stubs do not know that the second map may then be None
    return cv2.remap(canvas, flow, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)  # type: ignore[call-overload]


def _scatter_nuclei(
    rng: Random, chance: np.ndarray | float, shape: tuple[int, ...], spacing: int, radii: tuple[float, float]
) -> np.ndarray:
    """Scatter ellipses of two radii in pixels, of height 0.7 to 1.1, each with probability `chance`; float32 [h, w]."""
    noise = rng.random(shape, np.float32)
    places = (noise == cv2.dilate(noise, np.ones((spacing, spacing)))) & (rng.random(shape) < chance)
    reach = int(np.ceil(max(radii))) + 1
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    nucleus = np.clip(0.5 - (np.hypot(columns / radii[0], rows / radii[1]) - 1) * min(radii), 0, 1)
    return np.minimum(cv2.filter2D(places * rng.uniform(0.7, 1.1, shape).astype(np.float32), -1, nucleus), 1.1)


def _depth(shape: tuple[int, ...], ellipses: Sequence[tuple[float, ...]]) -> np.ndarray:
    """Compute the depth in pixels inside ellipses (row, column, radii, degrees), below 0 outside; float32 [h, w]."""
    mask = np.zeros(shape, np.uint8)
    for row, column, radius_x, radius_y, degrees in ellipses:
        centre, radii = (round(16 * column), round(16 * row)), (round(16 * radius_x), round(16 * radius_y))
        for value, thickness in ((1, cv2.FILLED), (0, 1)):  # a line around each separates it from those below
            cv2.ellipse(mask, centre, radii, degrees, 0, 360, value, thickness, shift=4)  # sixteenths of a pixel
    depth, distance = (cv2.distanceTransform(part, cv2.DIST_L2, 5) for part in (mask, 1 - mask))
    return depth - np.minimum(distance, 99)  # without any ellipse the distance would be infinite


def _blend(paint: np.ndarray, cover: np.ndarray, haematoxylin: np.ndarray | float, eosin: np.ndarray | float) -> None:
    """Blend other concentrations into a painting, in place, by the opacity `cover`, 0 to 1."""
    paint[..., 0] += cover * (haematoxylin - paint[..., 0])
    paint[..., 1] += cover * (eosin - paint[..., 1])


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    pieces, _ = ndimage.label(mask)
    return ndimage.binary_fill_holes(pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:]))
