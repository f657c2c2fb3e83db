"""Why the model said so: Grad-CAM, for any network that ends in a softmax, nested ones included."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    for the small CNN at 128, the backbone's last activation for transfer models. The gradient is that of the score
    before the softmax. Training is off: dropout does nothing and batch normalisation uses its stored statistics.

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
    maps_layer, last_layer = find_maps_layer(model), _find_last_layer(model)
    classes = np.broadcast_to(np.asarray(class_index), len(images))
    heat = np.zeros(images.shape[:3], np.float32)
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        with _one_at_a_time:
            maps, gradients = _maps_and_gradients(model, maps_layer, last_layer, images[rows], classes[rows])
        weights = gradients.mean(axis=(1, 2), keepdims=True)
        coarse = np.maximum((weights * maps).sum(axis=-1), 0)
        heat[rows] = [_scale_up(one, images.shape[1:3]) for one in coarse]
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


def find_maps_layer(model: keras.Model) -> keras.Layer:
    """The layer whose feature maps Grad-CAM weighs; looks into nested models.

    Raises:
        InputError: there is none.
    """
    found = None
    for layer in reversed(list(_iterate_layers(model))):
        shape = layer.output.shape
        if found is None and not isinstance(layer, NOT_MAPS) and len(shape) == 4 and np.prod(_places(shape)) > 1:
            found = layer
        if found is not None and isinstance(layer, CONVOLUTIONS):
            return found
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


def _places(shape: tuple) -> tuple:
    return shape[2:] if keras.config.image_data_format() == "channels_first" else shape[1:3]


def _maps_and_gradients(
    model: keras.Model, maps_layer: keras.Layer, last_layer: keras.Layer, images: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The feature maps and the gradient of each image's score by them, both [n, rows, columns, maps]."""
    channels_first = keras.config.image_data_format() == "channels_first"
    images = np.asarray(images, np.float32)
    images = images.transpose(0, 3, 1, 2) if channels_first else images
    heard = {}

    def keep_maps(_, maps):
        heard["maps"] = maps
        return maps

    with _listening(maps_layer, keep_maps):
        model(images, training=False)
    maps = ops.convert_to_numpy(heard["maps"]).astype(np.float32)
    chosen = np.eye(model.output_shape[-1], dtype=np.float32)[classes]

    def score(offset):
        """Sum over the images of the score of their class, were `offset` added to the feature maps."""

        def keep_logits(features, probabilities):
            heard["logits"] = _logits(last_layer, features)
            return probabilities

        with (
            _listening(maps_layer, lambda _, maps: maps + ops.cast(offset, maps.dtype)),
            _listening(last_layer, keep_logits),
        ):
            model(images, training=False)
        return ops.sum(ops.cast(heard["logits"], "float32") * chosen)

    gradients = _gradient_at_zero(score, maps.shape)
    if channels_first:
        maps, gradients = maps.transpose(0, 2, 3, 1), gradients.transpose(0, 2, 3, 1)
    return maps, gradients


def _logits(layer: keras.Layer, features):
    """What the last layer hands to its softmax."""
    if not isinstance(layer, layers.Dense):
        return features
    logits = ops.matmul(features, ops.cast(layer.kernel, features.dtype))
    return logits if layer.bias is None else logits + ops.cast(layer.bias, features.dtype)


@contextmanager
def _listening(layer: keras.Layer, hook: Callable) -> Iterator[None]:
    """While inside, the layer gives hook(its input, its output). Keras has no hooks of its own."""
    call = layer.call
    layer.call = lambda inputs, *args, **kwargs: hook(inputs, call(inputs, *args, **kwargs))
    try:
        yield
    finally:
        del layer.call  # uncovers the class's own


class _Probe(keras.Model):
    """A model whose only weight is the point at which a function is looked at, and whose loss is minus the function."""

    def __init__(self, function: Callable, shape: tuple[int, ...]):
        super().__init__(dtype="float32")
        self.function = function
        self.point = self.add_weight(shape=shape, initializer="zeros", name="point")

    def call(self, inputs):
        self.add_loss(-self.function(self.point))
        return inputs


def _gradient_at_zero(function: Callable, shape: tuple[int, ...]) -> np.ndarray:
    """Gradient of a scalar function of one array, at 0.

    Keras gives gradients to nobody but its optimizers, and each backend has its own way. One step of plain descent
    of length 1 from 0 on minus the function ends exactly at the gradient, whatever the backend.
    """
    probe = _Probe(function, shape)
    descent = keras.optimizers.SGD(learning_rate=1.0)
    probe.compile(optimizer=descent, run_eagerly=True, jit_compile=False, auto_scale_loss=False)
    probe.train_on_batch(np.zeros((1, 1), np.float32))
    return probe.get_weights()[0]


def _scale_up(coarse: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    fine = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_LINEAR)
    return fine / fine.max() if fine.max() > 0 else fine
