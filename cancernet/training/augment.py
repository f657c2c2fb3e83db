"""Augmentation of training batches, as one TensorFlow graph.

The random numbers are a pure function of (seed, epoch, step), so any step of a training can be repeated. All geometric
changes of an image are one matrix and one bilinear interpolation; stain jitter is one affine map of its optical
densities.
"""

import functools
import platform
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from cancernet import InputError
from cancernet.config import Augmentation

Tensor: TypeAlias = tf.Tensor | np.ndarray
Integer: TypeAlias = tf.Tensor | int
Number: TypeAlias = tf.Tensor | np.ndarray | float
Pair: TypeAlias = tuple[Number, Number]  # of x and of y

# Optical density of each stain (rows: haematoxylin, eosin, DAB as the residual) in red, green and blue
# (Ruifrok & Johnston 2001).
STAIN_DENSITIES = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float32)
# Mean concentration of a stain in IDC patches, in natural optical density; a jitter of 1 adds at most this to each.
MEAN_STAIN = 0.25

# Geometry and stains have separate streams of random numbers, so switching one on does not change the other.
_GEOMETRY, _STAIN = 1, 2
# Compiled by XLA the graph takes a quarter of the time; results agree within a hundredth of a grey level.
# Every TensorFlow wheel for Linux includes XLA; elsewhere the graph runs operation by operation.
_USE_XLA = platform.system() == "Linux"


def augment_batch(
    images: Tensor,
    augmentation: Augmentation,
    *,
    seed: Integer,
    epoch: Integer,
    step: Integer,
    part: tuple[Integer, Integer] | None = None,
) -> tf.Tensor:
    """Augment a copy of a batch at random, first the geometry, then the stains: float32 [n, s, s, c], 0 to 255.

    The geometry is that of Keras' `ImageDataGenerator` with `fill_mode="nearest"`: rotation about the image's centre,
    zoom and shift drawn for each axis, shear and flips. Flips and quarter turns alone are exact, since they only move
    pixels. With everything off the images do not change.

    Images are [n, s, s, c], 0 to 255, uint8 or float; in a graph s and c must be known, n need not be. The same seed,
    epoch and step within it give the same result. If the images are part of a larger batch, `part` is the position of
    the first in it and its size; they are then augmented as in that batch.
    """
    images = tf.convert_to_tensor(images)
    shape = images.shape
    if augmentation.stain_jitter and shape[3] != 3:
        found = f"Stain jitter needs images with 3 colours, not {shape[3]} channel(s)"
        raise InputError(f"{found}. Set it to 0 for grey images.")
    if augmentation == Augmentation():
        return tf.cast(images, tf.float32)
    numbers = (seed, epoch, step, *(part or (0, tf.shape(images)[0])))
    with tf.device("CPU"):  # where the input pipeline runs; XLA for a GPU fails with some drivers
        return _augmenter(augmentation)(images, *(tf.cast(number, tf.int64) for number in numbers))


def inverse_matrices(
    side: int, *, rotation: Number = 0.0, zoom: Pair = (1.0, 1.0), shift: Pair = (0.0, 0.0), shear: Number = 0.0
) -> tf.Tensor:
    """Compute the matrices [n, 2, 3] from a point (x, y) of the result to its source point in the image.

    The order is that of Keras' `apply_affine_transform`: rotation @ shift @ shear @ zoom, about the centre (side - 1) /
    2. Each number may be a tensor [n], one value for each image. Rotation (counter-clockwise) and shear are in radians.
    Zoom is the share of the image that fills the result; a positive shift moves the content left and up, in pixels.
    """
    (zoom_x, zoom_y), (shift_x, shift_y) = zoom, shift
    cosine, sine, centre = tf.cos(rotation), tf.sin(rotation), (side - 1) / 2
    sheared_x, sheared_y = -tf.sin(shear) * zoom_y, tf.cos(shear) * zoom_y
    linear = (
        (cosine * zoom_x, cosine * sheared_x - sine * sheared_y),
        (sine * zoom_x, sine * sheared_x + cosine * sheared_y),
    )
    moved = (cosine * shift_x - sine * shift_y, sine * shift_x + cosine * shift_y)
    rows = zip(linear, moved, strict=True)
    return tf.stack([tf.stack([a, b, offset + centre - (a + b) * centre], axis=-1) for (a, b), offset in rows], axis=-2)


def orient_matrices(
    matrices: Tensor, horizontal_flip: Tensor, vertical_flip: Tensor, turns: Tensor, *, side: int
) -> tf.Tensor:
    """Add flips, bool [n], and then counter-clockwise quarter turns, int32 [n], to matrices of `inverse_matrices`."""
    sign = tf.where(tf.stack([horizontal_flip, vertical_flip], axis=-1), -1.0, 1.0)
    cosine, sine = tf.gather([1.0, 0.0, -1.0, 0.0], turns), tf.gather([0.0, 1.0, 0.0, -1.0], turns)
    linear = tf.stack([tf.stack([cosine, -sine], -1), tf.stack([sine, cosine], -1)], -2) * sign[:, :, None]
    centre = (side - 1) / 2
    offset = centre - tf.reduce_sum(linear, axis=-1, keepdims=True) * centre
    before = matrices[..., :2]
    return tf.concat([before @ linear, before @ offset + matrices[..., 2:]], axis=-1)


