"""A folder is whole or not there, whatever process is killed when; two processes do not make the same one at once."""

import contextlib
import csv
import ctypes
import errno
import hashlib
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import KILLS, ROOT
from hypothesis import given
from hypothesis import strategies as st

from cancernet import InputError, StorageError, storage
from cancernet.storage import (
    FolderKind,
    check_replaceable,
    check_space,
    claim_folder,
    describe_size,
    file_stem,
    flush_folder,
    fresh_folder,
    hash_file,
    lock_folder,
    read_json,
    read_rows,
    recover_folder,
    replace_folder,
    write_files,
    write_json,
    write_rows,
)


def make(folder, text):
    folder.mkdir(parents=True)
    (folder / "text").write_text(text)
    return folder


def run(code, *arguments, **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **options)


MARKER = ".cancernet-provisional.json"
NEW, OLD, DELETED = ".folder.cancernet-new", ".folder.cancernet-old", ".folder.cancernet-deleted"

# Replaces argv[1] by a folder with the text "new" and is killed at operation number argv[2] on names.
KILLED = """
import os, sys
from pathlib import Path
from cancernet.storage import fresh_folder
calls = 0
def killed_at(function):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), 9)
        return function(*arguments, **options)
    return call
with fresh_folder(Path(sys.argv[1])) as folder:
    (folder / "text").write_text("new")
    (folder / "below").mkdir()
    (folder / "below/text").write_text("new")
    for name in ("mkdir", "rename", "unlink", "rmdir"):
        setattr(os, name, killed_at(getattr(os, name)))
print(calls)
"""


@pytest.mark.parametrize("call", range(1, 14))
def test_a_process_killed_while_it_replaces_a_folder_loses_neither(tmp_path, call):
    folder = make(tmp_path / "folder", "old")
    make(folder / "below", "old")
    killed = run(KILLED, folder, call)
    done = killed.communicate()[0]
    assert (killed.returncode, done) == ((-9, "") if call < 13 else (0, "12\n"))
    recover_folder(folder)
    assert (folder / "text").read_text() == (folder / "below/text").read_text() == ("old" if call <= 2 else "new")
    assert sorted(os.listdir(folder)) == ["below", "text"]
    assert os.listdir(tmp_path) == ["folder"]


def make_provisional(folder, text):
    make(folder, text)
    (folder / MARKER).write_text("{}")


def test_the_next_call_finds_the_old_folder_before_it_makes_a_new_one(tmp_path):
    make_provisional(tmp_path / OLD, "old")
    for name in (NEW, DELETED):
        make_provisional(tmp_path / name, "half")
    with contextlib.suppress(ZeroDivisionError), fresh_folder(tmp_path / "folder"):
        raise ZeroDivisionError
    assert (tmp_path / "folder/text").read_text() == "old"
    assert os.listdir(tmp_path / "folder") == ["text"]
    assert os.listdir(tmp_path) == ["folder"]


