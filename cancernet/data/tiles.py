"""Cut whole slides and large pictures into patches at the scale of a model, in bounded memory."""

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from math import ceil
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
import tifffile
import tiffslide
from PIL import Image, UnidentifiedImageError

from cancernet import InputError
from cancernet.data.dataset import IDC_MPP
from cancernet.data.images import DECODING_ERRORS, EXTENSIONS, MOST_MEGAPIXELS, TIFF_MAGIC, read_image, resize_image
from cancernet.data.tiff import read_scales

CHROMA = 15  # a pixel is stained if its largest and smallest channel differ by at least this
LEAST_TISSUE = 0.05  # tiles with a smaller share of stained pixels are background
PLAIN_PIXELS = int(MOST_MEGAPIXELS * 1e6)  # the largest picture that is decoded whole
BLOCK_SIDE = 2048  # about BLOCK_SIDE x BLOCK_SIDE pixels of a level are read at a time: 12 MB
CHUNK_BYTES = 256_000_000  # the largest tile or strip of a TIFF that is decoded
SCALES = (0.05, 20.0)  # micrometres per pixel; a resolution beyond these is for printing or a screen
MOST_ENLARGED = 1.25  # factor by which an image may be coarser than the model
CONVERT = "Convert it to a tiled pyramid, for example with: vips tiffsave IN OUT.tif --tile --pyramid"


class Level(NamedTuple):
    """One resolution of a slide, in its own pixels."""

    width: int
    height: int
    chunk_width: int  # of the chunks (tiles or strips) that the file stores


class SlideImage(NamedTuple):
    """An open slide or picture. Level 0 has the finest resolution."""

    path: Path
    mpp: float  # micrometres per pixel of level 0
    levels: tuple[Level, ...]
    read_region: Callable[[int, int, int, int, int], np.ndarray]  # level, left, top, width, height of it

    @property
    def width(self) -> int:
        return self.levels[0].width

    @property
    def height(self) -> int:
        return self.levels[0].height


class Tile(NamedTuple):
    """A decoded patch and its position."""

    image: np.ndarray  # uint8 [height, width, 3], RGB
    file: str  # its own file, or that of the slide it was cut from
    patient: str  # "" if unknown
    x: int | None  # left and top pixel in the slide, at the scale of the patch; None if unknown
    y: int | None


@contextmanager
def open_slide_image(path: Path | str, mpp: float | None = None, data: bytes | None = None) -> Iterator[SlideImage]:
    """Open a whole slide or a picture. The pixels of a slide are not read yet.

    Pyramids and tiled TIFFs (svs, ndpi, tif, ...) are opened with tiffslide, other slides (mrxs, scn, ...) with
    OpenSlide if it is installed. Pictures (PNG, JPEG, BMP, PGM, TIFF in one piece) are decoded whole, up to
    PLAIN_PIXELS. `mpp` is micrometres per pixel, for a file that does not give its scale within SCALES. `data` are the
    bytes of the file if they are in memory; `path` is then only its name. Raises InputError if the file cannot be read,
    its scale is unknown, its format is not supported, or it is too large.
    """
    path = Path(path)
    if mpp is not None and not mpp > 0:
        raise InputError(f"The scale is {mpp} micrometres per pixel. Give a number above 0.")
    if data is None and not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    with ExitStack() as stack:
        with _open_file(path, data) as file:
            is_tiff = file.read(4) in TIFF_MAGIC
        if is_tiff and is_pyramid(path, data):
            slide = _open_tiff(path, data, mpp, stack)
        elif is_tiff or path.suffix.lower() in EXTENSIONS:
            slide = _open_picture(path, data, mpp, is_tiff=is_tiff)
        else:
            slide = _open_openslide(path, data, mpp, stack)
        yield slide


def tile_grid(slide: SlideImage, *, patch_pixels: int, target_mpp: float = IDC_MPP) -> tuple[int, int]:
    """Return the rows and columns of patches that cover a slide with its background; InputError if it is too coarse."""
    if slide.mpp > target_mpp * MOST_ENLARGED:
        scales = f"{slide.mpp:g} micrometres per pixel, but the model was trained at {target_mpp:g}"
        raise InputError(f"{slide.path}: has {scales}. Give a finer image, or correct --mpp.")
    side = patch_pixels * target_mpp / slide.mpp
    return ceil(slide.height / side - 1e-6), ceil(slide.width / side - 1e-6)


