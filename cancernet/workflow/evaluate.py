"""Evaluate a finished run, with its decision unchanged, on the images of any built dataset."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cancernet import InputError
from cancernet.config import DATASET, Prevalence, group_option, option
from cancernet.models.backend import explain_unused_gpu, import_keras

if TYPE_CHECKING:
    from cancernet.reporting.content import EvaluatedSplit
    from cancernet.reporting.schema import Report
    from cancernet.run import Run


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """Which run is evaluated on which images, and how."""

    run: Path = option(Path(), "Folder of a run, such as runs/cancernet", group="data", positional=True)
    dataset: Path = option(DATASET, "Folder made by build_dataset.py", group="data")
    split: Literal["training", "validation", "testing"] = option("testing", "Split to evaluate", group="data")
    allow_seen_patients: bool = option(
        False, "Evaluate patients that the run was trained or validated on", group="data"
    )
    neighbours: bool = option(True, "Do not smooth over neighbouring patches of a slide", group="decision")
    prevalence: Prevalence | None = option(None, "Also give PPV and NPV at this prevalence", group="decision")
    group: str | None = group_option()
    output: Path | None = option(None, "Folder for the report with its pictures", default="print only")
    force: bool = option(False, "Replace a report that exists")


def evaluate(options: EvaluationOptions) -> "Report":
    """Predict the images of a split, report on them, and print the report.

    Raises InputError if the run, the dataset or the output folder cannot be used, or the run has seen these patients.
    """
    from cancernet import progress
    from cancernet.storage import FolderKind, claim_folder

    with claim_folder(options.output, FolderKind.EVALUATION, force=options.force), progress.show_progress():
        return _evaluate(options)


def _evaluate(options: EvaluationOptions) -> "Report":
    from cancernet.data.dataset import open_dataset, read_column
    from cancernet.run import read_settings

    read_settings(options.run)  # a missing run is found before TensorFlow is loaded
    dataset = open_dataset(options.dataset)
    patches = [patch for patch in dataset.patches if patch.split == options.split]
    if not patches:
        raise InputError(f"{options.dataset} has no {options.split} images. Choose another --split.")
    if options.group:
        read_column(patches, options.group)

    import_keras()
    from cancernet import run
    from cancernet.evaluation.predictions import Scores
    from cancernet.explain import out_of_distribution
    from cancernet.reporting import content, printed
    from cancernet.training import pipeline, scoring

    if unused := explain_unused_gpu(pipeline.describe_device()):
        print(unused)
    evaluated = run.load_run(options.run)
    if not options.neighbours and evaluated.decision.without_neighbours:
        evaluated = dataclasses.replace(evaluated, decision=evaluated.decision.without_neighbours)
    settings = evaluated.settings
    run.check_same_kind(settings, patches, are_grey=dataset.summary.are_grey)
    seen = run.find_seen(settings.seen, patches)
    if seen and not options.allow_seen_patients:
        raise InputError(
            f"{len(seen)} patients or single images of {options.dataset} were in the run's own training or validation, "
            f"first {seen[0]}: this is no test. Use other patients, or --allow-seen-patients."
        )
    store = pipeline.open_store(options.dataset, patches, settings.experiment)
    name = options.run.resolve().name
    context = content.ReportContext(
        name,
        options.split,
        content.describe_data(dataset.patches, dataset.summary),
        settings=content.flatten({"run": name, "of the run": content.list_settings(settings)}),
        seen=seen,
        warnings=run.compare_scales(settings, dataset.summary.usual_size, dataset.summary.mpp),
        prevalence=options.prevalence,
        group=options.group,
        dataset=options.dataset.resolve().name,
    )
    network = out_of_distribution.add_detector(evaluated.model, evaluated.detector, settings.experiment.views)
    probabilities, distances = scoring.predict(network, store)
    scores = Scores(patches, scoring.log_scores(probabilities), distances, dataset.summary.patch_pixels)
    result = content.evaluate_split(scores, evaluated.decision, context)
    described = _write(options.output, evaluated, result, options.dataset) if options.output else result.report
    print(printed.report_text(described))
    if options.output:
        print(f"The report with its pictures: {options.output / run.REPORT_PAGE}")
    return described


def _write(output: Path, evaluated: "Run", result: "EvaluatedSplit", dataset: Path) -> "Report":
    """Write the predictions and the report, and return it with its pictures."""
    from cancernet import run, storage
    from cancernet.reporting import content, illustration, report

    described, predictions, _ = result
    errors, furthest = (
        content.read_images([each.file for each in listed], predictions, dataset)
        for listed in (described.worst_errors, described.outside.furthest if described.outside else [])
    )
    figures = report.draw_figures(described, predictions, error_images=errors, furthest_images=furthest)
    with storage.fresh_folder(output) as folder:
        run.write_predictions(folder, predictions, evaluated.decision.classes)
        described = illustration.illustrate(evaluated, result, dataset, folder)
        report.write_report(folder, described, figures)
    return described
