"""Random changes to training batches: by hand, against Keras and scikit-image, eagerly and in tf.data."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from keras.src.legacy.preprocessing.image import apply_affine_transform
from skimage.color import hed2rgb, rgb2hed

from cancernet import InputError
from cancernet.config import TUTORIAL_AUGMENTATION, Augmentation
from cancernet.training import augment
from cancernet.training.augment import augment_batch, change_stains, inverse_matrices, orient_matrices, warp_images

SIDE = 9
EVERYTHING = replace(TUTORIAL_AUGMENTATION, quarter_turns=True, stain_jitter=0.3)
# skimage counts densities in units of log(1e6)
SKIMAGE_UNIT = -math.log(1e-6)


@pytest.fixture
def images():
    return np.random.default_rng(5).integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8)


def warp_one(image, **move):
    return warp_images(image[None], inverse_matrices(SIDE, **move)[None])[0].numpy()


def change(images, augmentation, *, seed=1, epoch=2, step=3):
    return augment_batch(images, augmentation, seed=seed, epoch=epoch, step=step).numpy()


@pytest.mark.parametrize(
    ("move", "rows", "columns"),
    [
        ({"shift": (2.0, 0.0)}, range(9), [2, 3, 4, 5, 6, 7, 8, 8, 8]),
        ({"shift": (-1.0, 0.0)}, range(9), [0, 0, 1, 2, 3, 4, 5, 6, 7]),
        ({"shift": (0.0, 3.0)}, [3, 4, 5, 6, 7, 8, 8, 8, 8], range(9)),
        ({"shift": (0.0, -9.0)}, [0] * 9, range(9)),
        ({"zoom": (2.0, 1.0)}, range(9), [0, 0, 0, 2, 4, 6, 8, 8, 8]),
    ],
)
def test_whole_pixels_move_as_counted_and_the_border_is_repeated(images, move, rows, columns):
    np.testing.assert_array_equal(warp_one(images[0], **move), images[0][rows][:, columns])


def test_half_a_pixel_is_the_mean_of_two(images):
    image = images[0].astype(float)
    np.testing.assert_allclose(
        warp_one(images[0], shift=(0.5, 0.0))[:, :-1], (image[:, :-1] + image[:, 1:]) / 2, atol=1e-4
    )


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_rotation_is_counter_clockwise_about_the_centre(images, quarters):
    turned = warp_one(images[0], rotation=quarters * math.pi / 2)
    np.testing.assert_allclose(turned, np.rot90(images[0], quarters), atol=1e-3)


@pytest.mark.parametrize(
    "move",
    [
        {"theta": 20.0},
        {"shear": 15.0},
        {"zx": 0.8, "zy": 1.3},
        {"tx": 1.7, "ty": -2.2},
        {"theta": -33.0, "tx": 0.9, "ty": 1.1, "shear": 8.0, "zx": 1.2, "zy": 0.7},
    ],
)
@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")
def test_geometry_is_that_of_keras(images, move):
    expected = apply_affine_transform(images[0].astype(np.float64), **move, row_axis=0, col_axis=1, channel_axis=2)
    ours = warp_one(
        images[0],
        rotation=math.radians(move.get("theta", 0.0)),
        shear=math.radians(move.get("shear", 0.0)),
        shift=(move.get("tx", 0.0), move.get("ty", 0.0)),
        zoom=(move.get("zx", 1.0), move.get("zy", 1.0)),
    )
    np.testing.assert_allclose(ours, expected, atol=0.01)


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize(("mirror", "upend", "turns"), [(m, u, t) for m in (0, 1) for u in (0, 1) for t in range(4)])
def test_flips_and_quarter_turns_are_exact(side, mirror, upend, turns):
    image = np.random.default_rng(0).random((side, side, 1), dtype=np.float32) * 255
    expected = image[:, ::-1] if mirror else image
    expected = expected[::-1] if upend else expected
    matrices = orient_matrices(inverse_matrices(side)[None], [bool(mirror)], [bool(upend)], [turns], side=side)
    np.testing.assert_array_equal(warp_images(image[None], matrices)[0], np.rot90(expected, turns))


def test_images_are_warped_before_they_are_flipped_and_turned(images):
    move = {"rotation": 0.4, "zoom": (1.2, 1.0), "shift": (2.0, -1.0)}
    expected = np.rot90(warp_one(images[0], **move)[:, ::-1])
    matrices = orient_matrices(inverse_matrices(SIDE, **move)[None], [True], [False], [1], side=SIDE)
    np.testing.assert_allclose(warp_images(images[:1], matrices)[0], expected, atol=0.01)


@pytest.mark.parametrize(
    ("augmentation", "expected"),
    [
        (Augmentation(horizontal_flip=True), {(0, 0), (1, 0)}),
        (Augmentation(horizontal_flip=True, vertical_flip=True), {(0, 0), (0, 2), (1, 0), (1, 2)}),
        (Augmentation(quarter_turns=True), {(0, 0), (0, 1), (0, 2), (0, 3)}),
        (
            Augmentation(horizontal_flip=True, vertical_flip=True, quarter_turns=True),
            {(mirror, turns) for mirror in (0, 1) for turns in range(4)},
        ),
    ],
)
def test_flips_and_turns_come_equally_often_and_no_others_come(augmentation, expected):
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    changed = change(np.repeat(image[None], 4000, axis=0), augmentation)
    shares = {
        (mirror, turns): (changed == np.rot90(image[:, ::-1] if mirror else image, turns)).all(axis=(1, 2, 3)).mean()
        for mirror in (0, 1)
        for turns in range(4)
    }
    assert {orientation for orientation, share in shares.items() if share} == expected
    for orientation in expected:
        assert shares[orientation] == pytest.approx(1 / len(expected), abs=0.03)  # standard deviation 0.007 at most


def ramp(count, side=21):
    """Images whose first channel is x and whose second is y, so that a pixel tells where it was read."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    return np.repeat(np.stack([x, y], axis=-1)[None], count, axis=0)


