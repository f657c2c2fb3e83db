"""Patches whose tumour is in one corner, painted like the synthetic slides."""

import numpy as np

from cancernet.data.sample import draw_anatomy, draw_stain, paint_tissue, scan

CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")


def make_patch_with_corner_tumour(seed: int, corner: str, pixels: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Paint benign stroma with tumour in one quarter; the seed alone decides the stain.

    Returns:
        The image, uint8 [pixels, pixels, 3] RGB, and the tumour, bool [pixels, pixels].
    """
    rng = np.random.default_rng(seed)
    stain = draw_stain(rng)
    quiet = draw_anatomy(rng)._replace(cellularity=0.85, cellular_stroma=0, fat_share=0, glands=0, infiltrates=0)
    half = np.arange(pixels) < pixels // 2
    vertical, horizontal = corner.split("-")
    tumour = np.outer(half if vertical == "top" else half[::-1], half if horizontal == "left" else half[::-1])
    return scan(rng, paint_tissue(rng, np.ones_like(tumour), tumour, quiet), stain), tumour
