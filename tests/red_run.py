"""A run whose network goes by the mean red, log-odds (150 - red) / 10, and patches for it."""

from pathlib import Path

import cv2
import keras
import numpy as np

from cancernet.config import Experiment
from cancernet.data.dataset import Patch
from cancernet.evaluation.decision import Decision, FittedOn
from cancernet.inference.prediction import ItemPredictions, ItemScores
from cancernet.run import Run, Seen, Settings

CLASSES = ("0", "1")


def make_network():
    model = keras.Sequential(
        [keras.Input((48, 48, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, activation="softmax")]
    )
    model.layers[-1].set_weights([np.array([[0, -0.1], [0, 0], [0, 0]]), np.array([0, 15.0])])
    return model


def make_decision(**changed):
    fields = {
        "classes": CLASSES,
        "positive": "1",
        "temperature": 1.0,
        "bias": (0.0, 0.0),
        "threshold": 0.5,
        "operating_point": "balanced",
        "neighbour_sigma": 0.0,
        "fitted_on": FittedOn(1, 1),
        "expected_on_validation": None,
        "curve": None,
    }
    return Decision(**(fields | changed))


def make_red_run(network, decision=None, *, views="one", mpp=4.0):
    settings = Settings(
        experiment=Experiment(image_size=48, model="red", views=views),
        classes=CLASSES,
        positive="1",
        training_precision="float32",
        operating_point="balanced",
        neighbours=True,
        manifest_sha256="",
        images_are_grey=False,
        usual_size="50x50",
        mpp=mpp,
        versions={},
        hardware={},
        class_names={"0": "benign", "1": "IDC"},
        seen=Seen((), ""),
    )
    return Run(network, decision or make_decision(), settings, Path("run"))


def three_classes():
    return make_decision(classes=("a", "b", "c"), positive=None, threshold=None, bias=(0.0, 0.0, 0.0))


def patch(red, height=50, width=50, channels=3):
    image = np.zeros((height, width, channels), np.uint8)
    image[..., 0] = red
    return image


def as_scores(odds):
    odds = np.asarray(odds, float)
    return np.stack([-np.log1p(np.exp(odds)), -np.log1p(np.exp(-odds))], axis=1)


def as_scored(scores, slide, x, y, files=None, **others):
    """Scored patches of one slide; of none where its name is empty."""
    files = files or [f"{number}.png" for number in range(len(x))]
    patches = [Patch(file, "", slide, *place, "", "") for file, *place in zip(files, x, y, strict=True)]
    fields = {"distances": np.full(len(x), np.nan), "thumbnails": [], "thumbnail_pixels": 50} | others
    return ItemScores(patches=patches, log_probabilities=np.asarray(scores), **fields)


def as_predictions(scores, probabilities, predicted, threshold):
    """Predictions of an item, as given."""
    given = (np.asarray(probabilities), np.asarray(predicted), scores.distances)
    return ItemPredictions(scores.patches, None, *given, scores=scores, threshold=threshold)


def write_picture(path, shape=(300, 400)):
    """White on the left half; on the right stained, not called; a called place at x 300 to 400, y 100 to 200."""
    image = np.full((*shape, 3), 255, np.uint8)
    image[:, 200:] = (200, 90, 160)
    image[100:200, 300:] = (90, 60, 140)
    cv2.imwrite(str(path), image[..., ::-1])
    return path
