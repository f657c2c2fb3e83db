"""Copy image patches into training, validation and testing class folders. Each patient is in one split only."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt

from cancernet import InputError, progress
from cancernet.config import ANNOTATED_SHARE, DATASET, ORIGINAL, SPLITS, Seed, option
from cancernet.data.files import describe_unsupported
from cancernet.storage import FolderKind, check_space, claim_folder, fresh_folder, hash_file

if TYPE_CHECKING:
    from cancernet.data.annotations import AnnotatedSlide
    from cancernet.data.building import Built, Plan
    from cancernet.data.dataset import BuildSettings, Counts, Dataset, Patch, Summary
    from cancernet.data.source import SourceFile

KAGGLE_DATASET = "paultimothymooney/breast-histopathology-images"
UNIFORM_SHARE = 0.9  # of images that are black, or the same, which a build warns about
NEAR_DUPLICATES = "near_duplicates.png"
MOST_GROUPS = 12  # of near-duplicates in it
EXAMPLES = 8  # images of each class in overview.png


_data_option = partial(option, group="data")


@dataclass(frozen=True)
class BuildOptions:
    """What to build, from which images."""

    source: Path = _data_option(ORIGINAL, "Folder of images, one folder per class")
    split_by: Literal["patient", "image"] = _data_option(
        "patient", "What is never divided between splits; by image, results are over-optimistic"
    )
    split_file: Path | None = _data_option(
        None, "CSV with the columns patient,split: a published split", default="a random split"
    )
    patient_pattern: str | None = _data_option(
        None,
        r"Regular expression for file names; its first group is the patient, as in '^(person\d+)_'",
        default="that of the IDC set",
        metavar="REGEX",
    )
    class_level: Annotated[int, Ge(1)] = _data_option(
        1, "Folder that is the class: 1 is the one the image is in, 2 the one above it", metavar="N"
    )
    merge_classes: bool = _data_option(False, "Make classes one whose names differ only in case, spaces or encoding")
    labels: Path | None = _data_option(
        None,
        "Table with the columns path (or id), label and optionally patient, split and others",
        default="the folders are the labels",
    )
    columns: tuple[str, ...] | None = _data_option(
        None, "Columns of --labels under other names, as in label=pathology", metavar="NAME=COLUMN"
    )
    slides: Path | None = _data_option(
        None,
        "Table of slides to cut patches from: path, annotations (GeoJSON of QuPath), patient; with --mpp",
        metavar="CSV",
    )
    annotated_share: Annotated[float, Gt(0)] = _data_option(
        ANNOTATED_SHARE, "Share of a patch of --slides that annotations of its class must cover"
    )
    testing_only: bool = _data_option(False, "Put all images into testing: an external test set")
    mpp: Annotated[float, Gt(0)] | None = _data_option(
        None,
        "Micrometres per pixel of the patches; a run then also takes whole slides",
        default="4 for the IDC set, otherwise unknown",
    )
    patch_pixels: Annotated[int, Ge(1)] | None = _data_option(
        None, "Pixels from one patch to the next", default="the size of the images"
    )
    megapixels: Annotated[float, Gt(0)] = _data_option(50.0, "Reject images of more megapixels")
    sample: bool = _data_option(False, "First write synthetic slides to --source")
    download: bool = _data_option(False, "First download the IDC patches from Kaggle")
    seed: Seed = _data_option(42, "Random seed of the split and of synthetic slides")
    output: Path = option(DATASET, "Folder for the dataset")
    mode: Literal["copy", "hardlink", "symlink"] = option("copy", "Copy the images, or link to them")
    force: bool = option(False, "Build anew, whatever the dataset in --output was built with")


def build(options: BuildOptions) -> "Dataset":
    """Build a dataset, unless it is up to date, and open it; see `write_dataset`."""
    from cancernet.data.dataset import open_dataset

    write_dataset(options)
    return open_dataset(options.output)


def write_dataset(options: BuildOptions) -> "Summary":
    """Copy or link the images of a source into `{training,validation,testing}/<class>/`, with a manifest of them.

    Prints a table of the dataset. Nothing is written if source, settings and dataset have not changed. Raises
    InputError if an option, the source or the output cannot be used, StorageError if the dataset cannot be written, or
    another process is writing it.
    """
    from cancernet.data import building
    from cancernet.data.dataset import hash_files, write_manifest
    from cancernet.data.near_duplicates import find_near_duplicates
    from cancernet.data.source import list_files

    output = options.output
    if options.slides:
        check_slide_options(options)
    else:
        building.check_apart(options.source, output)
    with claim_folder(output, FolderKind.DATASET, force=True):  # `find_current` compares the settings
        source = options.slides or fetch_source(options)
        settings = read_settings(options, source)
        if options.slides:
            from cancernet.data import annotations

            slides = annotations.read_slides(source)
            files = annotations.list_slide_files(source, slides)
        else:
            slides, (files, unsupported) = [], list_files(source)
            if unsupported:
                print(describe_unsupported(unsupported))
        fingerprint = hash_files(files)
        current = None if options.force else building.find_current(output, settings, fingerprint)
        if current:
            print(f"{output} is up to date: neither {source} nor the settings have changed.\n{describe(current)}")
            warn(current.nesting, describe_uniform(current), describe_leak(current))
            return current

        if slides:
            plan = plan_slides(slides, settings)
            size = len(plan.patches) * (settings.patch_pixels or 0) ** 2 * 2  # a PNG of stained tissue
        else:
            plan = plan_dataset(files, settings, source)
            size = building.estimate_size(files, plan.patches, mode=settings.mode)
        check_space(output, size, advice="Choose another --output, or --mode hardlink.")
        del files  # each worker process starts with a copy of this memory
        with fresh_folder(output) as folder:
            with progress.show_progress(), progress.count("Building", len(plan.patches)) as add:
                built = building.place_images(source, folder, plan, settings, progress=add)
            built = building.separate_copies(folder, built, plan, settings)
            check_usable(built.patches, settings.split_by)
            near = find_near_duplicates(folder, built.patches, [check.picture for check in built.checks])
            summary = building.summarise(plan, built, settings, fingerprint, near)
            summary = write_manifest(folder, built.patches, sorted(plan.misplaced + built.rejected), summary)
            boxes = save_overview(folder, built)
            save_near_duplicates(folder, near)
    print(f"{describe(summary)}\n\nWritten to {output}. Look at {output / 'overview.png'} before you train.")
    warn(describe_uniform(summary), describe_leak(summary), boxes)
    return summary


def fetch_source(options: BuildOptions) -> Path:
    """Download the IDC patches, or write synthetic slides, if requested; return the folder of images."""
    source = download() if options.download else options.source
    if options.sample and source.exists() and any(source.iterdir()):
        print(f"{source} is not empty: its images are used, no synthetic slides are written.")
    elif options.sample:
        from cancernet.data.sample import write_sample

        print(f"Wrote {write_sample(source, seed=options.seed):,} patches of synthetic slides to {source}.")
    return source


def download() -> Path:
    """Download the public IDC patches. Kaggle's archive has them twice; the inner folder is enough."""
    try:
        import kagglehub
    except ImportError as error:
        raise InputError("--download needs the package kagglehub: pip install kagglehub") from error
    folder = Path(kagglehub.dataset_download(KAGGLE_DATASET))
    inner = folder / "IDC_regular_ps50_idx5"
    return inner if inner.is_dir() else folder


