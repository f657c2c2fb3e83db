"""Cross-validation: a run for each fold, then one report on all their test images together."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from cancernet import InputError, progress, run
from cancernet.data import dataset, splits
from cancernet.data.dataset import Patch
from cancernet.reporting import content, report
from cancernet.training import distribution
from cancernet.workflow.fit import Plan, check_members, fit_run, open_data, report_run

UNSAFE = re.compile(r"[^\w.-]+")
LONGEST_NAME = 60  # characters of a value in the name of a folder, up to four bytes each


def cross_validate(plan: Plan, wanted: Sequence[int], work: Path) -> None:
    """Train the folds that are not finished yet, and write the pooled report.

    `wanted` are the numbers of the folds to train, from 1; not used where the values of a column are left out. `work`
    is the folder of the unfinished cross-validation: fold 1 is a run in fold_1, and that without Berlin in fold_Berlin.
    Raises InputError for too few patients, or a fold that cannot be trained.
    """
    column, folds = plan.options.leave_out, plan.options.folds or len(wanted)
    own: dict[int | str, list[Patch]]
    if column:
        own, which = leave_out_values(plan, column), f"every {column}"
    else:
        every = deal_folds(plan, plan.dataset.patches, folds)
        own = {number: every[number - 1] for number in wanted}
        which = "all folds" if len(wanted) == folds else f"folds {', '.join(map(str, wanted))} of {folds}"
    places = name_folders(own, work)
    check_members(plan, list(own.values()), plan.experiment.members)
    data = open_data(plan, work)
    for part, (name, patches) in enumerate(own.items(), 1):
        folder = places[name]
        if run.is_finished(folder):
            print(f"{folder.name} is finished already.")
            continue
        print(f"\n{folder.name} ({part} of {len(own)}):")
        folder.mkdir(exist_ok=True)
        with progress.part(part, len(own), "fold"):
            finished = fit_run(plan, data, patches, folder)
        report_run(plan, finished, patches)
    if not distribution.is_first():
        return
    data_of = content.describe_data(plan.dataset.patches, plan.dataset.summary)
    prevalence, group = plan.options.prevalence, plan.options.group or column
    context = content.ReportContext(plan.name, which, data_of, prevalence=prevalence, group=group, left_out=column)
    step = plan.dataset.summary.patch_pixels
    described, predictions, _ = content.pool_folds(places, plan.dataset.patches, context, step)
    errors = content.read_images([each.file for each in described.worst_errors], predictions, plan.dataset.folder)
    figures = report.draw_figures(described, predictions, error_images=errors)
    from cancernet.reporting import illustration  # TensorFlow is loaded by now

    described, drawn = illustration.check_labels(described, predictions, plan.dataset.folder, work)
    run.write_predictions(work, predictions, described.classes)
    report.write_report(work, described, figures | drawn)


def deal_folds(plan: Plan, patches: Sequence[Patch], folds: int) -> list[list[Patch]]:
    """Return the patches with their splits in each fold; InputError for too few patients, or a fold without a class."""
    labels, groups = [patch.label for patch in patches], splits.list_groups(patches, by_patient=plan.by_patient)
    assigned = splits.assign_folds(labels, groups, folds=folds, seed=plan.experiment.seed)
    return [_put_in_splits(patches, fold) for fold in assigned]


def leave_out_values(plan: Plan, column: str) -> dict[int | str, list[Patch]]:
    """Return the patches with their splits in the fold of each value of a column, which is tested on that value.

    Raises InputError if there is no such column, or it cannot be left out (see `splits.leave_out_values`).
    """
    patches = plan.dataset.patches
    values = dataset.read_column(patches, column, most=None)
    labels, groups = [patch.label for patch in patches], splits.list_groups(patches, by_patient=plan.by_patient)
    try:
        assigned = splits.leave_out_values(labels, groups, values, seed=plan.experiment.seed)
        return {value: _put_in_splits(patches, fold) for value, fold in assigned.items()}
    except InputError as error:
        raise InputError(f"--leave-out {column}: {error}") from error


def _put_in_splits(patches: Sequence[Patch], assigned: Sequence[str]) -> list[Patch]:
    own = [patch._replace(split=split) for patch, split in zip(patches, assigned, strict=True)]
    dataset.check_trainable(own)
    return own


def name_folders(names: Iterable[int | str], work: Path) -> dict[int | str, Path]:
    """Return the folder of each fold; other characters than letters, digits, hyphens and dots become underscores.

    Raises InputError if two folds would have the same folder, also where case is ignored.
    """
    folders = {name: work / f"fold_{UNSAFE.sub('_', str(name))[:LONGEST_NAME]}" for name in names}
    first_of: dict[str, int | str] = {}
    for name, folder in folders.items():
        if (first := first_of.setdefault(folder.name.lower(), name)) != name:
            found = f"{first} and {name} would have the same folder, {folder.name}"
            raise InputError(f"{found}. Rename one of them in the table of labels, and build again.")
    return folders
