"""One run: its plan, its training and decision, and its report. Training, cross-validation and search share this."""

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cancernet import InputError, run
from cancernet.config import Experiment, TrainingOptions
from cancernet.data import dataset, splits
from cancernet.data.dataset import Dataset, Patch, open_dataset
from cancernet.evaluation import decision, smoothing
from cancernet.evaluation.predictions import Scores
from cancernet.models.architectures import split_by_architecture
from cancernet.models.backend import explain_unused_gpu, import_keras
from cancernet.reporting import content, report
from cancernet.reporting.schema import Report, TrainingSummary
from cancernet.training import distribution
from cancernet.training.experiments import fit_to_grey

if TYPE_CHECKING:  # they need Keras, which is imported when all is checked
    from cancernet.evaluation.results import LearningCurve
    from cancernet.training.ensembles import FittedEnsemble
    from cancernet.training.fitting import TrainingData

LEAST_LEARNING_PATIENTS = 8  # that each member leaves out, for a learning curve
LEAST_VALIDATION_PATIENTS = 10  # with fewer, the decision depends mostly on who they are: see docs/recipes.md


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is trained on which patches, checked before TensorFlow is loaded."""

    name: str  # of the run
    experiment: Experiment
    options: TrainingOptions
    positive: str | None  # the class that sensitivity refers to; None for more than two classes
    dataset: Dataset

    @property
    def by_patient(self) -> bool:
        """Whether the images of one patient stay together."""
        return self.dataset.summary.split != "image"


class FittedRun(NamedTuple):
    """A run that is trained and has its decision, but is not saved yet."""

    run: run.Run
    fitted: "FittedEnsemble"
    left_out: list[Patch]  # patches that the ensemble members left out, in the order of their scores
    class_weights: dict[str, float]


def make_plan(options: TrainingOptions, experiment: Experiment, name: str) -> Plan:
    """Check what a training needs; InputError if the dataset cannot be used, or the options do not fit it."""
    decision.parse_operating_point(options.operating_point)
    opened = open_dataset(options.dataset)
    patches, summary = opened.patches, opened.summary
    if summary.split != "image":
        dataset.check_patients(patches)
    dataset.check_trainable(patches)
    if options.group:
        dataset.read_column(patches, options.group)
    if summary.are_grey and not options.features:
        print("The images are grey: they are taken to have a fixed orientation and are only flipped left to right.")
        experiment = fit_to_grey(experiment, views=options.settings.get("views"))
    positive = choose_positive(options, dataset.list_classes(patches))
    return Plan(name, experiment, options, positive, opened)


def choose_positive(options: TrainingOptions, classes: Sequence[str]) -> str | None:
    """Return the positive class: the last of two unless another is given; None for more classes.

    Raises InputError for an unknown class, or an option for two classes where there are more.
    """
    if len(classes) == 2:
        if options.positive not in (None, *classes):
            raise InputError(f"--positive takes one of the classes, {' or '.join(classes)}; got {options.positive}.")
        return options.positive or classes[1]
    for name in ("positive", "prevalence", "operating_point"):
        if getattr(options, name) != getattr(TrainingOptions(), name):
            found = f"{options.dataset} has {len(classes)}"
            raise InputError(f"--{name.replace('_', '-')} is for two classes; {found}. Leave it out.")
    return None


def check_members(plan: Plan, folds: Sequence[Sequence[Patch]], members: int) -> None:
    """Raise InputError unless each fold has enough patients for so many ensemble members."""
    for patches in folds if members > 1 else ():
        splits.split_members(patches, members, by_patient=plan.by_patient, seed=plan.experiment.seed)


def open_data(plan: Plan, work: Path) -> "TrainingData":
    """Load TensorFlow, and open the images of all splits and the place of their features.

    `work` is the folder of the unfinished run, for features that cannot be kept next to the dataset.
    """
    print("Loading TensorFlow ...", flush=True)
    import_keras()

    from cancernet.training import feature_cache, given_features, pipeline
    from cancernet.training.fitting import TrainingData

    if unused := explain_unused_gpu(pipeline.describe_device()):
        print(unused)
    pipeline.enable_determinism(plan.experiment)
    options, patches = plan.options, plan.dataset.patches
    classes = dataset.list_classes(patches)
    labels = np.array([classes.index(patch.label) for patch in patches])
    is_read_once = all(kind.strategy == "frozen" for kind in split_by_architecture(plan.experiment))
    limit = 0 if is_read_once else int(options.cache_limit * 2**30) if options.cache_limit else None
    images = pipeline.open_store(options.dataset, patches, plan.experiment, cache_limit=limit)
    folder = feature_cache.name_cache_folder(options.dataset)
    cache = feature_cache.FeatureCache(folder, work / run.FEATURES, plan.dataset.manifest_sha256)
    given = given_features.import_features(options.features, patches, cache.fallback) if options.features else None
    return TrainingData(images, labels, np.ones(len(classes)), cache, given)


def fit_run(plan: Plan, data: "TrainingData", patches: Sequence[Patch], folder: Path) -> FittedRun:
    """Train on the training split, and fit calibration, threshold and smoothing on images that were left out.

    `data` are those of `patches`, each of which has its split in this run; `folder` is for checkpoints.
    """
    from cancernet.explain import out_of_distribution
    from cancernet.training.checkpoints import Workspace
    from cancernet.training.ensembles import fit_ensemble
    from cancernet.training.fitting import compute_class_weights

    experiment, by_patient = plan.experiment, plan.by_patient
    settings = describe_settings(plan, patches)
    classes = settings.classes
    members = splits.split_members(patches, experiment.members, by_patient=by_patient, seed=experiment.seed)
    parts = None  # several members leave out enough images to choose the penalty of a head by
    if len(members) == 1 and experiment.strategy in ("frozen", "two-phase"):
        parts = splits.split_training(patches, by_patient=by_patient, seed=experiment.seed)
    trained_on = np.unique(np.concatenate([member.training for member in members]))
    weights = compute_class_weights(data.labels[trained_on], len(classes), experiment.class_weight)
    announce(plan, settings, len(trained_on))
    asked = [dataclasses.asdict(experiment), settings.manifest_sha256, settings.versions, settings.hardware]
    fingerprint = json.dumps(asked)  # of a checkpoint; `train.describe_request` has the rest
    events = folder / "tensorboard" if plan.options.tensorboard else None
    workspace = Workspace(folder, fingerprint, functools.partial(print, flush=True), plan.options.force, events)
    fitted = fit_ensemble(experiment, data._replace(class_weights=weights, head_folds=parts), members, workspace)
    left_out = [patches[row] for member in members for row in member.validation]
    fixed = smoothing.fit_on_validation(
        Scores(left_out, fitted.left_out, step=settings.patch_pixels),
        classes=classes,
        positive=plan.positive,
        operating_point=plan.options.operating_point,
        neighbours=plan.options.neighbours,
        log_class_weight=log_weight_of_positive(plan.positive, classes, weights),
        refer=plan.options.refer,
    )
    groups = np.array(splits.list_groups(patches, by_patient=by_patient))
    values = [(values, groups[rows]) for rows, values in fitted.held_out]
    detector = out_of_distribution.fit_detector(values, channels=experiment.channels)
    settings = dataclasses.replace(settings, training_precision=fitted.training.precision)
    class_weights = {name: float(weights[index]) for index, name in enumerate(classes)}
    return FittedRun(run.Run(fitted.model, fixed, settings, folder, detector), fitted, left_out, class_weights)


def report_run(plan: Plan, finished: FittedRun, patches: Sequence[Patch]) -> Report | None:
    """Evaluate a fitted run on the testing split, save it and write its report; of several processes only the first.

    `patches` are those of `fit_run`. Without a testing split the report is of the validation split, and says so.
    """
    from cancernet.reporting import illustration
    from cancernet.training.pipeline import explain_variation

    trained, fitted, left_out, class_weights = finished
    settings, step = trained.settings, trained.settings.patch_pixels
    split, tested = "testing", np.flatnonzero([patch.split == "testing" for patch in patches])
    if len(tested):
        scored = Scores([patches[int(row)] for row in tested], fitted.score(tested), step=step)
    else:  # the dataset's own validation split, each image by the member that left it out
        split, tested = "validation", np.flatnonzero([patch.split == "validation" for patch in left_out])
        scored = Scores([left_out[int(row)] for row in tested], fitted.left_out[tested], step=step)
    if not distribution.is_first():
        return None
    context = content.ReportContext(
        plan.name,
        split,
        content.describe_data(patches, plan.dataset.summary),
        class_weights=class_weights,
        training=TrainingSummary(
            fitted.training.seconds,
            str(settings.hardware["device"]),
            fitted.training.strength,
            len(fitted.training.history.get("loss", ())) or None,
            fitted.training.kept_epochs,
            fitted.training.images_per_second,
        ),
        settings=content.flatten(content.list_settings(settings)),
        chose_model=split == "validation",
        warnings=[*list_warnings(plan.options.features, left_out), *filter(None, [explain_variation(plan.experiment)])],
        prevalence=plan.options.prevalence,
        group=plan.options.group,
    )
    evaluated = content.evaluate_split(scored, trained.decision, context)
    history, folder, source = fitted.training.history, trained.folder, plan.dataset.folder
    run.save_run(trained, history, evaluated.predictions)
    illustration.copy_samples(evaluated.predictions, source, folder)
    described = illustration.illustrate(trained, evaluated, source, folder)
    described = dataclasses.replace(described, learning_curve=learn(plan, finished, patches))
    errors = content.read_images([each.file for each in described.worst_errors], evaluated.predictions, source)
    figures = report.draw_figures(described, evaluated.predictions, history=history, error_images=errors)
    figures |= illustration.draw_augmentation(patches, source, plan.experiment)
    if plan.experiment.members > 1:
        out_of_fold = smoothing.predict_scores(trained.decision, Scores(left_out, fitted.left_out, step=step))
        described, drawn = illustration.check_labels(described, out_of_fold, source, folder)
        figures |= drawn
    report.write_report(folder, described, figures)
    return described


def learn(plan: Plan, finished: FittedRun, patches: Sequence[Patch]) -> "LearningCurve | None":
    """Trace how the members' heads on a frozen backbone improve with the number of patients.

    None for one member, in a cross-validation, with unknown patients, and with fewer than LEAST_LEARNING_PATIENTS.
    """
    from cancernet.evaluation.learning_curve import trace_learning_curve
    from cancernet.training.learning_curve import score_subsets

    fitted, members, seed = finished.fitted, plan.experiment.members, plan.experiment.seed
    patients = len({patch.patient for patch in finished.left_out} - {""})
    enough = members > 1 and patients >= LEAST_LEARNING_PATIENTS * members
    if not (fitted.head_data and plan.by_patient and enough) or plan.options.folds:
        return None
    print("Fitting heads to fewer patients, for the learning curve ...", flush=True)
    folds = splits.split_members(patches, members, by_patient=True, seed=seed)
    groups = np.array(splits.list_groups(patches, by_patient=True))
    subsets = score_subsets(fitted.head_data, folds, groups, fitted.left_out, seed=seed)
    if len(subsets) < 2:
        return None
    return trace_learning_curve(subsets, finished.left_out, finished.run.settings.classes, plan.positive)


def announce(plan: Plan, settings: run.Settings, images: int) -> None:
    """Print what is about to be trained."""
    experiment, options = plan.experiment, plan.options
    what = f"a head on {options.features}" if options.features else experiment.model
    if experiment.members > 1:
        what += f", {experiment.members} ensemble members that each leave out a part,"
    print(f"Training {what} on {images:,} images of {options.dataset}, on the {settings.hardware['device']}.")
    if plan.positive:
        meaning = run.name_class(settings, plan.positive)
        label = plan.positive if meaning == plan.positive else f"{plan.positive} ({meaning})"
        print(f"The positive class is {label}.")
    if experiment.kept_weights == "mean" and experiment.strategy != "frozen":
        print(
            f"The final model averages the weights of epochs {experiment.epochs // 2 + 1} to {experiment.epochs}. "
            "Validation accuracy of single epochs fluctuates; this is expected."
        )


def log_weight_of_positive(positive: str | None, classes: Sequence[str], weights: np.ndarray) -> float:
    """Return log(training weight of the positive class / that of the negative class); 0 for more than two classes."""
    if positive is None:
        return 0.0
    index = classes.index(positive)
    return math.log(weights[index] / weights[1 - index])


def describe_settings(plan: Plan, patches: Sequence[Patch]) -> run.Settings:
    """Return what config.json holds: all that is needed to train again."""
    versions, hardware = run.describe_machine()
    return run.Settings(
        experiment=plan.experiment,
        classes=tuple(dataset.list_classes(patches)),
        positive=plan.positive,
        training_precision="float32",
        operating_point=plan.options.operating_point,
        neighbours=plan.options.neighbours,
        manifest_sha256=plan.dataset.manifest_sha256,
        images_are_grey=plan.dataset.summary.are_grey,
        usual_size=plan.dataset.summary.usual_size,
        mpp=plan.dataset.summary.mpp,
        patch_pixels=plan.dataset.summary.patch_pixels,
        class_colours=plan.dataset.summary.class_colours,
        versions=versions,
        hardware=hardware,
        class_names=dataset.name_classes(patches),
        seen=run.describe_seen(patches),
    )


def list_warnings(features: Path | None, validation: Sequence[Patch]) -> list[str]:
    """Say what a run on given features cannot do, and if few patients determined the decision."""
    warnings, patients = [], len({patch.patient for patch in validation if patch.patient})
    is_out_of_fold = any(patch.split == "training" for patch in validation)
    if features:
        warnings.append(
            f"This run takes features like those in {features.name}, not images: it cannot predict or "
            "evaluate images. Its test is valid only if the encoder was not trained on these patients."
        )
    if 0 < patients < LEAST_VALIDATION_PATIENTS:
        fitted_on = f"{patients} {'' if is_out_of_fold else 'validation '}patient{'s' * (patients > 1)}"
        advice = " Train with --members 5 to use all patients of training and validation for it."
        warnings.append(
            f"Calibration and threshold were fitted on {fitted_on}; other patients would have led to others."
            f"{'' if is_out_of_fold else advice}"
        )
    return warnings
