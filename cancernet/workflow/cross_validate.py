"""Cross-validation: a run for each fold, then one report on all their test images together."""

from collections.abc import Sequence
from pathlib import Path

from cancernet import progress, run
from cancernet.data import dataset, splits
from cancernet.data.dataset import Patch
from cancernet.reporting import content, report
from cancernet.training import distribution
from cancernet.workflow.fit import Plan, check_members, fit_run, open_data, report_run


def cross_validate(plan: Plan, wanted: Sequence[int], work: Path) -> None:
    """Train the wanted folds that are not finished yet, and write the pooled report.

    Args:
        wanted: numbers of folds, from 1.
        work: folder of the unfinished cross-validation; fold 1 is a run in fold_1.

    Raises:
        InputError: too few patients, or a fold that cannot be trained.
    """
    folds = plan.options.folds or len(wanted)
    every = deal_folds(plan, plan.dataset.patches, folds)
    own = {number: every[number - 1] for number in wanted}
    check_members(plan, list(own.values()), plan.experiment.members)
    data = open_data(plan, work)
    for part, (number, patches) in enumerate(own.items(), 1):
        folder = work / f"fold_{number}"
        if run.is_finished(folder):
            print(f"{folder.name} is finished already.")
            continue
        print(f"\n{folder.name} of {folds}:")
        folder.mkdir(exist_ok=True)
        with progress.part(part, len(own), "fold"):
            finished = fit_run(plan, data, patches, folder)
        report_run(plan, finished, data, patches)
    if not distribution.is_first():
        return
    which = "all folds" if len(wanted) == folds else f"folds {', '.join(map(str, wanted))} of {folds}"
    data_of = content.describe_data(plan.dataset.patches, plan.dataset.summary)
    options = plan.options
    context = content.ReportContext(plan.name, which, data_of, prevalence=options.prevalence, group=options.group)
    places, step = [work / f"fold_{n}" for n in wanted], plan.dataset.summary.patch_pixels
    described, predictions, _ = content.pool_folds(places, plan.dataset.patches, context, step)
    errors = content.read_images([each.file for each in described.worst_errors], predictions, plan.dataset.folder)
    figures = report.draw_figures(described, predictions, error_images=errors)
    from cancernet.reporting import illustration  # TensorFlow is loaded by now

    described, drawn = illustration.check_labels(described, predictions, plan.dataset.folder, work)
    run.write_predictions(work, predictions, described.classes)
    report.write_report(work, described, figures | drawn)


def deal_folds(plan: Plan, patches: Sequence[Patch], folds: int) -> list[list[Patch]]:
    """Return the patches of each fold with the splits that they have in it.

    Raises:
        InputError: too few patients, or a fold that cannot be trained.
    """
    groups = splits.list_groups(patches, by_patient=plan.by_patient)
    labels = [patch.label for patch in patches]
    assigned = splits.assign_folds(labels, groups, folds=folds, seed=plan.experiment.seed)
    dealt = [[patch._replace(split=split) for patch, split in zip(patches, fold, strict=True)] for fold in assigned]
    for own in dealt:
        dataset.check_trainable(own)
    return dealt
