"""Images of different patients that show the same picture: re-encoded, a little brighter, or of another size."""

import functools
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from cancernet.data.dataset import Patch, join_sets
from cancernet.data.images import read_image

LEAST_SD = 5  # grey levels within a thumbnail; below, an image is blank
MOST_BITS = 5  # in which the hashes of near-duplicates may differ
LEAST_CORRELATION = 0.95  # of their thumbnails
_LEAST_SIDE = 24  # pixels of a thumbnail, unless the image is smaller
_SAMPLED = 128  # pixels in each direction that are enough for a thumbnail
MOST_PAIRS = 1000  # that are read again; in a dataset with more, the groups are some of all
_COMPARED = 1000  # hashes with the same band that one is compared with at most; of IDC patches, few in 10,000 share one


def make_thumbnail(image: np.ndarray) -> np.ndarray:
    """Make an image uint8 [height, width, 3] grey, and halve it until its shorter side is below 48 pixels."""
    step = min(image.shape[:2]) // _SAMPLED
    grey = cv2.cvtColor(np.ascontiguousarray(image[::step, ::step]) if step > 1 else image, cv2.COLOR_RGB2GRAY)
    while min(grey.shape) >= 2 * _LEAST_SIDE:
        grey = cv2.resize(grey, (grey.shape[1] // 2, grey.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return grey


def hash_pictures(thumbnails: Sequence[np.ndarray]) -> list[int]:
    """Hash what images show: the hashes of similar pictures differ in few bits.

    The 64 bits are the signs of the lowest frequencies (discrete cosine transform) of a thumbnail, as in Zauner,
    "Implementation and benchmarking of perceptual image hash functions", 2010, but without the median. A blank image
    has a negative checksum of its thumbnail instead.
    """
    hashes = [0] * len(thumbnails)
    for shape in {thumbnail.shape for thumbnail in thumbnails}:  # those of one size together, which is faster
        rows = [row for row, thumbnail in enumerate(thumbnails) if thumbnail.shape == shape]
        pictures = np.array([thumbnails[row] for row in rows]).astype(np.float32)
        waves = [np.cos(np.pi * np.arange(8)[:, None] * (np.arange(side) + 0.5) / side) for side in shape]
        down, across = (wave.astype(np.float32) for wave in waves)  # the eight slowest cosines: [8, side]
        frequencies = (down @ pictures @ across.T).reshape(-1, 64)  # the first: the sum
        values = np.packbits(frequencies > 0, axis=1).view(np.uint64).ravel().tolist()
        pixels = shape[0] * shape[1]
        variance = np.einsum("nij,nij->n", pictures, pictures) / pixels - (frequencies[:, 0] / pixels) ** 2
        blank = (variance < LEAST_SD**2).tolist()
        for row, value, is_blank in zip(rows, values, blank, strict=True):
            hashes[row] = ~zlib.crc32(thumbnails[row].tobytes()) if is_blank else value
    return hashes


def find_near_duplicates(folder: Path, patches: Sequence[Patch], hashes: Sequence[int]) -> list[list[Patch]]:
    """Find groups of images under different patients that show the same picture in files of different bytes.

    Pairs whose hashes differ in at most MOST_BITS bits, and agree in one of four bands of 16, are found without
    comparing all pairs: all with 3 different bits, and nearly all with 5. They are read again, and near-duplicates if
    their thumbnails correlate; only the first MOST_PAIRS are. Blank images and images without a known patient are left
    out. `hashes` are those of `hash_pictures`, of each patch. Raises InputError if an image cannot be read.
    """
    rows = np.array([row for row, patch in enumerate(patches) if patch.patient and hashes[row] >= 0], int)
    numbers: dict[str, int] = {}
    patients = np.array([numbers.setdefault(patches[row].patient, len(numbers)) for row in rows], int)
    values = np.array([hashes[row] for row in rows], np.uint64)
    order = np.lexsort((patients, values))  # of each hash, one image of each patient is enough
    repeated = (np.diff(values[order]) == 0) & (np.diff(patients[order]) == 0)
    kept = np.delete(order, np.flatnonzero(repeated) + 1)
    rows, patients, values = rows[kept], patients[kept], values[kept]
    pairs = {
        (int(rows[one]), int(rows[other]))
        for one, other in _find_similar(values, patients)
        if patches[rows[one]].sha256 != patches[rows[other]].sha256
    }

    @functools.cache
    def read_thumbnail(row: int) -> np.ndarray:
        image = read_image(folder / patches[row].file, channels=3, sha256=patches[row].sha256)
        return cv2.resize(make_thumbnail(image), (16, 16), interpolation=cv2.INTER_AREA).ravel()

    alike = [
        pair
        for pair in sorted(pairs)[:MOST_PAIRS]
        if np.corrcoef([read_thumbnail(row) for row in pair])[0, 1] >= LEAST_CORRELATION
    ]
    groups = {min(group): sorted(group) for group in join_sets(alike).values()}
    return [[patches[row] for row in groups[first]] for first in sorted(groups)]


def _find_similar(values: np.ndarray, patients: np.ndarray) -> set[tuple[int, int]]:
    """Find similar hashes of different patients that agree in a band; `values` [n] are in ascending order."""
    found = set()
    for band in values.view(np.uint16).reshape(-1, 4).T:
        order = np.argsort(band, kind="stable")
        start = np.arange(len(order))
        for distance in range(1, _COMPARED + 1):
            start = start[start + distance < len(order)]
            start = start[band[order[start]] == band[order[start + distance]]]
            if not len(start):
                break
            one, other = order[start], order[start + distance]
            similar = np.bitwise_count(values[one] ^ values[other]) <= MOST_BITS
            similar &= patients[one] != patients[other]
            similar &= (values[one] != values[other]) | (distance == 1)  # of many equal ones, a chain is enough
            found |= {(min(pair), max(pair)) for pair in zip(one[similar].tolist(), other[similar].tolist())}
    return found
