"""Slides and pictures are cut into the right tiles at the scale of a model, in little memory."""

import contextlib
import subprocess
import sys
import types
import zlib
from functools import partial

import cv2
import numpy as np
import pytest
import tifffile
from conftest import PRINT_PEAK_MB, ROOT
from PIL import Image
from pyramid import STROMA, TUMOUR_LEFT, TUMOUR_SIDE, TUMOUR_TOP, write_pyramid

from cancernet import InputError
from cancernet.data.tiles import iterate_tiles, open_slide_image, tile_grid, tissue_share

cut = partial(iterate_tiles, file="a.tif")


def write_picture(path, image, **options):
    Image.fromarray(image).save(path, **options)
    return path


def stained(height, width, seed=0):
    """Noise with colour, so that no tile is background."""
    noise = np.random.default_rng(seed).integers(0, 120, (height, width, 3), dtype=np.uint8)
    return noise + np.array([130, 0, 60], np.uint8)


def refusal(path, mpp=None):
    """What is said of a file that cannot be opened or read."""
    with pytest.raises(InputError) as caught, open_slide_image(path, mpp) as slide:
        list(cut(slide, patch_pixels=50))
    assert "\n" not in str(caught.value)
    return str(caught.value)


MEASURE = (
    """
import sys
from cancernet.data.tiles import iterate_tiles, open_slide_image
with open_slide_image(sys.argv[1]) as slide:
    tiles = iterate_tiles(slide, file="a", patch_pixels=50)
    places = [(tile.x, tile.y) for tile in tiles if tile.image[..., 0].mean() < 100]
"""
    + PRINT_PEAK_MB
    + """
for x, y in places:
    print(x, y)
"""
)


@pytest.mark.parametrize(
    "downsamples", [(1, 4, 16), pytest.param((1,), marks=pytest.mark.slow)], ids=["pyramid", "one level"]
)
def test_a_large_slide_is_tiled_in_little_memory_and_its_tumour_is_where_it_was_planted(tmp_path, downsamples):
    path = write_pyramid(tmp_path / "slide.tif", downsamples=downsamples)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    peak_mb, *places = done.stdout.splitlines()
    assert int(peak_mb) < 500  # the pixels are 1,200 MB
    x, y = np.array([place.split() for place in places], int).T
    left, top, side = (value / 8 for value in (TUMOUR_LEFT, TUMOUR_TOP, TUMOUR_SIDE))  # 4 / 0.5 micrometres
    assert abs(x.min() - left) <= 50
    assert abs(y.min() - top) <= 50
    assert abs(x.max() + 50 - left - side) <= 50
    assert abs(y.max() + 50 - top - side) <= 50


def test_tiles_have_the_place_at_their_own_scale(tmp_path):
    path = write_pyramid(tmp_path / "slide.tif", size=6000)  # stroma from 4096 on
    with open_slide_image(path) as slide:
        assert (slide.width, slide.height, slide.mpp) == (6000, 6000, 0.5)
        assert [level.width for level in slide.levels] == [6000, 1500, 375]
        assert tile_grid(slide, patch_pixels=50) == (15, 15)  # 6000 / (50 * 8)
        tiles = list(cut(slide, patch_pixels=50))
        everything = list(cut(slide, patch_pixels=50, least_tissue=0))
    assert len(everything) == 15 * 15
    assert {(tile.x, tile.y) for tile in tiles} == {(x, y) for x in range(500, 750, 50) for y in range(500, 750, 50)}
    assert {(tile.file, tile.patient) for tile in tiles} == {("a.tif", "a.tif")}
    assert all(tile.image.shape == (50, 50, 3) and tile.image.dtype == np.uint8 for tile in everything)
    assert (tiles[-1].image == STROMA).all()


def test_a_picture_at_the_models_scale_is_cut_without_change_and_its_edge_is_filled_with_white(tmp_path):
    image = stained(70, 120)
    with open_slide_image(write_picture(tmp_path / "a.png", image), 4.0) as slide:
        tiles = {(tile.x, tile.y): tile.image for tile in cut(slide, patch_pixels=50)}
    assert set(tiles) == {(x, y) for x in (0, 50, 100) for y in (0, 50)}
    padded = np.full((100, 150, 3), 255, np.uint8)
    padded[:70, :120] = image
    for (x, y), tile in tiles.items():
        np.testing.assert_array_equal(tile, padded[y : y + 50, x : x + 50])


