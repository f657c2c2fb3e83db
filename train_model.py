"""Train a network on a built dataset, then report on patients it has never seen."""

import dataclasses
import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cancernet import InputError, __version__
from cancernet.command_line import (
    Parser,
    at_least,
    check_output,
    positive_number,
    prevalence,
    quiet_import,
    run_script,
    seed,
)
from cancernet.config import DATASET, DEFAULT_RECIPE, RECIPES, RUNS, SPLITS, Experiment
from cancernet.learning.models import MODELS, check_architecture

BEGUN = "begun.json"  # what an unfinished run was asked for
PACKAGES = ("tensorflow", "keras", "numpy", "sklearn", "scipy", "cv2", "imutils", "matplotlib")


def parse_arguments(argv: Sequence[str]):
    parser = Parser(prog="train_model.py", description=__doc__)
    parser.add_argument("--dataset", type=Path, default=DATASET, help="made by build_dataset.py (%(default)s)")
    parser.add_argument("--output", type=Path, help="folder of the run (runs/MODEL)")
    parser.add_argument("--model", choices=tuple(MODELS), default="cancernet", help="(%(default)s)")
    parser.add_argument("--recipe", choices=tuple(RECIPES), help="all settings at once; see config.py")
    parser.add_argument("--epochs", type=at_least(1))
    parser.add_argument("--batch-size", type=at_least(1))
    parser.add_argument("--learning-rate", type=positive_number)
    parser.add_argument("--seed", type=seed, help="same seed, same numbers (42)")
    parser.add_argument("--image-size", type=at_least(1), help="pixels; the model's own by default")
    parser.add_argument("--weights", help="of a backbone: imagenet, none or a file (imagenet)")
    parser.add_argument("--strategy", choices=("frozen", "finetune", "two-phase"), help="of a backbone (frozen)")
    parser.add_argument("--class-weight", choices=("ratio", "balanced", "none"))
    parser.add_argument(
        "--views",
        choices=("one", "mirror", "eight"),
        help="of an image, to predict the mean over: it alone, with its mirror image, or all eight flips and turns",
    )
    parser.add_argument(
        "--operating-point", default="balanced", help="balanced, sensitivity=0.95, specificity=0.95 or a threshold"
    )
    parser.add_argument("--no-neighbours", action="store_true", help="do not smooth over a slide's neighbours")
    parser.add_argument("--positive", metavar="CLASS", help="of two classes the one to be found (the last by name)")
    parser.add_argument("--prevalence", type=prevalence, help="to give PPV and NPV at, such as 0.01")
    parser.add_argument("--mixed-precision", action="store_true", help="train in bfloat16 if a step is faster that way")
    parser.add_argument("--cache-limit", type=positive_number, help="GB for decoded images (half of free memory)")
    parser.add_argument(
        "--folds", type=at_least(2), help="cross-validate by patient: as many runs and one pooled report"
    )
    parser.add_argument("--force", action="store_true", help="replace a run that is there")
    return parser.parse_args(argv)


def choose_experiment(arguments) -> Experiment:
    """The recipe with what the command line changes of it."""
    architecture = MODELS[arguments.model]
    recipe = arguments.recipe or ("transfer" if architecture.family == "transfer" else DEFAULT_RECIPE)
    settings = {field.name for field in dataclasses.fields(Experiment)}
    given = {name: value for name, value in vars(arguments).items() if name in settings and value is not None}
    own = {"image_size": architecture.image_size, "channels": architecture.channels}
    own["weights"] = "imagenet" if architecture.family == "transfer" else "none"
    experiment = dataclasses.replace(RECIPES[recipe], **(own | given))
    if experiment.strategy == "finetune" and not arguments.learning_rate:
        experiment = dataclasses.replace(experiment, learning_rate=experiment.learning_rate / 10)
    if architecture.family != "transfer" and experiment.strategy != "all":
        raise InputError(
            f"--strategy {experiment.strategy} needs a backbone; {arguments.model} is trained from scratch."
        )
    check_architecture(experiment)
    return experiment


