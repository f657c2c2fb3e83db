"""Options generated from dataclasses, what a command may replace, one-line errors, exit statuses and signals."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Annotated

import pytest
from annotated_types import Gt
from conftest import ROOT, write_slides

from cancernet import CancerNetError, InputError
from cancernet.__main__ import VERBS
from cancernet.__main__ import main as run
from cancernet.cli import _run, parse_options
from cancernet.config import TrainingOptions, option
from cancernet.storage import lock_folder

RESULTS = {
    "evaluate": (["no run"], "report.json", "an evaluation report"),
    "compare": (["no run", "no other"], "comparison.json", "a comparison"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_a_text_and_its_default(verb, capsys):
    with pytest.raises(SystemExit):
        run([verb, "--help"])
    module = import_module(VERBS[verb].module)
    text = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
    for field in dataclasses.fields(getattr(module, VERBS[verb].options)):
        owner = field.metadata.get("settings_of")
        for each in dataclasses.fields(owner) if owner else [field]:
            described = each.metadata["option"]
            if described.on_command_line:
                assert described.help, each.name
                assert described.help.split(" (see")[0].replace("- ", "-") in text
                assert described.positional or f"-{each.name.replace('_', '-')}" in text


def test_a_training_option_is_one_field(capsys):
    """Declared in one place, it is on the command line, in its group, with its default, checked and searchable."""

    @dataclasses.dataclass(frozen=True)
    class Extended(TrainingOptions):
        label_smoothing: Annotated[float, Gt(0)] = option(0.1, help="Label smoothing", group="training")

    with pytest.raises(SystemExit):
        parse_options(Extended, ["--help"], prog="train", about="")
    training = capsys.readouterr().out.partition("\ntraining:")[2].partition("\ndecision:")[0]
    assert "--label-smoothing LABEL_SMOOTHING" in training
    assert "Label smoothing (default: 0.1)" in " ".join(training.split())
    assert parse_options(Extended, ["--label-smoothing", "0.2"], prog="train", about="").label_smoothing == 0.2
    with pytest.raises(InputError, match="argument --label-smoothing: takes a number above 0, not '-1'. See train"):
        parse_options(Extended, ["--label-smoothing", "-1"], prog="train", about="")


def complaint(verb, arguments, output, *options):
    with pytest.raises(CancerNetError) as caught:
        run([verb, *arguments, "--output", str(output), *options])
    return str(caught.value)


@pytest.mark.parametrize("left_by_training", ["model.keras", "history.csv", "fold_1/model.keras"])
@pytest.mark.parametrize("name", RESULTS)
def test_a_trained_run_is_never_replaced(tmp_path, name, left_by_training):
    arguments, own, noun = RESULTS[name]
    for file in ("report.json", own, left_by_training):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("")
    for options in ([], ["--force"]):
        said = complaint(name, arguments, tmp_path, *options)
        assert said == f"{tmp_path} contains a trained run, not {noun}. Choose another output folder."


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_replaced_with_force_only(tmp_path, name):
    arguments, own, noun = RESULTS[name]
    other = f"{tmp_path}/out contains other files, not {noun}. Choose another output folder."
    again = f"{tmp_path}/out already contains {noun}. Choose another output folder, or add --force to replace this one."
    assert complaint(name, arguments, tmp_path / "out") not in (other, again)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/text").write_text("")
    assert complaint(name, arguments, tmp_path / "out", "--force") == other
    (tmp_path / "out" / own).write_text("")
    assert complaint(name, arguments, tmp_path / "out") == again
    assert complaint(name, arguments, tmp_path / "out", "--force") != again


@pytest.mark.parametrize("output", [".", "..", "/", "below/.."])
def test_the_folder_one_is_in_is_not_to_be_made(tmp_path, monkeypatch, output):
    (tmp_path / "here/below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    said = f"{Path(output)} is the current folder or one of its parents. Choose another output folder."
    for name, (arguments, own, _) in RESULTS.items():
        (tmp_path / "here" / own).write_text("")
        assert complaint(name, arguments, output, "--force") == said, name


@pytest.mark.parametrize("text", ["-1", str(2**32), "1.5", "x", "²"])
def test_a_seed_is_a_whole_number_of_32_bits(text):
    with pytest.raises(InputError, match=rf"argument --seed: takes a whole number from 0 to 4294967295, not '{text}'"):
        run(["train", "--seed", text])
    assert parse_options(TrainingOptions, ["--seed", str(2**32 - 1)], prog="", about="").settings == {"seed": 2**32 - 1}


def test_a_share_has_an_upper_limit_too():
    for text in ("0", "0.51", "inf", "nan"):
        with pytest.raises(InputError, match=f"argument --refer: takes a number between 0 and 0.5, not '{text}'"):
            parse_options(TrainingOptions, ["--refer", text], prog="", about="")
    assert parse_options(TrainingOptions, ["--refer", "0.5"], prog="", about="").refer == 0.5


def test_what_is_printed_ends_no_script():
    code = r"from cancernet.cli import run_command; run_command(lambda _: print('caf\udce9 built'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONIOENCODING": "utf-8"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "caf\\udce9 built\n", "")


@pytest.mark.parametrize("text", ["１２", "²", "x", "", "9" * 5000])
def test_numbers_are_of_plain_digits(text):
    for name in ("--epochs", "--learning-rate"):
        with pytest.raises(InputError, match=f"argument {name}: takes a (whole )?number (of at least 1|above 0), not"):
            parse_options(TrainingOptions, [name, text], prog="", about="")
    given = parse_options(TrainingOptions, ["--epochs", "12", "--learning-rate", "1e-3"], prog="", about="").settings
    assert given == {"epochs": 12, "learning_rate": 0.001}


def test_the_order_of_the_options_does_not_matter():
    orders = (["--seed", "1", "--epochs", "3"], ["--epochs", "3", "--seed", "1"])
    given = [parse_options(TrainingOptions, words, prog="", about="").settings for words in orders]
    assert list(given[0].items()) == list(given[1].items()) == [("epochs", 3), ("seed", 1)]  # a run is resumed


def run_shell(code, redirected):
    """Exit code, standard output and standard error of a script with this code, by a shell that redirects them."""
    script = f"from cancernet.cli import run_command\ndef main(_):\n    {code}\nrun_command(main)"
    command = ["bash", "-c", f'"$0" -c "$1" {redirected}; exit "${{PIPESTATUS[0]}}"', sys.executable, script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


LOST = "error: the work is done, but what it printed was lost ({}).\n"
WORKS = "print('x' * 100_000)\n    print('done', file=open('{}', 'w'))"


@pytest.mark.parametrize(
    ("redirected", "why"),
    [
        ("> /dev/full", "No space left on device"),
        (">&-", "it is closed"),
        ("| true", "Broken pipe"),
    ],
)
def test_work_goes_on_where_nobody_reads_what_is_printed(tmp_path, redirected, why):
    code, printed, error = run_shell(WORKS.format(tmp_path / "done"), redirected)
    assert (code, printed, error) == (2, "", LOST.format(why))
    assert (tmp_path / "done").read_text() == "done\n"


def test_a_clock_that_was_not_set_is_told():
    code = "import time; time.time = lambda: 5; from cancernet.cli import run_command; run_command(print)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"error: The clock of this machine says .*\. Set it, and try again\.\n", done.stderr)


def test_libraries_do_not_speak():
    code = "import logging, warnings; warnings.warn('w'); logging.getLogger('tifffile').error('e'); print('ours')"
    assert run_shell(code, "") == (0, "ours\n", "")


def test_too_little_memory_is_told_in_one_line():
    said = "error: memory ran out. End other programs, or use a machine with more memory.\n"
    assert run_shell("raise MemoryError", "") == (2, "", said)


def test_an_error_is_told_on_standard_output_where_standard_error_is_closed():
    raises = "from cancernet import InputError; raise InputError('Mend it.')"
    assert run_shell(raises, "2>&-") == (2, "error: Mend it.\n", "")
    assert run_shell(raises, ">&-") == (2, "", "error: Mend it.\n")
    assert run_shell(raises, ">&- 2>&-") == (2, "", "")


def test_a_refusal_of_the_system_claims_nothing_about_what_was_overwritten():
    assert run_shell("open('/proc/nothing', 'w')", "") == (2, "", "error: No such file or directory: /proc/nothing.\n")


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGTERM, "ended by SIGTERM."), (signal.SIGHUP, "ended by SIGHUP."), (signal.SIGINT, "interrupted.")],
)
def test_a_signal_ends_a_script_as_ctrl_c_does(tmp_path, number, said):
    code = f"""
