"""The display of long work: one on a terminal, nothing of it in a log file."""

import contextlib
import io
import re

import pytest

from cancernet import progress


class Terminal(io.StringIO):
    """Standard output that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    for name, value in (("TERM", "xterm"), ("COLUMNS", "150"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_REPORTS", -1)
    return Terminal()


@contextlib.contextmanager
def shown(terminal):
    with contextlib.redirect_stdout(terminal), progress.show_progress():
        yield


def read(terminal):
    """What was drawn so far, without escape sequences."""
    progress._display.get().rows.refresh()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())


def test_a_log_file_has_nothing_of_it(capsys):
    with progress.show_progress(), progress.part(1, 2, "fold"), progress.count("Predicting", 10) as add:
        progress.report(0.5, "epoch 1 of 2")
        add(10)
    assert capsys.readouterr() == ("", "")


def test_reports_without_a_display_are_ignored(terminal):
    with contextlib.redirect_stdout(terminal), progress.part(1, 2, "fold"), progress.count("Predicting", 10) as add:
        progress.report(0.5, "epoch 1 of 2")
        add(10)
    assert terminal.getvalue() == ""


def test_a_cell_of_a_notebook_has_nothing_of_it(terminal, monkeypatch):
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    with shown(terminal), progress.count("Predicting", 10) as add:
        add(10)
    assert terminal.getvalue() == ""


def test_the_whole_command_is_divided_into_parts(terminal):
    with shown(terminal):
        with progress.part(2, 4, "fold"), progress.part(3, 5, "member"), progress.part(1, 1, "architecture"):
            progress.report(0.5, "epoch 6 of 12, 310 images/s")
            assert re.search(r"Fold 2 of 4, member 3 of 5, epoch 6 of 12, 310 images/s .* 38% ", read(terminal))
        assert "Fold 2 of 4 " in read(terminal)
        assert " 50% " in read(terminal)  # of two of four folds
    assert progress._display.get() is None


def test_without_parts_only_the_work_is_named(terminal):
    with shown(terminal):
        progress.report(0.25, "epoch 1 of 4, 310 images/s")
        assert re.search(r"Epoch 1 of 4, 310 images/s .* 25% ", read(terminal))


def test_a_part_that_fails_is_left(terminal):
    with shown(terminal):
        with pytest.raises(ValueError, match="diverged"), progress.part(1, 2, "trial"):
            raise ValueError("diverged")
        progress.report(0.1, "epoch")
        assert " 10% " in read(terminal)


@pytest.mark.parametrize(("total", "expected"), [(1200, "1,100/1,200 images"), (None, "1,100 images")])
def test_counts_show_how_many_are_done_and_how_fast(total, expected, terminal):
    with shown(terminal), progress.count("Predicting", total, done=100) as add:
        add(400)
        add(600)
        assert re.search(rf"Predicting .* {expected}, [\d,]+ images/s", read(terminal))


def test_what_is_printed_appears_once_and_unbroken(terminal):
    with shown(terminal), progress.count("Predicting", 2):
        print("[bold] " + "x" * 300)
        assert read(terminal).count("[bold] " + "x" * 300) == 1
