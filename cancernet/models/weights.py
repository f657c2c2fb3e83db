"""Files of backbone weights: found or downloaded, checked against the network, loaded."""

import http.client
import os
import tempfile
import urllib.request
from collections import Counter
from pathlib import Path

import h5py
import keras

from cancernet import InputError
from cancernet.models.architectures import Architecture

APPLICATIONS = "https://storage.googleapis.com/tensorflow/keras-applications/"  # where Keras publishes the weights
TIMEOUT_SECONDS = 20
BLOCK_BYTES = 1 << 18


def find_imagenet_weights(architecture: Architecture) -> Path:
    """Return the file of ImageNet weights in Keras' own cache folder; download it if it is not there yet.

    Raises:
        InputError: it cannot be downloaded; the message says where the file can be put instead.
    """
    address = APPLICATIONS + architecture.imagenet
    keras_folder = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    file = keras_folder / "models" / architecture.imagenet.rpartition("/")[2]
    if file.exists():
        return file
    try:
        fetch(address, file)
    except (OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise InputError(
            f"Could not fetch the ImageNet weights of {architecture.backbone} ({reason}). Download "
            f"{address} where there is a network and put it at {file}, or give it with --weights FILE."
        ) from error
    return file


def fetch(address: str, file: Path) -> None:
    """Download an address to a file, with a progress bar. The file appears only when the download is complete.

    Raises:
        OSError: no network, refused, cut short, or the disk is full.
        http.client.HTTPException: the server's answer is not HTTP.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        part = Path(folder) / file.name
        with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as response, part.open("wb") as output:
            expected = int(response.headers.get("Content-Length", 0)) or None
            progress = keras.utils.Progbar(expected, unit_name="byte")
            while block := response.read(BLOCK_BYTES):
                output.write(block)
                progress.add(len(block))
        if expected and part.stat().st_size != expected:
            raise OSError(f"got {part.stat().st_size} of {expected} bytes")
        os.replace(part, file)


def load_backbone_weights(backbone: keras.Model, name: str, file: Path) -> None:
    """Put the weights of a file into a backbone, all of them or none.

    Keras also reads a file of a wider network, or of one with more layers, as far as it needs it. So the shapes of all
    arrays are compared first.

    Args:
        backbone: a built network without its top.
        name: its name in keras.applications, for the message.
        file: HDF5 as Keras 3 writes it (`.weights.h5`) or as it did before (`.h5`, as the published ImageNet weights).

    Raises:
        InputError: the file is missing, unreadable or another network's; the message names the file, the backbone and
            what to do.
    """
    expected = f"the weights of keras.applications.{name} without its top (include_top=False)"
    shapes, is_former = read_shapes(file, expected)
    wanted = Counter(tuple(weight.shape) for weight in backbone.weights)
    if shapes != wanted:
        raise InputError(
            f"{file} is of another network: {describe_difference(shapes, wanted)}. Give a file of {expected}, or "
            "choose the --model that the file belongs to."
        )
    # Keras chooses the reader by the file's name, not by what is in it.
    if file.name.endswith(".weights.h5") == is_former or file.suffix not in (".h5", ".hdf5"):
        ending = ".h5 (and not .weights.h5)" if is_former else ".weights.h5"
        raise InputError(f"{file} has a name that Keras does not read. Rename it to end in {ending}.")
    try:
        backbone.load_weights(file)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{file} does not fit the network: {reason} Give a file of {expected}.") from error


def read_shapes(file: Path, expected: str) -> tuple[Counter[tuple[int, ...]], bool]:
    """Count how often each shape of a weight occurs in a file; say whether it has the form of Keras 2.

    What an optimizer or a random generator left in the file does not count.

    Args:
        file: to read.
        expected: what the file should be, for the message.

    Raises:
        InputError: the file is missing or not HDF5.
    """
    shapes = Counter()

    def count(path: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset) and not path.startswith("optimizer") and "seed_generator" not in path:
            shapes[item.shape] += 1

    try:
        with h5py.File(file, "r") as content:
            group = content.get("model_weights", content)
            group.visititems(count)
            return shapes, "layer_names" in group.attrs
    except OSError as error:
        raise InputError(f"{file} cannot be read as HDF5 ({error}). Give a file of {expected}.") from error


def describe_difference(found: Counter, wanted: Counter) -> str:
    """Say in one phrase how two counts of shapes differ: in the number of arrays, or else in the first shape."""
    if found.total() != wanted.total():
        return f"it holds {found.total()} arrays, where the network has {wanted.total()}"
    shape = next(shape for shape in wanted if found[shape] != wanted[shape])
    return f"it holds {found[shape]} arrays of shape {shape}, where the network has {wanted[shape]}"