import signal, time
from pathlib import Path
from cancernet.cli import run_command
signal.signal(signal.SIGINT, signal.default_int_handler)
def main(_):
    try:
        Path({str(tmp_path / "begun")!r}).touch()
        time.sleep(60)
    finally:
        print("cleared up")
run_command(main)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1, stderr=-1, text=True)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    process.send_signal(number)
    assert process.communicate(timeout=20) == ("cleared up\n", f"error: {said}\n")
    assert process.returncode == 128 + number


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    code = "import os, signal\n    os.kill(os.getpid(), signal.SIGHUP)\n    print('lived')"
    script = f"from cancernet.cli import run_command\ndef main(_):\n    {code}\nrun_command(main)"
    command = ["bash", "-c", 'trap "" HUP; exec "$0" -c "$1"', sys.executable, script]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout == "lived\n"


@pytest.mark.parametrize("name", RESULTS)
def test_two_at_once_are_told_of_each_other(tmp_path, name):
    arguments, _, _ = RESULTS[name]
    with lock_folder(tmp_path / "out"):
        said = complaint(name, arguments, tmp_path / "out")
    told = f"Another process is writing {tmp_path / 'out'} (process {os.getpid()}). "
    assert said == told + "Wait until it has finished, or choose another output folder."


# Ends its work just before what it wrote would get its name.
WRITTEN = """
import sys, time
from cancernet import storage
from cancernet.__main__ import run
def wait(*_):
    print("written", flush=True)
    time.sleep(60)
storage.replace_folder = wait
run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluate", "compare"])
def test_a_terminated_script_leaves_nothing_behind(tmp_path, tiny_run, folders, name):
    source = write_slides(tmp_path / "source", patients=5)
    run(["build", "--source", str(source), "--output", str(tmp_path / "dataset")])
    arguments = {
        "evaluate": [tiny_run, "--dataset", tmp_path / "dataset"],
        "compare": folders[:2],
    }[name]
    command = [sys.executable, "-c", WRITTEN, name, *map(str, arguments), "--output", str(tmp_path / "results/out")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert any(line == "written\n" for line in process.stdout), process.stderr.read()
    assert len(os.listdir(tmp_path / "results")) == 2  # the lock and what is not finished
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error.splitlines()[-1]) == (143, "error: ended by SIGTERM.")
    assert os.listdir(tmp_path / "results") == []


@pytest.mark.parametrize(
    "command",
    [
        ["build", "--source", "loop", "--output", "made"],
        ["build", "--sample", "--source", "made", "--output", "loop"],
        ["train", "--dataset", "loop"],
        ["train", "--dataset", "empty", "--output", "loop"],
        ["evaluate", "loop"],
        ["predict", "loop", "empty"],
        ["compare", "loop", "empty"],
        ["export", "loop"],
    ],
)
def test_a_link_to_itself_is_one_line(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "empty").mkdir()
    status, message = _run(lambda _: run(command))
    assert status == 2
    assert message
    assert "\n" not in message


@pytest.mark.parametrize("command", [["build_dataset.py"], ["train_model.py"], ["-m", "cancernet", "predict"]])
def test_without_the_requirements_a_command_ends_in_one_line(command):
    """`-S` leaves out site-packages, as a Python does in which nothing is installed."""
    done = subprocess.run([sys.executable, "-S", *command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: \S+ has no package annotated_types\. Activate the environment .*\n", done.stderr)
