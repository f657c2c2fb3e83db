"""Copy image patches into training, validation and testing class folders, whole patients at a time."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cancernet import InputError
from cancernet.cli import Parser, positive_number, run_script, seed
from cancernet.config import DATASET, ORIGINAL, SPLITS

if TYPE_CHECKING:
    from cancernet.data.building import Built, Plan
    from cancernet.data.dataset import BuildSettings, Patch, Summary
    from cancernet.data.source import SourceFile

KAGGLE_DATASET = "paultimothymooney/breast-histopathology-images"


def parse_arguments(argv: Sequence[str]) -> Namespace:
    parser = Parser(prog="build_dataset.py", description=__doc__)
    parser.add_argument(
        "--source", type=Path, default=ORIGINAL, help="folder of images, one folder a class (%(default)s)"
    )
    parser.add_argument("--output", type=Path, default=DATASET, help="folder to make (%(default)s)")
    parser.add_argument(
        "--split-by",
        choices=("patient", "image"),
        default="patient",
        help="what is never divided between splits (%(default)s)",
    )
    parser.add_argument(
        "--split-file", type=Path, help="CSV with the columns patient,split: a published split (none: split at random)"
    )
    parser.add_argument("--seed", type=seed, default=42, help="of the split (%(default)s)")
    parser.add_argument(
        "--mode",
        choices=("copy", "hardlink", "symlink"),
        default="copy",
        help="how images come into the output (%(default)s)",
    )
    parser.add_argument(
        "--patient-pattern",
        metavar="REGEX",
        help=r"of file names, its group is the patient: '^(person\d+)_' (that of the IDC set)",
    )
    parser.add_argument(
        "--megapixels", type=positive_number, default=50.0, help="images of more pixels are rejected (%(default)g)"
    )
    parser.add_argument("--sample", action="store_true", help="write synthetic slides to --source first")
    parser.add_argument("--download", action="store_true", help="fetch the IDC patches from Kaggle first")
    parser.add_argument("--force", action="store_true", help="replace a dataset made with other settings")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    arguments = parse_arguments(argv)
    from cancernet.data.building import check_apart
    from cancernet.storage import FolderKind, claim_folder

    check_apart(arguments.source, arguments.output)
    with claim_folder(arguments.output, FolderKind.DATASET, force=True):  # `read_current` compares the settings
        build(arguments)


def build(arguments: Namespace) -> None:
    from cancernet.data import building
    from cancernet.data.dataset import write_manifest
    from cancernet.data.source import list_files
    from cancernet.storage import check_space, describe_unsupported, fresh_folder

    source, output = arguments.source, arguments.output
    if arguments.download:
        source = download()
    if arguments.sample:
        make_sample(source, arguments.seed)
    settings = read_settings(arguments, source)
    files, unsupported = list_files(source)
    if unsupported:
        print(describe_unsupported(unsupported))
    source_fingerprint = building.fingerprint(files)
    current = building.read_current(output, settings, source_fingerprint, force=arguments.force)
    if current:
        print(f"{output} is up to date: neither {source} nor the settings have changed.")
        print_table(current)
        warn(current.nesting)
        return

    from tqdm import tqdm

    plan = plan_dataset(files, settings)
    size = building.estimate_size(files, plan.patches, mode=settings.mode)
    check_space(output, size, instead="Give another --output, or --mode hardlink.")
    del files  # the worker processes begin with a copy of this memory
    with fresh_folder(output) as folder, tqdm(total=len(plan.patches), unit="image", desc="Building") as bar:
        built = building.place_images(
            source, folder, plan.patches, mode=settings.mode, megapixels=settings.megapixels, progress=bar.update
        )
        check(built.patches, settings.split_by)
        summary = building.summarise(plan, built, settings, source_fingerprint)
        write_manifest(folder, built.patches, sorted(plan.misplaced + built.rejected), summary)
        save_overview(folder, built)
    print_table(summary)
    print(f"\nWritten to {output}; look at {output / 'overview.png'} before you train.")


def read_settings(arguments: Namespace, source: Path) -> BuildSettings:
    """Read the settings of the build: the pattern is checked, and the split file is read."""
    from cancernet.data.dataset import IDC_PATIENT, BuildSettings
    from cancernet.data.source import compile_pattern

    split_file = None
    if arguments.split_file:
        from cancernet.data.splits import read_split_file

        split_file = read_split_file(arguments.split_file)
    pattern = arguments.patient_pattern or IDC_PATIENT
    compile_pattern(pattern)
    return BuildSettings(
        source=source.as_posix().encode(errors="backslashreplace").decode(),  # a name may be bytes that are not text
        split_by=arguments.split_by,
        split_file=split_file,
        seed=arguments.seed,
        mode=arguments.mode,
        patient_pattern=pattern,
        megapixels=arguments.megapixels,
    )


def plan_dataset(files: Sequence[SourceFile], settings: BuildSettings) -> Plan:
    """Decide class and split of each file."""
    from cancernet.data.building import Plan
    from cancernet.data.dataset import IDC_PATIENT
    from cancernet.data.source import check_pattern, describe_nesting, find_images, separate_misplaced
    from cancernet.data.splits import plan_splits

    images = find_images(files, settings.patient_pattern)
    if settings.patient_pattern != IDC_PATIENT:
        check_pattern(images, settings.patient_pattern)
    placed, misplaced = separate_misplaced(images)
    nesting = describe_nesting(placed)
    warn(nesting)  # before an error that wrong classes may lead to
    planned = plan_splits(placed, split_by=settings.split_by, split_file=settings.split_file, seed=settings.seed)
    check(planned, settings.split_by)
    split = "file" if settings.split_file else "given" if placed[0].split else settings.split_by
    return Plan(planned, misplaced, nesting, split)


def warn(text: str) -> None:
    if text:
        print(f"warning: {text}")


def check(patches: Sequence[Patch], split_by: str) -> None:
    """Check that a planned or a built dataset can be used. One with only a testing split may lack classes."""
    from cancernet.data.dataset import check_patients, check_trainable

    patches = [patch for patch in patches if patch.split]
    if not patches:
        raise InputError('None of the images can be used, none could be decoded. See README, "Data".')
    if {patch.split for patch in patches} != {"testing"}:
        check_trainable(patches)
    if split_by == "patient":
        check_patients(patches)


def download() -> Path:
    """Fetch the public IDC patches. Kaggle's archive holds them twice; the inner folder is enough."""
    try:
        import kagglehub
    except ImportError as error:
        raise InputError("--download needs the package kagglehub: pip install kagglehub") from error
    folder = Path(kagglehub.dataset_download(KAGGLE_DATASET))
    inner = folder / "IDC_regular_ps50_idx5"
    return inner if inner.is_dir() else folder


