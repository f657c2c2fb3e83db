"""Predict single images from Python: arrays or files, of any size, each one patch."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cancernet import InputError
from cancernet.data.images import read_image
from cancernet.evaluation.referral import find_uncertain
from cancernet.evaluation.smoothing import apply_decision
from cancernet.inference.prediction import choose_decision, score_images
from cancernet.run import Run, name_class

Image = NDArray[Any] | str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class ImagePredictions:
    """The predictions for n images by a run of k classes."""

    classes: tuple[str, ...]  # names [k], in the order of the probabilities
    probabilities: np.ndarray  # calibrated [n, k] float64
    predicted: np.ndarray  # class index [n], decided at the threshold
    threshold: float | None  # on the positive class's probability; None for more than two classes: the most probable
    distances: np.ndarray  # [n] from the images that the run was validated on; NaN where the run cannot measure them
    uncertain: np.ndarray | None = None  # bool [n]: to be referred to a person; None for a run that refers none

    @property
    def decisions(self) -> list[str]:
        """Name of the class [n] that each image is classified as."""
        return [self.classes[index] for index in self.predicted]

    @property
    def out_of_distribution(self) -> np.ndarray:
        """Bool [n]: images unlike those the run was validated on; False where the run cannot measure it."""
        return self.distances > 1


def predict_images(
    run: Run, images: NDArray[Any] | Sequence[Image], *, threshold: float | None = None
) -> ImagePredictions:
    """Predict single images; `api.Run.predict` describes them, and what raises InputError."""
    if isinstance(images, np.ndarray) and images.ndim != 4:
        shape = images.shape
        raise InputError(f"The array of images has the shape {shape}. Give [n, height, width, 3], or a list of images.")
    if isinstance(images, str | os.PathLike):
        raise InputError(f"Give a list of images, [{os.fspath(images)!r}], not a single path.")
    decision = choose_decision(run, neighbours=False)
    scores, distances = score_images(run, _read(images, run.settings.experiment.channels))
    probabilities, predicted = apply_decision(decision, scores, (), threshold=threshold)
    names = tuple(name_class(run.settings, name) for name in decision.classes)
    applied = decision.threshold if threshold is None else threshold
    _, uncertain = find_uncertain(decision, probabilities, (), distances=distances, threshold=threshold)
    return ImagePredictions(names, probabilities, predicted, applied, distances, uncertain)


def _read(images: NDArray[Any] | Sequence[Image], channels: int) -> Iterator[np.ndarray]:
    for number, image in enumerate(images):
        if isinstance(image, str | os.PathLike):
            yield read_image(os.fspath(image), channels=channels, sha256=None)
            continue
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            found = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
            raise InputError(f"Image {number} is {found}. Give uint8 arrays with values from 0 to 255, or paths.")
        if image.ndim == 2:
            image = image[..., None]
        if image.ndim != 3 or image.shape[2] not in (1, 3) or not image.size:
            allowed = "[height, width], [height, width, 1] or [height, width, 3]"
            raise InputError(f"Image {number} has the shape {image.shape}. Give {allowed}.")
        yield image
