"""Predict new images with a finished run and write tables, maps of slides, and regions for QuPath."""

import dataclasses
import functools
import os
import re
import time
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from annotated_types import Gt, Interval

from cancernet import InputError, progress, storage
from cancernet.config import option
from cancernet.models.backend import explain_unused_gpu, import_keras

if TYPE_CHECKING:
    from cancernet.inference.prediction import ItemPredictions
    from cancernet.inference.summary import ItemResult
    from cancernet.inference.work_list import WorkItem
    from cancernet.run import Run, Settings

EPILOG = """Which images are one patch: if the run knows its scale (trained on IDC patches, 4 micrometres per pixel),
every whole slide, and every image larger than 200 x 200 pixels, four patches a side, is tiled into patches of 50 pixels
at that scale. All other images, and all images named like IDC patches, are one patch each. --tile changes that. Patches
named like IDC's (8867_idx5_x1001_y101_class0.png) are put on their slide, which gets a map if it has few gaps."""


class Shard(NamedTuple):
    """One part of the work."""

    number: int  # counted from 1
    total: int


def parse_shard(text: str) -> Shard:
    """Parse a shard such as 3/16, for the command line."""
    found = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    shard = Shard(int(found[1]), int(found[2])) if found else Shard(0, 0)
    if not 1 <= shard.number <= shard.total:
        raise InputError(f"--shard takes a part of a number of parts such as 3/16, not {text!r}.")
    return shard


@dataclass(frozen=True)
class PredictOptions:
    """What to predict, how, and where the results go."""

    run: Path = option(MISSING, help="Folder of a finished run, such as runs/cancernet", group="data", positional=True)
    paths: tuple[str, ...] = option(
        MISSING,
        help="Images, folders with images at any depth, or tables of them: .csv files with a column path",
        group="data",
        positional=True,
        metavar="path",
    )
    mpp: Annotated[float, Gt(0)] | None = option(
        None, help="Micrometres per pixel of large images that do not state it", group="data"
    )
    tile: Literal["auto", "always", "never"] = option("auto", help="Tile images into patches, see below", group="data")
    shard: Shard | None = option(
        None,
        help="Predict one part of the work: 3/16, into OUTPUT/shard_03_of_16",
        group="data",
        default="all",
        parse=parse_shard,
    )
    neighbours: bool = option(True, help="Do not smooth over neighbouring patches of a slide", group="decision")
    threshold: Annotated[float, Interval(gt=0, lt=1)] | None = option(
        None, help="Threshold on the positive class, 0 to 1", group="decision", default="the run's own"
    )
    output: Path = option(Path("predictions"), help="Folder for the results")
    ray: str | None = option(
        None,
        help="Predict with Ray on the cluster at ADDRESS, or on all cores of this machine",
        default="without Ray",
        metavar="ADDRESS",
        const="local",
    )
    force: bool = option(False, help="Replace predictions that exist")


class SlidePredictions(NamedTuple):
    """The predictions of all slides, large images and single patches among some files."""

    items: "list[ItemPredictions]"
    rejected: list[tuple[str, str]]  # file and reason


def predict(options: PredictOptions) -> None:
    """Predict new images, write results into a folder, and print a summary; InputError if nothing can be predicted."""
    if options.ray and options.shard:
        raise InputError("--shard divides the work between jobs, and --ray divides it itself. Give one of them.")
    if options.ray:
        try:
            from cancernet.inference import ray  # noqa: F401
        except ImportError as error:
            raise InputError(f'--ray needs Ray and PyArrow ({error}): pip install ".[cluster]"') from error
    from cancernet.data.files import describe_unsupported
    from cancernet.inference import work_list
    from cancernet.inference.summary import FURTHEST_PICTURE, REJECTED, SUMMARY, describe_results
    from cancernet.reporting.wording import plural
    from cancernet.run import read_settings

    output = options.output
    if options.shard:
        number, total = options.shard
        output /= f"shard_{number:0{len(str(total))}d}_of_{total}"
    paths = [os.path.abspath(path) for path in options.paths] if options.ray else options.paths
    found = work_list.find_files(paths)
    kind = storage.FolderKind.ARCHIVE if options.ray else storage.FolderKind.PREDICTIONS
    with storage.claim_folder(output, kind, force=options.force or bool(options.ray)):  # an archive resumes
        settings = read_settings(options.run)
        if options.threshold is not None and settings.positive is None:
            raise InputError("--threshold needs a run of two classes; this one takes the most probable of several.")
        items = work_list.plan_work(found.files, settings, tile=options.tile)
        if found.skipped:
            print(describe_unsupported(found.skipped))
        print(work_list.describe_work(items))
        if options.shard:
            items = work_list.take_shard(items, *options.shard)
            print(f"Of these, part {options.shard[0]} of {options.shard[1]}: {work_list.describe_work(items)}")
        work = _predict_on_cluster if options.ray else _predict_here
        results = work(dataclasses.replace(options, output=output), settings, items, found.rejected)
    print(f"\n{describe_results(settings, results)}\nAll results: {output}, by slide in {output / SUMMARY}")
    if (output / FURTHEST_PICTURE).is_file():
        print(f"Images out of distribution: {output / FURTHEST_PICTURE}")
    rejected = [*found.rejected, *(row for result in results for row in result.rejected)]
    if rejected:
        print(f"{plural(len(rejected), 'file')} could not be used, see {output / REJECTED}")
    if rejected and not options.shard and not any(result.patches for result in results):
        raise InputError(f"No image could be used, first {work_list.printable(': '.join(rejected[0]))}")