def test_blocks_join_without_a_seam(tmp_path, monkeypatch):
    """Whatever is read at a time, the tiles are the same; each is the mean of the pixels under it."""
    image = stained(610, 410)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, tile=(64, 64), photometric="rgb", resolution=(5e3, 5e3), resolutionunit="CENTIMETER")
    results = []
    for side in (4096, 250, 64):
        monkeypatch.setattr("cancernet.data.tiles.BLOCK_SIDE", side)
        with open_slide_image(path) as slide:
            assert slide.mpp == pytest.approx(2)
            tiles = cut(slide, patch_pixels=50, least_tissue=0)
            results.append({(tile.x, tile.y): tile.image for tile in tiles})
    assert len(results[0]) == 7 * 5
    for result in results[1:]:
        assert result.keys() == results[0].keys()
        assert all((result[place] == results[0][place]).all() for place in result)
    mean = image[200:300, 100:200].reshape(50, 2, 50, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(results[0][50, 100], mean, atol=0.51)


def test_the_coarsest_level_that_is_fine_enough_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("cancernet.data.tiles.BLOCK_SIDE", 600)  # so that a small slide has several blocks
    path = write_pyramid(tmp_path / "slide.tif", size=1600)
    with open_slide_image(path) as slide:
        read = []
        spy = type(slide)(slide.path, slide.mpp, slide.levels, lambda *of: read.append(of[0]) or slide.read_region(*of))
        for target_mpp in (0.5, 1.9, 2.0, 4.0, 8.0):
            list(cut(spy, patch_pixels=200, target_mpp=target_mpp))
            assert set(read) == {{0.5: 0, 1.9: 0, 2.0: 1, 4.0: 1, 8.0: 2}[target_mpp]}
            read.clear()


def test_background_is_white_grey_and_black():
    glass, black = np.full((10, 10, 3), 245, np.uint8), np.zeros((10, 10, 3), np.uint8)
    assert tissue_share(glass) == tissue_share(black) == 0
    half = glass.copy()
    half[:5] = STROMA
    assert tissue_share(half) == 0.5


def test_what_was_never_scanned_is_white(tmp_path):
    image = stained(100, 100)
    image[:, :50] = 0
    with open_slide_image(write_picture(tmp_path / "a.png", image), 4) as slide:
        tiles = {(tile.x, tile.y): tile.image for tile in cut(slide, patch_pixels=50, least_tissue=0)}
    assert (tiles[0, 0] == 255).all()
    assert (tiles[50, 0] == image[:50, 50:]).all()


def test_grey_pyramids_are_read_as_rgb(tmp_path):
    path = tmp_path / "grey.tif"
    tifffile.imwrite(path, np.full((300, 300), 77, np.uint8), tile=(128, 128), photometric="minisblack")
    with open_slide_image(path, 4) as slide:
        tiles = list(cut(slide, patch_pixels=100, least_tissue=0))
    assert len(tiles) == 9
    assert all((tile.image == 77).all() for tile in tiles)


def test_chunks_that_a_sparse_slide_does_not_store_are_white(tmp_path):
    path = tmp_path / "sparse.tif"
    packed = zlib.compress(np.full((128, 128, 3), STROMA, np.uint8).tobytes())
    tifffile.imwrite(
        path, iter([packed, b"", b"", b""]), shape=(256, 256, 3), dtype=np.uint8, tile=(128, 128), compression="zlib"
    )
    with open_slide_image(path, 4) as slide:
        tiles = {(tile.x, tile.y): tile.image for tile in cut(slide, patch_pixels=128, least_tissue=0)}
    assert (tiles[0, 0] == STROMA).all()
    assert (tiles[128, 128] == 255).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.png", {"dpi": (6350, 6350)}), ("a.jpg", {"dpi": (6350, 6350)}), ("a.tif", {"dpi": (6350,) * 2})],
)
def test_a_pictures_own_scale_is_used(tmp_path, name, options):
    path = write_picture(tmp_path / name, stained(60, 60), **options)
    with open_slide_image(path, 1.0) as slide:
        assert slide.mpp == pytest.approx(25_400 / 6350, rel=1e-3)


@pytest.mark.parametrize(("size", "unit"), [(500, "nm"), (0.5, "µm"), (0.0005, "mm"), (0.00005, "cm")])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_the_scale_in_ome_xml_is_used(tmp_path, size, unit, tile):
    scale = {"PhysicalSizeX": size, "PhysicalSizeXUnit": unit, "PhysicalSizeY": size, "PhysicalSizeYUnit": unit}
    options = {"photometric": "rgb", "metadata": {"axes": "YXS", **scale}, "compression": "jpeg2000"}
    tifffile.imwrite(tmp_path / "a.ome.tif", stained(64, 64), tile=tile, **options)
    with open_slide_image(tmp_path / "a.ome.tif") as slide:
        assert slide.mpp == pytest.approx(0.5)
        assert slide.read_region(0, 0, 0, 64, 64).shape == (64, 64, 3)


