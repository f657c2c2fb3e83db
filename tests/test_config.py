"""The settings of an experiment: what is read back is one of the allowed values."""

import dataclasses
import json

import pytest

from cancernet import InputError
from cancernet.config import RECIPES, Experiment
from cancernet.folders import read_json


@pytest.mark.parametrize("experiment", RECIPES.values(), ids=RECIPES)
def test_a_recipe_comes_back_as_it_was_written(tmp_path, experiment):
    (tmp_path / "a.json").write_text(json.dumps(dataclasses.asdict(experiment)))
    assert read_json(tmp_path / "a.json", Experiment, again="") == experiment


@pytest.mark.parametrize("name", ["strategy", "optimizer", "schedule", "class_weight", "views", "kept_weights"])
def test_an_unknown_value_of_a_setting_is_refused(tmp_path, name):
    (tmp_path / "a.json").write_text(json.dumps(dataclasses.asdict(Experiment()) | {name: "x"}))
    with pytest.raises(InputError, match=f"is damaged: {name}: Input should be '.*', not 'x'"):
        read_json(tmp_path / "a.json", Experiment, again="")