def test_only_what_carries_the_marker_is_renamed_or_deleted(tmp_path):
    users = ["folder.partial", "folder.partial-3", "folder.partial-3-old", "folder.replaced", NEW, OLD, DELETED]
    for name in users:
        make(tmp_path / name, "kept")
    for _ in range(2):
        with lock_folder(tmp_path / "folder"):
            assert not (tmp_path / "folder").exists()
    with pytest.raises(StorageError, match=f"File exists: .*{NEW}"), fresh_folder(tmp_path / "folder"):
        pass
    make_provisional(tmp_path / "elsewhere", "kept")
    shutil.rmtree(tmp_path / OLD)
    (tmp_path / OLD).symlink_to(tmp_path / "elsewhere")
    recover_folder(tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == sorted([*users, "elsewhere"])
    assert all((tmp_path / name / "text").read_text() == "kept" for name in users)


def test_the_marker_says_what_made_the_folder_and_is_gone_in_the_end(tmp_path, monkeypatch):
    make(tmp_path / "folder", "old")
    purposes, rename = {}, Path.rename

    def note_purpose(path, target):
        purposes[path.name] = json.loads((path / MARKER).read_text())["purpose"]
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", note_purpose)
    with fresh_folder(tmp_path / "folder") as partial:
        assert partial == tmp_path / NEW
        marker = json.loads((partial / MARKER).read_text())
        assert marker.pop("made_by").startswith("CancerNet ")
        assert marker == {"purpose": "unfinished", "process": os.getpid(), "host": platform.node()}
    assert os.listdir(tmp_path / "folder") == []
    assert purposes == {"folder": "replaced", NEW: "unfinished", OLD: "replaced"}


@pytest.mark.parametrize("files", [3, 100])
def test_all_is_on_disk_before_a_folder_gets_its_name_and_the_old_one_is_deleted_last(tmp_path, monkeypatch, files):
    """Files and folders, then the two renames, then the parent folder; only then the old one is deleted."""
    events, rename, fsync, delete = [], Path.rename, os.fsync, storage._delete
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    monkeypatch.setattr(Path, "rename", lambda old, new: (events.append(f"{old.name} > {new.name}"), rename(old, new)))

    def record_delete(path):
        if path.exists():
            events.append(f"delete {path.name}")
        delete(path)

    monkeypatch.setattr(storage, "_delete", record_delete)
    if files > 64:
        library = SimpleNamespace(syncfs=lambda fd: events.append("syncfs"))
        monkeypatch.setattr(storage.ctypes, "CDLL", lambda *_, **__: library)
    folder = make(tmp_path / "folder", "old")
    with fresh_folder(folder) as partial:
        for number in range(files):
            (partial / str(number)).write_text("new")
        (partial / "link").symlink_to("1")
        events.clear()
    new, flushed = tmp_path / NEW, events[: events.index(f"folder > {OLD}") - 1]
    if files > 64:
        assert flushed == ["syncfs"]
    else:
        assert sorted(flushed) == sorted(map(str, [new, new / MARKER, new / "0", new / "1", new / "2"]))
        assert flushed[-1] == str(new)
    assert events[len(flushed) :] == [
        *(str(folder / MARKER), f"folder > {OLD}", f"{NEW} > folder", str(tmp_path)),
        *(f"{OLD} > {DELETED}", f"delete {DELETED}"),
    ]


def test_a_disk_that_does_not_store_what_was_written_is_an_error(tmp_path, monkeypatch):
    folder = make(tmp_path / "folder", "old")
    refused = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(refused))
    with pytest.raises(StorageError, match="Input/output error: .*folder is unchanged"), fresh_folder(folder):
        pass
    with pytest.raises(OSError, match="Input/output error"):
        write_files(folder, {"text": b"new"})
    assert (folder / "text").read_text() == "old"
    assert os.listdir(tmp_path) == ["folder"]


def test_many_files_that_the_disk_does_not_store_are_an_error_as_well(tmp_path, monkeypatch):
    folder, opened = fill(tmp_path / "folder", map(str, range(100))), os.open
    monkeypatch.setattr(os, "open", lambda path, flags: opened(path, os.O_PATH))  # which syncfs refuses
    ctypes.set_errno(0)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        flush_folder(folder)
    assert (caught.value.errno, caught.value.filename) == (errno.EBADF, str(folder))


