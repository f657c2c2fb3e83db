"""What a script may replace: results of its own kind, and never a trained run; what a seed is."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import build_dataset
import evaluate_model
import predict_images
from cancernet import InputError
from cancernet.command_line import seed

SCRIPTS = {
    "evaluate": (evaluate_model, ["no run"], "report.json", "a report"),
    "predict": (predict_images, ["no run", "no image"], "predictions.csv", "predictions"),
}


def complaint(script, arguments, output, *options):
    with pytest.raises(InputError) as caught:
        script.main([*arguments, "--output", str(output), *options])
    return str(caught.value)


@pytest.mark.parametrize("left_by_training", ["model.keras", "history.csv", "fold_1/model.keras"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_trained_run_is_never_replaced(tmp_path, name, left_by_training):
    script, arguments, own, _ = SCRIPTS[name]
    for file in (own, left_by_training):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("")
    for options in ([], ["--force"]):
        said = complaint(script, arguments, tmp_path, *options)
        assert said == f"{tmp_path} holds a trained run, which would be lost. Choose another --output."


@pytest.mark.parametrize("name", SCRIPTS)
def test_results_are_replaced_with_force_only(tmp_path, name):
    script, arguments, own, called = SCRIPTS[name]
    again = f"{tmp_path}/out is there already. Choose another --output, or --force to replace {called}."
    assert complaint(script, arguments, tmp_path / "out") != again
    (tmp_path / "out").mkdir()
    assert complaint(script, arguments, tmp_path / "out", "--force") == again  # whatever it is
    (tmp_path / "out" / own).write_text("")
    assert complaint(script, arguments, tmp_path / "out") == again
    assert complaint(script, arguments, tmp_path / "out", "--force") != again


@pytest.mark.parametrize("output", [".", "..", "/", "below/.."])
def test_the_folder_one_is_in_is_not_to_be_made(tmp_path, monkeypatch, output):
    (tmp_path / "here/below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    said = f"--output {Path(output)} is the folder you are in or above it. Name a folder to be made."
    assert complaint(build_dataset, [], output) == said
    for name, (script, arguments, own, _) in SCRIPTS.items():
        (tmp_path / "here" / own).write_text("")
        assert complaint(script, arguments, output, "--force") == said, name


@pytest.mark.parametrize("text", ["-1", str(2**32), "1.5", "x", "²"])
def test_a_seed_is_a_whole_number_of_32_bits(text):
    with pytest.raises(InputError, match=rf"argument --seed: takes a whole number from 0 to 4294967295, not '{text}'"):
        build_dataset.main(["--seed", text])
    assert [seed("0"), seed(str(2**32 - 1))] == [0, 2**32 - 1]


def test_what_is_printed_ends_no_script():
    code = r"from cancernet.command_line import run_script; run_script(lambda _: print('caf\udce9 built'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONIOENCODING": "utf-8"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "caf\\udce9 built\n", "")
