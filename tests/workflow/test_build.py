"""The verb as users meet it: folders in, folders out, and one line for what is wrong."""

import contextlib
import csv
import functools
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import product
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ROOT, write_image, write_slides
from data.test_dicom import write_dicom

import build_dataset
from cancernet import CancerNetError, InputError, StorageError
from cancernet.cli import parse_options
from cancernet.data import building, sample
from cancernet.data.dataset import open_dataset, read_manifest, read_summary
from cancernet.reporting import montages
from cancernet.workflow import build as workflow
from cancernet.workflow.build import BuildOptions

save_overview = workflow.save_overview
plot_dataset = montages.plot_dataset


@pytest.fixture(autouse=True)
def no_overview(monkeypatch):
    """The picture takes most of a small build's time: one test draws it, and so do the builds of their own process."""
    monkeypatch.setattr(workflow, "save_overview", lambda *_: None)


def build(source, output, *options):
    build_dataset.main(["--source", str(source), "--output", str(output), *options])
    return read_manifest(output)


def start(*arguments, **options):
    command = [sys.executable, str(ROOT / "build_dataset.py"), *map(str, arguments)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_image_lands_in_its_class_folder(slides, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workflow, "save_overview", save_overview)
    drawn = []
    monkeypatch.setattr(montages, "plot_dataset", lambda **asked: drawn.append(plot_dataset(**asked)) or drawn[0])
    before = snapshot(slides)
    patches = build(slides, tmp_path / "built")
    assert snapshot(slides) == before
    assert len(patches) == 60
    for patch in patches:
        data = (tmp_path / "built" / patch.file).read_bytes()
        assert patch.file.startswith(f"{patch.split}/{patch.label}/{patch.patient}_idx5_x{patch.x}_y{patch.y}_class")
        assert patch.sha256 == hashlib.sha256(data).hexdigest()
    assert len({(patch.patient, patch.split) for patch in patches}) == 10
    assert (tmp_path / "built" / "overview.png").stat().st_size > 10_000
    assert "1 (IDC)" in [label.get_text() for label in drawn[0].axes[-1].get_yticklabels()]
    table = capsys.readouterr().out
    assert "testing" in table
    assert "33.3% 1" in table


def test_the_same_source_gives_the_same_manifest(slides, tmp_path, monkeypatch):
    build(slides, tmp_path / "a")
    monkeypatch.setattr(building, "_CHUNK", 7)  # however the workers share the files
    build(slides, tmp_path / "b")
    assert (tmp_path / "a/manifest.csv").read_bytes() == (tmp_path / "b/manifest.csv").read_bytes()


def test_a_second_build_with_nothing_changed_does_nothing(slides, tmp_path, capsys):
    build(slides, tmp_path / "built")
    written = (tmp_path / "built/manifest.csv").stat().st_mtime_ns
    build(slides, tmp_path / "built")
    assert "is up to date" in capsys.readouterr().out
    assert (tmp_path / "built/manifest.csv").stat().st_mtime_ns == written


def test_a_changed_source_or_a_lost_file_is_built_again(slides, tmp_path):
    build(slides, tmp_path / "built")
    write_slides(slides, patients=11)
    patches = build(slides, tmp_path / "built")
    assert len(patches) == 66
    (tmp_path / "built" / patches[0].file).unlink()
    assert len(build(slides, tmp_path / "built")) == 66


def edit_in_place(slides):
    write_image(slides / "100/0/100_idx5_x51_y51_class0.png", 200)


def remove_one(slides):
    (slides / "100/0/100_idx5_x51_y51_class0.png").unlink()


def rename_one(slides):
    file = slides / "100/0/100_idx5_x51_y51_class0.png"
    file.rename(file.with_name("100_idx5_x951_y51_class0.png"))


@pytest.mark.parametrize("change", [edit_in_place, remove_one, rename_one])
@pytest.mark.parametrize("mode", ["copy", "hardlink", "symlink"])
def test_no_change_of_the_source_is_missed(slides, tmp_path, capsys, change, mode):
    build(slides, tmp_path / "built", "--mode", mode)
    change(slides)
    capsys.readouterr()
    patches = build(slides, tmp_path / "built", "--mode", mode)
    assert "is up to date" not in capsys.readouterr().out
    built = {patch.file.rpartition("/")[2]: patch.sha256 for patch in patches}
    source = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in slides.rglob("*.png")}
    assert built == source


