"""Train a network on a built dataset, then report on patients it has never seen."""

import argparse
import contextlib
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path

from cancernet import InputError
from cancernet.cli import Parser, at_least, positive_number, prevalence, quiet_import, run_script, seed
from cancernet.config import DATASET, RECIPES, RUNS, Experiment
from cancernet.models.architectures import MODELS, list_kinds
from cancernet.training.experiments import NAMES, choose_experiment, fit_to_grey

LEAST_VALIDATION_PATIENTS = 10  # below it the decision is mostly the luck of who they are: see docs/recipes.md


def parse_arguments(argv: Sequence[str]):
    parser = Parser(prog="train_model.py", description=__doc__)
    parser.add_argument("--dataset", type=Path, default=DATASET, help="made by build_dataset.py (%(default)s)")
    parser.add_argument("--output", type=Path, help="folder of the run (runs/MODEL, then runs/MODEL-2 and so on)")
    parser.add_argument("--model", type=model_names, help=f"{', '.join(MODELS)}; or several joined by + (cancernet)")
    parser.add_argument(
        "--recipe",
        type=recipe_name,
        help=f"all settings at once: {', '.join(RECIPES)}, or a file of settings (standard, or transfer)",
    )
    parser.add_argument("--epochs", type=at_least(1), help="how often all training images are seen (the recipe's)")
    parser.add_argument("--batch-size", type=at_least(1), help="images a step (the recipe's)")
    parser.add_argument("--learning-rate", type=positive_number, help="of the optimizer (the recipe's)")
    parser.add_argument("--seed", type=seed, help="same seed, same numbers (42)")
    parser.add_argument("--image-size", type=at_least(1), help="side in pixels (the model's own)")
    parser.add_argument("--weights", help="of a backbone: imagenet, none or a file (imagenet)")
    parser.add_argument(
        "--encoder",
        metavar="PRESET",
        help="of KerasHub: hf://..., kaggle://... or a folder (not given; docs/encoders.md)",
    )
    parser.add_argument("--strategy", choices=("frozen", "finetune", "two-phase"), help="of a backbone (frozen)")
    parser.add_argument("--head", choices=("linear", "kernel", "hidden"), help="of a frozen backbone (linear)")
    parser.add_argument(
        "--features",
        type=Path,
        help="of all images, .npy or HDF5, in the place of a backbone: see docs/encoders.md (not given)",
    )
    parser.add_argument(
        "--class-weight",
        choices=("ratio", "balanced", "none"),
        help="in the loss: largest count over a class's own, images over classes and count, or 1 (the recipe's)",
    )
    parser.add_argument(
        "--views",
        choices=("one", "mirror", "eight"),
        help="of an image, to predict the mean over: it, its mirror image too, or all flips and turns (the recipe's)",
    )
    parser.add_argument(
        "--operating-point",
        default="balanced",
        help="balanced, sensitivity=0.95, specificity=0.95 or a threshold (%(default)s)",
    )
    parser.add_argument("--no-neighbours", action="store_true", help="do not smooth over a slide's neighbours")
    parser.add_argument("--positive", metavar="CLASS", help="of two classes the one to be found (the last by name)")
    parser.add_argument("--prevalence", type=prevalence, help="to give PPV and NPV at, such as 0.01 (not given)")
    parser.add_argument("--mixed-precision", action="store_true", help="train in bfloat16 if a step is faster that way")
    parser.add_argument("--cache-limit", type=positive_number, help="GB for decoded images (half of free memory)")
    parser.add_argument(
        "--members",
        type=at_least(1),
        help="networks that each leave other patients out and answer together (5 for a frozen backbone, otherwise 1)",
    )
    parser.add_argument(
        "--folds",
        type=at_least(2),
        help="cross-validate by patient: as many runs and one pooled report (one run, no folds)",
    )
    parser.add_argument(
        "--only-folds",
        type=at_least(1),
        nargs="+",
        metavar="N",
        help="train these folds alone, such as 1 2 (all)",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="train on all GPUs, and in all processes that a launcher such as srun has started; see docs/scale.md",
    )
    parser.add_argument("--force", action="store_true", help="replace a run that is there")
    return parser.parse_args(argv)


