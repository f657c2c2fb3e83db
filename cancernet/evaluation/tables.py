"""The images of an evaluation as tables of sums over groups, and what weights of the groups make of them.

A group is what the intervals are over: a patient with all its images, or one image of an unknown patient. Weights are
`[rows, groups]`, 0 or more, and each row gives one value of a metric: ones give the metric of all images, and a 0
leaves a group out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from cancernet.evaluation.calibration_line import CalibrationLine, WeightedLine, fit_line, weigh_line
from cancernet.evaluation.predictions import Predictions
from cancernet.evaluation.ranking import Areas, Ranking, rank_images, weighted_areas
from cancernet.evaluation.rates import ClassRates, class_rates, confusion_matrix, ratio

BINS = 10  # of the calibration error


def group_images(patients: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Number the groups of images.

    Returns:
        Names of the known patients, sorted, and the group `[n]` of each image: the index of its patient's name, or a
        number of its own after all names.
    """
    names_of = np.asarray(patients, dtype=str)
    known = names_of != ""
    names, of_known = np.unique(names_of[known], return_inverse=True)
    groups = np.empty(len(names_of), dtype=np.int64)
    groups[known] = of_known
    groups[~known] = len(names) + np.arange(len(names_of) - known.sum())
    return names.tolist(), groups


@dataclass(frozen=True, eq=False)
class EvaluatedImages:
    """n images of k classes; their tables are made when they are first needed."""

    labels: np.ndarray  # class index [n]
    probabilities: np.ndarray  # float64 [n, k]
    predicted: np.ndarray  # class index [n]
    groups: np.ndarray  # [n] indices from 0
    patients: Sequence[str]  # names of the first groups; the other groups are images of unknown patients
    classes: Sequence[str]  # [k]
    positive: int | None  # one of two classes; None where there are more
    _sums: dict[Callable, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, predictions: Predictions, *, classes: Sequence[str], positive: str | None) -> "EvaluatedImages":
        """Group predictions, whose true classes are known, by patient."""
        names, groups = group_images(predictions.patients)
        probabilities = np.asarray(predictions.probabilities, dtype=np.float64)
        index = None if positive is None else list(classes).index(positive)
        return cls(predictions.labels, probabilities, predictions.predicted, groups, names, classes, index)

    @property
    def n_groups(self) -> int:
        return int(self.groups.max()) + 1

    @property
    def unit(self) -> str:
        """What a group is: images where no patient is known."""
        return "patients" if self.patients else "images"

    @cached_property
    def matrix(self) -> np.ndarray:
        """Confusion matrix of all images, int [k, k]: rows are the true class."""
        return confusion_matrix(self.labels, self.predicted, len(self.classes))

    @cached_property
    def counts(self) -> np.ndarray:
        """Confusion matrices `[groups, k * k]`."""
        k = len(self.classes)
        return self._add_by_group(self.labels * k + self.predicted, k**2)

    @cached_property
    def rankings(self) -> list[Ranking]:
        """That of the positive class, or of each class where there are more than two."""
        ranked = range(len(self.classes)) if self.positive is None else [self.positive]
        return [rank_images(self.probabilities[:, c], self.labels == c, self.groups) for c in ranked]

    @cached_property
    def line(self) -> CalibrationLine:
        """Of two classes: calibration slope and intercept of the positive one."""
        return fit_line(self.probabilities[:, self.positive], self.labels == self.positive, self.groups)

    @property
    def stated(self) -> np.ndarray:
        """Probability `[n]` of the positive class, or of the most probable one where there are more than two."""
        return self.probabilities.max(axis=1) if self.positive is None else self.probabilities[:, self.positive]

    @property
    def outcome(self) -> np.ndarray:
        """1.0 where the class of `stated` is the true one, else 0.0: `[n]`."""
        if self.positive is None:
            return (self.probabilities.argmax(axis=1) == self.labels).astype(float)
        return (self.labels == self.positive).astype(float)

    @cached_property
    def bins(self) -> np.ndarray:
        """Calibration bin `[n]` of each image. Equal probabilities share a bin."""
        edges = np.quantile(self.stated, np.linspace(0, 1, BINS + 1)[1:-1])
        return np.unique(np.searchsorted(edges, self.stated), return_inverse=True)[1]

    @cached_property
    def gaps(self) -> np.ndarray:
        """Sums `[groups, bins]` of probability - outcome."""
        return self._add_by_group(self.bins, int(self.bins.max()) + 1, self.stated - self.outcome)

    def sum_by_group(self, values_of: "Callable[[EvaluatedImages], np.ndarray]") -> np.ndarray:
        """Sum over each group `[groups]` what a function gives for each image `[n]`; computed once for a function."""
        if values_of not in self._sums:
            self._sums[values_of] = np.bincount(self.groups, weights=values_of(self), minlength=self.n_groups)
        return self._sums[values_of]

    def _add_by_group(self, column: np.ndarray, n_columns: int, values: np.ndarray | None = None) -> np.ndarray:
        cells = np.bincount(self.groups * n_columns + column, weights=values, minlength=self.n_groups * n_columns)
        return cells.reshape(self.n_groups, n_columns).astype(np.float64)


@dataclass(frozen=True, eq=False)
class WeightedImages:
    """Evaluated images under weights `[rows, groups]`: what a metric is computed from."""

    images: EvaluatedImages
    weights: np.ndarray

    @cached_property
    def counts(self) -> np.ndarray:
        """Confusion matrices `[rows, k, k]`."""
        k = len(self.images.classes)
        return (self.weights @ self.images.counts).reshape(-1, k, k)

    @cached_property
    def total(self) -> np.ndarray:
        """Number `[rows]` of images."""
        return self.counts.sum(axis=(1, 2))

    @cached_property
    def rates(self) -> ClassRates:
        """Rates `[rows, k]` of each class."""
        return class_rates(self.counts)

    @cached_property
    def areas(self) -> list[Areas]:
        """Areas `[rows]` of each of the images' rankings."""
        return [weighted_areas(ranking, self.weights) for ranking in self.images.rankings]

    @cached_property
    def line(self) -> WeightedLine:
        """Of two classes: calibration slope and intercept `[rows]`."""
        return weigh_line(self.images.line, self.weights)

    def of_class(self, name: str, index: int) -> np.ndarray:
        """Compute one of `ClassRates`, or `auroc`, `[rows]` of one class against all others."""
        if name == "auroc":  # of two classes both have the same
            return self.areas[0 if self.images.positive is not None else index].roc
        return getattr(self.rates, name)[:, index]

    def of_positive(self, name: str) -> np.ndarray:
        """Compute the same of the positive class, `[rows]`.

        Raises:
            ValueError: there are more than two classes.
        """
        if self.images.positive is None:
            raise ValueError(f"{name} of the positive class needs two classes, not {len(self.images.classes)}")
        return self.of_class(name, self.images.positive)

    def mean(self, values_of: Callable[[EvaluatedImages], np.ndarray]) -> np.ndarray:
        """Mean `[rows]` over the images of what a function gives for each image `[n]`."""
        return ratio(self.weights @ self.images.sum_by_group(values_of), self.total)