def main(argv: Sequence[str]) -> None:
    arguments = parse_arguments(argv)
    experiment = choose_experiment(arguments)
    run = arguments.output = arguments.output or RUNS / experiment.model
    from cancernet.data import dataset
    from cancernet.judging import decision

    decision.parse_operating_point(arguments.operating_point)
    patches, summary = dataset.read_manifest(arguments.dataset), dataset.read_summary(arguments.dataset)
    if summary["split"] != "image":
        dataset.check_patients(patches)
    dataset.check_trainable(patches)
    arguments.positive = choose_positive(arguments, dataset.class_names(patches))
    elsewhere = ("dataset", "output", "force", "cache_limit")  # of no consequence to the figures
    asked = {name: value for name, value in vars(arguments).items() if name not in elsewhere}
    asked |= dataclasses.asdict(experiment) | {"manifest_sha256": dataset.hash_manifest(arguments.dataset)}
    work = prepare_folder(run, asked, force=arguments.force)
    if arguments.folds:
        text = train_folds(arguments, experiment, patches, summary, work)
    else:
        text = train_run(arguments, experiment, patches, summary, work)
    finish_folder(work, run)
    print(f"\n{text}\nThe report with its pictures: {run / 'report.html'}")


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


def prepare_folder(run: Path, asked: dict, *, force: bool) -> Path:
    """Where a training works until it is finished; an unfinished one that was asked for the same goes on from there.

    Args:
        asked: for what, as JSON takes it but for paths.

    Raises:
        InputError: `run` is something that must not be overwritten, or the unfinished one was asked for something else.
    """
    check_output(run)
    work = run.with_name(run.name + ".unfinished")
    if run.is_file():
        raise InputError(f"{run} is a file; --output takes the folder of the run.")
    if run.exists() and any(run.iterdir()):
        if not (run / "report.json").is_file():
            raise InputError(f"{run} is not empty and no run. Choose another --output.")
        if not force:
            raise InputError(f"{run} holds a finished run. Choose another --output, or --force to replace it.")
    begun, text = work / BEGUN, json.dumps(asked, indent=1, default=str)
    if work.exists() and not (begun.is_file() and begun.read_text(encoding="utf-8") == text):
        if begun.is_file() and not force:
            raise InputError(f"{work} was begun with other settings. Start again with --force, or finish it first.")
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    begun.write_text(text, encoding="utf-8")
    return work


def finish_folder(work: Path, run: Path) -> None:
    """Give a finished run its name."""
    for checkpoint in [*work.glob("checkpoint*"), *work.glob("fold_*/checkpoint*")]:
        shutil.rmtree(checkpoint)
    (work / BEGUN).unlink()
    shutil.rmtree(run, ignore_errors=True)
    work.rename(run)


def train_folds(arguments, experiment: Experiment, patches, summary: dict, work: Path) -> str:
    """Cross-validation: a run for each fold, then one report on all their test images together."""
    from cancernet.data import dataset, splits
    from cancernet.judging import smoothing
    from cancernet.reporting import content, report

    groups = [patch.patient if patch.patient and summary["split"] != "image" else patch.file for patch in patches]
    labels = [patch.label for patch in patches]
    assigned = splits.assign_folds(labels, groups, folds=arguments.folds, seed=experiment.seed)
    folders = [work / f"fold_{number}" for number in range(1, arguments.folds + 1)]
    dealt = [[patch._replace(split=split) for patch, split in zip(patches, fold, strict=True)] for fold in assigned]
    for own in dealt:
        dataset.check_trainable(own)
    for folder, own in zip(folders, dealt, strict=True):
        if (folder / "report.json").is_file():
            print(f"{folder.name} is finished already.")
            continue
        print(f"\n{folder.name} of {arguments.folds}:")
        folder.mkdir(exist_ok=True)
        train_run(arguments, experiment, own, summary, folder)
    described, predictions = content.pool_folds(
        folders,
        name=arguments.output.name,
        data=content.describe_data(patches, summary),
        prevalence=arguments.prevalence,
    )
    figures = report.draw_figures(
        described,
        truth=predictions.labels,
        probabilities=predictions.probabilities,
        error_images=content.read_worst_errors(described, arguments.dataset),
    )
    smoothing.write_predictions(work / smoothing.PREDICTIONS, predictions, described["classes"])
    report.write_report(work, described, figures)
    return report.report_text(described)


