"""A run in another format: one file that answers raw images without this project, proven to answer as the run does.

What is exported judges each image alone: the mean over the run's views, calibrated. Smoothing over a slide's neighbours
needs the slide, and stays with the run.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from cancernet import InputError
from cancernet.data.images import ImageStore
from cancernet.evaluation.decision import Decision, calibrate
from cancernet.models.test_time_augmentation import list_views
from cancernet.run import Run
from cancernet.storage import fresh_folder
from cancernet.training.scoring import BATCH, predict_scores

DESCRIPTION = "model.json"
TOLERANCE = 1e-5  # of a probability
_INSTALL = 'pip install ".[export]"'


class Format(NamedTuple):
    """A format that a run is exported to."""

    file: str  # in the folder of the export; "" where the folder itself is what is loaded
    called: str  # by `keras.Model.export`
    packages: tuple[str, ...]  # that are needed beside our own, as they are imported


FORMATS = {
    "onnx": Format("model.onnx", "onnx", ("onnx", "tf2onnx", "onnxruntime")),
    "litert": Format("model.tflite", "litert", ("ai_edge_litert",)),
    "saved_model": Format("", "tf_saved_model", ()),
}


def check_packages(name: str) -> None:
    """See that the packages of a format are installed.

    Raises:
        InputError: one is not.
    """
    for package in FORMATS[name].packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(f"--format {name} needs {package}, which is not installed: {_INSTALL}")


def export_run(run: Run, name: str, images: ImageStore) -> tuple[Path, float]:
    """Export a run to the folder `name` in the run folder; it is there only once its answers were found to be equal.

    Args:
        name: one of FORMATS.
        images: that the run and the export are both asked for.

    Returns:
        The folder, and the largest difference of a probability.

    Raises:
        InputError: a probability differs by more than TOLERANCE, an image cannot be used, or the disk is full.
    """
    wanted, alone = FORMATS[name], run.decision.without_neighbours or run.decision
    own = calibrate(alone, predict_scores(run.model, images, views=run.settings.experiment.views))
    network = build_answering(run.model, alone, run.settings.experiment.views)
    folder = run.folder / name
    with fresh_folder(folder) as work:
        path = work / wanted.file
        network(images.fetch(np.arange(1)))  # Keras exports to ONNX only what was called
        network.export(path, format=wanted.called, verbose=False)
        answer = _OPEN[name](path)
        answers = [answer(batch) for batch in _batches(images)]
        difference = float(np.abs(np.concatenate(answers) - own).max())
        if not difference <= TOLERANCE:
            raise InputError(
                f"The {name} export gives probabilities that differ by up to {difference:.2g} from the run's, more "
                f"than {TOLERANCE:g}: it was not kept. Use model.keras, or another --format."
            )
        description = describe_export(run, alone, len(images), difference)
        (work / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return folder, difference


def build_answering(model: keras.Model, decision: Decision, views: str) -> keras.Model:
    """Build the network from raw images to calibrated probabilities: `model` over its views, then the calibration.

    The views are put into one batch, so that the network is in the graph once.

    Args:
        model: raw images to probabilities.
        decision: its temperature and bias count; it must not smooth over neighbours.
        views: as `views.average_over_views`.

    Returns:
        float32 [n, s, s, c] of 0 to 255 -> float32 [n, classes].
    """
    _hold_constants(model)
    image = keras.Input(model.input_shape[1:], dtype="float32", name="image")
    seen = list_views(image, views)
    outputs = model(keras.ops.concatenate(seen, axis=0))
    classes = outputs.shape[-1]
    mean = keras.ops.mean(keras.ops.reshape(outputs, (len(seen), -1, classes)), axis=0)
    scores = keras.ops.log(keras.ops.maximum(mean, float(np.finfo(np.float32).tiny)))  # as scoring.log_scores
    calibration = keras.layers.Dense(classes, activation="softmax", name="probabilities")
    network = keras.Model(image, calibration(scores))
    calibration.set_weights([np.eye(classes) / decision.temperature, np.array(decision.bias)])
    return network


def describe_export(run: Run, decision: Decision, images: int, difference: float) -> dict:
    """What a program needs beside the file to decide: classes, threshold, size of images; and how it was checked."""
    settings = run.settings
    return {
        "image_size": settings.experiment.image_size,
        "channels": settings.experiment.channels,
        "values": "RGB (of one channel: grey), 0 to 255, float32",
        "classes": list(settings.classes),
        "class_names": settings.class_names,
        "positive": decision.positive,
        "threshold": decision.threshold,
        "operating_point": decision.operating_point,
        "checked": {"images": images, "largest_difference": difference},
        "versions": settings.versions,
    }


def _hold_constants(model: keras.Model) -> None:
    """Let normalisation layers hold arrays: a converter to ONNX takes the tensors they hold for inputs of the file."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _hold_constants(layer)
        elif isinstance(layer, keras.layers.Normalization):
            layer.mean, layer.variance = map(keras.ops.convert_to_numpy, (layer.mean, layer.variance))


def _batches(images: ImageStore) -> list[np.ndarray]:
    rows = np.arange(len(images))
    return [images.fetch(rows[start : start + BATCH]).astype(np.float32) for start in range(0, len(rows), BATCH)]


def _open_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": images})[0]


def _open_litert(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    answer = Interpreter(str(path)).get_signature_runner()
    return lambda images: next(iter(answer(image=images).values()))


def _open_saved_model(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    layer = keras.layers.TFSMLayer(path, call_endpoint="serve")
    return lambda images: keras.ops.convert_to_numpy(layer(images))


_OPEN = {"onnx": _open_onnx, "litert": _open_litert, "saved_model": _open_saved_model}
