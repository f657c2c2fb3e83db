"""A whole slide made up for the tests: a pyramid with a tumour at a known place."""

import zlib

import numpy as np
import tifffile

GLASS, STROMA, TUMOUR = (243, 243, 243), (225, 150, 190), (90, 60, 140)
TUMOUR_LEFT, TUMOUR_TOP, TUMOUR_SIDE = 8192, 12288, 4096  # pixels of level 0
TILE = 512


def write_pyramid(path, *, size=20_000, downsamples=(1, 4, 16), mpp=0.5):
    """A slide of stroma within glass and a square tumour within the stroma.

    Its tiles are compressed once for each colour, so that 1.2 GB of pixels take a few MB and no time.
    """
    plain = {colour: np.full((TILE, TILE, 3), colour, np.uint8) for colour in (GLASS, STROMA, TUMOUR)}
    packed = {colour: zlib.compress(pixels.tobytes(), 1) for colour, pixels in plain.items()}

    def tiles(downsample):
        starts = range(0, size, TILE * downsample)
        for y in starts:
            for x in starts:
                if TUMOUR_LEFT <= x < TUMOUR_LEFT + TUMOUR_SIDE and TUMOUR_TOP <= y < TUMOUR_TOP + TUMOUR_SIDE:
                    yield packed[TUMOUR]
                else:
                    yield packed[STROMA if min(x, y) >= 4096 and max(x, y) < 16_384 else GLASS]

    with tifffile.TiffWriter(path) as tiff:
        for level, downsample in enumerate(downsamples):
            side = -(-size // downsample)
            tiff.write(
                tiles(downsample),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                compression="zlib",
                photometric="rgb",
                subifds=0 if level else len(downsamples) - 1,
                subfiletype=min(level, 1),
                resolution=(1e4 / (mpp or 1) / downsample,) * 2,
                resolutionunit="CENTIMETER" if mpp else "NONE",
            )
    return path


def write_small_pyramid(path):
    """Two levels of unlike colours, so that it shows which of them was read; a grid of 3 x 3 patches, not all full."""
    fine = np.random.default_rng(1).integers(60, 200, (1130, 1130, 3), dtype=np.uint8)
    with tifffile.TiffWriter(path) as tiff:
        given = {"tile": (128, 128), "photometric": "rgb", "resolutionunit": "CENTIMETER"}
        tiff.write(fine, subifds=1, resolution=(1e4 / 0.497, 1e4 / 0.497), **given)
        tiff.write(fine[::4, ::4] // 2 + 60, subfiletype=1, resolution=(1e4 / 1.988, 1e4 / 1.988), **given)
