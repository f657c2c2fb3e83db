"""What an evaluation returns, as typed values. report.json holds them as `as_json` writes them."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["better", "worse", "unclear"]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval. What is undefined or cannot be estimated is None, with the reason."""

    value: float | None
    low: float | None
    high: float | None
    reason: str | None = None
    needed: int | None = None  # of a share: about how many patients would give an interval of +-5 points


@dataclass(frozen=True)
class Difference(Estimate):
    """A metric of one run minus that of another, with a paired interval."""

    verdict: Verdict = field(kw_only=True)  # unclear unless the whole interval lies on one side of 0


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class against all others."""

    sensitivity: Estimate
    specificity: Estimate
    precision: Estimate
    f1: Estimate
    auroc: Estimate
    images: int  # whose true class it is


@dataclass(frozen=True)
class CalibrationBin:
    mean_probability: float
    fraction_positive: float
    images: int


@dataclass(frozen=True)
class Calibration:
    bins: list[CalibrationBin]
    n_bins: int
    binning: str


@dataclass(frozen=True)
class Interval:
    level: float
    over: str  # what is left out in turn: patients or images
    groups: int  # how many of those


@dataclass(frozen=True)
class AtPrevalence:
    """Predictive values at another prevalence of the positive class than that of the images."""

    value: float  # the prevalence
    ppv: Estimate
    npv: Estimate


@dataclass(frozen=True)
class PatientRow:
    """One patient's images, of more than two classes."""

    patient: str
    images: int
    correct: int
    accuracy: float


@dataclass(frozen=True)
class TwoClassPatientRow:
    """One patient's images, of two classes; rates that are undefined are None."""

    patient: str
    images: int
    tp: int
    fp: int
    tn: int
    fn: int
    accuracy: float
    sensitivity: float | None
    specificity: float | None
    auroc: float | None


@dataclass(frozen=True)
class Spread:
    """Distribution of a metric over the patients for whom it is defined; None where there are none."""

    median: float | None
    q1: float | None
    q3: float | None
    min: float | None
    max: float | None
    patients: int


@dataclass(frozen=True)
class NetBenefit:
    """What it is worth to classify images as positive from a threshold on, per image (see `metrics.net_benefit`)."""

    threshold: float
    model: Estimate
    all_positive: float  # of classifying every image as positive; of classifying none it is 0
    gain: Estimate  # of the model over the better of these two


@dataclass(frozen=True)
class ValueResults:
    """The main metrics on the images with one value of a column, such as one site."""

    value: str  # "" where the column is empty
    images: int
    patients: int  # known ones
    prevalence: float | None  # share of the positive class; None of more than two classes
    metrics: dict[str, Estimate]
    difference: dict[str, Difference]  # from the same metric on all other images


@dataclass(frozen=True)
class ColumnResults:
    column: str
    values: list[ValueResults]


@dataclass(frozen=True)
class RiskPoint:
    coverage: float  # share of the most certain images among all
    error: Estimate  # share of errors among these


@dataclass(frozen=True)
class Referred:
    """What is left where some images are referred to a person; the rates are of the other images."""

    share: float  # of the images that are referred
    caught: Estimate  # share of all errors that are among them
    error: Estimate
    sensitivity: Estimate | None = None  # these three of two classes only
    specificity: Estimate | None = None
    ppv: Estimate | None = None


@dataclass(frozen=True)
class Referral:
    """What referring the least certain images would achieve."""

    curve: list[RiskPoint]  # risk-coverage curve, from all images to few
    table: list[Referred]  # of the least certain 5, 10 and 20%
    band: Referred | None = None  # of those that the decision refers; None of a decision that refers none


@dataclass(frozen=True)
class LearningPoint:
    """How well patients are predicted by models that were trained on so many others."""

    patients: float  # mean number over the models
    auroc: Estimate
    log_loss: Estimate


@dataclass(frozen=True)
class LearningCurve:
    points: list[LearningPoint]  # the fewest patients first
    change: dict[str, Difference]  # metric -> the last point minus the last but one


@dataclass(frozen=True)
class Evaluation:
    """All metrics of the predictions of some images."""

    metrics: dict[str, Estimate]  # by their names in `metrics.METRICS`
    per_class: dict[str, ClassMetrics]
    confusion_matrix: list[list[int]]  # rows: true class, columns: predicted class
    calibration: Calibration
    interval: Interval
    prevalence: AtPrevalence | None  # None where none was given
    patients: list[TwoClassPatientRow] | list[PatientRow]  # the known ones
    patient_spread: dict[str, Spread]  # by the names of the rates in `patients`
    decision_curve: list[NetBenefit] | None = None  # None of more than two classes
    distribution: dict[str, list[int]] | None = None  # true class -> images in 20 bins of the probability from 0 to 1


@dataclass(frozen=True)
class PatientDifference:
    """What two runs make of one patient's images."""

    patient: str
    images: int
    only_first: int  # images that the first run alone classifies correctly
    only_other: int
    difference: float  # accuracy of the other run minus that of the first
    first: PatientRow | TwoClassPatientRow
    other: PatientRow | TwoClassPatientRow


@dataclass(frozen=True)
class PointRates:
    """What a threshold gives on some images of two classes."""

    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    f1: Estimate
    balanced_accuracy: Estimate


def as_json(value: object) -> Any:
    """Turn dataclasses into what `json` can write, also those within lists and dicts.

    A field that is None is left out where None is its default, such as `Estimate.reason`.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((each, getattr(value, each.name)) for each in dataclasses.fields(value))
        return {each.name: as_json(child) for each, child in fields if child is not None or each.default is not None}
    if isinstance(value, dict):
        return {key: as_json(child) for key, child in value.items()}
    return [as_json(child) for child in value] if isinstance(value, list | tuple) else value