def train_run(arguments, experiment: Experiment, patches, summary: dict, work: Path) -> str:
    """One run: train on training, fix the decision on validation, report on testing. Returns the report's text."""
    print("Loading TensorFlow ...", flush=True)
    with quiet_import():
        import keras
    import numpy as np

    from cancernet import run
    from cancernet.data import dataset
    from cancernet.judging import smoothing
    from cancernet.learning import models, phases, pipeline, training
    from cancernet.reporting import content, illustration, report

    classes = dataset.class_names(patches)
    splits = {split: [patch for patch in patches if patch.split == split] for split in SPLITS}
    labels = {split: np.array([classes.index(patch.label) for patch in rows]) for split, rows in splits.items()}
    weights = training.class_weights(labels["training"], len(classes), experiment.class_weight)
    settings = describe_settings(arguments, experiment, patches, summary, classes)
    device = settings["hardware"]["device"]
    print(f"Training {experiment.model} on {len(splits['training']):,} images of {arguments.dataset}, on the {device}.")
    if arguments.positive:
        print(f"The positive class, to be found, is {arguments.positive}.")

    keras.utils.set_random_seed(experiment.seed)
    model = models.build_model(experiment, len(classes))
    stores = pipeline.open_stores(
        arguments.dataset,
        splits,
        image_size=experiment.image_size,
        channels=experiment.channels,
        cache_limit=arguments.cache_limit and int(arguments.cache_limit * 2**30),
    )
    with pipeline.naming_bad_files(*stores.values()):
        trained, score = phases.fit_phases(model, experiment, stores, labels, weights, settings, work)

    frozen = smoothing.fit_on_validation(
        splits["validation"],
        score("validation"),
        classes=classes,
        positive=arguments.positive,
        operating_point=arguments.operating_point,
        neighbours=not arguments.no_neighbours,
    )
    evaluated_on = "testing" if splits["testing"] else "validation"
    described, predictions = content.assess(
        splits[evaluated_on],
        score(evaluated_on),
        frozen,
        name=arguments.output.name,
        evaluated_on=evaluated_on,
        chose_model=not splits["testing"],
        data=content.describe_data(patches, summary),
        prevalence=arguments.prevalence,
    )
    described |= {
        "class_weights": {name: weights[index] for index, name in enumerate(classes)},
        "training": training.describe(trained, device),
        "settings": content.flatten(settings),
    }
    figures = report.draw_figures(
        described,
        truth=predictions.labels,
        probabilities=predictions.probabilities,
        history=trained.history,
        error_images=content.read_worst_errors(described, arguments.dataset),
    )

    config = settings | {"class_names": described["class_names"], "seen": content.describe_seen(patches)}
    loaded = run.Classifier(model, frozen, config, work)
    described |= illustration.illustrate(loaded, predictions, arguments.dataset, work)
    save_run(loaded, trained.history, predictions)
    report.write_report(work, described, figures)
    return report.report_text(described)


def save_run(loaded, history: dict, predictions) -> None:
    """Write what a run leaves beside its report: the model, its decision and settings, the history, predictions.csv."""
    from cancernet import run
    from cancernet.judging import decision, smoothing
    from cancernet.learning import training

    folder = loaded.run
    loaded.model.save(folder / run.MODEL)
    decision.save_decision(loaded.decision, folder / run.DECISION)
    run.write_config(folder, loaded.config)
    training.write_history(folder / "history.csv", history)
    smoothing.write_predictions(folder / smoothing.PREDICTIONS, predictions, loaded.decision.classes)


def describe_settings(arguments, experiment: Experiment, patches, summary: dict, classes: list[str]) -> dict:
    """All that is needed to train again: config.json."""
    from cancernet.data import dataset, tiles
    from cancernet.learning import pipeline
    from cancernet.reporting import content

    return {
        "experiment": dataclasses.asdict(experiment),
        "classes": classes,
        "positive": arguments.positive,
        "training_precision": "float32",
        "operating_point": arguments.operating_point,
        "neighbours": not arguments.no_neighbours,
        "manifest_sha256": dataset.hash_manifest(arguments.dataset),
        "images_are_grey": content.are_grey(summary),
        "usual_size": next(iter(summary["sizes"])),
        "mpp": tiles.IDC_MPP if dataset.is_idc(patches) else None,
        "versions": {"cancernet": __version__, "python": platform.python_version()}
        | {name: sys.modules[name].__version__ for name in PACKAGES},
        "hardware": {"device": pipeline.describe_device(), "cores": os.cpu_count(), "system": platform.platform()},
    }


if __name__ == "__main__":
    run_script(main)