def slopes(changed):
    """(dx/dx, dy/dx, dx/dy, dy/dy) at the centre of ramps: the matrix that was drawn."""
    across, down = changed[:, 10, 11] - changed[:, 10, 10], changed[:, 11, 10] - changed[:, 10, 10]
    return across[:, 0], across[:, 1], down[:, 0], down[:, 1]


def assert_uniform(values, bound):
    """Values drawn uniformly from -bound to bound: range, mean and standard deviation (bound / sqrt(3))."""
    assert np.abs(values).max() <= bound * 1.001
    assert np.abs(values).max() > 0.95 * bound
    assert abs(values.mean()) < 0.08 * bound
    assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.06)


def test_each_strength_is_drawn_from_its_whole_range():
    batch = ramp(1000)
    across_x, across_y, _, _ = slopes(change(batch, Augmentation(rotation_degrees=20)))
    assert_uniform(np.degrees(np.arctan2(across_y, across_x)), 20)

    zoom_x, _, _, zoom_y = slopes(change(batch, Augmentation(zoom=0.2)))
    assert_uniform(zoom_x - 1, 0.2)
    assert_uniform(zoom_y - 1, 0.2)
    assert abs(np.corrcoef(zoom_x, zoom_y)[0, 1]) < 0.1

    shifted = change(batch, Augmentation(shift=0.2))[:, 10, 10] - 10
    assert_uniform(shifted[:, 0], 0.2 * 21)
    assert_uniform(shifted[:, 1], 0.2 * 21)
    assert abs(np.corrcoef(shifted.T)[0, 1]) < 0.1

    _, _, sheared, _ = slopes(change(batch, Augmentation(shear_degrees=5)))
    assert_uniform(np.degrees(np.arcsin(-sheared)), 5)


@pytest.mark.parametrize("stain", [0, 1, 2])
def test_stains_change_as_in_skimage(stain):
    densities = np.random.default_rng(1).uniform(0.005, 0.02, (1, 5, 5, 3))  # no stain below 0, which skimage cuts
    rgb = hed2rgb(densities)
    factor, addition = np.ones((1, 3), np.float32), np.zeros((1, 3), np.float32)
    factor[0, stain], addition[0, stain] = 1.3, 0.04
    expected = rgb2hed(rgb)
    expected[..., stain] = expected[..., stain] * 1.3 + 0.04 / SKIMAGE_UNIT
    ours = change_stains((rgb * 255).astype(np.float32), factor, addition)
    np.testing.assert_allclose(ours, hed2rgb(expected) * 255, atol=0.01)


def test_no_change_of_stain_is_the_identity_within_one_grey_level():
    grey = np.linspace(0, 255, 256).astype(np.uint8)
    image = np.stack([grey, grey[::-1], np.roll(grey, 77)], axis=-1).reshape(1, 16, 16, 3)
    same = change_stains(image, np.ones((1, 3), np.float32), np.zeros((1, 3), np.float32)).numpy()
    np.testing.assert_allclose(same, image, atol=1.001)
    np.testing.assert_allclose(same[image > 0], image[image > 0], atol=0.01)  # only black is taken as 1


def test_stain_jitter_draws_a_factor_and_an_addition_for_each_stain_of_each_image():
    weak, strong = (hed2rgb(np.full((1, 1, 3), level)) * 255 for level in (0.01, 0.03))
    batch = np.repeat(np.stack([weak, strong], axis=1).repeat(2, axis=0)[None], 2000, axis=0)
    batch = batch.reshape(2000, 2, 2, 3).astype(np.float32)
    light = np.log(change(batch, Augmentation(stain_jitter=0.3)).reshape(2000, 4, 3) / 255)
    stains = -light @ np.linalg.inv(augment.STAIN_DENSITIES.astype(float))
    factor = (stains[:, 1] - stains[:, 0]) / (0.02 * SKIMAGE_UNIT)
    addition = stains[:, 0] - factor * 0.01 * SKIMAGE_UNIT
    for stain in range(3):
        assert_uniform(factor[:, stain] - 1, 0.3)
        assert_uniform(addition[:, stain], 0.3 * augment.MEAN_STAIN)
    drawn = np.corrcoef(np.concatenate([factor, addition], axis=1).T)
    assert np.abs(drawn - np.eye(6)).max() < 0.1


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("augmentation", [EVERYTHING, TUTORIAL_AUGMENTATION, Augmentation(stain_jitter=0.9)])
def test_results_are_float32_between_0_and_255(images, dtype, augmentation):
    images[:2], images[2:4] = 0, 255
    changed = change(images.astype(dtype), augmentation)
    assert changed.dtype == np.float32
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 255


