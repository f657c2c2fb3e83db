"""The folder of an archive: what is finished stays, what is not is answered again."""

import json
from pathlib import Path

import pytest

from cancernet import InputError, StorageError
from cancernet.inference import archive, summary
from cancernet.inference.archive import Archive, Progress, Slide

ASKED = {"run": "ab", "mpp": 4.0}
ROWS = [("IDC", 3, 1, 0.3333, 0.04, 0.5)]


@pytest.fixture
def folder(tmp_path):
    archive.open_folder(tmp_path / "out", ASKED, force=False)
    return tmp_path / "out"


def write_files(folder, stem):
    for name in (f"patches/{stem}.parquet", f"slides/{stem}.jpg", f"slides/{stem}.geojson"):
        (folder / name).write_text(stem)


def finish(folder, kept, path, refused=()):
    (slide,) = kept.plan([path])
    write_files(folder, slide.stem)
    kept.finish(slide, ROWS, refused)


def test_what_is_finished_is_not_planned_again(folder):
    kept = Archive(folder)
    assert kept.plan(["a/x.svs", "b/x.svs", "a/x.svs"]) == [Slide("a/x.svs", "x"), Slide("b/x.svs", "x_2")]
    finish(folder, kept, "b/x.svs")
    again = Archive(folder)
    assert again.plan(["a/x.svs", "b/x.svs"]) == [Slide("a/x.svs", "x_2")]  # x is taken by the finished one
    assert (folder / "summary.csv").read_text() == (
        "path,name,class,patches,called,share,mm2,mean_probability\nb/x.svs,x,IDC,3,1,0.3333,0.04,0.5\n"
    )


def test_the_columns_are_those_of_predict_images():
    assert ("path", "name", *summary.HEADER[1:]) == archive.SUMMARY_HEADER


def test_of_several_classes_a_slide_has_as_many_rows(folder):
    kept = Archive(folder)
    (slide,) = kept.plan(["a.svs"])
    write_files(folder, slide.stem)
    kept.finish(slide, [("a", *ROWS[0][1:]), ("b", *ROWS[0][1:])], [])
    again = Archive(folder)
    assert [row[2] for row in again.finished["a.svs"]] == ["a", "b"]
    assert again.plan(["a.svs"]) == []


def test_files_of_a_slide_that_was_not_finished_are_deleted(folder):
    kept = Archive(folder)
    finish(folder, kept, "whole.svs")
    write_files(folder, "half")
    (folder / "patches" / ".other.parquet.partial").write_text("")
    Archive(folder)
    assert sorted(path.name for path in folder.rglob("*.*") if path.parent != folder) == [
        "whole.geojson",
        "whole.jpg",
        "whole.parquet",
    ]


def test_a_slide_without_its_patches_is_answered_again(folder):
    finish(folder, Archive(folder), "a.svs")
    (folder / "patches" / "a.parquet").unlink()
    assert Archive(folder).plan(["a.svs"]) == [Slide("a.svs", "a")]


def test_a_line_that_was_cut_off_does_not_count(folder):
    kept = Archive(folder)
    finish(folder, kept, "a.svs")
    finish(folder, kept, "b.svs")
    path = folder / "summary.csv"
    path.write_text(path.read_text()[:-4])
    assert list(Archive(folder).finished) == ["a.svs"]
    assert path.read_text().count("\n") == 2


def test_failures_of_slides_that_are_tried_again_are_forgotten(folder):
    kept = Archive(folder)
    kept.fail(Slide("gone.svs", "gone"), "gone.svs: there is no such file.")
    finish(folder, kept, "slide", [("slide/1.png", "cannot be decoded")])
    assert (folder / "failed.csv").read_text() == (
        "path,file,reason\ngone.svs,gone.svs,there is no such file.\nslide,slide/1.png,cannot be decoded\n"
    )
    again = Archive(folder)
    assert again.failed == [["slide", "slide/1.png", "cannot be decoded"]]
    assert again.plan(["gone.svs", "slide"]) == [Slide("gone.svs", "gone")]


def test_tables_come_in_the_order_of_the_list(folder):
    kept = Archive(folder)
    for path in ("c", "a", "b"):
        finish(folder, kept, path)
    kept.sort(["a", "b", "c"])
    assert list(Archive(folder).finished) == ["a", "b", "c"]


def test_answers_of_two_questions_do_not_meet(folder):
    finish(folder, Archive(folder), "a.svs")
    archive.open_folder(folder, ASKED, force=False)
    with pytest.raises(InputError, match=r"holds answers with mpp 4.0, not 2.0. Choose another --output, or --force"):
        archive.open_folder(folder, ASKED | {"mpp": 2.0}, force=False)
    assert Archive(folder).finished
    archive.open_folder(folder, ASKED | {"mpp": 2.0}, force=True)
    assert not Archive(folder).finished
    assert json.loads((folder / "asked.json").read_text())["mpp"] == 2.0


def test_what_is_no_archive_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text").write_text("")
    for force in (False, True):
        with pytest.raises(InputError, match="mine contains other files, not predictions of a slide archive"):
            archive.open_folder(tmp_path / "mine", ASKED, force=force)
    assert (tmp_path / "mine" / "text").is_file()


def test_a_damaged_table_is_one_line(folder):
    (folder / "summary.csv").write_text("path,name\na,b\n")
    with pytest.raises(InputError, match=r"summary.csv is damaged. Remove it"):
        Archive(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_damaged_settings_are_one_line(folder, text):
    (folder / archive.ASKED).write_text(text)
    with pytest.raises(StorageError, match=r"asked\.json .*Choose another --output"):
        archive.open_folder(folder, ASKED, force=False)


def test_a_run_is_known_by_its_files(tmp_path):
    for name in ("model.keras", "decision.json", "config.json"):
        (tmp_path / name).write_text(name)
    before = archive.identify_run(tmp_path)
    (tmp_path / "decision.json").write_text("other")
    assert archive.identify_run(tmp_path) != before
    assert archive.identify_run(Path(tmp_path)) == archive.identify_run(tmp_path)


def test_a_line_of_progress():
    now = 0.0
    progress = Progress(200, clock=lambda: now)
    assert not progress.is_due()
    assert progress.line(2, 0, 0).split()[-1] == "?"
    now = 20.0
    for _ in range(9):
        progress.count(patches=100)
    progress.count(failed=True)
    assert progress.is_due()
    line = progress.line(2, 620_000_000, 250_000_000)
    assert line.split() == ["10", "1", "900", "45", "2", "0.62", "0.25", "0:00:20", "0:06:20"]  # 190 slides of 2 s
    assert len(line) == len(Progress.HEADER)
    assert not progress.is_due()
    now = 40.0
    progress.count(patches=100)
    assert progress.line(2, 0, 0).split()[3] == "5"  # 100 patches in 20 s