def write_aperio(path, scale, **options):
    stated = f"Aperio Image Library v1\n64x64 |AppMag = 20|MPP = {scale}"
    options = {"photometric": "rgb", "tile": (16, 16), "description": stated, "metadata": None} | options
    tifffile.imwrite(path, stained(64, 64), **options)
    return path


def test_an_aperio_scale_may_have_a_decimal_comma_and_no_other_text(tmp_path):
    with open_slide_image(write_aperio(tmp_path / "comma.svs", "0,4990")) as slide:
        assert slide.mpp == 0.499
    for scale in ("unknwn", "nan", "", "0,4,9"):
        path = write_aperio(tmp_path / "unknown.svs", scale)
        assert "unknown.svs: does not give its scale. Give --mpp" in refusal(path)
        with open_slide_image(path, 0.25) as slide:
            assert slide.mpp == 0.25


def test_a_pyramid_of_planes_is_refused_with_advice(tmp_path):
    pixels = np.moveaxis(stained(64, 64), -1, 0).copy()
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", planarconfig="separate", tile=(16, 16))
    with pytest.raises(InputError, match="stores red, green and blue apart .planar.*vips tiffsave"):  # noqa: SIM117
        with open_slide_image(tmp_path / "a.tif", 0.5):
            pass


def test_of_a_slide_with_bounds_what_was_scanned_is_read(tmp_path, monkeypatch):
    whole = Image.fromarray(stained(64, 64)).convert("RGBA")

    class Slide(contextlib.nullcontext):  # as OpenSlide opens a .mrxs file
        bounds = {"x": "8", "y": "16", "width": "40", "height": "32"}  # noqa: RUF012
        properties = {f"openslide.bounds-{name}": value for name, value in bounds.items()}  # noqa: RUF012
        dimensions, level_downsamples = (64, 64), (1.0, 2.0)

        def __init__(self, path):
            super().__init__(self)

        def read_region(self, corner, level, size):
            return whole.crop((*corner, corner[0] + size[0], corner[1] + size[1]))

    module = types.SimpleNamespace(OpenSlide=Slide, OpenSlideError=OSError)
    monkeypatch.setitem(sys.modules, "openslide", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: module)
    (tmp_path / "slide.mrxs").write_bytes(b"\xff\xd8\xff")
    with open_slide_image(tmp_path / "slide.mrxs", 0.5) as slide:
        assert [level[:2] for level in slide.levels] == [(40, 32), (20, 16)]
        np.testing.assert_array_equal(slide.read_region(0, 4, 0, 36, 32), stained(64, 64)[16:48, 12:48])


def test_a_screens_resolution_is_no_scale(tmp_path):
    path = write_picture(tmp_path / "a.png", stained(60, 60), dpi=(72, 72))
    assert "a.png: does not give its scale. Give --mpp, micrometres per pixel" in refusal(path)
    with open_slide_image(path, 2.0) as slide:
        assert slide.mpp == 2.0


def test_a_slide_without_a_scale_is_refused(tmp_path):
    path = write_pyramid(tmp_path / "slide.tif", size=1500, mpp=None)
    assert "slide.tif: does not give its scale. Give --mpp, micrometres per pixel" in refusal(path)


@pytest.mark.parametrize("mpp", [0, -1, float("nan")])
def test_an_impossible_scale_is_refused(tmp_path, mpp):
    path = write_picture(tmp_path / "a.png", stained(60, 60))
    assert "micrometres per pixel. Give a number above 0" in refusal(path, mpp)


def test_an_image_coarser_than_the_model_is_refused(tmp_path):
    path = write_picture(tmp_path / "a.png", stained(60, 60))
    assert "has 8 micrometres per pixel, but the model was trained at 4. Give a finer image" in refusal(path, 8)
    with open_slide_image(path, 4.4) as slide:  # enlarged by a tenth
        assert [tile.image.shape for tile in cut(slide, patch_pixels=50)] == [(50, 50, 3)] * 4


@pytest.mark.parametrize("kept", [8, 200, 600, 3000, 0.5, 0.99])
def test_a_slide_cut_off_is_refused(tmp_path, kept, caplog):
    path = write_pyramid(tmp_path / "slide.tif", size=6000)
    data = path.read_bytes()
    path.write_bytes(data[: kept if kept > 1 else int(kept * len(data))])
    assert "cut off" in refusal(path)
    assert not caplog.records  # tifffile would log a warning


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_picture_cut_off_is_refused(tmp_path, name):
    path = write_picture(tmp_path / name, stained(300, 300))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "Copy it again" in refusal(path, 4)