def read_settings(options: BuildOptions, source: Path) -> "BuildSettings":
    """Return the settings of a build: the patient pattern is checked, and the split file is read."""
    from cancernet.data.dataset import IDC_PATIENT, BuildSettings
    from cancernet.data.source import compile_pattern

    pattern = options.patient_pattern or IDC_PATIENT
    compile_pattern(pattern)
    split_file = None
    if options.split_file:
        from cancernet.data.splits import read_split_file

        split_file = read_split_file(options.split_file)
    changed: dict[str, Any] = {
        "source": source.as_posix().encode(errors="backslashreplace").decode(),  # it may be bytes that are not text
        "split_file": split_file,
        "patient_pattern": pattern,
        "labels": options.labels.as_posix() if options.labels else "",
        "labels_sha256": hash_file(options.labels) if options.labels and options.labels.is_file() else "",
        "columns": options.columns or (),
        "annotated_share": options.annotated_share if options.slides else None,
    }
    same = {name: value for name, value in vars(options).items() if name in BuildSettings.__dataclass_fields__}
    return BuildSettings(**(same | changed))


def plan_dataset(files: Sequence["SourceFile"], settings: "BuildSettings", source: Path) -> "Plan":
    """Decide class and split of each file."""
    from cancernet.data.dataset import IDC_PATIENT
    from cancernet.data.labels import apply_labels, read_labels
    from cancernet.data.source import describe_nesting, find_images, read_patients, separate_misplaced

    images = find_images(files, settings.patient_pattern, class_level=settings.class_level)
    if settings.patient_pattern == IDC_PATIENT:
        images = read_patients(source, images)
    left_out: list[tuple[str, str]] = []
    if settings.labels:
        images, left_out = apply_labels(images, read_labels(Path(settings.labels), settings.columns))
    placed, misplaced = separate_misplaced(images)
    nesting = "" if settings.labels or settings.class_level > 1 else describe_nesting(placed)
    warn(nesting)  # before an error that wrong classes may cause
    return split_images(placed, left_out + misplaced, nesting, settings)