def iterate_tiles(
    slide: SlideImage,
    *,
    file: str,
    patch_pixels: int,
    target_mpp: float = IDC_MPP,
    least_tissue: float = LEAST_TISSUE,
    places: Collection[tuple[int, int]] | None = None,
) -> Iterator[Tile]:
    """Cut a slide into patches at the model's scale, block by block.

    Pixels are read from the coarsest level that is at least as fine as `target_mpp`, the micrometres per pixel of the
    model, and averaged. Patches are white beyond the right and lower edge, and where nothing was scanned (pure black).
    x and y of the tiles are multiples of `patch_pixels`, the side of a patch; `file`, the name of the slide, becomes
    the file and the patient of every tile. Tiles with a smaller `tissue_share` than `least_tissue` are skipped; 0 keeps
    all. The default would skip 1.4% of 8,650 patches of the IDC set, none of them IDC. `places` are x and y of the
    tiles that are wanted, None for all; blocks without any are not read. Raises InputError if a part of the file cannot
    be read, or the slide is too coarse (see `tile_grid`).
    """
    rows, columns = tile_grid(slide, patch_pixels=patch_pixels, target_mpp=target_mpp)
    level, block_rows, block_columns = find_blocks(slide, patch_pixels=patch_pixels, target_mpp=target_mpp)
    starts: Iterable[tuple[int, int]] = product(range(0, rows, block_rows), range(0, columns, block_columns))
    if places is not None:
        cells = [(y // patch_pixels, x // patch_pixels) for x, y in places]
        starts = sorted({(row - row % block_rows, column - column % block_columns) for row, column in cells})
    side = target_mpp / slide.mpp * patch_pixels
    for row, column in starts:
        shape = (min(block_rows, rows - row), min(block_columns, columns - column))
        block = _read_block(slide, level, side, patch_pixels, (row, column), shape)
        for i, j in np.ndindex(shape):
            top, left = i * patch_pixels, j * patch_pixels
            x, y = column * patch_pixels + left, row * patch_pixels + top
            image = block[top : top + patch_pixels, left : left + patch_pixels]
            if (places is None or (x, y) in places) and tissue_share(image) >= least_tissue:
                yield Tile(image.copy(), file, file, x, y)


def find_blocks(slide: SlideImage, *, patch_pixels: int, target_mpp: float = IDC_MPP) -> tuple[int, int, int]:
    """Return the level that patches are read from, and the rows and columns of patches that are read at once."""
    scale = target_mpp / slide.mpp
    # The coarsest level that is not coarser than the target, within 1%, for sizes of levels are rounded.
    fine = [i for i, each in enumerate(slide.levels) if slide.width / each.width <= scale * 1.01]
    level = min(fine, key=lambda i: slide.levels[i].width, default=0)
    side = patch_pixels * scale * slide.levels[level].width / slide.width  # of a patch, in the level's pixels
    width = max(BLOCK_SIDE, slide.levels[level].chunk_width)
    return level, max(1, int(BLOCK_SIDE**2 / width / side)), max(1, int(width / side))


def tissue_share(image: np.ndarray) -> float:
    """Return the share, 0 to 1, of pixels of a uint8 RGB image that are stained: not white, grey or black."""
    red, green, blue = cv2.split(image)  # NumPy takes ten times longer along so short an axis
    most, least = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    return float((cv2.subtract(most, least) >= CHROMA).mean())


def _read_block(
    slide: SlideImage, level: int, side: float, patch_pixels: int, start: tuple[int, int], shape: tuple[int, int]
) -> np.ndarray:
    """Read the patches from `start` to `start + shape` (rows, columns) as one picture; `side` is in level-0 pixels."""
    width, height, _ = slide.levels[level]
    across, down = side * width / slide.width, side * height / slide.height
    left, right = round(start[1] * across), round((start[1] + shape[1]) * across)
    top, bottom = round(start[0] * down), round((start[0] + shape[0]) * down)
    region = slide.read_region(level, left, top, min(right, width) - left, min(bottom, height) - top)
    block = np.full((bottom - top, right - left, 3), 255, np.uint8)
    block[: region.shape[0], : region.shape[1]] = region
    block[cv2.inRange(block, (0, 0, 0), (0, 0, 0)) > 0] = 255
    return resize_image(block, shape[0] * patch_pixels, shape[1] * patch_pixels)


def is_pyramid(path: Path, data: bytes | None = None) -> bool:
    """Return whether a TIFF must be read chunk by chunk; InputError if it is cut off, no TIFF, or a planar pyramid."""
    try:
        with _without_warnings("tifffile"), _open_file(path, data) as file, tifffile.TiffFile(file) as tiff:
            page = tiff.pages.first
            _check_complete(path, [page])
            is_large = page.is_tiled or page.imagewidth * page.imagelength > PLAIN_PIXELS
            if not is_large and len(tiff.series[0].levels) == 1:
                return False
            if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1:
                found = "stores red, green and blue apart (planar)"
                raise InputError(f"{path}: {found}; such slides are not supported. {CONVERT}")
            return True
    except DECODING_ERRORS as error:
        raise InputError(f"{path}: cannot be read as TIFF ({error}); it may be cut off. Copy it again.") from error


def _open_file(path: Path, data: bytes | None) -> BinaryIO:
    return path.open("rb") if data is None else io.BytesIO(data)


@contextmanager
def _without_warnings(logger: str) -> Iterator[None]:
    """Switch a library's logging off: our error already describes a broken file."""
    logging.getLogger(logger).disabled = True
    try:
        yield
    finally:
        logging.getLogger(logger).disabled = False


def _check_complete(path: Path, pages: list[tifffile.TiffPage]) -> None:
    for page in pages:
        size = page.parent.filehandle.size
        if not page.dataoffsets:
            raise InputError(f"{path}: is cut off: it has {size:,} bytes and no table of its pixels. Copy it again.")
        ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts)]
        needed = max([*ends, *(page.subifds or ())], default=0)
        if needed > size:
            raise InputError(f"{path}: is cut off: it has {size:,} of {needed:,} bytes. Copy it again.")