def test_a_file_under_another_name_in_the_dataset_is_built_again(slides, tmp_path):
    first = tmp_path / "built" / build(slides, tmp_path / "built")[0].file
    first.rename(first.with_name("mine.png"))
    assert len(build(slides, tmp_path / "built")) == 60
    assert first.exists()


def test_an_edited_manifest_is_built_again(slides, tmp_path):
    first = build(slides, tmp_path / "built")
    manifest = tmp_path / "built/manifest.csv"
    manifest.write_text(manifest.read_text().replace(",100,", ",101,"))
    assert build(slides, tmp_path / "built") == first


@pytest.mark.parametrize(
    ("pattern", "given", "scale"),
    [
        ("{}_idx5_x1_y1", (), (4.0, 50)),
        ("person{}", (), (None, 96)),
        ("person{}", ("--mpp", "0.5"), (0.5, 96)),
        ("person{}", ("--mpp", "0.5", "--patch-pixels", "224"), (0.5, 224)),
    ],
)
def test_the_dataset_knows_its_scale(tmp_path, pattern, given, scale):
    for person in range(10):
        for label in "01":
            write_image(
                tmp_path / f"source/{label}/{pattern.format(person)}.png", person + 20 * int(label), (96, 96, 3)
            )
    options = ("--patient-pattern", r"^(?:person)?(\d+)", *given)
    build(tmp_path / "source", tmp_path / "built", *options)
    kept = read_summary(tmp_path / "built")
    assert (kept.mpp, kept.patch_pixels) == scale


def test_a_dataset_of_an_earlier_version_has_the_scale_of_its_names(slides, tmp_path):
    build(slides, tmp_path / "built")
    summary = json.loads((tmp_path / "built/dataset.json").read_text())
    (tmp_path / "built/dataset.json").write_text(
        json.dumps({name: value for name, value in summary.items() if name not in ("mpp", "patch_pixels")})
    )
    opened = open_dataset(tmp_path / "built").summary
    assert (opened.mpp, opened.patch_pixels) == (4.0, 50)


def test_a_second_build_prints_the_first_ones_table(slides, tmp_path, capsys):
    write_image(slides / "100/0/unknown.png", 1)
    write_image(slides / "100/0/100_idx5_x901_y1_class0.png", 2, (50, 1, 3))
    build(slides, tmp_path / "built")
    table = capsys.readouterr().out.split("\nWritten to")[0]
    build(slides, tmp_path / "built")
    assert capsys.readouterr().out.split("\n", 1)[1] == table
    assert "all                62        10           42           20  32.3% 1" in table


def test_links_that_lead_nowhere_are_missing_files(slides, tmp_path):
    build(slides, tmp_path / "built", "--mode", "symlink")
    slides.rename(tmp_path / "moved")
    with pytest.raises(StorageError, match=r"60 file\(s\) are listed in manifest.csv but missing from"):
        read_manifest(tmp_path / "built")


def test_a_build_repairs_images_that_are_missing_or_differ(slides, tmp_path, capsys):
    built = build(slides, tmp_path / "built")
    os.truncate(tmp_path / "built" / built[0].file, 0)
    (tmp_path / "built" / built[1].file).unlink()
    write_image(tmp_path / "built" / built[2].file, 99)
    whole = {patch.file: (tmp_path / "built" / patch.file).read_bytes() for patch in built[3:]}
    assert build(slides, tmp_path / "built") == built
    for patch in built:
        data = (tmp_path / "built" / patch.file).read_bytes()
        assert hashlib.sha256(data).hexdigest() == patch.sha256
        assert whole.get(patch.file, data) == data
    capsys.readouterr()
    build(slides, tmp_path / "built")
    assert "is up to date" in capsys.readouterr().out


@pytest.mark.parametrize("named", ["source", "output"])
def test_a_link_to_itself_is_no_folder(slides, tmp_path, named):
    (tmp_path / "loop").symlink_to("loop")
    folders = {"source": slides, "output": tmp_path / "built"} | {named: tmp_path / "loop"}
    said = {"source": "There is no folder .*loop", "output": "loop is a link"}
    with pytest.raises(InputError, match=said[named]):
        build(folders["source"], folders["output"])