def check_slide_options(options: BuildOptions) -> None:
    """Raise InputError if `--slides` lacks the size and scale of the patches, or is given with another source."""
    if not (options.mpp and options.patch_pixels):
        raise InputError("--slides needs --mpp and --patch-pixels, as in --mpp 0.5 --patch-pixels 224.")
    if options.annotated_share > 1:
        raise InputError(f"--annotated-share is at most 1, the whole patch; got {options.annotated_share:g}.")
    for name in ("labels", "sample", "download"):
        if getattr(options, name):
            raise InputError(f"--slides and --{name} are two sources. Give one.")


def plan_slides(slides: Sequence["AnnotatedSlide"], settings: "BuildSettings") -> "Plan":
    """Decide class and split of each annotated patch."""
    from cancernet.data.annotations import plan_patches

    pixels, share = settings.patch_pixels or 0, settings.annotated_share or 0
    found = plan_patches(slides, patch_pixels=pixels, mpp=settings.mpp or 0, least_share=share)
    return split_images(found.patches, found.rejected, "", settings)._replace(slides=found)


def split_images(
    placed: Sequence["Patch"], left_out: list[tuple[str, str]], nesting: str, settings: "BuildSettings"
) -> "Plan":
    """Decide the split of images whose class is known."""
    from cancernet.data.building import Plan
    from cancernet.data.source import unify_classes
    from cancernet.data.splits import plan_splits

    placed = unify_classes(placed, merge=settings.merge_classes)
    if settings.testing_only:
        return Plan([image._replace(split="testing") for image in placed], left_out, nesting, "given")
    patches = plan_splits(placed, split_by=settings.split_by, split_file=settings.split_file, seed=settings.seed)
    check_usable(patches, settings.split_by)
    split: Literal["patient", "image", "file", "given"] = settings.split_by
    if settings.split_file or placed[0].split:
        split = "file" if settings.split_file else "given"
    return Plan(patches, left_out, nesting, split)


def check_usable(patches: Sequence["Patch"], split_by: str) -> None:
    """Check that a planned or built dataset can be used. One with only a testing split may lack classes."""
    from cancernet.data.dataset import check_patients, check_trainable

    patches = [patch for patch in patches if patch.split]
    if not patches:
        raise InputError('None of the images could be decoded. See "Data" in the README.')
    if {patch.split for patch in patches} != {"testing"}:
        check_trainable(patches)
    if split_by == "patient":
        check_patients(patches)


def save_overview(folder: Path, built: "Built") -> str:
    """Draw counts, sizes, patients and eight images of each class as overview.png; return a warning, "" without any."""
    import numpy as np

    from cancernet.data.dataset import label_class, name_classes
    from cancernet.data.images import read_image
    from cancernet.reporting.montages import plot_dataset
    from cancernet.reporting.plots import use_fonts

    names = name_classes(built.patches)
    label = {patch.label: label_class(names, patch.label) for patch in built.patches}
    boxes = use_fonts(label.values())
    examples: dict[str, list[np.ndarray]] = {}
    for patch in sorted(built.patches, key=lambda patch: patch.sha256):  # random enough, and always the same
        shown = examples.setdefault(label[patch.label], [])
        if len(shown) < EXAMPLES:
            shown.append(read_image(folder / patch.file, channels=3, sha256=patch.sha256))
    counts, patients = {}, {}
    for split in SPLITS:
        inside = [patch for patch in built.patches if patch.split == split]
        counts[split] = Counter(label[patch.label] for patch in inside)
        patients[split] = list(Counter(patch.patient for patch in inside if patch.patient).values())
    sizes = np.array([(check.width, check.height) for check in built.checks])
    figure = plot_dataset(counts=counts, patients=patients, sizes=sizes, samples=examples)
    figure.savefig(folder / "overview.png", dpi=120)
    return boxes


