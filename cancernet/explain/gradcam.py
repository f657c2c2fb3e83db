"""Grad-CAM: which regions of an image support a class."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import cv2
import keras
import numpy as np
from keras import layers, ops

from cancernet import InputError
from cancernet.models.structure import list_layers

CONVOLUTIONS = (layers.Conv2D, layers.SeparableConv2D, layers.DepthwiseConv2D)
# Layers that only pool, shift or scale feature maps.
NOT_MAPS = (layers.MaxPooling2D, layers.AveragePooling2D, layers.BatchNormalization, layers.Dropout)
MIN_PLACES = 20  # least rows and columns of the maps, unless a network averages maps into features
OPACITY = 0.7  # of the overlay where the heat is 1
_BATCH = 32  # images at a time
_hooks_lock = threading.Lock()  # hooks on the layers of a model are not thread-safe


def grad_cam(model: keras.Model, images: np.ndarray, class_index: int | np.ndarray) -> np.ndarray:
    """Locate the evidence for a class in each image (Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2).

    The feature maps are the output of the last convolution, or of its activation, with at least MIN_PLACES a side:
    24x24 for CancerNet at 48 pixels, whose last maps, 12x12, highlight the same square in every image
    (docs/gradcam.md). If no maps are large enough, the last are used. A transfer model averages maps of four sizes into
    its features, 56x56 to 7x7 at 224 pixels; all are weighted and added on the finest grid. The gradient is that of the
    score before the softmax. Dropout is off, and batch normalization uses its stored statistics.

    Images are [n, height, width, channels], 0 to 255, of the model's size; the class is one for all or [n]. Returns
    float32 [n, height, width]; the maximum of an image is 1, or 0 where no region supports the class. Raises InputError
    if the model has no convolutional maps or does not end in a softmax.
    """
    classes = np.broadcast_to(np.asarray(class_index), len(images))
    heat = np.zeros(images.shape[:3], np.float32)
    for start in range(0, len(images), _BATCH):
        rows = slice(start, start + _BATCH)
        weighted = _weight_maps(model, images[rows], classes[rows])
        heat[rows] = [_join_maps(of_image, images.shape[1:3]) for of_image in zip(*weighted, strict=True)]
    return heat


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Draw heat [height, width], 0 to 1, over an image [height, width, 1 or 3], 0 to 255: uint8 RGB [height, width, 3].

    The colours go from violet through green to yellow; heat of 0 leaves the image unchanged.
    """
    image = np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float32)
    levels = np.rint(np.clip(heat, 0, 1) * 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    opacity = OPACITY * np.clip(heat, 0, 1)[..., None]
    return np.rint(image * (1 - opacity) + colours * opacity).astype(np.uint8)


def find_maps_layers(model: keras.Model) -> list[keras.Layer]:
    """Find the layers whose feature maps Grad-CAM weights, also in nested models; InputError if there are none.

    It is the one layer whose output is the last maps; or, where maps of several sizes are averaged into features, these
    pooling layers, whose inputs are the maps. For an ensemble, the layers of all members.
    """
    members = [layer for layer in model.layers if layer.name.startswith("member_")]
    if members:
        return [layer for member in members for layer in find_maps_layers(member)]
    maps, pooling = _find_maps(model)
    if not maps:
        raise InputError(
            f"Grad-CAM needs convolutional feature maps; the model {model.name} has none. Use another model."
        )
    if pooling:
        return pooling if len(pooling) > 1 else maps[:1]
    large = [layer for layer in maps if min(layer.output.shape[1:3]) >= MIN_PLACES]
    return (large or maps)[:1]


def _find_maps(model: keras.Model) -> tuple[list[keras.Layer], list[keras.Layer]]:
    """Find layers that return maps, and after the last of these the layers that average maps; the last comes first."""
    maps: list[keras.Layer] = []
    pooling: list[keras.Layer] = []
    after = None
    for layer in reversed(list_layers(model)):
        if not maps and after is None and isinstance(layer, layers.GlobalAveragePooling2D):
            pooling += [layer] if _has_places(layer.input.shape) else []
        if after is None and not isinstance(layer, NOT_MAPS) and _has_places(layer.output.shape):
            after = layer
        if after is not None and isinstance(layer, CONVOLUTIONS):
            maps.append(after)
            after = None
    return maps, pooling


def _find_last_layer(model: keras.Model) -> keras.Layer:
    layer = list_layers(model)[-1]
    if isinstance(layer, layers.Softmax) or getattr(layer, "activation", None) is keras.activations.softmax:
        return layer
    raise InputError(
        f"Grad-CAM needs a model that ends in a softmax; {model.name} ends in {layer.name}, a {type(layer).__name__}."
    )


def _has_places(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[1] * shape[2] > 1


def _weight_maps(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> list[np.ndarray]:
    """Weight the maps of each layer by the mean gradients of each image's score, and sum them: [n, rows, columns]."""
    maps_layers, last_layer = find_maps_layers(model), _find_last_layer(model)
    images = np.asarray(images, np.float32)
    chosen = np.eye(model.output_shape[-1], dtype=np.float32)[classes]

    def score(offsets: list[np.ndarray]) -> tuple:
        """Sum the scores of the images' classes with `offsets` added to the outputs of the layers; also return maps."""
        maps: dict[keras.Layer, np.ndarray] = {}
        before_softmax = []

        def add(layer, offset, inputs, outputs):
            maps[layer] = outputs if _has_places(outputs.shape) else inputs
            return outputs + ops.cast(offset, outputs.dtype)

        def keep_input(features, probabilities):
            before_softmax.append(features)
            return probabilities

        hooks = {layer: partial(add, layer, offset) for layer, offset in zip(maps_layers, offsets, strict=True)}
        with _hooked({**hooks, last_layer: keep_input}):
            model(images, training=False)
        (logits,) = before_softmax
        if isinstance(last_layer, layers.Dense):
            logits = ops.matmul(logits, ops.cast(last_layer.kernel, logits.dtype))
            logits = logits if last_layer.bias is None else logits + ops.cast(last_layer.bias, logits.dtype)
        return ops.sum(ops.cast(logits, "float32") * chosen), [maps[layer] for layer in maps_layers]

    zeros = [np.zeros((len(images), *layer.output.shape[1:]), np.float32) for layer in maps_layers]
    with _hooks_lock:
        gradients, maps = _differentiate(score, zeros)
    return [_weight(*sides) for sides in zip(maps, gradients, strict=True)]


def _differentiate(function: Callable[[list], tuple], points: list[np.ndarray]) -> tuple[list, list]:
    """Compute gradients of the first value of `function` by each of `points`, and its second value; Keras cannot."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tensors = [tf.convert_to_tensor(point) for point in points]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value, others = function(tensors)
        return tape.gradient(value, tensors), others
    import jax

    return jax.grad(function, has_aux=True)(points)


def _weight(maps: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Sum maps [n, rows, columns, channels] over the channels, weighted by mean gradients: [n, rows, columns]."""
    maps, gradients = (ops.convert_to_numpy(ops.cast(each, "float32")) for each in (maps, gradients))
    if gradients.ndim == 2:  # the gradient by an average [n, channels], evenly distributed over the places
        weights = gradients[:, None, None] / np.prod(maps.shape[1:3])
    else:
        weights = gradients.mean(axis=(1, 2), keepdims=True)
    return (weights * maps).sum(axis=-1)


@contextmanager
def _hooked(hooks: dict[keras.Layer, Callable]) -> Iterator[None]:
    """Replace the output of each layer by that of its hook, called with (input, output). Keras has no hooks."""

    def call_and_hook(call, hook, inputs, *args, **kwargs):
        return hook(inputs, call(inputs, *args, **kwargs))

    for layer, hook in hooks.items():
        layer.call = partial(call_and_hook, layer.call, hook)
    try:
        yield
    finally:
        for layer in hooks:
            del layer.call  # uncovers the method of the class


def _join_maps(maps: tuple[np.ndarray, ...], shape: tuple[int, int]) -> np.ndarray:
    """Add weighted maps [rows, columns] of one image on the finest grid, and scale them up to `shape`."""
    finest = max((each.shape for each in maps), key=np.prod)
    heat = np.maximum(sum(_scale_up(each, finest) for each in maps), 0)
    if min(finest) >= MIN_PLACES:
        heat = cv2.GaussianBlur(heat, (0, 0), 1)  # a place of such fine maps sees only a few pixels
    heat = _scale_up(heat, shape)
    return heat / heat.max() if heat.max() > 0 else heat


def _scale_up(maps: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return cv2.resize(maps, shape[::-1], interpolation=cv2.INTER_LINEAR)