def test_a_second_build_loads_nothing_that_it_does_not_need(slides, tmp_path):
    build(slides, tmp_path / "built")
    code = (
        "import sys, build_dataset\n"
        f"build_dataset.main(['--source', {str(slides)!r}, '--output', {str(tmp_path / 'built')!r}])\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "is up to date" in done.stdout
    assert not {"sklearn", "matplotlib"} & set(done.stdout.split())


def test_grey_images_are_counted(slides, tmp_path):
    coloured = np.full((50, 50, 3), 7, np.uint8)
    coloured[49, 49] = 7, 7, 8  # the last pixel alone
    for number, image in enumerate((np.full((50, 50), 7, np.uint8), np.full((50, 50, 3), 9, np.uint8), coloured)):
        cv2.imwrite(str(slides / f"100/0/100_idx5_x901_y{number}_class0.png"), image)
    build(slides, tmp_path / "built")
    assert json.loads((tmp_path / "built/dataset.json").read_text())["grey_images"] == 2


def test_other_settings_need_force(slides, tmp_path):
    build(slides, tmp_path / "built")
    with pytest.raises(InputError, match=r"built with other settings \(seed\)\. Use --force"):
        build(slides, tmp_path / "built", "--seed", "7")
    build(slides, tmp_path / "built", "--seed", "7", "--force")
    assert json.loads((tmp_path / "built/dataset.json").read_text())["settings"]["seed"] == 7


def test_a_damaged_summary_needs_force(slides, tmp_path):
    build(slides, tmp_path / "built")
    (tmp_path / "built/dataset.json").write_text("{")
    with pytest.raises(StorageError, match=r"dataset\.json is damaged: Invalid JSON"):
        build(slides, tmp_path / "built")
    assert len(build(slides, tmp_path / "built", "--force")) == 60
    assert read_summary(tmp_path / "built").images == 60


def test_validation_without_the_second_class_is_refused(slides, tmp_path):
    rows = "".join(f"{patient},{split}\n" for patient, split in [(100, "train"), (101, "train"), (102, "val")])
    (tmp_path / "split.csv").write_text("patient,split\n" + rows)
    for path in (slides / "102/1").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match="Validation has only the class 0"):
        build(slides, tmp_path / "built", "--split-file", str(tmp_path / "split.csv"))


