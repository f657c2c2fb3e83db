"""Random changes to training batches, as one graph a batch.

What is drawn is a pure function of (seed, epoch, step), so that any step of a training can be repeated. All
geometric changes of an image are one matrix and one bilinear reading of its pixels; the stain jitter is one affine
map of its optical densities.
"""

import functools
import platform
from dataclasses import replace

import numpy as np
import tensorflow as tf

from cancernet import InputError
from cancernet.config import Augmentation

# One row a stain (haematoxylin, eosin, DAB as the residual): its optical density in red, green and blue
# (Ruifrok & Johnston 2001).
STAIN_DENSITIES = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float32)
# Mean amount of a stain in IDC patches, in natural optical density: what a strength of 1 may add to each stain.
MEAN_STAIN = 0.25

# Uses of randomness. Each has a stream of its own, so that switching one on leaves the other's draws as they were.
_GEOMETRY, _STAIN = 1, 2
# Fused by XLA the graph takes a quarter of the time, to the same numbers within a hundredth of a grey level.
# TensorFlow's wheels are sure to have XLA on Linux; elsewhere the graph runs operation by operation.
_FUSED = platform.system() == "Linux"


def augment_batch(images, augmentation: Augmentation, *, seed, epoch, step) -> tf.Tensor:
    """Randomly changed copy of a batch; the geometry first, then the stains.

    The geometry means the same as in Keras' `ImageDataGenerator` with `fill_mode="nearest"`: rotation about the
    image's centre, a zoom drawn for each axis, a shift for each axis, shear and flips. Flips and quarter turns alone
    are exact to the bit, for each pixel is then read at the place of one pixel. With everything off the images come
    back as they are.

    Args:
        images: [n, s, s, c], 0 to 255, uint8 or float; s and c known when the graph is made, n not necessarily.
        augmentation: the largest change of each kind.
        seed, epoch, step: whole numbers or integer scalar tensors; the same three give the same result.

    Returns:
        float32 [n, s, s, c], 0 to 255.

    Raises:
        InputError: images that are not square, stain jitter of images without three colours, a strength below 0, a
            zoom of 1 or more.
    """
    images = tf.convert_to_tensor(images)
    _check(images.shape, augmentation)
    if augmentation == Augmentation():
        return tf.cast(images, tf.float32)
    return _augmenter(augmentation)(images, *(tf.cast(number, tf.int64) for number in (seed, epoch, step)))


def inverse_matrices(side: int, *, rotation=0.0, zoom_x=1.0, zoom_y=1.0, shift_x=0.0, shift_y=0.0, shear=0.0):
    """Matrices [n, 2, 3] from a point (x, y) of the result to the point of the image that is seen there.

    Each argument is a number or [n]: angles in radians (rotation counter-clockwise), shifts in pixels (positive
    moves the content left and up), zooms as the share of the image that fills the result. The order is that of Keras'
    `apply_affine_transform`: rotation @ shift @ shear @ zoom, about the centre (side - 1) / 2.
    """
    cosine, sine, centre = tf.cos(rotation), tf.sin(rotation), (side - 1) / 2
    sheared_x, sheared_y = -tf.sin(shear) * zoom_y, tf.cos(shear) * zoom_y
    linear = (
        (cosine * zoom_x, cosine * sheared_x - sine * sheared_y),
        (sine * zoom_x, sine * sheared_x + cosine * sheared_y),
    )
    moved = (cosine * shift_x - sine * shift_y, sine * shift_x + cosine * shift_y)
    return tf.stack(
        [
            tf.stack([a, b, offset + centre - (a + b) * centre], axis=-1)
            for (a, b), offset in zip(linear, moved, strict=True)
        ],
        axis=-2,
    )


def orient_matrices(matrices, mirror, upend, turns, *, side: int):
    """Matrices [n, 2, 3] of `matrices`, after which each image is mirrored left to right, upended and turned.

    `mirror` and `upend` are bool [n]; `turns` int32 [n], 0 to 3 counter-clockwise quarter turns.
    """
    sign = tf.where(tf.stack([mirror, upend], axis=-1), -1.0, 1.0)
    cosine, sine = tf.gather([1.0, 0.0, -1.0, 0.0], turns), tf.gather([0.0, 1.0, 0.0, -1.0], turns)
    linear = tf.stack([tf.stack([cosine, -sine], -1), tf.stack([sine, cosine], -1)], -2) * sign[:, :, None]
    centre = (side - 1) / 2
    offset = centre - tf.reduce_sum(linear, axis=-1, keepdims=True) * centre
    before = matrices[..., :2]
    return tf.concat([before @ linear, before @ offset + matrices[..., 2:]], axis=-1)


