"""Images of different patients that show almost the same picture."""

import hashlib

import cv2
import numpy as np
import pytest

from cancernet.data import near_duplicates
from cancernet.data.dataset import Patch
from cancernet.data.images import decode_image
from cancernet.data.near_duplicates import find_near_duplicates, hash_pictures, make_thumbnail

PAIR = ((0, "p"), (1, "q"))


def make_tissue(seed: int, side: int = 50) -> np.ndarray:
    """A smooth random texture, BGR uint8 [side, side, 3]."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(0, 1, (side, side, 3)), (0, 0), 3)
    return np.clip(160 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)


def find(folder, files):
    """Write files (name, patient, bytes), and return the names in each group found."""
    patches = []
    for name, patient, data in files:
        (folder / name).write_bytes(data)
        patches.append(Patch(name, "0", patient, None, None, "training", hashlib.sha256(data).hexdigest()))
    hashes = hash_pictures([make_thumbnail(decode_image(data, channels=3, megapixels=50)) for _, _, data in files])
    return [[patch.file for patch in group] for group in find_near_duplicates(folder, patches, hashes)]


def png(image, ending=".png", *options) -> bytes:
    return cv2.imencode(ending, image, options)[1].tobytes()


def others(count, start=100):
    return [(f"other{seed}.png", f"q{seed}", png(make_tissue(seed))) for seed in range(start, start + count)]


@pytest.mark.parametrize(
    "change",
    [
        lambda image: png(image, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 75),
        lambda image: png(cv2.convertScaleAbs(image, beta=10)),
        lambda image: png(cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)),
        lambda image: png(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)),
        lambda image: png(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)),
    ],
    ids=["JPEG", "brighter", "larger", "smaller", "grey"],
)
def test_the_same_picture_is_found_under_another_patient(tmp_path, change):
    changed = [(f"b{seed}", f"b{seed}", change(make_tissue(seed))) for seed in range(8)]
    originals = [(f"a{seed}", f"a{seed}", png(make_tissue(seed))) for seed in range(8)]
    assert find(tmp_path, [*originals, *others(40), *changed]) == [[f"a{seed}", f"b{seed}"] for seed in range(8)]


def test_large_images_are_found_from_a_sample_of_their_pixels(tmp_path):
    large = cv2.resize(make_tissue(1), (600, 700), interpolation=cv2.INTER_CUBIC)
    files = [("a", "p", png(large)), ("b", "q", png(make_tissue(1))), ("c", "r", png(make_tissue(2, 600)))]
    assert find(tmp_path, files) == [["a", "b"]]


def test_blank_images_one_patient_unknown_patients_and_the_same_bytes_are_not_near_duplicates(tmp_path):
    tissue, faint = make_tissue(1), np.full((50, 50, 3), 240, np.uint8)
    faint[20:24, 20:24] = 200  # a speck
    files = [("a", "p", png(tissue)), ("b", "p", png(tissue + 1)), ("c", "", png(tissue + 2))]
    files += [("d", patient, png(make_tissue(2))) for patient in "qr"]
    files += [("e", "p", png(faint)), ("f", "q", png(faint + 1)), ("g", "q", png(np.full((50, 50, 3), 7, np.uint8)))]
    assert find(tmp_path, files) == []


def test_a_similar_hash_alone_is_not_enough(tmp_path):
    """The signs of the frequencies agree, but not their sizes: a stripe on a weak or strong texture."""
    stripe = np.zeros((50, 50, 3))
    stripe[:, :25] = 120
    texture = make_tissue(3).astype(float) - 160
    one, other = ((100 + stripe * a + texture * b).clip(0, 255).astype(np.uint8) for a, b in ((0.1, 1), (1, 0.1)))
    hashes = hash_pictures([make_thumbnail(image) for image in (one, other)])
    assert (hashes[0] ^ hashes[1]).bit_count() <= 5
    assert find(tmp_path, [("a", "p", png(one)), ("b", "q", png(other))]) == []


def test_all_images_of_a_picture_are_one_group(tmp_path):
    tissue = make_tissue(5)
    files = [(f"{number}.png", f"p{number}", png(cv2.convertScaleAbs(tissue, beta=number))) for number in range(4)]
    assert find(tmp_path, [*others(3), *files]) == [[name for name, *_ in files]]


def test_no_more_pairs_are_read_than_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(near_duplicates, "MOST_PAIRS", 1)
    files = [
        (f"{seed}{patient}", patient, png(make_tissue(seed) + number)) for seed in (1, 2) for number, patient in PAIR
    ]
    assert find(tmp_path, files) == [["1p", "1q"]]


def test_blank_images_are_told_apart_by_their_pixels():
    images = [np.full((50, 50, 3), value, np.uint8) for value in (255, 128, 255)]
    white, grey, again, tissue = hash_pictures([make_thumbnail(image) for image in [*images, make_tissue(0)]])
    assert white == again < 0
    assert white != grey < 0
    assert tissue > 0
    assert hash_pictures([]) == []