def test_with_everything_off_images_come_back_unchanged(images):
    changed = change(images, Augmentation())
    assert changed.dtype == np.float32
    np.testing.assert_array_equal(changed, images)


def test_a_step_is_repeated_by_its_key_and_no_other_is_the_same(images):
    first = change(images, EVERYTHING)
    np.testing.assert_array_equal(change(images, EVERYTHING), first)
    keys = tf.constant(1), np.int64(2), tf.constant(3, tf.int64)
    tensors = augment_batch(images, EVERYTHING, seed=keys[0], epoch=keys[1], step=keys[2])
    np.testing.assert_array_equal(tensors, first)
    others = [{"seed": 2}, {"epoch": 3}, {"step": 4}, {"seed": 2, "epoch": 1}, {"epoch": 3, "step": 2}]
    for key in others:
        assert np.abs(change(images, EVERYTHING, **key) - first).mean() > 5


def test_images_of_a_batch_are_changed_differently(images):
    same = np.repeat(images[:1], 6, axis=0)
    changed = change(same, TUTORIAL_AUGMENTATION)
    assert all(np.abs(changed[i] - changed[j]).mean() > 1 for i in range(6) for j in range(i))


def test_the_stains_do_not_follow_the_geometry(images):
    flat = np.full_like(images, (180, 120, 190))  # a warp leaves it as it is
    alone = change(flat, Augmentation(stain_jitter=0.3))
    np.testing.assert_allclose(change(flat, EVERYTHING), alone, atol=0.01)


def test_the_stains_do_not_share_the_geometrys_numbers():
    weak, strong = (hed2rgb(np.full((1, 1, 3), level))[0, 0] * 255 for level in (0.01, 0.03))
    image = np.float32([[weak, strong], [weak, strong]])[None]
    mirrored, factors = [], []
    for step in range(200):
        left, right = -np.log(
            change(image, Augmentation(horizontal_flip=True, vertical_flip=True, stain_jitter=0.3), step=step)[0, 0]
            / 255
        )
        mirrored.append(left[0] > right[0])
        factors.append(np.abs(right - left) @ np.linalg.inv(augment.STAIN_DENSITIES))
    follows = np.corrcoef(np.column_stack([mirrored, factors]).T)[0, 1:]
    assert np.abs(follows).max() < 0.25  # standard deviation 0.07


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(rotation_degrees=20),
        Augmentation(zoom=0.1),
        Augmentation(shift=0.1),
        Augmentation(shear_degrees=5),
        Augmentation(horizontal_flip=True, vertical_flip=True),
        Augmentation(quarter_turns=True),
        Augmentation(stain_jitter=0.2),
        Augmentation(),
        EVERYTHING,
    ],
)
def test_the_same_eagerly_and_in_tf_data_with_a_batch_of_any_size(images, augmentation):
    batches = tf.data.Dataset.from_tensor_slices(images).batch(4).enumerate()
    assert batches.element_spec[1].shape[0] is None
    changed = batches.map(lambda step, batch: augment_batch(batch, augmentation, seed=1, epoch=2, step=step))
    again = list(changed.as_numpy_iterator())
    for step, (ours, batch) in enumerate(zip(changed, (images[:4], images[4:]), strict=True)):
        np.testing.assert_allclose(ours, change(batch, augmentation, step=step), atol=0.001)
        np.testing.assert_array_equal(ours, again[step])


def test_the_graph_gives_the_same_fused_and_not(images, monkeypatch):
    fused = change(images, EVERYTHING)
    monkeypatch.setattr(augment, "_USE_XLA", not augment._USE_XLA)
    augment._augmenter.cache_clear()
    try:
        np.testing.assert_allclose(change(images, EVERYTHING), fused, atol=0.05)
    finally:
        augment._augmenter.cache_clear()


def test_grey_images_are_warped_but_have_no_stains(images):
    grey = images[..., :1]
    colours = change(images, TUTORIAL_AUGMENTATION)
    np.testing.assert_allclose(change(grey, TUTORIAL_AUGMENTATION), colours[..., :1], atol=1e-3)
    with pytest.raises(InputError, match=r"Stain jitter needs images with 3 colours, not 1 channel\(s\)"):
        change(grey, Augmentation(stain_jitter=0.1))
