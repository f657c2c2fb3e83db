"""Folders are walked in order and to an end, whatever lies in them."""

import os
import subprocess
from collections import Counter

import pytest

from cancernet.data.files import describe_unsupported, is_ignored, walk


def make(folder, text):
    folder.mkdir(parents=True)
    (folder / "text").write_text(text)


def listed(folder):
    others = Counter()
    return [file for file, _ in walk(folder, (".png",), others=others)], dict(others)


def test_folders_are_walked_in_the_order_of_their_names(tmp_path):
    for file in ("b/x.png", "a.png", "a/z.png", "a/b/y.png", "a-1.png", "b/.hidden/x.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
    assert listed(tmp_path)[0] == ["a/b/y.png", "a/z.png", "a-1.png", "a.png", "b/x.png"]


def test_a_loop_of_folders_ends(tmp_path):
    for name in "ab":
        make(tmp_path / name, "")
        (tmp_path / name / "x.png").write_text("")
    (tmp_path / "a/self").symlink_to(".")
    (tmp_path / "a/up").symlink_to("..")
    (tmp_path / "b/itself.png").symlink_to("itself.png")
    (tmp_path / "b/other").symlink_to(tmp_path / "a")  # no loop: followed
    files, others = listed(tmp_path)
    assert files == ["a/x.png", "b/itself.png", "b/other/x.png", "b/x.png"]
    assert others == {"": 3, "link to a folder that contains it": 4}


def test_a_path_that_is_too_long_costs_itself_only(tmp_path):
    (tmp_path / "x.png").write_text("")
    here = os.getcwd()
    os.chdir(tmp_path)
    for _ in range(25):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    os.chdir(here)
    assert listed(tmp_path) == (["x.png"], {"folder with too long a path": 1})
    subprocess.run(["rm", "-rf", tmp_path / ("d" * 200)], check=True)


def test_nine_hundred_folders_in_each_other_are_walked(tmp_path):
    folder = tmp_path / "/".join("d" * 900)
    os.makedirs(folder)
    (folder / "x.png").write_text("")
    assert len(listed(tmp_path)[0]) == 1


@pytest.mark.parametrize("name", [".hidden", "...", "__MACOSX", "Thumbs.db", "desktop.ini"])
def test_hidden_files_and_those_of_a_system_are_ignored(name):
    assert is_ignored(name)


def test_the_parent_folder_and_plain_names_are_not_ignored():
    assert [is_ignored(name) for name in ("..", "a.png", "a.", "thumbs")] == [False] * 4


def test_endings_are_compared_in_lower_case_and_paths_begin_with_the_prefix(tmp_path):
    for name in ("A.PNG", "b.png", "c.TXT", "d"):
        (tmp_path / name).write_text("")
    others = Counter()
    found = [(file, entry.name) for file, entry in walk(tmp_path, (".png",), prefix="x/", others=others)]
    assert found == [("x/A.PNG", "A.PNG"), ("x/b.png", "b.png")]
    assert others == {".txt": 1, "": 1}
    assert len(list(walk(str(tmp_path), (".txt", ".png")))) == 3


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(walk(tmp_path / "missing", (".png",)))


def test_unsupported_files_are_counted_by_type_the_most_frequent_first():
    assert describe_unsupported(Counter()) == ""
    found = Counter({"": 1, ".txt": 1200})
    assert describe_unsupported(found) == "Skipped, unsupported file type: 1,200 .txt, 1 without an ending."
