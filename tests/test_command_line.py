"""What a script may replace: results of its own kind, and never a trained run."""

import pytest

import evaluate_model
import predict_images
from cancernet import InputError

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