def _open_tiff(path: Path, data: bytes | None, mpp: float | None, stack: ExitStack) -> SlideImage:
    try:
        slide = stack.enter_context(tiffslide.TiffSlide(path if data is None else io.BytesIO(data)))
        properties = slide.properties
        composed = "tiffslide.series-composition" in properties or properties["tiffslide.series-axes"] == "CYX"
        series = slide.ts_tifffile.series[properties["tiffslide.series-index"]]
        pages = [level.pages[0].aspage() for level in series.levels]
    except DECODING_ERRORS as error:
        return _open_openslide(path, data, mpp, stack, f"tiffslide says: {error}")
    if composed:
        return _open_openslide(path, data, mpp, stack, "its pixels are spread over several images")
    _check_complete(path, pages)
    _check_supported(path, pages)
    scales = read_scales(slide.ts_tifffile) or [properties.get(f"tiffslide.mpp-{axis}") for axis in "xy"]
    levels = tuple(Level(page.imagewidth, page.imagelength, page.chunks[1]) for page in pages)
    scale = _choose_mpp(path, scales, mpp)
    return SlideImage(path, scale, levels, lambda level, *region: _read_chunks(path, pages[level], *region))


def _check_supported(path: Path, pages: list[tifffile.TiffPage]) -> None:
    for page in pages:
        kind = tifffile.PHOTOMETRIC(page.photometric)
        if page.dtype != np.uint8 or page.samplesperpixel not in (1, 3, 4) or kind == tifffile.PHOTOMETRIC.PALETTE:
            found = f"{page.samplesperpixel} x {page.dtype} per pixel ({kind.name})"
            raise InputError(f"{path}: holds {found}; only slides of 8-bit RGB or grey are supported. {CONVERT}")
        if np.prod(page.chunks) > CHUNK_BYTES:
            shape = "x".join(map(str, page.chunks))
            raise InputError(f"{path}: is stored in chunks of {shape} pixels, which are too large to read. {CONVERT}")