def recipe_name(text: str) -> str:
    """Argument type: one of RECIPES, or a JSON file."""
    if text not in RECIPES and not text.endswith(".json"):
        raise argparse.ArgumentTypeError(f"takes {', '.join(RECIPES)}, or a file .json of settings, not {text!r}")
    return text


def model_names(text: str) -> str:
    """Argument type: one of MODELS, or several joined by +."""
    unknown = [name for name in text.split("+") if name not in MODELS]
    if unknown:
        raise argparse.ArgumentTypeError(f"takes {NAMES}, not {unknown[0]!r}")
    return text


def main(argv: Sequence[str]) -> None:
    arguments = parse_arguments(argv)
    if not arguments.distributed:
        train(arguments)
        return
    from cancernet.training import distribution

    with distribution.joined():
        train(arguments)


def train(arguments) -> None:
    """All that the command line asks for; of several processes only the first prints and writes."""
    experiment = choose_experiment(arguments)
    choose_folds(arguments)
    named = arguments.output or RUNS / experiment.model.replace("+", "_")
    from cancernet import run
    from cancernet.storage import FolderKind, check_replaceable, lock_folder
    from cancernet.training import distribution

    plan, patches, summary = make_plan(arguments, experiment, named.name)
    asked = describe_request(plan, arguments)
    numbered = not arguments.output and not arguments.force
    folder = run.choose_folder(named, asked) if numbered else named
    plan = dataclasses.replace(plan, name=folder.name)
    check_replaceable(folder, FolderKind.RUN, force=arguments.force)
    if not distribution.is_first():
        distribution.wait()  # until the first has prepared the folder
        with contextlib.redirect_stdout(io.StringIO()):
            make_run(plan, arguments, patches, summary, run.name_unfinished(folder))
        distribution.wait()
        return
    with lock_folder(folder):
        work = run.prepare_folder(folder, asked, force=arguments.force)
        distribution.wait()
        text = make_run(plan, arguments, patches, summary, work)
        distribution.wait()  # nobody still looks whether it is finished
        run.finish_folder(work, folder)
    from cancernet.reporting import printed

    print(f"\n{text}\nThe report with its pictures: {folder / run.REPORT_PAGE}\n{printed.suggest_next(str(folder))}")


