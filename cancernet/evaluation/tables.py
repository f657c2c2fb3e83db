"""The images of an evaluation as tables of sums over groups, and what weights of the groups make of them.

A group is what the intervals are over: a patient with all its images, or one image of an unknown patient. Weights are
`[rows, groups]`, 0 or more, and each row gives one value of a metric: ones give the metric of all images, and a 0
leaves a group out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from cancernet.evaluation.calibration_line import CalibrationLine, fit_line
from cancernet.evaluation.predictions import Predictions
from cancernet.evaluation.ranking import Areas, rank_images
from cancernet.evaluation.rates import ClassRates, class_rates, ratio

BINS = 10  # of the calibration error


@dataclass(frozen=True, eq=False)
class EvaluatedImages:
    """n images of k classes; their tables are made when they are first needed."""

    labels: np.ndarray  # class index [n]
    probabilities: np.ndarray  # float64 [n, k]
    predicted: np.ndarray  # class index [n]
    groups: np.ndarray  # [n] indices from 0
    n_groups: int  # of which some may have no image
    patients: Sequence[str]  # sorted names of the first groups; each other group is an image of an unknown patient
    classes: Sequence[str]  # [k]
    positive: int | None  # one of two classes; None where there are more

    @classmethod
    def of(cls, predictions: Predictions, *, classes: Sequence[str], positive: str | None) -> "EvaluatedImages":
        """Group predictions, whose true classes are known, by patient."""
        patients = np.array(predictions.patients, dtype=str)
        known = patients != ""
        names, of_known = np.unique(patients[known], return_inverse=True)
        groups = len(names) - 1 + np.cumsum(~known)
        groups[known] = of_known
        return cls(
            predictions.labels,
            np.asarray(predictions.probabilities, dtype=np.float64),
            predictions.predicted,
            groups,
            int(groups.max()) + 1,
            names.tolist(),
            classes,
            None if positive is None else list(classes).index(positive),
        )

    def take(self, rows: np.ndarray) -> "EvaluatedImages":
        """Select rows, by their indices or bool [n]; the groups keep their numbers."""
        names = ("labels", "probabilities", "predicted", "groups")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    @property
    def unit(self) -> str:
        """What a group is: images where no patient is known."""
        return "patients" if self.patients else "images"

    @cached_property
    def counts(self) -> np.ndarray:
        """Confusion matrices `[groups, k * k]`."""
        k = len(self.classes)
        return self._count_by_group(self.labels * k + self.predicted, k**2)

    @cached_property
    def matrix(self) -> np.ndarray:
        """Confusion matrix of all images, int [k, k]: rows are the true class."""
        k = len(self.classes)
        return self.counts.sum(axis=0).astype(int).reshape(k, k)

    @cached_property
    def rankings(self) -> list[Callable[[np.ndarray], Areas]]:
        """That of the positive class, or of each class where there are more than two."""
        ranked = range(len(self.classes)) if self.positive is None else [self.positive]
        return [rank_images(self.probabilities[:, c], self.labels == c, self.groups) for c in ranked]

    @cached_property
    def line(self) -> Callable[[np.ndarray], CalibrationLine]:
        """Of two classes: calibration slope and intercept of the positive one."""
        return fit_line(self.stated, self.labels == self.positive, self.groups)

    @cached_property
    def stated(self) -> np.ndarray:
        """Probability `[n]` of the positive class, or of the most probable one where there are more than two."""
        return self.probabilities.max(axis=1) if self.positive is None else self.probabilities[:, self.positive]

    @cached_property
    def outcome(self) -> np.ndarray:
        """1.0 where the class of `stated` is the true one, else 0.0: `[n]`."""
        stated = self.probabilities.argmax(axis=1) if self.positive is None else self.positive
        return (self.labels == stated).astype(float)

    @cached_property
    def bins(self) -> np.ndarray:
        """Calibration bin `[n]` of each image. Equal probabilities share a bin."""
        edges = np.quantile(self.stated, np.linspace(0, 1, BINS + 1)[1:-1])
        return np.unique(np.searchsorted(edges, self.stated), return_inverse=True)[1]

    @cached_property
    def gaps(self) -> np.ndarray:
        """Sums `[groups, bins]` of probability - outcome."""
        return self._count_by_group(self.bins, int(self.bins.max()) + 1, self.stated - self.outcome)

    @cached_property
    def squared_errors(self) -> np.ndarray:
        """Sums `[groups]` of the squared error of the positive class's probability, or of those of all classes."""
        squares = (self.probabilities - np.eye(len(self.classes))[self.labels]) ** 2
        return self.sum_by_group(squares.sum(axis=1) if self.positive is None else squares[:, self.positive])

    @cached_property
    def log_losses(self) -> np.ndarray:
        """Sums `[groups]` of -log of the probability of the true class, which counts as at least 2.2e-16."""
        stated = self.probabilities[np.arange(len(self.labels)), self.labels]
        return self.sum_by_group(-np.log(np.maximum(stated, np.finfo(np.float64).eps)))

    def sum_by_group(self, values: np.ndarray) -> np.ndarray:
        """Sum values `[n]` over each group: `[groups]`."""
        return np.bincount(self.groups, values, self.n_groups)

    def _count_by_group(self, column: np.ndarray, n_columns: int, values: np.ndarray | None = None) -> np.ndarray:
        cells = np.bincount(self.groups * n_columns + column, values, self.n_groups * n_columns)
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
        return [weigh(self.weights) for weigh in self.images.rankings]

    @cached_property
    def line(self) -> CalibrationLine:
        """Of two classes: calibration slope and intercept `[rows]`."""
        return self.images.line(self.weights)

    def of_class(self, name: str, index: int) -> np.ndarray:
        """Compute one of `ClassRates`, or `auroc`, `[rows]` of one class against all others."""
        if name == "auroc":  # of two classes both have the same
            return self.areas[0 if self.images.positive is not None else index].roc
        return getattr(self.rates, name)[:, index]

    def of_positive(self, name: str) -> np.ndarray:
        """Compute the same of the positive one of two classes, `[rows]`."""
        assert self.images.positive is not None, f"{name} of the positive class needs two classes"
        return self.of_class(name, self.images.positive)

    def mean(self, sums: np.ndarray) -> np.ndarray:
        """Mean `[rows]` over the images of values with these sums `[groups]`."""
        return ratio(self.weights @ sums, self.total)