def predict_slides(
    run: "Run", paths: Sequence[str | os.PathLike[str]], output: Path | None, options: PredictOptions
) -> SlidePredictions:
    """Predict slides, large images and patches with a loaded run; memory holds a thumbnail of each patch.

    `output` is the folder for the files that `predict` writes; None writes none. Run, paths and output of the options
    are not used. Raises InputError if the paths or an option cannot be used.
    """
    if options.ray or options.shard:
        raise InputError("ray and shard divide the work of the command `cancernet predict`. Leave them out.")
    from cancernet.inference import prediction, results, work_list

    found = work_list.find_files(paths)
    items = work_list.plan_work(found.files, run.settings, tile=options.tile)
    predicted = list(prediction.predict_items(run, items, options))
    if output is not None:
        with (
            storage.claim_folder(output, storage.FolderKind.PREDICTIONS, force=options.force),
            storage.fresh_folder(output) as folder,
        ):
            results.write_results(run, predicted, folder, missing=found.rejected)
    rejected = [*found.rejected, *(row for each in predicted for row in each.rejected)]
    return SlidePredictions([each.predictions for each in predicted if each.predictions], rejected)


def _predict_here(
    options: PredictOptions, settings: "Settings", items: "Sequence[WorkItem]", missing: Sequence[tuple[str, str]]
) -> "list[ItemResult]":
    import_keras()
    from cancernet.inference import prediction, results, work_list
    from cancernet.reporting.wording import plural, speed_of
    from cancernet.run import load_run
    from cancernet.training.pipeline import describe_device

    if unused := explain_unused_gpu(describe_device()):
        print(unused)
    run = load_run(options.run)
    is_known = all(item.kind != work_list.LARGE for item in items)  # how many patches there will be
    total = sum(len(item.files) for item in items) if is_known else None
    started = time.monotonic()
    with (
        storage.fresh_folder(options.output) as folder,
        progress.show_progress(),
        progress.count("Predicting", total) as add,
    ):
        predicted = prediction.predict_items(run, items, options, progress=add)
        done = results.write_results(run, predicted, folder, missing=missing, print_line=print)
    seconds, count = time.monotonic() - started, sum(result.patches for result in done)
    print(f"{plural(count, 'image')} in {seconds:.1f} s, {speed_of(count / max(seconds, 1e-9))}.")
    return done


def _predict_on_cluster(
    options: PredictOptions, settings: "Settings", items: "Sequence[WorkItem]", missing: Sequence[tuple[str, str]]
) -> "list[ItemResult]":
    """Predict on a Ray cluster. What is finished stays: the same command resumes where it stopped."""
    from cancernet.inference import archive, ray
    from cancernet.inference.summary import write_tables

    run, output = options.run.resolve(), options.output.resolve()
    depends_on = {name: getattr(options, name) for name in ("tile", "mpp", "neighbours", "threshold")}
    archive.open_folder(options.output, {"run": archive.hash_run(run), **depends_on}, force=options.force)
    kept = archive.Archive(output)
    waiting, failed = kept.plan(items), []
    print(f"{len(waiting):,} slides to predict; {len(kept.finished):,} are finished.")
    job = ray.Job(settings, dataclasses.replace(options, run=run, output=output))
    results: list[ItemResult] = []
    try:
        if waiting:
            for result in ray.predict_items(waiting, job, kept, print_line=functools.partial(print, flush=True)):
                if not result.patches:
                    failed.append(result)
    finally:
        results = archive.sort_results([*kept.finished, *failed], items)
        write_tables(output, settings, results, missing)
        storage.flush_folder(output)
    return results
