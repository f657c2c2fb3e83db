"""Backbone weights: checked against the network, then loaded, from a file or by Keras itself."""

from collections import Counter
from pathlib import Path

import h5py
import keras

from cancernet import InputError


def build_with_imagenet_weights(constructor: str, pixels: keras.KerasTensor) -> keras.Model:
    """Build a backbone of keras.applications without its top, with the ImageNet weights that Keras publishes.

    Keras downloads them once into its cache folder and checks the file's hash, so that a partial download is not used.

    Args:
        constructor: name in keras.applications.
        pixels: preprocessed images [n, size, size, 3].

    Raises:
        InputError: the download failed.
    """
    construct = getattr(keras.applications, constructor)
    try:
        return construct(include_top=False, weights="imagenet", input_tensor=pixels)
    except Exception as error:  # Keras raises a plain Exception, and sockets raise many kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(
            f"Cannot download the ImageNet weights of {constructor} ({reason}). Download them on a machine with "
            "internet access, and give the file with --weights FILE."
        ) from error


def load_backbone_weights(backbone: keras.Model, name: str, file: Path) -> None:
    """Load a file of weights into a backbone.

    Keras also reads a file of a wider network, or of one with more layers, as far as the names go. So the shapes of all
    arrays are compared first.

    Args:
        backbone: a network without its top.
        name: its name in keras.applications, for error messages.
        file: HDF5, written by Keras 3 (`.weights.h5`) or Keras 2 (`.h5`, such as the published ImageNet weights).

    Raises:
        InputError: the file is missing, unreadable or belongs to another network.
    """
    expected = f"the weights of keras.applications.{name} without its top (include_top=False)"
    try:
        shapes, is_keras_2 = _count_shapes(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read as HDF5 ({error}). Give a file of {expected}.") from error
    wanted = Counter(tuple(weight.shape) for weight in backbone.weights)
    if shapes != wanted:
        raise InputError(
            f"{file} belongs to another network: its {shapes.total()} arrays do not have the shapes of the network's "
            f"{wanted.total()}. Give a file of {expected}, or choose the --model of this file."
        )
    # Keras chooses the reader by the file's name, not by its content.
    if file.name.endswith(".weights.h5") == is_keras_2 or file.suffix not in (".h5", ".hdf5"):
        ending = ".h5 (and not .weights.h5)" if is_keras_2 else ".weights.h5"
        raise InputError(f"Keras does not read {file} under this name. Rename it to end in {ending}.")
    try:
        backbone.load_weights(file)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{file} does not fit the network: {reason} Give a file of {expected}.") from error


def _count_shapes(file: Path) -> tuple[Counter[tuple[int, ...]], bool]:
    """Count the arrays of each shape in a file, without an optimizer's; return also whether Keras 2 wrote it."""
    shapes: Counter[tuple[int, ...]] = Counter()

    def count(path: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset) and not path.startswith("optimizer") and "seed_generator" not in path:
            shapes[item.shape] += 1

    with h5py.File(file, "r") as content:
        group = content.get("model_weights", content)
        group.visititems(count)
        return shapes, "layer_names" in group.attrs
