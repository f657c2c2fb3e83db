"""Why the model said so: Grad-CAM, for any network that ends in a softmax, nested ones included."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import cv2
import keras
import numpy as np
from keras import layers, ops

from cancernet import InputError

CONVOLUTIONS = (layers.Conv2D, layers.SeparableConv2D, layers.DepthwiseConv2D)
# Layers that only thin out, shift or scale the maps they are given.
NOT_MAPS = (
    layers.MaxPooling2D,
    layers.AveragePooling2D,
    layers.BatchNormalization,
    layers.Dropout,
    layers.SpatialDropout2D,
)
OPACITY = 0.7  # of the overlay where the heat is 1
_one_at_a_time = threading.Lock()  # the layers are listened to while a map is made


def grad_cam(
    model: keras.Model, images: np.ndarray, class_index: int | np.ndarray, *, batch_size: int = 32
) -> np.ndarray:
    """Where in each image the evidence for a class lies (Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2).

    The maps are the last ones with more than one place that a convolution or its activation gives, before the pooling,
    normalisation and dropout that may follow: 12x12 for CancerNet at 48 pixels (its pooled ones are 6x6), 28x28
    for the small CNN at 128. For transfer models, they are those that are averaged into features, 14x14 and 7x7 at 224,
    added on the finer grid: what the score is made of. The gradient is that of the score before the
    softmax. Training is off: dropout does nothing and batch normalisation uses its stored statistics.

    Args:
        model: images of 0 to 255 in, softmax out, built of Keras layers in a graph (Sequential or Functional).
        images: [n, height, width, channels], 0 to 255, as the model takes them.
        class_index: the class to explain, one for all or [n].
        batch_size: images at a time.

    Returns:
        float32 [n, height, width], 0 to 1, the largest value of an image being 1; all 0 where nothing speaks for the
        class.

    Raises:
        InputError: the model has no convolutional maps, or does not end in a softmax.
    """
    maps_layers, last_layer = find_maps_layers(model), _find_last_layer(model)
    classes = np.broadcast_to(np.asarray(class_index), len(images))
    heat = np.zeros(images.shape[:3], np.float32)
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        with _one_at_a_time:
            weighed = _weigh_maps(model, maps_layers, last_layer, images[rows], classes[rows])
        heat[rows] = [_join_maps(of_image, images.shape[1:3]) for of_image in zip(*weighed, strict=True)]
    return heat


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image with the heat on it, from violet over green to yellow; where the heat is 0 the image is as it was.

    Args:
        image: [height, width, 3] RGB or [height, width, 1] grey, 0 to 255.
        heat: [height, width], 0 to 1.

    Returns:
        uint8 RGB [height, width, 3].
    """
    image = np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float32)
    levels = np.rint(np.clip(heat, 0, 1) * 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    opacity = OPACITY * np.clip(heat, 0, 1)[..., None]
    return np.rint(image * (1 - opacity) + colours * opacity).astype(np.uint8)


def find_maps_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers whose feature maps Grad-CAM weighs; looks into nested models.

    It is the one that gives the last maps; or where several sizes of maps are averaged into features, these poolings,
    whose inputs are the maps.

    Raises:
        InputError: there is none.
    """
    found, pooling = None, []
    for layer in reversed(list(_iterate_layers(model))):
        if found is None and isinstance(layer, layers.GlobalAveragePooling2D) and _has_places(layer.input.shape):
            pooling.append(layer)
        if found is None and not isinstance(layer, NOT_MAPS) and _has_places(layer.output.shape):
            found = layer
        if found is not None and isinstance(layer, CONVOLUTIONS):
            return pooling if len(pooling) > 1 else [found]
    raise InputError(f"Grad-CAM needs convolutional feature maps; the model {model.name} has none. Use another model.")


def _find_last_layer(model: keras.Model) -> keras.Layer:
    layer = list(_iterate_layers(model))[-1]
    activation = getattr(layer, "activation", None)
    if isinstance(layer, layers.Softmax) or activation is keras.activations.softmax:
        return layer
    raise InputError(
        f"Grad-CAM needs a model that ends in a softmax; {model.name} ends in {layer.name}, a {type(layer).__name__}."
    )


def _iterate_layers(model: keras.Model) -> Iterator[keras.Layer]:
    """All layers in the order of the graph, those of nested models in their place."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _iterate_layers(layer)
        else:
            yield layer


def _has_places(shape: tuple) -> bool:
    """Whether a layer's output is maps with more than one place."""
    channels_first = keras.config.image_data_format() == "channels_first"
    return len(shape) == 4 and np.prod(shape[2:] if channels_first else shape[1:3]) > 1


def _weigh_maps(
    model: keras.Model, maps_layers: list[keras.Layer], last_layer: keras.Layer, images: np.ndarray, classes: np.ndarray
) -> list[np.ndarray]:
    """Of each layer the sum of its maps, weighed by the mean gradients of each image's score: [n, rows, columns]."""
    channels_first = keras.config.image_data_format() == "channels_first"
    images = np.asarray(images, np.float32)
    images = images.transpose(0, 3, 1, 2) if channels_first else images
    heard = {}

    def keep_maps(layer, inputs, outputs):
        heard[layer] = inputs, outputs
        return outputs

    with _listening({layer: partial(keep_maps, layer) for layer in maps_layers}):
        model(images, training=False)
    given = [[ops.convert_to_numpy(side).astype(np.float32) for side in heard[layer]] for layer in maps_layers]
    chosen = np.eye(model.output_shape[-1], dtype=np.float32)[classes]

    def score(offsets):
        """Sum over the images of the score of their class, were `offsets` added to what the layers give."""

        def keep_logits(features, probabilities):
            heard["logits"] = _logits(last_layer, features)
            return probabilities

        def add(offset, _, outputs):
            return outputs + ops.cast(offset, outputs.dtype)

        hooks = {layer: partial(add, offset) for layer, offset in zip(maps_layers, offsets, strict=True)}
        with _listening({**hooks, last_layer: keep_logits}):
            model(images, training=False)
        return ops.sum(ops.cast(heard["logits"], "float32") * chosen)

    gradients = _gradients_at_zero(score, [outputs.shape for _, outputs in given])
    return [_weigh(*sides, gradient, channels_first) for sides, gradient in zip(given, gradients, strict=True)]


def _weigh(inputs: np.ndarray, outputs: np.ndarray, gradients: np.ndarray, channels_first: bool) -> np.ndarray:
    """The maps times their mean gradients, summed; where a layer gives the means of its inputs, these are the maps."""
    maps = inputs if outputs.ndim == 2 else outputs
    maps = maps.transpose(0, 2, 3, 1) if channels_first else maps
    if outputs.ndim == 2:  # a mean's gradient is spread evenly over its places
        weights = gradients[:, None, None] / np.prod(maps.shape[1:3])
    else:
        gradients = gradients.transpose(0, 2, 3, 1) if channels_first else gradients
        weights = gradients.mean(axis=(1, 2), keepdims=True)
    return (weights * maps).sum(axis=-1)


def _logits(layer: keras.Layer, features):
    """What the last layer hands to its softmax."""
    if not isinstance(layer, layers.Dense):
        return features
    logits = ops.matmul(features, ops.cast(layer.kernel, features.dtype))
    return logits if layer.bias is None else logits + ops.cast(layer.bias, features.dtype)


@contextmanager
def _listening(hooks: dict[keras.Layer, Callable]) -> Iterator[None]:
    """While inside, each layer gives its hook's answer to (its input, its output). Keras has no hooks of its own."""

    def hear(call, hook, inputs, *args, **kwargs):
        return hook(inputs, call(inputs, *args, **kwargs))

    for layer, hook in hooks.items():
        layer.call = partial(hear, layer.call, hook)
    try:
        yield
    finally:
        for layer in hooks:
            del layer.call  # uncovers the class's own


class _Probe(keras.Model):
    """A model whose weights are the points at which a function is looked at, and whose loss is minus the function."""

    def __init__(self, function: Callable, shapes: list[tuple[int, ...]]):
        super().__init__(dtype="float32")
        self.function = function
        self.points = [self.add_weight(shape=shape, initializer="zeros") for shape in shapes]

    def call(self, inputs):
        self.add_loss(-self.function(self.points))
        return inputs


def _gradients_at_zero(function: Callable, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Gradients of a scalar function of a list of arrays by each of them, at 0.

    Keras gives gradients to nobody but its optimizers, and each backend has its own way. One step of plain descent
    of length 1 from 0 on minus the function ends exactly at the gradients, whatever the backend.
    """
    probe = _Probe(function, shapes)
    descent = keras.optimizers.SGD(learning_rate=1.0)
    probe.compile(optimizer=descent, run_eagerly=True, jit_compile=False, auto_scale_loss=False)
    probe.train_on_batch(np.zeros((1, 1), np.float32))
    return probe.get_weights()


def _join_maps(maps: tuple[np.ndarray, ...], shape: tuple[int, int]) -> np.ndarray:
    """Weighed maps [rows, columns] of one image as its heat: added on the finest one's grid, scaled up to `shape`."""
    finest = max((each.shape for each in maps), key=np.prod)
    heat = np.maximum(sum(_scale_up(each, finest) for each in maps), 0)
    heat = _scale_up(heat, shape)
    return heat / heat.max() if heat.max() > 0 else heat


def _scale_up(maps: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return cv2.resize(maps, shape[::-1], interpolation=cv2.INTER_LINEAR)