def make_run(plan: "Plan", arguments, patches, summary, work: Path) -> str:
    """Train what is not finished yet. Returns the report's text."""
    from cancernet import run

    if run.is_finished(work):
        return (work / run.REPORT_TEXT).read_text(encoding="utf-8")
    if arguments.folds:
        return train_folds(plan, arguments.folds, choose_folds(arguments), patches, summary, work)
    check_members(plan, [patches], plan.experiment.members)
    return train_run(plan, open_material(plan, patches, work), patches, summary, work)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was asked for: the experiment, on which dataset, and how the run is to decide and report."""

    experiment: Experiment
    dataset: Path
    name: str  # of the run
    positive: str | None  # the class that sensitivity is of; None of more than two classes
    operating_point: str
    neighbours: bool  # whether smoothing over a slide's neighbours may be chosen
    prevalence: float | None
    split_by: str  # patient, image, file or given
    cache_limit: int | None  # bytes for decoded images
    manifest_sha256: str
    features: Path | None  # a file of features that came from elsewhere


def make_plan(arguments, experiment: Experiment, name: str):
    """The plan of a training by that name, with the patches of its dataset and their summary."""
    from cancernet.data import dataset
    from cancernet.evaluation import decision

    decision.parse_operating_point(arguments.operating_point)
    patches, summary = dataset.read_manifest(arguments.dataset), dataset.read_summary(arguments.dataset)
    if summary.split != "image":
        dataset.check_patients(patches)
    if summary.are_grey and not arguments.features:
        print("The images are grey, so they are taken to have an upright: never turned, never upside down.")
        experiment = fit_to_grey(experiment, views=arguments.views)
    dataset.check_trainable(patches)
    plan = Plan(
        experiment=experiment,
        dataset=arguments.dataset,
        name=name,
        positive=choose_positive(arguments, dataset.list_classes(patches)),
        operating_point=arguments.operating_point,
        neighbours=not arguments.no_neighbours,
        prevalence=arguments.prevalence,
        split_by=summary.split,
        cache_limit=arguments.cache_limit and int(arguments.cache_limit * 2**30),
        manifest_sha256=dataset.hash_manifest(arguments.dataset),
        features=arguments.features,
    )
    return plan, patches, summary


def describe_request(plan: Plan, arguments) -> dict:
    """What an unfinished training must have been asked for if it is to go on: all that the figures follow from."""
    asked = {name: value for name, value in vars(arguments).items() if name not in ("dataset", "output", "force")}
    asked |= dataclasses.asdict(plan.experiment) | {"positive": plan.positive, "manifest_sha256": plan.manifest_sha256}
    return {name: value for name, value in asked.items() if name != "cache_limit"}


def choose_positive(arguments, classes: list[str]) -> str | None:
    """The class that sensitivity is of: the last of two unless the command line names one; None of more classes."""
    if len(classes) == 2:
        if arguments.positive not in (None, *classes):
            raise InputError(f"--positive takes one of the classes, {' or '.join(classes)}; got {arguments.positive}.")
        return arguments.positive or classes[1]
    given = [("--positive", arguments.positive), ("--prevalence", arguments.prevalence)]
    given.append(("--operating-point", arguments.operating_point != "balanced"))
    for name, value in given:
        if value:
            raise InputError(f"{name} is for two classes; {arguments.dataset} has {len(classes)}. Leave it out.")
    return None


def choose_folds(arguments) -> list[int]:
    """The numbers of the folds that are judged, from 1; none where there is no cross-validation."""
    wanted = sorted(set(arguments.only_folds or range(1, (arguments.folds or 0) + 1)))
    if wanted and wanted[-1] > (arguments.folds or 0):
        raise InputError(f"--only-folds {wanted[-1]} is beyond --folds {arguments.folds or 'none'}. Give --folds too.")
    return wanted


def deal_folds(plan: Plan, patches, folds: int) -> list[list]:
    """The patches of each fold of a cross-validation, with the splits they have in it.

    Raises:
        InputError: too few patients, or a fold that cannot be trained.
    """
    from cancernet.data import dataset, splits

    groups = splits.list_groups(patches, by_patient=plan.split_by != "image")
    labels = [patch.label for patch in patches]
    assigned = splits.assign_folds(labels, groups, folds=folds, seed=plan.experiment.seed)
    dealt = [[patch._replace(split=split) for patch, split in zip(patches, fold, strict=True)] for fold in assigned]
    for own in dealt:
        dataset.check_trainable(own)
    return dealt


def check_members(plan: Plan, dealt: Sequence[Sequence], members: int) -> None:
    """See that there are patients for so many members, in each fold, before TensorFlow is loaded.

    Raises:
        InputError: there are not.
    """
    from cancernet.data import splits

    for patches in dealt if members > 1 else ():
        splits.split_members(patches, members, by_patient=plan.split_by != "image", seed=plan.experiment.seed)


def train_folds(plan: Plan, folds: int, judged: Sequence[int], patches, summary, work: Path) -> str:
    """Cross-validation: a run for each fold judged, then one report on all their test images together."""
    from cancernet import run
    from cancernet.reporting import content, printed, report
    from cancernet.training import distribution

    folders = [work / f"fold_{number}" for number in judged]
    every = deal_folds(plan, patches, folds)
    dealt = [every[number - 1] for number in judged]
    check_members(plan, dealt, plan.experiment.members)
    material = open_material(plan, patches, work)
    for folder, own in zip(folders, dealt, strict=True):
        if run.is_finished(folder):
            print(f"{folder.name} is finished already.")
            continue
        print(f"\n{folder.name} of {folds}:")
        folder.mkdir(exist_ok=True)
        train_run(plan, material, own, summary, folder)
    if not distribution.is_first():
        return ""
    which = "all folds" if len(judged) == folds else f"folds {', '.join(map(str, judged))} of {folds}"
    subject = content.Subject(plan.name, which, content.describe_data(patches, summary), prevalence=plan.prevalence)
    assessment = content.pool_folds(folders, patches, subject)
    described, predictions, _ = assessment
    errors = content.read_pictures(described["worst_errors"], predictions, plan.dataset)
    figures = report.draw_figures(described, predictions, error_images=errors)
    run.write_predictions(work, predictions, described["classes"])
    report.write_report(work, described, figures)
    return printed.report_text(described)


def train_run(plan: Plan, material, patches, summary, folder: Path) -> str:
    """One run: train on training, fix the decision on validation, report on testing. Returns the report's text."""
    import numpy as np

    from cancernet import run
    from cancernet.reporting import content
    from cancernet.training import distribution, epochs, pipeline

    finished, fitted, left_out, weights = fit_run(plan, material, patches, summary, folder)
    decision, settings, trained = finished.decision, finished.settings, fitted.training
    testing = np.flatnonzero([patch.split == "testing" for patch in patches])
    with pipeline.naming_bad_files(material.images):
        scores = fitted.score(testing) if len(testing) else None
    if not distribution.is_first():
        return ""
    judged = "testing" if len(testing) else "validation"
    subject = content.Subject(
        plan.name,
        judged,
        content.describe_data(patches, summary),
        made={
            "class_weights": {name: weights[index] for index, name in enumerate(settings.classes)},
            "training": epochs.describe(trained, settings.hardware["device"]),
            "settings": content.flatten(describe_training(settings)),
        },
        chose_model=judged == "validation",
        warnings=[*warn_of_features(plan), *warn_of_few(left_out)],
        prevalence=plan.prevalence,
    )
    if len(testing):
        assessment = content.assess([patches[row] for row in testing], scores, decision, subject)
    else:  # the dataset's own validation split, each image by the member that left it out
        rows = np.flatnonzero([patch.split == "validation" for patch in left_out])
        assessment = content.assess([left_out[row] for row in rows], fitted.left_out[rows], decision, subject)
    run.save_run(finished, trained.history, assessment.predictions)
    return write_report(plan, finished, assessment, trained.history, patches)