def warp_images(images, matrices):
    """Images [n, s, s, c] read bilinearly at the points that `matrices` [n, 2, 3] give for each pixel; float32.

    A point outside takes the value of the nearest point on the border.
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


def change_stains(images, factor, addition):
    """RGB images [n, s, s, 3], 0 to 255, with each stain's amount multiplied and added to; float32, 0 to 255.

    The amounts c of the stains solve `-log(rgb / 255) = c @ STAIN_DENSITIES` (Beer-Lambert; Ruifrok & Johnston 2001);
    they become `c * factor + addition` (Tellez et al. 2019), `factor` and `addition` float32 [n, 3]. Black is
    taken as 1 of 255. There and back in one affine map of the densities.
    """
    unmixing = np.linalg.inv(STAIN_DENSITIES.astype(np.float64)).astype(np.float32)
    mixing = unmixing @ (factor[:, :, None] * STAIN_DENSITIES)  # [n, 3, 3]
    added = (addition @ STAIN_DENSITIES)[:, None]
    light = tf.maximum(tf.cast(images, tf.float32), 1.0) / 255.0
    density = -tf.math.log(tf.reshape(light, [-1, images.shape[1] * images.shape[2], 3]))
    # Row by row: XLA fuses sums of three, but not a product of matrices, with the logarithm and the exponential.
    changed = added + sum(density[:, :, stain, None] * mixing[:, None, stain] for stain in range(3))
    return tf.reshape(tf.minimum(255.0 * tf.exp(-changed), 255.0), tf.shape(images))


def _check(shape, augmentation: Augmentation) -> None:
    if shape.rank != 4 or None in shape[1:] or shape[1] != shape[2]:
        raise InputError(f"Images to augment must be [n, side, side, channels], not {shape}. Give square images.")
    if augmentation.stain_jitter and shape[3] != 3:
        raise InputError(
            f"Stain jitter needs images with 3 colours, not {shape[3]} channel(s). Switch it off for grey images."
        )
    for name, strength in vars(augmentation).items():
        if strength < 0:
            raise InputError(f"Augmentation {name} must be 0 or more, not {strength}.")
    if augmentation.zoom >= 1:
        raise InputError(f"Augmentation zoom is a share of the side below 1, not {augmentation.zoom}.")


@functools.cache
def _augmenter(augmentation: Augmentation):
    """The graph of one augmentation, traced once a shape of images."""
    moves = replace(augmentation, stain_jitter=0.0) != Augmentation()

    @tf.function(jit_compile=_FUSED)
    def change(images, matrices, stain_jitter):
        if moves:
            images = warp_images(images, matrices)
        if augmentation.stain_jitter:
            images = change_stains(images, 1 + stain_jitter[0], MEAN_STAIN * stain_jitter[1])
        return tf.cast(images, tf.float32)

    # Drawn outside of what is fused: XLA draws other numbers from the same key, and takes seconds to compile them.
    @tf.function
    def augment(images, seed, epoch, step):
        count = tf.shape(images)[0]
        key = tf.random.fold_in(tf.stack([seed, epoch]), step, alg="philox")
        matrices = _draw_matrices(_draw([9, count], key, _GEOMETRY), augmentation, images.shape[1])
        stain_jitter = (2 * _draw([2, count, 3], key, _STAIN) - 1) * augmentation.stain_jitter
        return change(images, matrices, stain_jitter)

    return augment


def _draw(shape, key, use: int):
    """Uniform numbers from 0 to 1 out of the use's own stream; the algorithm is named, or it may differ by device."""
    key = tf.random.fold_in(key, tf.cast(use, tf.int64), alg="philox")
    return tf.random.stateless_uniform(shape, key, alg="philox")


def _draw_matrices(draws, augmentation: Augmentation, side: int):
    """Inverse matrices [n, 2, 3] from draws [9, n]."""
    rotation, shear, zoom_x, zoom_y, shift_x, shift_y = tf.unstack(2 * draws[3:] - 1)
    matrices = inverse_matrices(
        side,
        rotation=rotation * np.deg2rad(augmentation.rotation_degrees),
        shear=shear * np.deg2rad(augmentation.shear_degrees),
        zoom_x=1 + zoom_x * augmentation.zoom,
        zoom_y=1 + zoom_y * augmentation.zoom,
        shift_x=shift_x * augmentation.shift * side,
        shift_y=shift_y * augmentation.shift * side,
    )
    mirror, upend = tf.unstack((draws[:2] < 0.5) & augmentation.flips)
    turns = tf.cast(draws[2] * 4, tf.int32) * int(augmentation.quarter_turns)
    return orient_matrices(matrices, mirror, upend, turns, side=side)