def make_sample(folder: Path, seed: int) -> None:
    from cancernet.data.sample import write_sample

    if folder.exists() and any(folder.iterdir()):
        print(f"{folder} is not empty: its images are used as they are.")
        return
    files = write_sample(folder, seed=seed)
    print(f"Wrote {files} patches of synthetic slides to {folder}.")


def save_overview(folder: Path, built: Built) -> None:
    """Draw counts, sizes and eight images of each class as overview.png."""
    from cancernet.data.dataset import name_classes
    from cancernet.data.images import read_image
    from cancernet.reporting import montages
    from cancernet.reporting.wording import class_label

    named = {"class_names": name_classes(built.patches)}
    label = {patch.label: class_label(named, patch.label) for patch in built.patches}
    counts = {split: Counter(label[patch.label] for patch in built.patches if patch.split == split) for split in SPLITS}
    examples: dict[str, list] = {}
    for patch in sorted(built.patches, key=lambda patch: patch.sha256):  # random enough, and always the same
        shown = examples.setdefault(label[patch.label], [])
        if len(shown) < 8:
            shown.append(read_image(folder / patch.file, channels=3, sha256=patch.sha256))
    sizes = [(check.width, check.height) for check in built.checks]
    montages.plot_dataset(counts=counts, sizes=sizes, samples=examples).savefig(folder / "overview.png", dpi=120)


def print_table(summary: Summary) -> None:
    labels = list(summary.splits["all"].classes)
    print(
        f"\n{'split':<12}{'images':>9}{'patients':>10}" + "".join(f"{label[:12]:>13}" for label in labels) + "   share"
    )
    for split, counts in summary.splits.items():
        if not counts.images:
            print(f"{split:<12}{0:>9}")
            continue
        per_class = [counts.classes.get(label, 0) for label in labels]
        share = f"{per_class[-1] / counts.images:7.1%} {labels[-1]}"
        patients = counts.patients or "unknown"
        print(f"{split:<12}{counts.images:>9,}{patients:>10}" + "".join(f"{n:>13,}" for n in per_class) + share)
    notes = [
        (summary.rejected, "rejected, see rejected.csv"),
        (
            summary.left_out_images,
            f"left out: their patients ({summary.left_out_patients}) are not in the split file",
        ),
        (
            summary.almost_black,
            "almost black, no value above 16 of 255; 16-bit files that end at 4095 must be scaled to 65535",
        ),
        (summary.edge_tiles, "smaller than the rest (edge tiles), kept"),
        (summary.images_without_patient, "without a known patient, each its own group"),
        (
            summary.duplicates_across_patients,
            "group(s) of files with the same bytes under different patients, "
            f"{summary.duplicates_across_splits} of them across splits (a leak)",
        ),
    ]
    for number, meaning in notes:
        if number:
            print(f"{number:,} {meaning}")
    for group in summary.duplicates[:5]:
        print("  same bytes: " + ", ".join(group))


if __name__ == "__main__":
    run_script(main)