def fit_run(plan: Plan, material, patches, summary, folder: Path) -> tuple:
    """Train on training and fix the decision on validation.

    Returns:
        The run, not saved; what `fit_members` fitted; the patches that the members left out, in the order of their
        scores; the class weights.
    """
    import numpy as np

    from cancernet import run
    from cancernet.data import splits
    from cancernet.evaluation import smoothing
    from cancernet.explain import out_of_distribution
    from cancernet.training import epochs, pipeline
    from cancernet.training.ensembles import fit_members

    experiment = plan.experiment
    settings = describe_settings(plan, patches, summary)
    by_patient = plan.split_by != "image"
    members = splits.split_members(patches, experiment.members, by_patient=by_patient, seed=experiment.seed)
    parts = None  # several members leave images enough out to choose a head's strength by
    if len(members) == 1 and experiment.strategy in ("frozen", "two-phase"):
        parts = splits.split_training(patches, by_patient=by_patient, seed=experiment.seed)
    trained_on = np.unique(np.concatenate([member.training for member in members]))
    weights = epochs.class_weights(material.labels[trained_on], len(settings.classes), experiment.class_weight)
    material = material._replace(weights=weights, parts=parts)
    announce(plan, settings, len(trained_on))
    with pipeline.naming_bad_files(material.images):
        fitted = fit_members(experiment, material, members, describe_training(settings), folder)
    settings = dataclasses.replace(settings, training_precision=fitted.training.precision)
    left_out = [patches[row] for member in members for row in member.validation]
    decision = smoothing.fit_on_validation(
        left_out,
        fitted.left_out,
        classes=settings.classes,
        positive=plan.positive,
        operating_point=plan.operating_point,
        neighbours=plan.neighbours,
        log_class_weight=log_weight_of_positive(plan, settings.classes, weights),
    )
    groups = np.array(splits.list_groups(patches, by_patient=by_patient))
    values = [(values, groups[rows]) for rows, values in fitted.seen_apart]
    familiar = out_of_distribution.fit_familiar(values, channels=experiment.channels)
    return run.Run(fitted.model, decision, settings, folder, familiar), fitted, left_out, weights


def announce(plan: Plan, settings, images: int) -> None:
    """Print what is going to be trained, and what will be judged of it."""
    from cancernet.reporting import wording

    experiment, device = plan.experiment, settings.hardware["device"]
    what = f"a head on {plan.features}" if plan.features else experiment.model
    print(f"Training {what} on {images:,} images of {plan.dataset}, on the {device}.")
    if plan.positive:
        named = {"class_names": settings.class_names}
        print(f"The positive class, to be found, is {wording.class_label(named, plan.positive)}.")
    if experiment.kept_weights == "mean" and experiment.strategy != "frozen":
        print(
            f"Judged is the mean of the weights of epochs {experiment.epochs // 2 + 1} to {experiment.epochs}. The "
            "val_accuracy of a single epoch, which may jump up and down, is not."
        )


