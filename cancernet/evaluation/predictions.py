"""The two containers of patches that a run has seen: with scores, and with probabilities and decisions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cancernet.data.dataset import IDC_PIXELS, Patch
from cancernet.data.grid import Layout, lay_out_patches


@dataclass(frozen=True, eq=False)
class Scores:
    """Patches with the output of a network, before calibration and decision."""

    patches: Sequence[Patch]
    log_probabilities: np.ndarray  # float64 [n, classes]
    distances: np.ndarray | None = None  # [n] of out-of-distribution detection, above 1 outside; None if not measured
    step: float = IDC_PIXELS  # pixels from one patch to the next

    def __post_init__(self) -> None:
        if len(self.patches) != len(self.log_probabilities):
            raise ValueError(f"{len(self.patches)} patches but {len(self.log_probabilities)} scores")

    def index_labels(self, classes: Sequence[str]) -> np.ndarray:
        """Index `[n]` in `classes` of each patch's class."""
        return np.array([classes.index(patch.label) for patch in self.patches], dtype=int)

    @cached_property
    def layout(self) -> Layout:
        """The slides among the patches; computed once."""
        return lay_out_patches(self.patches, self.step)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Patches with calibrated probabilities and decided classes, row by row."""

    patches: Sequence[Patch]
    true_classes: np.ndarray | None  # class index [n]; None for new images, whose classes are unknown
    probabilities: np.ndarray  # calibrated, float64 [n, classes]
    predicted: np.ndarray  # class index [n]
    distances: np.ndarray | None = None  # [n] of out-of-distribution detection, above 1 outside; None if not measured
    uncertain: np.ndarray | None = None  # bool [n]: to be referred to a person; None if the decision refers none

    @property
    def labels(self) -> np.ndarray:
        """Index of the true class `[n]`; ValueError if these are unknown."""
        if self.true_classes is None:
            raise ValueError("The true classes of these images are unknown.")
        return self.true_classes

    @property
    def patients(self) -> list[str]:
        """The patient of each patch; "" where unknown."""
        return [patch.patient for patch in self.patches]

    def take(self, rows: np.ndarray) -> "Predictions":
        """Select rows, in the order given, by their indices."""
        return Predictions(
            [self.patches[row] for row in rows],
            None if self.true_classes is None else self.true_classes[rows],
            self.probabilities[rows],
            self.predicted[rows],
            None if self.distances is None else self.distances[rows],
            None if self.uncertain is None else self.uncertain[rows],
        )


def pool_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Put predictions of images with known classes one after the other, such as those of all folds."""
    return Predictions(
        [patch for part in parts for patch in part.patches],
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.predicted for part in parts]),
    )
