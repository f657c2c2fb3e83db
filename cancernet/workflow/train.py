"""Train a network on a built dataset, then report on patients it has never seen."""

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cancernet.config import RUNS, TrainingOptions
from cancernet.models.architectures import list_model_names
from cancernet.training.experiments import choose_experiment

if TYPE_CHECKING:
    from cancernet.reporting.schema import Report
    from cancernet.workflow.fit import Plan

EPILOG = f"architectures: {', '.join(list_model_names())}"  # of --help


class Trained(NamedTuple):
    """What a training leaves."""

    folder: Path  # of the run, or of the cross-validation
    report: "Report"


def train(options: TrainingOptions) -> Trained | None:
    """Train a run, or cross-validate, and write its folder; print the report.

    The same command resumes an unfinished run. Of several processes only the first prints, writes and returns. Raises
    InputError if the options, the dataset or the output folder cannot be used, TrainingDiverged if the loss is not
    finite.
    """
    experiment = choose_experiment(options)
    folds = choose_folds(options)
    from cancernet import progress, run
    from cancernet.reporting import printed, schema
    from cancernet.storage import FolderKind, check_replaceable, lock_folder
    from cancernet.training import distribution
    from cancernet.workflow.cross_validate import cross_validate
    from cancernet.workflow.fit import check_members, fit_run, make_plan, open_data, report_run

    with distribution.joined() if options.distributed else contextlib.nullcontext():
        named = options.output or RUNS / experiment.model.replace("+", "_")
        plan = make_plan(options, experiment, named.name)
        is_one_run = not folds and not options.leave_out
        check_members(plan, [plan.dataset.patches] if is_one_run else [], plan.experiment.members)
        asked = describe_request(plan)
        folder = named if options.output or options.force else run.choose_folder(named, asked)
        plan = dataclasses.replace(plan, name=folder.name)
        check_replaceable(folder, FolderKind.RUN, force=options.force)
        first = distribution.is_first()
        with lock_folder(folder) if first else contextlib.redirect_stdout(io.StringIO()):
            if not first:
                distribution.wait()  # until the first has prepared the folder
            work = run.prepare_folder(folder, asked, force=options.force) if first else run.name_unfinished(folder)
            if first:
                distribution.wait()
            if not run.is_finished(work):
                with progress.show_progress():
                    if is_one_run:
                        data = open_data(plan, work)
                        report_run(plan, fit_run(plan, data, plan.dataset.patches, work), plan.dataset.patches)
                    else:
                        cross_validate(plan, folds, work)
            distribution.wait()  # nobody still checks whether it is finished
            if not first:
                return None
            run.finish_folder(work, folder)
    report = run.read_report(folder, schema.Report)
    assert report  # it was just written
    print(f"\n{printed.report_text(report)}\nThe report with its pictures: {folder / run.REPORT_PAGE}")
    print(printed.suggest_next(str(folder)))
    return Trained(folder, report)


def choose_folds(options: TrainingOptions) -> list[int]:
    """Return the numbers of the folds to train, from 1; none without cross-validation.

    Raises InputError for a fold beyond their number, or folds together with a column to leave out.
    """
    from cancernet import InputError

    if options.leave_out and (options.folds or options.only_folds):
        raise InputError("--leave-out makes one fold of each value of the column. Leave out --folds and --only-folds.")
    folds = options.folds or 0
    wanted = sorted(set(options.only_folds or range(1, folds + 1)))
    if wanted and wanted[-1] > folds:
        raise InputError(f"--only-folds {wanted[-1]} is beyond --folds {folds or 'none'}. Give --folds too.")
    return wanted


def describe_request(plan: "Plan") -> dict[str, object]:
    """All that the figures follow from: an unfinished training is resumed only where all of this is the same."""
    left_out = ("dataset", "output", "force", "cache_limit", "tensorboard")
    asked = {name: value for name, value in dataclasses.asdict(plan.options).items() if name not in left_out}
    asked |= {"experiment": dataclasses.asdict(plan.experiment), "positive": plan.positive}
    return asked | {"manifest_sha256": plan.dataset.manifest_sha256}
