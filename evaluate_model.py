"""Apply a finished run, with its frozen decision, to the images of any built dataset and report on them."""

from collections.abc import Sequence
from pathlib import Path

from cancernet import InputError
from cancernet.command_line import Parser, check_replaceable, prevalence, quiet_import, run_script
from cancernet.config import DATASET, SPLITS


def parse_arguments(argv: Sequence[str]):
    parser = Parser(prog="evaluate_model.py", description=__doc__)
    parser.add_argument("run", type=Path, help="folder made by train_model.py, such as runs/cancernet")
    parser.add_argument("--dataset", type=Path, default=DATASET, help="made by build_dataset.py (%(default)s)")
    parser.add_argument("--split", choices=SPLITS, default="testing", help="whose images are judged (%(default)s)")
    parser.add_argument(
        "--output", type=Path, help="folder for the report with its pictures; printed only if not given"
    )
    parser.add_argument("--prevalence", type=prevalence, help="to give PPV and NPV at, such as 0.01")
    parser.add_argument("--no-neighbours", action="store_true", help="do not smooth over a slide's neighbours")
    parser.add_argument("--allow-seen-patients", action="store_true", help="judge patients that the run was trained on")
    parser.add_argument("--force", action="store_true", help="replace a report that is there")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    arguments = parse_arguments(argv)
    from cancernet.data import dataset

    output = arguments.output
    if output:
        check_replaceable(output, holds="report.json", called="a report", force=arguments.force)
    everything, summary = dataset.read_manifest(arguments.dataset), dataset.read_summary(arguments.dataset)
    patches = [patch for patch in everything if patch.split == arguments.split]
    if not patches:
        raise InputError(f"{arguments.dataset} has no {arguments.split} images. Choose another --split.")

    with quiet_import():
        import keras  # noqa: F401
    from cancernet import folders, run
    from cancernet.judging import smoothing
    from cancernet.learning import pipeline
    from cancernet.reporting import content, illustration, report

    loaded = run.load_classifier(arguments.run)
    decision, experiment = loaded.decision, loaded.config["experiment"]
    if arguments.no_neighbours and decision.without_neighbours:
        decision = decision.without_neighbours
    content.check_same_kind(loaded.config, patches, summary)
    seen = content.find_seen(loaded.config, patches)
    if seen and not arguments.allow_seen_patients:
        raise InputError(
            f"{len(seen)} patient(s) of {arguments.dataset}, or single images, were in the run's own training or "
            f"validation, first {seen[0]}: this is no test. Give other patients, or --allow-seen-patients."
        )
    size = {"image_size": experiment["image_size"], "channels": experiment["channels"]}
    store = pipeline.open_stores(arguments.dataset, {arguments.split: patches}, **size)[arguments.split]
    scores = run.predict_scores(loaded.model, store, views=experiment["views"])
    described, predictions = content.assess(
        patches,
        scores,
        decision,
        name=arguments.run.resolve().name,
        evaluated_on=arguments.split,
        data=content.describe_data(everything, summary),
        seen=seen,
        warnings=content.compare_sizes(loaded.config, summary),
        prevalence=arguments.prevalence,
    )
    settings = {name: value for name, value in loaded.config.items() if name != "seen"}
    described["settings"] = content.flatten({"run": arguments.run.resolve().name, "of the run": settings})
    if output:
        figures = report.draw_figures(
            described,
            truth=predictions.labels,
            probabilities=predictions.probabilities,
            error_images=content.read_worst_errors(described, arguments.dataset),
        )
        with folders.fresh_folder(output) as folder:
            smoothing.write_predictions(folder / smoothing.PREDICTIONS, predictions, decision.classes)
            judged = loaded._replace(decision=decision)
            described |= illustration.illustrate(judged, predictions, arguments.dataset, folder)
            report.write_report(folder, described, figures)
    print(report.report_text(described))
    if output:
        print(f"The report with its pictures: {output / 'report.html'}")


if __name__ == "__main__":
    run_script(main)