def warp_images(images: Tensor, matrices: Tensor) -> tf.Tensor:
    """Transform images [n, s, s, c] with bilinear interpolation by matrices [n, 2, 3] from `inverse_matrices`.

    Points outside the image take the value of the nearest border. The result is float32.
    """
    count, side, channels = tf.shape(images)[0], images.shape[1], images.shape[3]
    along = tf.range(side, dtype=tf.float32)
    points = matrices[..., None, None]  # [n, 2, 3, 1, 1]
    points = points[:, :, 0] * along + points[:, :, 1] * along[:, None] + points[:, :, 2]  # [n, 2, s, s]
    points = tf.clip_by_value(points, 0.0, side - 1.0)
    whole = tf.floor(points)
    x_share, y_share = tf.unstack((points - whole)[..., None], axis=1)
    x, y = tf.unstack(tf.cast(whole, tf.int32), axis=1)
    right, below = tf.minimum(x + 1, side - 1), tf.minimum(y + 1, side - 1)

    pixels = tf.reshape(images, [-1, channels])
    first = tf.reshape(tf.range(count) * side * side, [-1, 1, 1])

    def read(row, column):
        return tf.cast(tf.gather(pixels, first + row * side + column), tf.float32)

    def mix(near, far, share):
        return near + (far - near) * share

    upper = mix(read(y, x), read(y, right), x_share)
    lower = mix(read(below, x), read(below, right), x_share)
    return mix(upper, lower, y_share)


def change_stains(images: Tensor, factor: Tensor, addition: Tensor) -> tf.Tensor:
    """Scale and shift the concentration of each stain in RGB images [n, s, s, 3], 0 to 255: float32 of the same shape.

    The concentrations c solve `-log(rgb / 255) = c @ STAIN_DENSITIES` (Beer-Lambert; Ruifrok & Johnston 2001; 0 counts
    as 1). They become `c * factor + addition`, both float32 [n, 3] (Tellez et al. 2019).
    """
    unmixing = np.linalg.inv(STAIN_DENSITIES.astype(np.float64)).astype(np.float32)
    mixing = unmixing @ (factor[:, :, None] * STAIN_DENSITIES)  # [n, 3, 3]
    added = (addition @ STAIN_DENSITIES)[:, None]
    light = tf.maximum(tf.cast(images, tf.float32), 1.0) / 255.0
    density = -tf.math.log(tf.reshape(light, [-1, images.shape[1] * images.shape[2], 3]))
    # Row by row: XLA fuses sums of three, but not a product of matrices, with the logarithm and the exponential.
    changed = added + sum(density[:, :, stain, None] * mixing[:, None, stain] for stain in range(3))
    return tf.reshape(tf.minimum(255.0 * tf.exp(-changed), 255.0), tf.shape(images))


@functools.cache
def _augmenter(augmentation: Augmentation) -> Callable:
    """Make the graph of one augmentation, built once for each shape of images."""
    moves = replace(augmentation, stain_jitter=0.0) != Augmentation()

    @tf.function(jit_compile=_USE_XLA, autograph=False)
    def change(images, matrices, stain_jitter):
        if moves:
            images = warp_images(images, matrices)
        if augmentation.stain_jitter:
            images = change_stains(images, 1 + stain_jitter[0], MEAN_STAIN * stain_jitter[1])
        return tf.cast(images, tf.float32)

    # Random numbers are drawn outside XLA, which draws others from the same key and takes seconds to compile them.
    @tf.function(autograph=False)
    def augment(images, seed, epoch, step, first, whole):
        own = slice(first, first + tf.shape(images, tf.int64)[0])
        key = tf.random.fold_in(tf.stack([seed, epoch]), step, alg="philox")
        matrices = _draw_matrices(_draw([9, whole], key, _GEOMETRY)[:, own], augmentation, images.shape[1])
        stain_jitter = (2 * _draw([2, whole, 3], key, _STAIN)[:, own] - 1) * augmentation.stain_jitter
        return change(images, matrices, stain_jitter)

    return augment


def _draw(shape: list[Integer], key: tf.Tensor, stream: int) -> tf.Tensor:
    """Draw uniform numbers from 0 to 1 of one stream. Without a named algorithm they would differ by device."""
    key = tf.random.fold_in(key, tf.cast(stream, tf.int64), alg="philox")
    return tf.random.stateless_uniform(shape, key, alg="philox")


def _draw_matrices(draws: tf.Tensor, augmentation: Augmentation, side: int) -> tf.Tensor:
    """Compute inverse matrices [n, 2, 3] from uniform numbers [9, n]."""
    rotation, shear, zoom_x, zoom_y, shift_x, shift_y = tf.unstack(2 * draws[3:] - 1)
    matrices = inverse_matrices(
        side,
        rotation=rotation * np.deg2rad(augmentation.rotation_degrees),
        shear=shear * np.deg2rad(augmentation.shear_degrees),
        zoom=(1 + zoom_x * augmentation.zoom, 1 + zoom_y * augmentation.zoom),
        shift=(shift_x * augmentation.shift * side, shift_y * augmentation.shift * side),
    )
    flips = [[augmentation.horizontal_flip], [augmentation.vertical_flip]]
    horizontal, vertical = tf.unstack((draws[:2] < 0.5) & flips)
    turns = tf.cast(draws[2] * 4, tf.int32) * int(augmentation.quarter_turns)
    return orient_matrices(matrices, horizontal, vertical, turns, side=side)
