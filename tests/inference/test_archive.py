"""The folder of an archive: what is finished stays, the rest is predicted again."""

import json
from pathlib import Path

import pytest

from cancernet import InputError, StorageError
from cancernet.inference import archive
from cancernet.inference.archive import Archive, sort_results
from cancernet.inference.summary import ItemResult, Outlier
from cancernet.inference.work_list import LARGE, SINGLE, SLIDE, WorkItem

OPTIONS = {"run": "ab", "mpp": 4.0}


@pytest.fixture
def folder(tmp_path):
    archive.open_folder(tmp_path / "out", OPTIONS, force=False)
    return tmp_path / "out"


def large(path):
    return WorkItem(LARGE, path, Path(path).stem, [path])


def write_files(folder, stem):
    for name in (f"patches/{stem}.parquet", f"slides/{stem}.jpg", f"slides/{stem}.geojson"):
        (folder / name).write_text(stem)


def finish(folder, kept, item):
    (planned,) = kept.plan([item])
    write_files(folder, planned.stem)
    outliers = (Outlier(1.5, "a", 0),)
    result = ItemResult(
        planned, (("x.png", "damaged"),), 3, (2, 1), (2.1, 0.9), True, (("a", "IDC", "0.5"),), 1, outliers
    )
    kept.add(result)
    return result


def files_in(folder):
    return sorted(path.name for name in ("patches", "slides") for path in (folder / name).iterdir())


def test_what_is_finished_is_not_planned_again(folder):
    kept = Archive(folder)
    assert kept.plan([large("a/x.svs"), large("b/X.svs")]) == [large("a/x.svs"), large("b/X.svs")._replace(stem="X_2")]
    result = finish(folder, kept, large("b/X.svs"))
    again = Archive(folder)
    assert again.finished == [result]
    assert again.plan([large("a/x.svs"), large("b/X.svs")]) == [large("a/x.svs")._replace(stem="x_2")]  # X is taken
    assert files_in(folder) == ["X.geojson", "X.jpg", "X.parquet"]


def test_an_item_whose_files_changed_is_predicted_again_and_its_old_results_deleted(folder):
    kept = Archive(folder)
    finish(folder, kept, large("other.svs"))
    finish(folder, kept, WorkItem(SLIDE, "7", "7", ["7_a.png", "7_b.png"]))
    finish(folder, kept, WorkItem(SINGLE, "", "", ["1.png"]))
    grown = WorkItem(SLIDE, "7", "7", ["7_a.png", "7_b.png", "7_c.png"])
    assert kept.plan([grown, WorkItem(SINGLE, "", "", ["1.png"])]) == [grown]
    assert [result.item.stem for result in Archive(folder).finished] == ["other", "images"]
    assert not (folder / "patches" / "7.parquet").exists()
    assert (folder / "patches" / "other.parquet").exists()


def test_an_item_without_predictions_is_tried_again(folder):
    kept = Archive(folder)
    kept.add(ItemResult(large("broken.svs"), (("broken.svs", "damaged"),)))
    assert kept.finished == Archive(folder).finished == []
    assert kept.plan([large("broken.svs")]) == [large("broken.svs")]


def test_files_of_an_item_that_was_not_finished_are_deleted(folder):
    finish(folder, Archive(folder), large("whole.svs"))
    write_files(folder, "half")
    (folder / "patches" / ".other.parquet.cancernet-new").write_text("")
    Archive(folder)
    assert files_in(folder) == ["whole.geojson", "whole.jpg", "whole.parquet"]


def test_an_item_without_its_patches_is_predicted_again(folder):
    finish(folder, Archive(folder), large("a.svs"))
    (folder / "patches" / "a.parquet").unlink()
    assert Archive(folder).plan([large("a.svs")]) == [large("a.svs")]
    assert files_in(folder) == []


def test_a_line_that_was_cut_off_does_not_count(folder):
    kept = Archive(folder)
    first = finish(folder, kept, large("a.svs"))
    finish(folder, kept, large("b.svs"))
    path = folder / "finished.jsonl"
    path.write_text(path.read_text()[:-4])
    assert Archive(folder).finished == [first]
    assert path.read_text().count("\n") == 1
    assert path.read_text().endswith("\n")


def test_results_come_in_the_order_of_the_list_and_others_last():
    results = [ItemResult(large(path), ()) for path in ("other", "c", "a", "b")]
    ordered = sort_results(results, [large(path) for path in ("a", "b", "c")])
    assert [result.item.slide for result in ordered] == ["a", "b", "c", "other"]


def test_predictions_of_two_runs_do_not_mix(folder):
    finish(folder, Archive(folder), large("a.svs"))
    archive.open_folder(folder, OPTIONS, force=False)
    with pytest.raises(
        InputError,
        match=r"has predictions with mpp 4.0, not 2.0. Choose another --output, or --force to delete",
    ):
        archive.open_folder(folder, OPTIONS | {"mpp": 2.0}, force=False)
    assert Archive(folder).finished
    archive.open_folder(folder, OPTIONS | {"mpp": 2.0}, force=True)
    assert not Archive(folder).finished
    assert json.loads((folder / "archive.json").read_text()) == {"run": "ab", "mpp": 2.0}


@pytest.mark.parametrize("made", [[], ["archive.json"], ["archive.json", "patches"]])
def test_a_kill_while_the_folder_was_made_does_not_stop_the_next_prediction(tmp_path, made):
    archive.open_folder(tmp_path / "whole", OPTIONS, force=False)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / ".archive.json.cancernet-new").write_text("{")
    for name in made:
        (tmp_path / "whole" / name).rename(tmp_path / "cut" / name)
    archive.open_folder(tmp_path / "cut", OPTIONS, force=False)
    assert {"archive.json", "patches", "slides"} <= {path.name for path in (tmp_path / "cut").iterdir()}


def test_what_is_no_archive_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text").write_text("")
    for force in (False, True):
        with pytest.raises(InputError, match="mine contains other files, not predictions of a slide archive"):
            archive.open_folder(tmp_path / "mine", OPTIONS, force=force)
    assert (tmp_path / "mine" / "text").is_file()


@pytest.mark.parametrize("line", ["{}", "no JSON", '{"item": ["large", "a", "a", ["a"]], "rejected": 3}'])
def test_a_damaged_list_is_one_line(folder, line):
    (folder / "finished.jsonl").write_text(f"{line}\n")
    with pytest.raises(StorageError, match=r"finished.jsonl is damaged. Delete it to predict again what it lists\.$"):
        Archive(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_damaged_options_are_one_line(folder, text):
    (folder / "archive.json").write_text(text)
    with pytest.raises(StorageError, match=r"archive\.json .*Choose another --output"):
        archive.open_folder(folder, OPTIONS, force=False)


def test_a_run_is_identified_by_its_files(tmp_path):
    names = ("model.keras", "decision.json", "config.json")
    for name in names:
        (tmp_path / name).write_text(name)
    hashes = {archive.hash_run(tmp_path), archive.hash_run(tmp_path)}
    for name in names:
        (tmp_path / name).write_text("other")
        hashes.add(archive.hash_run(tmp_path))
    assert len(hashes) == 4


def test_progress_counts_slides_patches_and_failures():
    results = [ItemResult(large("a"), (), 100)] * 9 + [ItemResult(large("b"), ())]
    line = archive.describe_progress(results, 200, 20.0, "2 actors")
    assert line.startswith("10 of 200 slides in 0:00:20, 0:06:20 left; ")  # 190 slides of 2 s
    assert line.endswith("; 1 failed; 900 patches, 45/s; 2 actors")
