"""Copy image patches into training, validation and testing class folders, whole patients at a time."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cancernet import InputError
from cancernet.command_line import Parser, check_output, run_script, seed
from cancernet.config import DATASET, ORIGINAL, SPLITS

KAGGLE_DATASET = "paultimothymooney/breast-histopathology-images"


def parse_arguments(argv: Sequence[str]):
    parser = Parser(prog="build_dataset.py", description=__doc__)
    parser.add_argument(
        "--source", type=Path, default=ORIGINAL, help="folder of images, a folder a class (%(default)s)"
    )
    parser.add_argument("--output", type=Path, default=DATASET, help="folder to be made (%(default)s)")
    parser.add_argument("--split-by", choices=("patient", "image"), default="patient", help="(%(default)s)")
    parser.add_argument("--split-file", type=Path, help="CSV with the columns patient,split: a published split")
    parser.add_argument("--seed", type=seed, default=42, help="of the split (%(default)s)")
    parser.add_argument("--mode", choices=("copy", "hardlink", "symlink"), default="copy", help="(%(default)s)")
    parser.add_argument("--patient-pattern", metavar="REGEX", help=r"its group is the patient: '^(person\d+)_'")
    parser.add_argument("--sample", action="store_true", help="make slides up and write them to --source first")
    parser.add_argument("--download", action="store_true", help="fetch the IDC patches from Kaggle first")
    parser.add_argument("--force", action="store_true", help="replace a dataset made with other settings")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    arguments = parse_arguments(argv)
    from cancernet.data import building
    from cancernet.data.dataset import IDC_PATIENT, write_manifest
    from cancernet.data.source import (
        check_pattern,
        compile_pattern,
        describe_nesting,
        find_images,
        list_files,
        separate_misplaced,
    )
    from cancernet.folders import describe_passed_over, fresh_folder

    source, output = arguments.source, arguments.output
    check_output(output)
    building.check_apart(source, output)
    if arguments.download:
        source = download()
    if arguments.sample:
        make_sample(source, arguments.seed)
    split_file = read_split_file(arguments.split_file) if arguments.split_file else None
    pattern = arguments.patient_pattern or IDC_PATIENT
    compile_pattern(pattern)
    files, others = list_files(source)
    if others:
        print(describe_passed_over(others))
    settings = {
        "source": source.as_posix(),
        "split_by": arguments.split_by,
        "split_file": split_file,
        "seed": arguments.seed,
        "mode": arguments.mode,
        "patient_pattern": pattern,
    }
    source_fingerprint = building.fingerprint(files)
    current = building.read_current(output, settings, source_fingerprint, force=arguments.force)
    if current:
        print(f"{output} is up to date: neither {source} nor the settings have changed.")
        print_table(current)
        warn(current.get("nesting", ""))
        return

    from tqdm import tqdm

    from cancernet.data import splits

    images = find_images(files, pattern)
    if arguments.patient_pattern:
        check_pattern(images, pattern)
    placed, misplaced = separate_misplaced(images)
    nesting = describe_nesting(placed)
    warn(nesting)
    given = bool(placed[0].split)
    planned = splits.plan_splits(placed, split_by=arguments.split_by, split_file=split_file, seed=arguments.seed)
    del files, images, placed  # room for what is to come
    check(planned, arguments.split_by)
    with fresh_folder(output) as folder, tqdm(total=len(planned), unit="image", desc="Building") as bar:
        patches, checks, rejected = building.place_images(
            source, folder, planned, mode=arguments.mode, progress=bar.update
        )
        check(patches, arguments.split_by)
        summary = building.summarise(planned, misplaced, patches, checks, rejected) | {
            "split": "file" if split_file else "given" if given else arguments.split_by,
            "settings": settings,
            "nesting": nesting,
            "source_fingerprint": source_fingerprint,
        }
        write_manifest(folder, patches, sorted(misplaced + rejected), summary)
        save_overview(folder, patches, checks)
    print_table(summary)
    print(f"\nWritten to {output}; look at {output / 'overview.png'} before you train.")


def warn(text: str) -> None:
    if text:
        print(f"warning: {text}")


def read_split_file(path: Path) -> dict[str, str]:
    from cancernet.data import splits

    return splits.read_split_file(path)


def check(images, split_by: str) -> None:
    """See that a planned or a built dataset can be used; one with only a testing split may lack classes."""
    from cancernet.data.dataset import check_patients, check_trainable

    images = [image for image in images if image.split]
    if not images:
        raise InputError('None of the images can be used, none could be decoded. See README, "Data".')
    if {image.split for image in images} != {"testing"}:
        check_trainable(images)
    if split_by == "patient":
        check_patients(images)


def download() -> Path:
    """Fetch the public IDC patches; Kaggle's archive holds them twice, the inner folder is enough."""
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
        print(f"{folder} is not empty: its slides are used as they are.")
        return
    files = write_sample(folder, seed=seed)
    print(f"Made {files} patches of made-up slides under {folder}.")


def save_overview(folder: Path, patches, checks) -> None:
    from cancernet.data.images import decode_image
    from cancernet.reporting import plots

    counts = {split: Counter(patch.label for patch in patches if patch.split == split) for split in SPLITS}
    examples: dict[str, list] = {}
    for patch in sorted(patches, key=lambda patch: patch.sha256):  # as good as random, and always the same
        shown = examples.setdefault(patch.label, [])
        if len(shown) < 8:
            shown.append(decode_image((folder / patch.file).read_bytes(), channels=3))
    figure = plots.plot_dataset(
        counts=counts, sizes=[(check.width, check.height) for check in checks], samples=examples
    )
    figure.savefig(folder / "overview.png", dpi=120)


def print_table(summary: dict) -> None:
    labels = list(summary["splits"]["all"]["classes"])
    print(
        f"\n{'split':<12}{'images':>9}{'patients':>10}" + "".join(f"{label[:12]:>13}" for label in labels) + "   share"
    )
    for split, row in summary["splits"].items():
        if not row["images"]:
            print(f"{split:<12}{0:>9}")
            continue
        per_class = [row["classes"].get(label, 0) for label in labels]
        share = f"{per_class[-1] / row['images']:7.1%} {labels[-1]}"
        patients = row["patients"] or "unknown"
        print(f"{split:<12}{row['images']:>9,}{patients:>10}" + "".join(f"{n:>13,}" for n in per_class) + share)
    notes = {
        "rejected": "rejected, see rejected.csv",
        "left_out_images": f"left out: their patients ({summary['left_out_patients']}) are not in the split file",
        "almost_black": "almost black, no value above 16 of 255; 16-bit files that end at 4095 must be scaled to 65535",
        "edge_tiles": "smaller than the rest (edge tiles), kept",
        "images_without_patient": "without a known patient, each its own group",
        "duplicates_across_patients": f"group(s) of files with the same bytes under different patients, "
        f"{summary['duplicates_across_splits']} of them across splits (a leak)",
    }
    for key, meaning in notes.items():
        if summary.get(key):
            print(f"{summary[key]:,} {meaning}")
    for group in summary["duplicates"][:5]:
        print("  same bytes: " + ", ".join(group))


if __name__ == "__main__":
    run_script(main)
