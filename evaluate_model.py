"""Apply a finished run, with its frozen decision, to the images of any built dataset and report on them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cancernet import InputError
from cancernet.cli import Parser, prevalence, quiet_import, run_script
from cancernet.config import DATASET, SPLITS


def parse_arguments(argv: Sequence[str]):
    parser = Parser(prog="evaluate_model.py", description=__doc__)
    parser.add_argument("run", type=Path, help="folder made by train_model.py, such as runs/cancernet")
    parser.add_argument("--dataset", type=Path, default=DATASET, help="made by build_dataset.py (%(default)s)")
    parser.add_argument("--split", choices=SPLITS, default="testing", help="whose images are judged (%(default)s)")
    parser.add_argument("--output", type=Path, help="folder for the report with its pictures; (none: printed only)")
    parser.add_argument("--prevalence", type=prevalence, help="to give PPV and NPV at, such as 0.01 (not given)")
    parser.add_argument("--no-neighbours", action="store_true", help="do not smooth over a slide's neighbours")
    parser.add_argument("--allow-seen-patients", action="store_true", help="judge patients that the run was trained on")
    parser.add_argument("--force", action="store_true", help="replace a report that is there")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    arguments = parse_arguments(argv)
    from cancernet.storage import FolderKind, claim_folder

    output = arguments.output
    with claim_folder(output, FolderKind.EVALUATION, force=arguments.force):
        evaluate(arguments)


def evaluate(arguments) -> None:
    from cancernet.data import dataset

    output = arguments.output
    everything, summary = dataset.read_manifest(arguments.dataset), dataset.read_summary(arguments.dataset)
    patches = [patch for patch in everything if patch.split == arguments.split]
    if not patches:
        raise InputError(f"{arguments.dataset} has no {arguments.split} images. Choose another --split.")

    with quiet_import():
        import keras  # noqa: F401
    from cancernet import run, storage
    from cancernet.explain import out_of_distribution
    from cancernet.reporting import content, illustration, printed, report
    from cancernet.training import pipeline, scoring

    judge = run.load_run(arguments.run)
    if arguments.no_neighbours and judge.decision.without_neighbours:
        judge = judge._replace(decision=judge.decision.without_neighbours)
    settings, experiment = judge.settings, judge.settings.experiment
    run.check_same_kind(settings, patches, are_grey=summary.are_grey)
    seen = run.find_seen(settings.seen, patches)
    if seen and not arguments.allow_seen_patients:
        raise InputError(
            f"{len(seen)} patient(s) of {arguments.dataset}, or single images, were in the run's own training or "
            f"validation, first {seen[0]}: this is no test. Give other patients, or --allow-seen-patients."
        )
    store = pipeline.open_store(arguments.dataset, patches, experiment)
    name = arguments.run.resolve().name
    shown = {key: value for key, value in dataclasses.asdict(settings).items() if key != "seen"}
    subject = content.Subject(
        name,
        arguments.split,
        content.describe_data(everything, summary),
        made={"settings": content.flatten({"run": name, "of the run": shown})},
        seen=seen,
        warnings=run.compare_sizes(settings, summary.usual_size),
        prevalence=arguments.prevalence,
        dataset=arguments.dataset.resolve().name,
    )
    probabilities, distances = scoring.predict(
        out_of_distribution.watch(judge.model, judge.familiar, experiment.views), store
    )
    assessment = content.assess(patches, scoring.log_scores(probabilities), judge.decision, subject)
    assessment.report["outside"] = content.describe_outside(distances, patches)
    described, predictions, _ = assessment
    if output:
        errors = content.read_pictures(described["worst_errors"], predictions, arguments.dataset)
        far = described["outside"]["furthest"] if described["outside"] else []
        furthest = content.read_pictures(far, predictions, arguments.dataset)
        figures = report.draw_figures(described, predictions, error_images=errors, furthest_images=furthest)
        with storage.fresh_folder(output) as folder:
            run.write_predictions(folder, predictions, judge.decision.classes)
            described = described | illustration.illustrate(judge, assessment, arguments.dataset, folder)
            report.write_report(folder, described, figures)
    print(printed.report_text(described))
    if output:
        print(f"The report with its pictures: {output / run.REPORT_PAGE}")


if __name__ == "__main__":
    run_script(main)