def test_a_folder_that_is_no_dataset_is_never_replaced(slides, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.txt").write_text("x")
    with pytest.raises(InputError, match="contains other files, not a dataset"):
        build(slides, tmp_path / "precious", "--force")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        build(slides, tmp_path / "file")
    with pytest.raises(InputError, match="two folders, neither inside the other"):
        build(slides, slides / "built")


def test_files_of_one_name_do_not_overwrite_each_other(tmp_path):
    for number, folder in enumerate(("a/cat", "b/cat", "c/cat", "a/dog", "b/dog", "c/dog")):
        for name in ("x.png", "X.png", "y.png"):
            write_image(tmp_path / "source" / folder / name, 10 * number + ord(name[0]))
    patches = build(tmp_path / "source", tmp_path / "built")
    assert len(patches) == 18
    assert len({patch.file.lower() for patch in patches}) == 18
    assert len({patch.sha256 for patch in patches}) == 18


def test_bad_images_are_rejected_with_the_reason(slides, tmp_path, capsys):
    (slides / "100/0/100_idx5_x501_y1_class0.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    (slides / "100/0/100_idx5_x551_y1_class0.png").write_bytes(b"")
    write_image(slides / "100/0/100_idx5_x601_y1_class1.png", 1)
    write_image(slides / "lonely.png", 2)
    first = slides / "101/0/101_idx5_x51_y101_class0.png"
    copy = slides / "again/101/0" / first.name
    copy.parent.mkdir(parents=True)
    shutil.copy(first, copy)
    assert len(build(slides, tmp_path / "built")) == 60
    with (tmp_path / "built/rejected.csv").open() as file:
        reasons = {row["file"].split("/")[-1]: row["reason"] for row in csv.DictReader(file)}
    assert reasons == {
        "100_idx5_x501_y1_class0.png": "cannot be decoded: not an image, damaged or cut off",
        "100_idx5_x551_y1_class0.png": "the file is empty",
        "100_idx5_x601_y1_class1.png": "its name says class 1, its folder says 0",
        "lonely.png": "is in no class folder",
        first.name: f"a second copy of 101/0/{first.name}",
    }
    assert "5 rejected, see rejected.csv" in capsys.readouterr().out


def test_unsupported_files_are_named(slides, tmp_path, capsys):
    (slides / "100/0/scan.webp").write_text("x")
    for _ in range(2):
        build(slides, tmp_path / "built")
        assert "Skipped, unsupported file type: 1 .webp." in capsys.readouterr().out


def test_names_that_are_no_utf8_are_rejected(slides, tmp_path):
    write_image(tmp_path / "x.png", 1)
    for name in (b"100/0/caf\xe9.png", b"caf\xe9/x.png"):
        path = os.path.join(os.fsencode(slides), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shutil.copy(tmp_path / "x.png", path)
    assert len(build(slides, tmp_path / "built")) == 60
    reason = "its name is not UTF-8 text; rename it"
    rejected = (tmp_path / "built/rejected.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert rejected == [rf"100/0/caf\udce9.png,{reason}", rf"caf\udce9/x.png,{reason}"]


def test_a_source_whose_name_is_no_utf8_is_known_again(slides, tmp_path, capsys):
    source = slides.rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    with (tmp_path / "said").open("w", errors="replace") as said, contextlib.redirect_stdout(said):
        build(source, tmp_path / "built")
        build(source, tmp_path / "built")
    assert (tmp_path / "said").read_text().count("is up to date") == 1


def test_a_link_to_nothing_is_rejected(slides, tmp_path):
    (slides / "100/0/gone.png").symlink_to("nowhere.png")
    assert len(build(slides, tmp_path / "built")) == 60
    rejected = (tmp_path / "built/rejected.csv").read_text().splitlines()[1:]
    assert rejected == ["100/0/gone.png,cannot be read: No such file or directory"]


def test_relative_links_are_hardlinked_to_what_they_lead_to(slides, tmp_path):
    (slides / "100/0/100_idx5_x901_y1_class0.png").symlink_to("100_idx5_x51_y51_class0.png")
    (slides / "100/0/100_idx5_x51_y51_class0.png").rename(slides.parent / "100_idx5_x51_y51_class0.png")
    (slides / "100/0/100_idx5_x51_y51_class0.png").symlink_to("../../../100_idx5_x51_y51_class0.png")
    patches = build(slides, tmp_path / "built", "--mode", "hardlink")
    assert len(patches) == 60 + 1
    assert not any((tmp_path / "built" / patch.file).is_symlink() for patch in patches)


def test_folders_that_may_be_no_classes_are_told_each_time(slides, tmp_path, capsys):
    for seed in range(9):
        write_image(slides / f"100/0/more/{seed}.png", seed)
    for _ in range(2):
        build(slides, tmp_path / "built")
        assert capsys.readouterr().out.count("warning: 3 classes were read from nested folders") == 1


def test_twelve_bits_in_sixteen_are_told(slides, tmp_path, capsys):
    for path in slides.glob("10[0-4]/*/*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path)).astype(np.uint16) * 16)
    build(slides, tmp_path / "built")
    assert "30 almost black, no value above 16 of 255" in capsys.readouterr().out
    assert read_summary(tmp_path / "built").almost_black == 30


@pytest.mark.parametrize(("value", "what"), [(3, "almost black"), (200, "the same picture")])
def test_images_that_are_nearly_all_black_or_the_same_are_warned_about_each_time(tmp_path, capsys, value, what):
    for number in range(60):  # other bytes, as the decoder of a new format would see them
        path = tmp_path / f"source/{number % 2}/{100 + number // 6}_idx5_x1_y{number}_class{number % 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.full((8, 8, 3), 90 if number < 6 else value, np.uint8)
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes() + bytes([number]))
    for _ in range(2):
        build(tmp_path / "source", tmp_path / "built")
        assert f"warning: 54 of 60 images are {what}." in capsys.readouterr().out


def test_near_duplicates_across_splits_are_warned_about_each_time_and_drawn(slides, tmp_path, capsys):
    picture = cv2.imread(str(min(slides.glob("100/0/*.png"))))
    for number in range(1, 10):  # under all patients, so in all splits
        brighter = cv2.convertScaleAbs(picture, alpha=0.9, beta=number)
        cv2.imwrite(str(slides / f"10{number}/0/10{number}_idx5_x9001_y1_class0.png"), brighter)
    for _ in range(2):
        build(slides, tmp_path / "built")
        printed = capsys.readouterr().out
        assert "1 group(s) of near-duplicates under different patients, see near_duplicates.png" in printed
        assert "  almost the same picture: t" in printed
        assert "warning: 1 group(s) of near-duplicate images of different patients are in different splits" in printed
    summary = read_summary(tmp_path / "built")
    (group,) = summary.near_duplicates
    assert len(group) == 10
    assert summary.near_duplicates_across_splits == 1
    assert (tmp_path / "built/near_duplicates.png").is_file()


def test_edge_tiles_are_kept_and_counted(slides, tmp_path, capsys):
    write_image(slides / "100/0/100_idx5_x901_y1_class0.png", 1, (50, 1, 3))
    assert len(build(slides, tmp_path / "built")) == 61
    assert "1 smaller than the rest (edge tiles), kept" in capsys.readouterr().out


def test_the_same_bytes_under_two_patients_are_named(slides, tmp_path, capsys):
    shutil.copy(slides / "100/0/100_idx5_x51_y51_class0.png", slides / "101/0/101_idx5_x951_y1_class0.png")
    build(slides, tmp_path / "built")
    said = capsys.readouterr().out
    assert "1 group(s) of files with the same bytes under different patients" in said
    assert "100_idx5_x51_y51_class0.png" in said.split("same bytes: ")[1]


@pytest.mark.parametrize("mode", ["hardlink", "symlink"])
def test_links_take_no_space(slides, tmp_path, mode):
    for patch in build(slides, tmp_path / "built", "--mode", mode):
        path = tmp_path / "built" / patch.file
        assert path.is_symlink() == (mode == "symlink")
        assert path.stat().st_nlink == (2 if mode == "hardlink" else 1)


def test_a_published_split_is_followed(slides, tmp_path, capsys):
    rows = [f"{patient},{'training' if patient < 105 else 'validation'}" for patient in range(100, 108)]
    (tmp_path / "split.csv").write_text("patient,split\n" + "\n".join(rows) + "\n")
    patches = build(slides, tmp_path / "built", "--split-file", str(tmp_path / "split.csv"))
    assert Counter(patch.split for patch in patches) == {"training": 30, "validation": 18}
    assert "12 left out: their patients (2) are not in the split file" in capsys.readouterr().out


def test_a_given_split_that_tears_patients_apart_is_refused(tmp_path):
    for seed, (split, label) in enumerate(product(("train", "val", "test"), "ab")):
        for person in (1, 2):
            write_image(tmp_path / "source" / split / label / f"person{person}_{split}.png", seed)
    with pytest.raises(InputError, match="Patient person1 is in both"):
        build(tmp_path / "source", tmp_path / "built", "--patient-pattern", r"^(person\d+)_")
    built = build(tmp_path / "source", tmp_path / "built", "--patient-pattern", r"^(person\d+)_", "--split-by", "image")
    assert len(built) == 12


def test_only_a_testing_split_is_a_dataset_too(slides, tmp_path):
    rows = "".join(f"{patient},testing\n" for patient in range(100, 110))
    (tmp_path / "split.csv").write_text("patient,split\n" + rows)
    assert len(build(slides, tmp_path / "built", "--split-file", str(tmp_path / "split.csv"))) == 60


def test_one_class_is_refused(tmp_path):
    for number in range(5):
        write_image(tmp_path / "source/0" / f"{number}.png", number)
    with pytest.raises(InputError, match="Training has only the class 0; a classifier needs two"):
        build(tmp_path / "source", tmp_path / "built")
    assert not (tmp_path / "built").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "nowhere"], "error: There is no folder nowhere."),
        (["--split-by", "slide"], "error: argument --split-by: invalid choice: 'slide'"),
        (["--seed", "x"], "error: argument --seed"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_2(tmp_path, arguments, message):
    process = start(*arguments, cwd=tmp_path)
    out, error = process.communicate()
    assert process.returncode == 2
    assert out == ""
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_a_full_disk_leaves_nothing_behind(slides, tmp_path):
    def limit_file_size():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    process = start("--source", slides, "--output", tmp_path / "built", preexec_fn=limit_file_size)
    _, error = process.communicate()
    assert process.returncode == 2
    assert error.splitlines()[-1].startswith("error: File too large")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind_and_can_be_started_again(tmp_path):
    source = write_slides(tmp_path / "source", patients=40, patches=50)

    def take_ctrl_c():  # which a shell's background jobs, and their children, ignore
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    options = {"start_new_session": True, "preexec_fn": take_ctrl_c}
    process = start("--source", source, "--output", tmp_path / "built", **options)
    while not list(tmp_path.glob(".built.cancernet-new/*/*/*.png")):
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error.splitlines()[-1] == "error: interrupted."
    assert os.listdir(tmp_path) == ["source"]
    assert len(build(source, tmp_path / "built")) == 2000


def test_a_killed_builds_leftovers_are_cleared(slides, tmp_path):
    write_image(tmp_path / ".built.cancernet-new/training/0/old.png")
    (tmp_path / ".built.cancernet-new/.cancernet-provisional.json").write_text("{}")
    write_image(tmp_path / "built.partial/thesis.png")
    assert len(build(slides, tmp_path / "built")) == 60
    assert sorted(os.listdir(tmp_path)) == ["built", "built.partial", "source"]


def test_help_is_quick():
    seconds = []
    for _ in range(3):  # the fastest, for other tests run at the same time
        started = time.perf_counter()
        process = start("--help")
        out, _ = process.communicate()
        seconds.append(time.perf_counter() - started)
        assert process.returncode == 0
        assert "--split-file" in out
        if seconds[-1] < 0.5:
            break
    assert min(seconds) < 0.5


def test_a_dataset_that_does_not_fit_is_refused_before_it_starts(slides, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "_BYTES_PER_ROW", 2**50)
    with pytest.raises(CancerNetError, match=r"built needs about .* GB; .* are free\. Choose .* --mode hardlink\."):
        build(slides, tmp_path / "built")
    assert os.listdir(tmp_path) == ["source"]


def test_the_script_and_python_have_the_same_defaults():
    assert parse_options(BuildOptions, [], prog="", about="") == BuildOptions()


def test_python_gets_the_dataset_and_a_pattern_without_a_match_is_refused(slides, tmp_path):
    options = BuildOptions(source=slides, output=tmp_path / "built", seed=3)
    for _ in range(2):
        dataset = workflow.build(options)
        assert dataset == open_dataset(tmp_path / "built")
        assert dataset.summary.settings.seed == 3
    with pytest.raises(InputError, match=r"--patient-pattern '\^\(x\)' finds no patient in any name"):
        workflow.build(BuildOptions(source=slides, output=tmp_path / "other", patient_pattern=r"^(x)"))


def test_synthetic_slides_are_written_to_an_empty_source_only(tmp_path, capsys, monkeypatch):
    def write(folder, *, seed):
        write_slides(folder, patients=5)
        return seed

    monkeypatch.setattr(sample, "write_sample", write)
    options = BuildOptions(source=tmp_path / "source", output=tmp_path / "built", sample=True, seed=1234)
    assert len(workflow.build(options).patches) == 30
    assert f"Wrote 1,234 patches of synthetic slides to {tmp_path / 'source'}." in capsys.readouterr().out
    workflow.build(options)
    said = capsys.readouterr().out
    assert f"{tmp_path / 'source'} is not empty: its images are used, no synthetic slides are written." in said
    assert "is up to date" in said


def test_a_download_is_the_inner_folder_of_the_archive(slides, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=lambda name: str(tmp_path / name)))
    folder = tmp_path / workflow.KAGGLE_DATASET
    folder.mkdir(parents=True)
    assert workflow.download() == folder
    slides.rename(folder / "IDC_regular_ps50_idx5")
    options = BuildOptions(source=tmp_path / "unused", output=tmp_path / "built", download=True)
    assert workflow.build(options).summary.settings.source == str(folder / "IDC_regular_ps50_idx5")
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(InputError, match="--download needs the package kagglehub: pip install kagglehub"):
        workflow.build(options)


@pytest.mark.realdata
def test_real_patches_are_all_placed(shared, tmp_path, monkeypatch):
    nowhere = functools.partial(open, os.devnull)
    monkeypatch.setattr(building, "open", lambda _, mode: nowhere(mode), raising=False)  # no thousands of files
    build_dataset.main(["--source", str(shared / "data/idc"), "--output", str(tmp_path / "built")])
    with (tmp_path / "built/manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5875
    assert len({row["patient"] for row in rows}) == len({(row["patient"], row["split"]) for row in rows}) == 160


def write_patches(root, *files):
    for seed, file in enumerate(files):
        write_image(root / file, seed, (8, 8, 3))
    return root


def count_labels(patches):
    return Counter(patch.label for patch in patches)


@pytest.mark.parametrize(
    "names", [("b\u00e9nin", "be\u0301nin", "malin"), ("Benign", "benign", "m"), ("benign", "benign ", "m")]
)
def test_classes_with_nearly_the_same_name_are_refused_or_merged(tmp_path, names):
    source = write_patches(tmp_path / "in", *(f"{name}/{number}.png" for name in names for number in range(10)))
    with pytest.raises(InputError, match="have nearly the same name. Rename them, or give --merge-classes"):
        build(source, tmp_path / "built")
    assert sorted(count_labels(build(source, tmp_path / "built", "--merge-classes")).values()) == [10, 20]


def write_breakhis(root):
    files = []
    for kind, subtype, code in (("benign", "adenosis", "B_A"), ("malignant", "ductal_carcinoma", "M_DC")):
        for patient, scale in product(range(12), (40, 100)):
            folder = f"histology_slides/breast/{kind}/SOB/{subtype}/SOB_{code}_14-{22549 + patient}/{scale}X"
            files.append(f"{folder}/SOB_{code}-14-{22549 + patient}-{scale}-001.png")
    return write_patches(root, *files)


def test_of_breakhis_the_folder_that_is_the_class_is_chosen(tmp_path, capsys):
    source = write_breakhis(tmp_path / "BreaKHis_v1")
    build(source, tmp_path / "built", "--split-by", "image")
    assert (
        "warning: The class of an image is the folder it is in (100X, 40X). Folders above look like classes, too. "
        "If they are, give --class-level 5 (benign, malignant) or --class-level 3 (adenosis, ductal_carcinoma)."
    ) in capsys.readouterr().out
    options = ("--class-level", "5", "--patient-pattern", r"-(\d+-\w+)-\d+-\d+$")  # it may begin with a hyphen
    patches = build(source, tmp_path / "built", *options, "--force")
    assert count_labels(patches) == {"benign": 24, "malignant": 24}
    assert len({patch.patient for patch in patches}) == 12
    assert "warning" not in capsys.readouterr().out


def test_patchcamelyon_is_built_from_its_table(tmp_path):
    files = [f"{part}{number:07x}.png" for part in ("train/0", "test/f") for number in range(40)]
    source = write_patches(tmp_path / "pcam", *files)
    rows = "".join(f"{number:08x},{number % 2}\n" for number in range(40))
    (source / "train_labels.csv").write_text("id,label\n" + rows)
    patches = build(source, tmp_path / "built", "--labels", str(source / "train_labels.csv"))
    assert count_labels(patches) == {"0": 20, "1": 20}
    assert {patch.split for patch in patches} == {"training", "validation", "testing"}
    (source / "train_labels.csv").write_text("id,label\n" + rows.replace("0\n", "2\n"))
    with pytest.raises(InputError, match="was built with other settings .labels_sha256."):
        build(source, tmp_path / "built", "--labels", str(source / "train_labels.csv"))


def test_mias_is_built_from_its_table_and_keeps_the_other_columns(tmp_path):
    source = tmp_path / "mias"
    source.mkdir()
    lines = ["REFNUM BG CLASS SEVERITY X Y RADIUS"]
    for number in range(1, 31):
        (source / f"mdb{number:03}.pgm").write_bytes(b"P5 8 8 255\n" + bytes([number] * 64))
        lines.append(f"mdb{number:03} G NORM" if number % 2 else f"mdb{number:03} D CIRC B 535 425 197")
    (source / "Info.txt").write_text("\n".join(lines))
    options = ("--labels", str(source / "Info.txt"), "--columns", "path=REFNUM", "label=CLASS")
    patches = build(source, tmp_path / "built", *options)
    assert count_labels(patches) == {"NORM": 15, "CIRC": 15}
    assert {dict(patch.more)["BG"] for patch in patches} == {"G", "D"}
    header = (tmp_path / "built/manifest.csv").read_text().splitlines()[0]
    assert header == "file,label,patient,x,y,split,sha256,BG,SEVERITY,X,Y,RADIUS"


def test_an_external_set_is_all_for_testing(slides, tmp_path):
    for patient in ("102", "103", "104", "105"):
        shutil.rmtree(slides / patient, ignore_errors=True)
    patches = build(slides, tmp_path / "built", "--testing-only")
    assert {patch.patient for patch in patches} >= {"100", "101"}
    assert {patch.split for patch in patches} == {"testing"}
    assert open_dataset(tmp_path / "built").summary.split == "given"


def test_the_same_image_in_two_classes_is_reported_as_such(tmp_path, capsys):
    source = write_patches(
        tmp_path / "in", *(f"{label}/{label}{number}.png" for label in ("DC", "LC") for number in range(20))
    )
    for number in range(4):
        shutil.copy(source / f"DC/DC{number}.png", source / f"LC/DC{number}.png")
    patches = build(source, tmp_path / "built")
    said = capsys.readouterr().out
    assert "4 image(s) in two classes (files with the same bytes)" in said
    assert "under different patients" not in said
    assert "leak" not in said
    splits = {}
    for patch in patches:
        splits.setdefault(patch.sha256, set()).add(patch.split)
    assert all(len(split) == 1 for split in splits.values())


def write_cbis(root):
    rows = ["patient_id,image view,pathology,image file path"]
    for number, view in product(range(30), ("CC", "MLO")):
        patient, folder = f"P_{number:05}", f"Mass-Training_P_{number:05}_LEFT_{view}/1.3.6/1.9"
        pixels = np.random.default_rng([number, len(view)]).integers(0, 4096, (8, 8), np.uint16)
        write_dicom(root / folder / "000000.dcm", pixels=pixels, PatientID=f"Mass-Training_{patient}_LEFT_{view}")
        pathology = ("BENIGN", "MALIGNANT")[number % 2]
        rows.append(f'{patient},{view},{pathology},"{folder}/000000.dcm\n"')
    (root / "mass_case_description_train_set.csv").write_text("\n".join(rows) + "\n")
    return root


def test_cbis_ddsm_is_built_from_its_table_without_the_tags_of_its_files(tmp_path):
    source = write_cbis(tmp_path / "CBIS-DDSM")
    columns = ("path=image file path", "label=pathology", "patient=patient_id")
    table = str(source / "mass_case_description_train_set.csv")
    patches = build(source, tmp_path / "built", "--labels", table, "--columns", *columns, "--mode", "hardlink")
    assert count_labels(patches) == {"BENIGN": 30, "MALIGNANT": 30}
    assert len({patch.patient for patch in patches}) == 30
    assert {dict(patch.more)["image view"] for patch in patches} == {"CC", "MLO"}
    assert all(patch.file.endswith(".png") for patch in patches)
    assert not any(b"Secret" in data for data in snapshot(tmp_path / "built").values())


def test_rsna_is_built_from_its_table_of_boxes(tmp_path):
    rows = ["patientId,x,y,width,height,Target"]
    for number in range(30):
        name = f"{number:08x}-36dc"
        write_dicom(tmp_path / f"rsna/{name}.dcm", pixels=np.full((8, 8), number, np.uint8), bits=8, PatientID=name)
        rows += [f"{name},{box},152.0,213.0,379.0,1" for box in (264.0, 562.0)] if number % 2 else [f"{name},,,,,0"]
    table = tmp_path / "stage_2_train_labels.csv"
    table.write_text("\n".join(rows) + "\n")
    options = ("--labels", str(table), "--columns", "path=patientId", "label=Target")
    patches = build(tmp_path / "rsna", tmp_path / "built", *options)
    assert count_labels(patches) == {"0": 15, "1": 15}
    assert len({patch.patient for patch in patches}) == 30
    assert {dict(patch.more)["table_x"] for patch in patches} == {"", "264.0; 562.0"}


def test_the_patient_of_a_dicom_file_is_its_patient_id(tmp_path):
    for number in range(24):
        pixels = np.full((8, 8), 100 * number, np.uint16)
        write_dicom(tmp_path / f"in/{number % 2}/{number}.dcm", pixels=pixels, PatientID=f"P{number // 2}")
    assert {patch.patient for patch in build(tmp_path / "in", tmp_path / "built")} == {f"P{n}" for n in range(12)}
