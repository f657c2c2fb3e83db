"""Export a run to one file that predicts raw images without this project, verified to predict as the run does.

The exported network predicts each image alone: the mean over the run's test-time augmentation, calibrated. Smoothing
over neighbouring patches needs the slide and stays with the run.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from cancernet import InputError, progress
from cancernet.cli import quiet_import
from cancernet.config import DATASET, option
from cancernet.models.backend import import_keras
from cancernet.storage import fresh_folder, lock_folder, write_json

if TYPE_CHECKING:
    import keras

    from cancernet.data.images import ImageStore
    from cancernet.evaluation.decision import Decision
    from cancernet.run import Run

DESCRIPTION = "model.json"
MAX_CHECKED = 500  # images that are predicted by the run and by the export
TOLERANCE = 1e-5  # of a probability

Predict = Callable[[np.ndarray], np.ndarray]  # float32 images [n, s, s, c] to probabilities [n, classes]


class Format(NamedTuple):
    """A format that a run is exported to."""

    file: str  # in the folder of the export; "" where the folder itself is loaded
    keras_name: str  # for `keras.Model.export`
    packages: tuple[str, ...]  # that are needed in addition to our own, as they are imported


FORMATS = {
    "onnx": Format("model.onnx", "onnx", ("onnx", "tf2onnx", "onnxruntime")),
    "litert": Format("model.tflite", "litert", ("ai_edge_litert",)),
    "saved_model": Format("", "tf_saved_model", ()),
}


@dataclass(frozen=True)
class ExportOptions:
    """What to export."""

    run: Path = option(MISSING, help="Folder of a finished run, such as runs/cancernet", group="data", positional=True)
    format: Literal["onnx", "litert", "saved_model"] = option(MISSING, help="Format of the file")
    dataset: Path = option(
        DATASET, help="Dataset whose images verify the export; if there is none, the run's samples do", group="data"
    )


class ExportResult(NamedTuple):
    """An export, in a folder of the run."""

    file: Path  # what other programs load
    images: int  # that verified it
    largest_difference: float  # of a probability


def export(options: ExportOptions) -> ExportResult:
    """Export a run to `RUN/FORMAT`, verify it on images of a dataset, and print where it is.

    Raises InputError if a package is missing, the run or the dataset cannot be used, or the export predicts otherwise.
    """
    from cancernet import run as runs
    from cancernet.data.dataset import open_dataset
    from cancernet.data.images import ImageStore

    experiment = runs.read_settings(options.run).experiment
    samples = sorted((options.run / runs.SAMPLES).glob("*/*"))
    is_alone = options.dataset == DATASET and not DATASET.exists() and samples
    dataset = None if is_alone else open_dataset(options.dataset)
    check_packages(options.format)
    import_keras()
    from cancernet.training.pipeline import open_store

    run = runs.load_run(options.run)
    images = ImageStore(samples, image_size=experiment.image_size, channels=experiment.channels)
    if dataset:
        runs.check_same_kind(run.settings, dataset.patches, are_grey=dataset.summary.are_grey)
        rows = np.unique(np.linspace(0, len(dataset.patches) - 1, MAX_CHECKED).astype(int))
        images = open_store(options.dataset, [dataset.patches[row] for row in rows], experiment)
    print(f"Exporting {options.run} and comparing its predictions for {len(images)} images ...", flush=True)
    with lock_folder(options.run / options.format), progress.show_progress(), quiet_import():  # converters print, too
        result = export_run(run, options.format, images)
    difference = f"{result.largest_difference:.1g}"
    print(f"No probability differs by more than {difference} from the run's on {len(images)} images.")
    print(f"Exported to {result.file}; {DESCRIPTION} in the same folder has the classes and the threshold.")
    if run.decision.uncertain_below is not None:
        print("It also has the limits of uncertain images. An export does not find those that are out of distribution.")
    return result


def check_packages(name: str) -> None:
    """Raise InputError if a package that a format needs is not installed."""
    for package in FORMATS[name].packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(f'--format {name} needs {package}, which is not installed: pip install ".[export]"')


def export_run(run: "Run", name: str, images: "ImageStore") -> ExportResult:
    """Export a run to the folder `name`, one of FORMATS, which exists only once predictions for images were verified.

    Raises InputError if a probability differs by more than TOLERANCE, or an image cannot be used.
    """
    from cancernet.evaluation.decision import bound_uncertain, calibrate
    from cancernet.inference.prediction import choose_decision
    from cancernet.training.scoring import BATCH, predict_scores

    decision, views = choose_decision(run, neighbours=False), run.settings.experiment.views
    expected = calibrate(decision, predict_scores(run.model, images, views=views))
    network = build_predictor(run.model, decision, views)
    folder, wanted = run.folder / name, FORMATS[name]
    with fresh_folder(folder) as work:
        network(images.fetch(np.arange(1)))  # Keras exports to ONNX only a network that was called before
        network.export(work / wanted.file, format=wanted.keras_name, verbose=False)
        predict = OPEN[name](work / wanted.file)
        batches = np.split(np.arange(len(images)), range(BATCH, len(images), BATCH))
        found = []
        with progress.count("Comparing", len(images)) as add:
            for rows in batches:
                found.append(predict(images.fetch(rows).astype(np.float32)))
                add(len(rows))
        difference = float(np.abs(np.concatenate(found) - expected).max())
        if not difference <= TOLERANCE:
            excess = f"up to {difference:.2g} from the run's, more than {TOLERANCE:g}, and was deleted"
            advice = "Use model.keras, or another --format."
            raise InputError(f"The {name} export gives probabilities that differ by {excess}. {advice}")
        settings = run.settings
        description = {
            "image_size": settings.experiment.image_size,
            "channels": settings.experiment.channels,
            "scaling": "to image_size x image_size by OpenCV: INTER_AREA if larger, INTER_LINEAR if smaller",
            "values": "RGB (of one channel: grey), 0 to 255, float32",
            "output": "calibrated probabilities of the classes, in their order; each image alone, without neighbours",
            "classes": list(settings.classes),
            "class_names": settings.class_names,
            "positive": decision.positive,
            "threshold": decision.threshold,
            "uncertain_between": bound_uncertain(decision),
            "operating_point": decision.operating_point,
            "checked": {"images": len(images), "largest_difference": difference},
            "versions": settings.versions,
        }
        write_json(work / DESCRIPTION, description)
    return ExportResult(folder / wanted.file, len(images), difference)


def build_predictor(model: "keras.Model", decision: "Decision", views: str) -> "keras.Model":
    """Build the network from raw images to calibrated probabilities: `model` over its views, then the calibration.

    It takes float32 [n, s, s, c] of 0 to 255 and returns float32 [n, classes]. The views are put into one batch, so
    that the graph contains the network once. The decision must not smooth over neighbours.
    """
    import keras

    from cancernet.models.test_time_augmentation import list_views

    _replace_tensors(model)
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


def _replace_tensors(model: "keras.Model") -> None:
    """Let normalisation layers hold arrays: the converter to ONNX would make their tensors inputs of the file."""
    import keras

    from cancernet.models.structure import list_layers

    for layer in list_layers(model):
        if isinstance(layer, keras.layers.Normalization):
            layer.mean, layer.variance = map(keras.ops.convert_to_numpy, (layer.mean, layer.variance))


def _open_onnx(path: Path) -> Predict:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": images})[0]


def _open_litert(path: Path) -> Predict:
    from ai_edge_litert.interpreter import Interpreter

    predict = Interpreter(str(path)).get_signature_runner()
    return lambda images: next(iter(predict(image=images).values()))


def _open_saved_model(path: Path) -> Predict:
    import keras

    layer = keras.layers.TFSMLayer(path, call_endpoint="serve")
    return lambda images: keras.ops.convert_to_numpy(layer(images))


OPEN = {"onnx": _open_onnx, "litert": _open_litert, "saved_model": _open_saved_model}