def _read_chunks(path: Path, page: tifffile.TiffPage, left: int, top: int, width: int, height: int) -> np.ndarray:
    """Read a region of a page, uint8 [height, width, 3]; unlike tiffslide's, an error names the broken chunk."""
    region = np.full((height, width, 3), 255, np.uint8)
    chunk_height, chunk_width = page.chunks[:2]
    across = ceil(page.imagewidth / chunk_width)
    file = page.parent.filehandle
    for row in range(top // chunk_height, ceil((top + height) / chunk_height)):
        for column in range(left // chunk_width, ceil((left + width) / chunk_width)):
            index = row * across + column
            if not page.databytecounts[index]:
                continue  # a sparse slide does not store empty chunks
            y, x = row * chunk_height, column * chunk_width
            try:
                file.seek(page.dataoffsets[index])
                data = file.read(page.databytecounts[index])
                decoded, *_ = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
                if decoded is None:
                    raise ValueError("it is empty")
            except DECODING_ERRORS as error:
                place = f"x {x}, y {y} of the level {page.imagewidth} pixels wide"
                raise InputError(
                    f"{path}: the chunk at {place} cannot be read ({error}). Copy the file again."
                ) from error
            chunk = decoded[0, max(top - y, 0) : top + height - y, max(left - x, 0) : left + width - x, :3]
            y, x = max(y - top, 0), max(x - left, 0)
            region[y : y + chunk.shape[0], x : x + chunk.shape[1]] = chunk  # a grey channel is copied to all three
    return region


def _open_picture(path: Path, data: bytes | None, mpp: float | None, *, is_tiff: bool) -> SlideImage:
    scales: Sequence[float | str | None] = ()
    too_large = InputError(f"{path}: has more than {PLAIN_PIXELS:,} pixels in one piece. {CONVERT}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _open_file(path, data) as file, Image.open(file) as header:
                width, height = header.size
                scales = [25_400 / float(dots) if dots else None for dots in header.info.get("dpi", ())]
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise too_large from error
    except (UnidentifiedImageError, OSError, ValueError) as error:
        if not is_tiff:  # Pillow does not know all kinds
            raise InputError(f"{path}: cannot be read as an image. Remove it, or copy it again.") from error
        width = height = 0  # `is_pyramid` has compared the size
    if width * height > PLAIN_PIXELS:
        raise too_large
    if is_tiff:
        with _open_file(path, data) as file, tifffile.TiffFile(file) as tiff:
            scales = read_scales(tiff) or scales
    try:
        picture = read_image(path, channels=3, sha256=None, data=data)
    except InputError as error:
        raise InputError(f"{error}. Copy it again.") from error
    height, width, _ = picture.shape
    return SlideImage(
        path,
        _choose_mpp(path, scales, mpp),
        (Level(width, height, width),),
        lambda level, left, top, width, height: picture[top : top + height, left : left + width],
    )


def _open_openslide(
    path: Path, data: bytes | None, mpp: float | None, stack: ExitStack, reason: str = "not a TIFF"
) -> SlideImage:
    if data is not None:
        raise InputError(f"{path}: cannot be read from memory ({reason}). Use cancernet predict.")
    if importlib.util.find_spec("openslide") is None:
        advice = "For more slide formats: pip install openslide-python openslide-bin"
        raise InputError(f"{path}: cannot be read ({reason}). {advice}")
    import openslide

    try:
        slide = stack.enter_context(openslide.OpenSlide(path))
    except openslide.OpenSlideError as error:
        raise InputError(f"{path}: cannot be read ({reason}; OpenSlide says: {error}).") from error
    # Outside the bounds nothing was scanned. QuPath counts x and y from their corner.
    bounds = [int(slide.properties.get(f"openslide.bounds-{name}", 0)) for name in ("x", "y", "width", "height")]
    size = bounds[2:] if all(bounds[2:]) else slide.dimensions
    levels = []
    for i, downsample in enumerate(slide.level_downsamples):
        width, height = (max(1, round(side / downsample)) for side in size)
        levels.append(Level(width, height, int(slide.properties.get(f"openslide.level[{i}].tile-width", BLOCK_SIDE))))

    def read_region(level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        downsample = slide.level_downsamples[level]
        corner = (bounds[0] + round(left * downsample), bounds[1] + round(top * downsample))
        try:
            pixels = np.asarray(slide.read_region(corner, level, (width, height)))
        except openslide.OpenSlideError as error:
            raise InputError(f"{path}: cannot be read at x {corner[0]}, y {corner[1]} ({error}).") from error
        return np.where(pixels[..., 3:] == 0, np.uint8(255), pixels[..., :3])

    scales = [slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    return SlideImage(path, _choose_mpp(path, scales, mpp), tuple(levels), read_region)


def _choose_mpp(path: Path, scales: Sequence[float | str | None], given: float | None) -> float:
    """Return the file's own scale, the mean over x and y, or the given one if it has none."""
    known = []
    for scale in scales:
        with suppress(ValueError):
            known.append(float(str(scale).replace(",", ".")))
    if len(known) == 2 and SCALES[0] <= min(known) and max(known) <= SCALES[1]:
        return sum(known) / 2
    if given is None:
        examples = "0.25 for a scan at 40x, 0.5 at 20x or 4 for a picture at the scale of the IDC patches"
        raise InputError(f"{path}: does not give its scale. Give --mpp, micrometres per pixel, such as {examples}.")
    return given