def test_a_network_file_system_that_flushes_no_folders_is_used_without(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse_folders(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    with fresh_folder(tmp_path / "folder") as partial:
        (partial / "text").write_text("new")
    assert (tmp_path / "folder/text").read_text() == "new"


def test_a_folder_whose_names_the_disk_does_not_store_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        storage.flush(tmp_path)


def test_written_files_are_flushed_before_they_replace_others(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append(f"> {new}"), replace(old, new))[1])
    write_files(tmp_path, {"a": b"1", "b": b"2"})
    parts = [str(tmp_path / f".{name}.cancernet-new") for name in "ab"]
    assert events == [*parts, f"> {tmp_path / 'a'}", f"> {tmp_path / 'b'}", str(tmp_path)]
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def refuse_renaming(monkeypatch, error, refused):
    """Raise the error for renamings of which `refused`, given the path and its new name, is true."""
    rename = Path.rename

    def check(path, target):
        if refused(path, target):
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", check)


@pytest.mark.parametrize("refused", ["new", "old"])
def test_a_folder_that_cannot_be_named_leaves_both_as_they_were(tmp_path, monkeypatch, refused):
    new, old = make(tmp_path / "new", "new"), make(tmp_path / "old", "old")
    refuse_renaming(monkeypatch, OSError(errno.EBUSY, "busy"), lambda path, target: path.name == refused)
    with pytest.raises(OSError, match="busy"):
        replace_folder(new, old)
    assert ((new / "text").read_text(), (old / "text").read_text()) == ("new", "old")
    assert os.listdir(old) == ["text"]
    if refused == "new":
        with pytest.raises(OSError, match="busy"):
            replace_folder(new, tmp_path / "absent")
        assert sorted(os.listdir(tmp_path)) == ["new", "old"]


def test_an_old_folder_that_cannot_be_deleted_is_deleted_by_the_next_command(tmp_path, monkeypatch):
    new, old = make(tmp_path / "new", "new"), make(tmp_path / "old", "old")
    refuse_renaming(monkeypatch, OSError(errno.EBUSY, "busy"), lambda path, target: target.name.endswith("-deleted"))
    replace_folder(new, old)
    assert (old / "text").read_text() == "new"
    monkeypatch.undo()
    recover_folder(old)
    assert os.listdir(tmp_path) == ["old"]


def test_a_folder_that_cannot_get_its_name_back_is_found_again(tmp_path, monkeypatch):
    new, old = make(tmp_path / "new", "new"), make(tmp_path / "old", "old")
    refuse_renaming(monkeypatch, OSError(errno.EIO, "broken"), lambda path, target: target == old)
    with pytest.raises(StorageError, match=r"What was .*old is now .*/\.old\.cancernet-old; the next"):
        replace_folder(new, old)
    monkeypatch.undo()
    recover_folder(old)
    assert ((new / "text").read_text(), (old / "text").read_text()) == ("new", "old")


def test_a_folder_whose_new_name_is_not_stored_gets_its_old_one(tmp_path, monkeypatch):
    new, old = make(tmp_path / "new", "new"), make(tmp_path / "old", "old")
    flush = storage.flush

    def refuse(path):
        if path == tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        flush(path)

    monkeypatch.setattr(storage, "flush", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        replace_folder(new, old)
    assert ((new / "text").read_text(), (old / "text").read_text()) == ("new", "old")
    assert sorted(os.listdir(tmp_path)) == ["new", "old"]


@pytest.mark.parametrize("name", ["loop", "loop/out"])
def test_a_link_to_itself_is_refused(tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    claim = claim_folder(tmp_path / name, FolderKind.RUN, force=True)
    with pytest.raises((InputError, OSError), match="loop is a link|File exists: .*loop"), claim:
        pass


def fill_the_disk(folder):
    with fresh_folder(folder) as partial:
        (partial / "text").write_bytes(bytes(2_000_000))
        (partial / "link").symlink_to("text")
        raise OSError(errno.ENOSPC, "No space left on device", "some/file")


def test_what_could_not_be_written_is_named_and_nothing_claimed_that_is_not_so(tmp_path):
    for made, said in ((False, "are free."), (True, f"are free. {tmp_path}/folder is unchanged.")):
        if made:
            make(tmp_path / "folder", "old")
        with pytest.raises(StorageError) as caught:
            fill_the_disk(tmp_path / "folder")
        assert str(caught.value).startswith("No space left on device: some/file. 2.0 MB had been written, ")
        assert str(caught.value).endswith(said)


HOLDS = """
import sys, time
from pathlib import Path
from cancernet.storage import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_is_at_work(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    first = run(HOLDS, tmp_path / "folder")
    try:
        assert first.stdout.readline() == "locked\n"
        for name in ("folder", "link"):  # the same folder under two names
            with pytest.raises(StorageError) as caught, lock_folder(tmp_path / name):
                pass
            assert str(caught.value).startswith(
                f"Another process is writing {tmp_path / 'folder'} (process {first.pid}). "
            )
        with lock_folder(tmp_path / "other"):
            pass
    finally:
        first.kill()
        first.wait()
    with lock_folder(tmp_path / "folder"):  # a lock dies with its process
        assert (tmp_path / ".folder.cancernet-lock").read_text().startswith(f"{os.getpid()}\n")
    assert os.listdir(tmp_path) == ["link"]


def test_a_network_file_system_without_locks_has_one_by_the_existence_of_a_file(tmp_path):
    refuse = "import fcntl, errno\ndef flock(*_):\n    raise OSError(errno.ENOSYS, 'no')\nfcntl.flock = flock\n"
    first = run(refuse + HOLDS, tmp_path / "folder", stderr=subprocess.PIPE)
    try:
        assert first.stdout.readline() == "locked\n"
        second = run(refuse + HOLDS, tmp_path / "folder", stderr=subprocess.PIPE)
        said = second.communicate()[1]
        assert f"StorageError: Another process is writing {tmp_path / 'folder'} (process {first.pid})" in said
    finally:
        first.kill()
        assert "flock not supported on this filesystem" in first.communicate()[1]
    third = run(refuse + HOLDS.replace("60", "0"), tmp_path / "folder", stderr=subprocess.PIPE)
    assert third.communicate()[0] == "locked\n"  # that a lock's process is gone is seen on its own machine


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_that_refuses_locks_has_one_by_the_existence_of_a_file(tmp_path, number):
    refuse = f"import fcntl\ndef flock(*_):\n    raise OSError({number}, 'no')\nfcntl.flock = flock\n"
    first = run(refuse + HOLDS, tmp_path / "folder")
    try:
        assert first.stdout.readline() == "locked\n"
        second = run(refuse + HOLDS, tmp_path / "folder", stderr=subprocess.PIPE)
        said = second.communicate()[1]
        assert f"StorageError: Another process is writing {tmp_path / 'folder'} (process {first.pid})" in said
    finally:
        first.kill()
        first.wait()
    assert run(refuse + HOLDS.replace("60", "0"), tmp_path / "folder").communicate()[0] == "locked\n"
    assert os.listdir(tmp_path) == []


def test_a_lock_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", refuse)
    said = r"\.folder\.cancernet-lock cannot be written: No space left on device"
    with pytest.raises(StorageError, match=said), lock_folder(tmp_path / "folder"):
        pass


def test_a_lock_puts_right_what_a_killed_process_left(tmp_path):
    make_provisional(tmp_path / OLD, "old")
    with lock_folder(tmp_path / "folder"):
        assert (tmp_path / "folder/text").read_text() == "old"


def test_many_processes_at_once_do_not_meet(tmp_path):
    code = """
import sys
from pathlib import Path
from cancernet import StorageError
from cancernet.storage import lock_folder
count, done = Path(sys.argv[1]) / "count", 0
while done < 40:
    try:
        with lock_folder(Path(sys.argv[1]) / "folder"):
            count.write_text(str(int(count.read_text()) + 1))
            done += 1
    except StorageError:
        pass
"""
    (tmp_path / "count").write_text("0")
    processes = [run(code, tmp_path) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "120"


def test_a_full_disk_is_told_before_the_work(tmp_path):
    check_space(tmp_path / "not/there/yet", 1)
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(StorageError) as caught:
        check_space(tmp_path / "new", 2 * free, advice="Do this.")
    assert f"{tmp_path / 'new'} needs about {describe_size(2 * free)}; " in str(caught.value)
    assert str(caught.value).endswith(" are free. Do this.")


def test_sizes_are_said_in_their_unit():
    assert [describe_size(size) for size in (300, 99_999, 100_000, 1_234_567_890)] == [
        *("300 bytes", "99,999 bytes", "0.1 MB", "1.2 GB")
    ]


CONTENTS = {  # of each kind, what its folder has
    FolderKind.RUN: ["report.json", "predictions.csv", "history.csv", "model.keras"],
    FolderKind.DATASET: ["manifest.csv", "dataset.json", "training/0/a.png"],
    FolderKind.EVALUATION: ["report.json", "predictions.csv"],
    FolderKind.COMPARISON: ["comparison.json"],
    FolderKind.SEARCH: ["search.json"],
    FolderKind.ARCHIVE: ["archive.json", "summary.csv"],
    FolderKind.PREDICTIONS: ["predictions.csv", "summary.csv"],
}


def fill(folder, files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("")
    return folder


def check_refused(folder, kind, said, *, force=True):
    with pytest.raises(InputError) as caught:
        check_replaceable(folder, kind, force=force)
    assert str(caught.value) == f"{folder} {said}"


@pytest.mark.parametrize("kind", FolderKind)
def test_only_results_of_the_same_kind_are_replaced(tmp_path, kind):
    for number, (other, files) in enumerate(CONTENTS.items()):
        folder = fill(tmp_path / str(number), files)
        if other is not kind:
            check_refused(folder, kind, f"contains {other.noun}, not {kind.noun}. Choose another output folder.")
        else:
            check_replaceable(folder, kind, force=True)
            said = f"already contains {kind.noun}. Choose another output folder, or add --force to replace this one."
            check_refused(folder, kind, said, force=False)


@pytest.mark.parametrize("kind", FolderKind)
def test_a_folder_that_is_absent_or_empty_may_be_written_and_one_of_other_files_never(tmp_path, kind):
    check_replaceable(tmp_path / "absent", kind, force=False)
    (tmp_path / "empty").mkdir()
    check_replaceable(tmp_path / "empty", kind, force=False)
    for name in ("thesis.txt", "model.keras", "manifest.csv", "fold_1/x"):
        folder = fill(tmp_path / name.replace("/", "-"), [name])
        check_refused(folder, kind, f"contains other files, not {kind.noun}. Choose another output folder.")
    check_replaceable(fill(tmp_path / "cut_off", [".search.json.cancernet-new"]), kind, force=False)
    fill(tmp_path / "nested", [".run.cancernet-new/model.keras"])
    check_refused(tmp_path / "nested", kind, f"contains other files, not {kind.noun}. Choose another output folder.")


@pytest.mark.parametrize("trained", ["model.keras", "history.csv", "fold_1/model.keras"])
def test_nothing_but_another_run_replaces_what_a_training_wrote(tmp_path, trained):
    check_replaceable(fill(tmp_path / "run", ["report.json", trained]), FolderKind.RUN, force=True)
    for kind, files in CONTENTS.items():
        if kind is not FolderKind.RUN:
            folder = fill(tmp_path / kind.name, [*files, trained])
            with pytest.raises(InputError, match="contains (a trained run|other files), not"):
                check_replaceable(folder, kind, force=True)


def test_what_cannot_be_renamed_is_refused(tmp_path, monkeypatch):
    kind = FolderKind.DATASET
    (tmp_path / "here/below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "here")
    fill(tmp_path, ["file"])
    check_refused(tmp_path / "link", kind, f"is a link. Give the folder that it points to, {tmp_path}/here.")
    check_refused(tmp_path / "file", kind, "is a file. Choose another output folder.")
    check_refused(Path("/proc"), kind, "is a mount point and cannot be renamed. Choose a folder in it: /proc/NAME.")
    monkeypatch.chdir(tmp_path / "here/below")
    for folder in (Path(), Path(".."), Path("../../here"), tmp_path):
        check_refused(folder, kind, "is the current folder or one of its parents. Choose another output folder.")
    check_replaceable(Path("new"), kind, force=False)


def test_a_claimed_folder_is_checked_and_locked(tmp_path):
    with claim_folder(None, FolderKind.COMPARISON, force=False):
        pass
    claim = claim_folder(tmp_path / "out", FolderKind.COMPARISON, force=False)
    with claim, pytest.raises(StorageError, match="Another process is writing"), lock_folder(tmp_path / "out"):
        pass
    fill(tmp_path / ".out.cancernet-old", ["comparison.json", MARKER])  # gets its name back when the lock is held
    claim = claim_folder(tmp_path / "out", FolderKind.COMPARISON, force=False)
    with pytest.raises(InputError, match="already contains"), claim:
        pass
    claim = claim_folder(tmp_path / "out", FolderKind.SEARCH, force=True)
    with pytest.raises(InputError, match="contains a comparison, not a search"), claim:
        pass
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.slow
def test_a_folder_replaced_again_and_again_is_whole_after_every_kill(tmp_path):
    code = """
import sys
from pathlib import Path
from cancernet.storage import fresh_folder, lock_folder
with lock_folder(Path(sys.argv[1])):
    while True:
        with fresh_folder(Path(sys.argv[1])) as folder:
            for name in "abc":
                (folder / name).write_text(name * 100)
"""
    folder = tmp_path / "folder"
    for number in range(4 * KILLS):
        process = run(code, folder)
        while not folder.exists():
            time.sleep(0.01)
        time.sleep(0.2 + number * 0.0137)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with lock_folder(folder):
            assert {path.name: path.read_text() for path in folder.iterdir()} == {name: name * 100 for name in "abc"}
    assert os.listdir(tmp_path) == ["folder"]


def test_names_of_files_are_plain_and_none_comes_twice():
    taken = set()
    stems = [file_stem(name, taken) for name in ("a b/c", "a b c", "A_B_C", "../..", "ü.1", "X-ray.")]
    assert stems == ["a_b_c", "a_b_c_2", "A_B_C_3", "slide", "ü.1", "X-ray"]


def written(*row):
    file = io.StringIO(newline="")
    write_rows(file, [row])
    return file.getvalue()


@pytest.mark.parametrize(
    "text", ["=1+1", "'=1", "+x", "-x", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x","y")', "＝1"]
)
def test_a_text_that_a_spreadsheet_would_run_gets_an_apostrophe(text):
    assert next(csv.reader(io.StringIO(written(text), newline=""))) == [f"'{text}"]


@pytest.mark.parametrize(
    "cell", ["-1", "+1", "-0.5e-3", -1, 0.25, "", "'", "a=1", "training/0/=x.png", "'quoted'", "'X=1"]
)
def test_numbers_and_plain_texts_stay_as_they_are(cell):
    assert written("x", cell) == f"x,{cell}\n"
    assert list(read_rows([f"x,{cell}\n"])) == [["x", str(cell)]]


@given(st.lists(st.text(st.characters(codec="utf-8") | st.sampled_from("'=+-@,\t\r\n\"0")), min_size=1))
def test_what_is_read_is_what_was_written(cells):
    assert list(read_rows(io.StringIO(written(*cells), newline=""))) == [cells]


@dataclass
class Sizes:
    """What the JSON files of these tests contain."""

    sizes: list[int]
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"sizes": ["' + "x" * 50 + '"]}', f"sizes.0: Input should be a valid integer, not '{'x' * 40}'. Do this."),
        ('{"sizes": "1"}', "sizes: Input should be a valid array, not '1'. Do this."),
        ("{}", "sizes: Field required. Do this."),
        ("[]", "Input should be an object, not '[]'. Do this."),
        ("{", "Invalid JSON: EOF while parsing an object at line 1 column 1. Do this."),
        ('{"sizes": [], "more": 1}', "more: Unexpected keyword argument. Do this."),
    ],
)
def test_json_of_a_wrong_form_is_named_with_its_place_and_what_to_do(tmp_path, text, said):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(StorageError) as caught:
        read_json(path, Sizes, advice="Do this.")
    assert str(caught.value) == f"{path} is damaged: {said}"
    with pytest.raises(InputError) as caught:
        read_json(path, Sizes, advice="Do this.", expected="a table", update=dict.copy)
    assert str(caught.value) == f"{path} is not a table: {said}"


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"sizes": NaN}', "\udcff", "9" * 5000])
@pytest.mark.parametrize("update", [None, lambda value: value])
def test_text_that_is_not_json_is_refused_with_and_without_an_update(tmp_path, text, update):
    (tmp_path / "a.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(StorageError, match="a.json is damaged: "):
        read_json(tmp_path / "a.json", Sizes, advice="", update=update)


def test_json_comes_back_and_an_old_form_is_translated(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"sizes": [1, 2]})
    assert path.read_bytes() == b'{\n "sizes": [\n  1,\n  2\n ]\n}\n'
    assert read_json(path, Sizes, advice="") == Sizes([1, 2])
    write_json(path, {"sides": [1, 2]})
    assert read_json(path, Sizes, advice="", update=lambda value: {"sizes": value["sides"]}) == Sizes([1, 2])


def test_a_json_file_that_is_missing_or_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError) as missing:
        read_json(tmp_path / "a.json", Sizes, advice="Do this.")
    assert str(missing.value) == f"There is no {tmp_path}/a.json. Do this."
    with pytest.raises(StorageError) as unreadable:
        read_json(tmp_path, Sizes, advice="Do this.")
    assert str(unreadable.value) == f"{tmp_path} cannot be read: Is a directory."


def test_a_file_is_identified_by_its_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_files_that_cannot_all_be_written_leave_the_old_ones(tmp_path):
    fill(tmp_path, ["a"])
    with pytest.raises(TypeError):
        write_files(tmp_path, {"a": b"new", "b": "text"})
    assert (os.listdir(tmp_path), (tmp_path / "a").read_text()) == (["a"], "")


def test_space_that_is_just_enough_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(3000, 2000, 1000))
    check_space(tmp_path / "new", 1000)
    with pytest.raises(StorageError) as caught:
        check_space(tmp_path / "new", 1001)
    said = "needs about 1,001 bytes; 1,000 bytes are free. Choose another output folder."
    assert str(caught.value) == f"{tmp_path}/new {said}"


@pytest.mark.parametrize(("number", "is_full"), [("ENOSPC", True), ("EDQUOT", True), ("EFBIG", True), ("EIO", False)])
def test_what_is_free_is_said_of_a_full_disk_only(tmp_path, number, is_full):
    with pytest.raises(StorageError) as caught, fresh_folder(tmp_path / "a/folder"):
        raise OSError(getattr(errno, number), "Refused")
    assert str(caught.value).startswith(f"Refused: {tmp_path}/a/folder.")
    assert ("bytes had been written" in str(caught.value)) == is_full
    assert os.listdir(tmp_path / "a") == []


def test_waiting_for_another_process_is_announced(tmp_path):
    first = run(HOLDS.replace("60", "2"), tmp_path / "folder")
    said = []
    try:
        assert first.stdout.readline() == "locked\n"
        (tmp_path / ".folder.cancernet-lock").write_text("17\nanother machine\n")
        with lock_folder(tmp_path / "folder", announce=said.append):
            assert first.wait() == 0
    finally:
        first.kill()
        first.wait()
    holder = "process 17 on another machine"
    assert said == [f"Another process is writing {tmp_path}/folder ({holder}). Waiting for it ..."]


def test_a_holder_that_has_not_written_its_number_is_unknown(tmp_path):
    with lock_folder(tmp_path / "folder"):
        (tmp_path / ".folder.cancernet-lock").write_text("")
        with pytest.raises(StorageError, match="folder .process unknown.. Wait"), lock_folder(tmp_path / "folder"):
            pass


def test_a_bind_mount_is_a_mount_point(tmp_path, monkeypatch):
    import psutil

    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [SimpleNamespace(mountpoint=str(tmp_path / "v"))] * all)
    (tmp_path / "v").mkdir()
    said = f"is a mount point and cannot be renamed. Choose a folder in it: {tmp_path}/v/NAME."
    check_refused(tmp_path / "v", FolderKind.RUN, said)
    check_replaceable(tmp_path / "w", FolderKind.RUN, force=False)