def save_near_duplicates(folder: Path, groups: Sequence[Sequence["Patch"]]) -> None:
    """Draw the first two images of each group side by side as near_duplicates.png; nothing without groups."""
    from cancernet.data.images import read_image
    from cancernet.reporting.montages import plot_captioned

    shown = [patch for group in groups[:MOST_GROUPS] for patch in group[:2]]
    if shown:
        images = [read_image(folder / patch.file, channels=3, sha256=patch.sha256) for patch in shown]
        captions = [f"{Path(patch.file).name}\npatient {patch.patient}\n{patch.split}" for patch in shown]
        plot_captioned(images=images, captions=captions).savefig(folder / NEAR_DUPLICATES, dpi=120)


def describe_leak(summary: "Summary") -> str:
    """Describe near-duplicates in different splits; "" without any."""
    number = summary.near_duplicates_across_splits
    groups = f"{number:,} group(s) of near-duplicate images of different patients"
    return f"{groups} are in different splits: probable data leakage." if number else ""


def warn(*texts: str) -> None:
    for text in filter(None, texts):
        print(f"warning: {text}")


def describe_uniform(summary: "Summary") -> str:
    """Describe images that are nearly all black, or all the same picture; "" for others."""
    number = max(summary.almost_black, summary.same_pixels if summary.images > 1 else 0)
    if number < UNIFORM_SHARE * summary.images:
        return ""
    what = "almost black" if number == summary.almost_black else "the same picture"
    return f"{number:,} of {summary.images:,} images are {what}. Look at overview.png: were they decoded correctly?"


def describe(summary: "Summary") -> str:
    """Return a table of the splits, and a line for each kind of image that needs attention."""
    labels = list(summary.splits["all"].classes)
    header = f"{'split':<12}{'images':>9}{'patients':>10}" + "".join(f"{label[:12]:>13}" for label in labels)
    lines = ["", header + "   share"]
    lines += [_describe_split(split, counts, labels) for split, counts in summary.splits.items()]
    notes = [
        (summary.rejected, "rejected, see rejected.csv"),
        (summary.left_out_images, f"left out: their patients ({summary.left_out_patients}) are not in the split file"),
        (
            summary.almost_black,
            "almost black, no value above 16 of 255; 16-bit files whose largest value is 4095 must be scaled to 65535",
        ),
        (summary.edge_tiles, "smaller than the rest (edge tiles), kept"),
        (summary.images_without_patient, "without a known patient, each a group of its own"),
        (summary.duplicates_across_patients, "group(s) of files with the same bytes under different patients"),
        (summary.duplicates_across_classes, "image(s) in two classes (files with the same bytes)"),
        (summary.duplicates_across_splits, "of these groups across splits (a leak)"),
    ]
    lines += [f"{number:,} {meaning}" for number, meaning in notes if number]
    lines += ["  same bytes: " + ", ".join(group) for group in summary.duplicates[:5]]
    if near := len(summary.near_duplicates):
        lines.append(f"{near:,} group(s) of near-duplicates under different patients, see {NEAR_DUPLICATES}")
        lines += ["  almost the same picture: " + ", ".join(group) for group in summary.near_duplicates[:5]]
    return "\n".join(lines)


def _describe_split(split: str, counts: "Counts", labels: Sequence[str]) -> str:
    if not counts.images:
        return f"{split:<12}{0:>9}"
    images = [counts.classes.get(label, 0) for label in labels]
    columns = f"{split:<12}{counts.images:>9,}{counts.patients or 'unknown':>10}" + "".join(f"{n:>13,}" for n in images)
    return f"{columns}{images[-1] / counts.images:7.1%} {labels[-1]}"
