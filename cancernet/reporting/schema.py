"""The content of report.json as typed values; docs/reporting.md describes every field.

Reading ignores unknown fields. Fields with a default are missing in some runs or in reports of older versions. Of these
`as_json` leaves out the ones whose default is None, and writes the others as null.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cancernet.data.dataset import Patch, count_patches
from cancernet.evaluation import results
from cancernet.evaluation.decision import FittedOn, ValidationRates
from cancernet.evaluation.label_check import SuspiciousLabel

SettingValue = bool | int | float | str | list | None


@dataclass(frozen=True)
class SplitCounts:
    images: int
    patients: int  # known ones
    classes: dict[str, int]  # images of each class
    images_without_patient: int = 0


@dataclass(frozen=True)
class DataSummary:
    """The source images and what became of them."""

    source_images: int
    rejected: int
    left_out: int
    split_by: str  # patient | image | file | given
    patients_known: bool  # whether any patient is known
    splits: dict[str, SplitCounts]
    duplicates_across_patients: int = 0  # groups of files with the same bytes
    duplicates_across_splits: int = 0
    near_duplicates: int = 0  # groups of images of different patients that show almost the same picture
    near_duplicates_across_splits: int = 0
    images_without_patient: int = 0


@dataclass(frozen=True)
class DecisionSummary:
    """The parts of decision.json that a report shows."""

    temperature: float
    threshold: float | None  # on the probability of the positive class; None of more than two classes
    operating_point: str
    fitted_on: FittedOn
    classes: list[str] = field(default_factory=list)
    positive: str | None = field(default_factory=lambda: None)
    bias: list[float] = field(default_factory=list)
    neighbour_sigma: float = 0.0  # patches; 0 if neighbours are not used
    refer: float | None = None  # share of the images fitted on that are uncertain; None refers none to a person


@dataclass(frozen=True)
class TrainingSummary:
    """What a report says about a training."""

    seconds: float
    device: str
    head_strength: float | None = None  # inverse of the linear head's L2 penalty
    epochs: int | None = None  # None for a linear head alone
    kept_epochs: tuple[int, int] | None = None  # first and last (from 1) of the epochs whose weights were averaged
    images_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class OperatingPoint(results.PointRates):
    name: str
    threshold: float
    on_validation: ValidationRates


@dataclass(frozen=True)
class Fold:
    fold: int | str  # from 1, or the value that it left out of training
    metrics: dict[str, float | None]  # without intervals


@dataclass(frozen=True)
class CrossValidation:
    """Metrics of each fold, and their mean and standard deviation over the folds where they are defined."""

    folds: list[Fold]
    mean: dict[str, float]
    spread: dict[str, float]
    left_out: str | None = None  # the column whose values the folds left out


@dataclass(frozen=True)
class ConfidentError:
    file: str
    kind: str  # missed | false alarm; of more than two classes: wrong
    label: str  # the true class
    predicted: str
    probability: float  # of the positive class; of more than two classes: of the predicted class


@dataclass(frozen=True)
class DistantImage:
    file: str
    distance: float  # 1 is the limit


@dataclass(frozen=True)
class OutOfDistribution:
    images: int  # that were measured
    outside: int  # of these: out of distribution
    furthest: list[DistantImage]  # the most distant first


@dataclass(frozen=True)
class LabelCheck:
    images: int  # with an out-of-fold prediction
    suspicious: int  # of these: the prediction contradicts the label
    shown: list[SuspiciousLabel]  # the most suspicious first


@dataclass(frozen=True)
class Picture:
    title: str
    picture: str  # name of the file in the folder of the report


@dataclass(frozen=True, kw_only=True)
class Heading:
    """The parts of a report that a comparison of runs needs."""

    name: str
    title: str | None = None  # of the evaluation of a finished run
    created: str  # date
    statement: str
    warnings: list[str]
    classes: list[str]
    class_names: dict[str, str] | None  # meaning of each class
    positive: str | None  # None of more than two classes
    decision: DecisionSummary | None  # None where each fold has its own
    referral: results.Referral | None = None


@dataclass(frozen=True, kw_only=True)
class Report(results.Evaluation, Heading):
    """report.json."""

    evaluated_on: str  # a split, `all folds`, `folds 1, 2 of 5`, or `every site`
    chose_model: bool = False  # whether the same images chose the model, for want of a testing split
    data: DataSummary
    expected_on_validation: ValidationRates | None = field(default_factory=lambda: None)
    neighbours: Mapping[str, Mapping[str, results.Estimate | results.Difference]] | None = field(
        default_factory=lambda: None
    )
    # metrics `with` and `without` smoothing over neighbouring patches, and their `difference`
    smoothed_images: int | None = field(default_factory=lambda: None)  # evaluated with their neighbours; None: not used
    operating_points: list[OperatingPoint] | None = field(default_factory=lambda: None)
    worst_errors: list[ConfidentError]
    outside: OutOfDistribution | None = field(default_factory=lambda: None)
    class_weights: dict[str, float] | None = field(default_factory=lambda: None)
    training: TrainingSummary | None = None
    settings: dict[str, SettingValue] | None = None
    cross_validation: CrossValidation | None = None
    groups: results.ColumnResults | None = None  # results by a column of the manifest
    label_check: LabelCheck | None = None  # None without out-of-fold predictions
    slides: list[Picture] | None = None
    gradcam: list[Picture] | None = None
    learning_curve: results.LearningCurve | None = None  # of a head on a frozen backbone


def count_split(patches: Sequence[Patch]) -> SplitCounts:
    """Count the images of a split, its patients, and the images of each class and without a known patient."""
    return SplitCounts(**vars(count_patches(patches)), images_without_patient=sum(not each.patient for each in patches))
