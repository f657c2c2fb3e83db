"""Synthetic slides: the same seed gives the same bytes, and what is drawn is what the truth says."""

import re
from itertools import pairwise

import cv2
import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import rankdata

from cancernet import InputError
from cancernet.data import sample

NAME = re.compile(r"(\d+)_idx5_x(\d+)_y(\d+)_class([01])\.png")

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


@pytest.fixture(scope="module")
def slides():
    return [sample.make_slide(42, patient) for patient in range(70001, 70006)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "original"
    return folder, sample.write_sample(folder, patients=2, seed=5, side=240)


def read_bytes(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_same_seed_and_patient_give_the_same_slide(slides):
    again = sample.make_slide(42, 70001)
    for before, after in zip(slides[0], again):
        np.testing.assert_array_equal(before, after)


def test_every_version_paints_the_same_slide_of_a_seed():
    """Figures in the documentation are of these slides. Green of 100 squares; 2 levels are left to rounding."""
    image = sample.make_slide(7, 3, side=200).image
    found = cv2.resize(image[..., 1], (10, 10), interpolation=cv2.INTER_AREA).astype(int)
    expected = [
        (238, 237, 237, 237, 238, 235, 221, 216, 230, 238),
        (237, 238, 234, 220, 222, 153, 116, 126, 124, 181),
        (237, 237, 191, 194, 197, 154, 122, 136, 138, 142),
        (238, 231, 151, 155, 160, 150, 142, 156, 141, 122),
        (238, 218, 120, 130, 131, 132, 133, 140, 120, 130),
        (238, 204, 113, 123, 150, 135, 133, 147, 127, 129),
        (238, 177, 119, 137, 125, 134, 179, 197, 173, 148),
        (237, 161, 116, 130, 130, 119, 141, 190, 205, 177),
        (237, 187, 125, 124, 116, 128, 125, 141, 173, 223),
        (237, 231, 163, 127, 116, 124, 139, 162, 223, 237),
    ]
    np.testing.assert_allclose(found, expected, atol=2)


def test_another_seed_or_patient_gives_another_slide():
    first, other_seed, other_patient = (sample.make_slide(*which, side=200) for which in ((1, 1), (2, 1), (1, 2)))
    for other in (other_seed, other_patient):
        assert first.image.shape != other.image.shape or (first.image != other.image).mean() > 0.5


def test_a_slide_is_rgb_with_masks_of_its_size(slides):
    for slide in slides:
        height, width = slide.tumour.shape
        assert slide.image.shape == (height, width, 3)
        assert slide.image.dtype == np.uint8
        assert slide.tissue.shape == (height, width)
        assert slide.tumour.dtype == slide.tissue.dtype == bool
        assert 540 <= height < 590
        assert 540 <= width < 590


def test_empty_glass_is_nearly_white_and_tissue_is_not(slides):
    for slide in slides:
        glass = ~ndimage.binary_dilation(slide.tissue, iterations=5)
        assert np.abs(slide.image[glass].mean(axis=0) - 241).max() < 8
        assert slide.image[slide.tissue][:, 1].mean() < 200


def test_tumour_is_one_connected_region_inside_the_tissue(slides):
    for slide in slides:
        assert not (slide.tumour & ~slide.tissue).any()
        assert ndimage.label(slide.tumour)[1] == 1
        assert 0.05 < slide.tumour.sum() / slide.tissue.sum() < 0.6


def test_light_follows_beer_and_lambert():
    stain = sample.Stain(np.eye(3)[:2], np.array([1.0, 2.0]), np.array([200.0, 100.0, 50.0]), 0.0, 0.5)
    concentrations = np.array([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    # Density 1 lets a tenth through; eosin's strength of 2 makes it density 2, a hundredth.
    expected = [[[200, 100, 50], [20, 100, 50], [200, 1, 50]]]
    np.testing.assert_allclose(sample.absorb(concentrations, stain), expected, rtol=1e-12)


def test_the_scanner_blurs_and_adds_noise():
    stain = sample.Stain(np.eye(3)[:2], np.ones(2), np.full(3, 200.0), 3.0, 0.5)
    glass = sample.scan(np.random.default_rng(0), np.zeros((100, 100, 2)), stain)
    assert glass.dtype == np.uint8
    assert glass.mean() == pytest.approx(200, abs=0.1)
    assert glass.std() == pytest.approx(3, abs=0.1)
    dot = np.zeros((9, 9, 2))
    dot[4, 4, 0] = 1.0  # red falls to a tenth there, and by less beside it
    red = sample.scan(np.random.default_rng(0), dot, stain._replace(noise=0.0))[..., 0]
    assert 20 < red[4, 4] < red[4, 5] < red[4, 7] == 200


def test_optical_density_without_noise_gives_back_the_concentrations():
    rng = np.random.default_rng(3)
    stain, anatomy = sample.draw_stain(rng), sample.draw_anatomy(rng)
    tissue = np.ones((120, 150), bool)
    tumour = np.zeros_like(tissue)
    tumour[30:90, 40:100] = True
    concentrations = sample.paint_tissue(rng, tissue, tumour, anatomy)
    density = -np.log10(sample.absorb(concentrations, stain) / stain.white)
    recovered = density @ np.linalg.pinv(stain.vectors) / stain.strength
    assert concentrations.max() > 0.5
    np.testing.assert_allclose(recovered, concentrations, atol=1e-9)


def test_stain_vectors_are_unit_rows_near_the_usual_ones_and_differ_between_patients():
    stains = [sample.draw_stain(np.random.default_rng([42, patient])) for patient in range(20)]
    usual = np.array([sample.HAEMATOXYLIN, sample.EOSIN])
    usual /= np.linalg.norm(usual, axis=1, keepdims=True)
    for stain in stains:
        np.testing.assert_allclose(np.linalg.norm(stain.vectors, axis=1), 1)
        assert (stain.vectors * usual).sum(axis=1).min() > np.cos(np.radians(12))
    for one, other in pairwise(stains):
        assert np.degrees(np.arccos((one.vectors * other.vectors).sum(axis=1))).max() > 0.3
    assert np.std([stain.strength for stain in stains], axis=0).min() > 0.08


def test_benign_tissue_differs_in_colour_between_patients(slides):
    colours = np.array([np.median(slide.image[slide.tissue & ~slide.tumour], axis=0) for slide in slides])
    assert np.ptp(colours, axis=0).max() > 10


def test_tumour_is_bluer_than_benign_tissue_but_colour_alone_does_not_tell(slides):
    redness, labels = [], []
    for slide in slides:
        for image, label, _, _ in sample.cut_patches(slide):
            redness.append(image[..., 0].mean())
            labels.append(label == "1")
    labels = np.array(labels)
    ranks = rankdata(-np.array(redness))
    tumour, benign = labels.sum(), (~labels).sum()
    auroc = (ranks[labels].sum() - tumour * (tumour + 1) / 2) / (tumour * benign)
    assert 0.7 < auroc < 0.95


def test_tiles_are_cut_from_the_masks_as_worked_out_by_hand():
    # 70 x 120 pixels: tiles start at y 1, 51 and x 1, 51, 101; the last row is 20 high, the last column 20 wide.
    tissue = np.ones((70, 120), bool)
    tumour = np.zeros_like(tissue)
    tissue[:50, :25] = False  # half of the first tile is glass: left out
    tumour[:50, 50:76] = True  # 26 of 50 columns: IDC
    tumour[:50, 100:110] = True  # 10 of 20 columns: not most of it
    tumour[50:, 100:] = True  # the whole corner tile
    image = np.arange(70 * 120 * 3, dtype=np.uint32).reshape(70, 120, 3).astype(np.uint8)
    tiles = list(sample.cut_patches(sample.Slide(image, tumour, tissue)))
    found = [(x, y, label, *tile.shape) for tile, label, x, y in tiles]
    assert found == [
        (51, 1, "1", 50, 50, 3),
        (101, 1, "0", 50, 20, 3),
        (1, 51, "0", 20, 50, 3),
        (51, 51, "0", 20, 50, 3),
        (101, 51, "1", 20, 20, 3),
    ]
    np.testing.assert_array_equal(tiles[1][0], image[:50, 100:])


def test_a_slide_gives_patches_of_both_classes_and_edge_tiles(slides):
    cut = [list(sample.cut_patches(slide)) for slide in slides]
    for tiles in cut:
        assert 60 <= len(tiles) <= 120
        assert {label for _, label, _, _ in tiles} == {"0", "1"}
    shapes = {image.shape[:2] for tiles in cut for image, _, _, _ in tiles}
    assert (50, 50) in shapes
    assert len(shapes) > 1


def test_files_have_the_layout_names_and_classes_of_idc(written):
    folder, files = written
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert files == len(paths) > 10
    slides = {patient: sample.make_slide(5, patient, side=240) for patient in (70001, 70002)}
    for path in paths:
        patient, x, y, label = NAME.fullmatch(path.name).groups()
        assert path.relative_to(folder).parts[:2] == (patient, label)
        assert int(x) % 50 == int(y) % 50 == 1
        slide = slides[int(patient)]
        tile = (slice(int(y) - 1, int(y) + 49), slice(int(x) - 1, int(x) + 49))
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        np.testing.assert_array_equal(image, slide.image[tile])
        assert label == str(int(slide.tumour[tile].mean() > 0.5))
        assert slide.tissue[tile].mean() > 0.5


def test_the_same_seed_writes_the_same_bytes_and_nothing_else(written, tmp_path):
    (tmp_path / "again").mkdir()
    sample.write_sample(tmp_path / "again", patients=2, seed=5, side=240)
    assert read_bytes(tmp_path / "again") == read_bytes(written[0])
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_an_interrupted_sample_leaves_nothing(tmp_path, monkeypatch):
    make_slide = sample.make_slide

    def interrupt_the_second(seed, patient, *, side):
        if patient > sample.FIRST_PATIENT:
            raise KeyboardInterrupt
        return make_slide(seed, patient, side=side)

    monkeypatch.setattr(sample, "make_slide", interrupt_the_second)
    with pytest.raises(KeyboardInterrupt):
        sample.write_sample(tmp_path / "original", patients=2, seed=5, side=200)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: sample.write_sample(folder, seed=1), "contains other files, not sample images. Choose another"),
        (
            lambda folder: sample.write_sample(folder / "a.txt", seed=1),
            "a.txt is a file. Choose another output folder.",
        ),
    ],
)
def test_bad_input_is_named(call, message, tmp_path):
    (tmp_path / "a.txt").write_text("kept")
    with pytest.raises(InputError, match=re.escape(message)):
        call(tmp_path)
    assert (tmp_path / "a.txt").read_text() == "kept"


@pytest.mark.parametrize("patient", range(12))
def test_small_slides_can_be_made_of_any_patient(patient):
    slide = sample.make_slide(7, patient, side=200)
    assert ndimage.label(slide.tumour)[1] == ndimage.label(slide.tissue)[1] == 1
    assert len(list(sample.cut_patches(slide))) >= 6