@pytest.mark.parametrize("compression", ["zlib", "jpeg", "lzw"])
def test_an_unreadable_chunk_is_named(tmp_path, compression, capfd):
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, stained(512, 512), tile=(128, 128), photometric="rgb", compression=compression)
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[6], tiff.pages[0].databytecounts[6]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = b"\xff" * count
    path.write_bytes(data)
    assert "the chunk at x 256, y 128 of the level 512 pixels wide cannot be read" in refusal(path, 4)
    assert capfd.readouterr() == ("", "")


def test_a_path_with_spaces_and_other_letters(tmp_path):
    folder = tmp_path / "Größe und Überblick #1 ∆"
    folder.mkdir()
    write_picture(folder / "Präparat 7 左.png", stained(50, 50))
    write_pyramid(folder / "Präparat 8 左.tif", size=6000)
    for path, tiles in ((folder / "Präparat 7 左.png", 1), (folder / "Präparat 8 左.tif", 25)):
        with open_slide_image(path, None if tiles > 1 else 4) as slide:
            assert len(list(cut(slide, patch_pixels=50))) == tiles


def test_other_bad_files_are_refused(tmp_path):
    assert "there is no such file" in refusal(tmp_path / "none.svs")
    (tmp_path / "text.png").write_text("not an image")
    assert "text.png: cannot be read as an image" in refusal(tmp_path / "text.png", 4)
    (tmp_path / "empty.tif").write_bytes(b"")
    assert "empty.tif: cannot be read as an image" in refusal(tmp_path / "empty.tif", 4)
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((300, 300, 3), np.uint16), tile=(128, 128), photometric="rgb")
    assert "3 x uint16 per pixel (RGB); only slides of 8-bit RGB or grey are supported" in refusal(
        tmp_path / "deep.tif", 4
    )


def test_files_only_openslide_reads_say_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "slide.mrxs").write_bytes(b"\xff\xd8\xff")
    assert "pip install openslide-python openslide-bin" in refusal(tmp_path / "slide.mrxs")


def test_openslide_reads_the_same_pixels(tmp_path, monkeypatch):
    openslide = pytest.importorskip("openslide")
    assert openslide
    path = write_pyramid(tmp_path / "slide.tif", size=6000, downsamples=(1,))
    with open_slide_image(path) as slide:
        expected = list(cut(slide, patch_pixels=50))
    monkeypatch.setattr("cancernet.data.tiles.TIFF_MAGIC", ())
    with open_slide_image(path.rename(tmp_path / "slide.other")) as slide:
        tiles = list(cut(slide, patch_pixels=50))
    assert len(tiles) == len(expected)
    assert all((a.image == b.image).all() and (a.x, a.y) == (b.x, b.y) for a, b in zip(tiles, expected))
    (tmp_path / "text.mrxs").write_text("not a slide")
    assert "OpenSlide says" in refusal(tmp_path / "text.mrxs")


def test_pictures_too_large_to_decode_whole_are_refused_before_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr("cancernet.data.tiles.PLAIN_PIXELS", 3000)
    path = write_picture(tmp_path / "a.png", stained(60, 60))
    monkeypatch.setattr(cv2, "imdecode", None)
    assert "has more than 3,000 pixels in one piece. Convert it to a tiled pyramid" in refusal(path, 4)


def test_a_large_tiff_in_strips_is_read_strip_by_strip(tmp_path, monkeypatch):
    monkeypatch.setattr("cancernet.data.tiles.PLAIN_PIXELS", 3000)
    image = stained(200, 200)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, rowsperstrip=16, photometric="rgb", compression="zlib")
    with open_slide_image(path, 4) as slide:
        for tile in cut(slide, patch_pixels=50):
            np.testing.assert_array_equal(tile.image, image[tile.y : tile.y + 50, tile.x : tile.x + 50])
    monkeypatch.setattr("cancernet.data.tiles.CHUNK_BYTES", 9000)
    assert "a.tif: is stored in chunks of 16x200x3 pixels, which are too large to read" in refusal(path, 4)


@pytest.mark.realdata
def test_few_real_patches_would_be_left_out_and_no_tumour(shared):
    files = sorted(file for folder in ("idc", "idc_slides") for file in (shared / "data" / folder).rglob("*.png"))[::4]
    shares = {file: tissue_share(cv2.imread(str(file))) for file in files}
    left_out = [file for file, share in shares.items() if share < 0.05]
    assert len(left_out) / len(files) < 0.015
    assert not [file for file in left_out if file.parent.name == "1"]