def write_report(plan: Plan, finished, assessment, history, patches) -> str:
    """The report of a run with its pictures. Returns its text."""
    from cancernet.reporting import content, illustration, printed, report

    illustration.copy_samples(assessment.predictions, plan.dataset, finished.folder)
    described = assessment.report | illustration.illustrate(finished, assessment, plan.dataset, finished.folder)
    errors = content.read_pictures(described["worst_errors"], assessment.predictions, plan.dataset)
    figures = report.draw_figures(described, assessment.predictions, history=history, error_images=errors)
    figures |= illustration.draw_changes(patches, plan.dataset, plan.experiment)
    report.write_report(finished.folder, described, figures)
    return printed.report_text(described)


def log_weight_of_positive(plan: Plan, classes: Sequence[str], weights: dict[int, float]) -> float:
    """Log of the positive class's weight in training over the negative one's; 0 of more than two classes."""
    if plan.positive is None:
        return 0.0
    index = classes.index(plan.positive)
    return math.log(weights[index] / weights[1 - index])


def open_material(plan: Plan, patches, work: Path):
    """What networks are trained on: images and labels of all splits, and where features of them are kept."""
    print("Loading TensorFlow ...", flush=True)
    with quiet_import():
        import keras  # noqa: F401
    import numpy as np

    from cancernet import run
    from cancernet.data import dataset
    from cancernet.training import feature_cache, given_features, pipeline
    from cancernet.training.ensembles import Material

    classes = dataset.list_classes(patches)
    labels = np.array([classes.index(patch.label) for patch in patches])
    is_read_once = all(kind.strategy == "frozen" for kind in list_kinds(plan.experiment))
    cache_limit = 0 if is_read_once else plan.cache_limit
    images = pipeline.open_store(plan.dataset, patches, plan.experiment, cache_limit=cache_limit)
    place = feature_cache.Place(feature_cache.name_folder(plan.dataset), work / run.FEATURES, plan.manifest_sha256)
    given = plan.features and given_features.open_given(plan.features, patches, place.otherwise)
    return Material(images, labels, {}, place, given)


def describe_settings(plan: Plan, patches, summary):
    """All that is needed to train again: config.json."""
    from cancernet import run
    from cancernet.data import dataset, tiles

    with quiet_import():  # TensorFlow looks for GPUs, and reports what it does not find
        machine = run.describe_machine()
    return run.Settings(
        experiment=plan.experiment,
        classes=tuple(dataset.list_classes(patches)),
        positive=plan.positive,
        training_precision="float32",
        operating_point=plan.operating_point,
        neighbours=plan.neighbours,
        manifest_sha256=plan.manifest_sha256,
        images_are_grey=summary.are_grey,
        usual_size=summary.usual_size,
        mpp=tiles.IDC_MPP if dataset.is_idc(patches) else None,
        **machine,
        class_names=dataset.name_classes(patches),
        seen=run.describe_seen(patches),
    )


def warn_of_few(validation) -> list[str]:
    """A warning where so few patients fixed the decision that others would have given another."""
    patients = {patch.patient for patch in validation if patch.patient}
    if not 0 < len(patients) < LEAST_VALIDATION_PATIENTS:
        return []
    return [
        f"Calibration and threshold were fitted on {len(patients)} validation patient(s); other patients would have "
        "given others. Train with --members 5: then all patients of training and validation are used for it."
    ]


def warn_of_features(plan: Plan) -> list[str]:
    """What a run on given features cannot do."""
    if not plan.features:
        return []
    return [
        f"This run answers features as in {plan.features.name}, not images: predict_images.py and evaluate_model.py do "
        "not take it. The test is one only if that encoder has not seen these patients."
    ]


def describe_training(settings) -> dict:
    """The settings that a report lists and a checkpoint must agree with: all but what the run has seen."""
    left_out = ("class_names", "seen")
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in left_out}


if __name__ == "__main__":
    run_script(main)
