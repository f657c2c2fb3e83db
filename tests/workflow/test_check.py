"""`cancernet check`: what it prints, what it measures, and what it says is wrong."""

import json

import keras

import train_model
from cancernet.__main__ import main
from cancernet.models.architectures import ARCHITECTURES
from cancernet.workflow import check


def small_backbone(include_top, weights, input_tensor):
    """In the place of DenseNet121, which takes seconds to build: a convolution for each of its stages."""
    maps = input_tensor
    for name in ARCHITECTURES["densenet121"].stages:
        maps = keras.layers.Conv2D(4, 3, strides=2, name=name)(maps)
    return keras.Model(keras.utils.get_source_inputs(input_tensor), keras.layers.Conv2D(8, 3)(maps))


def test_the_table(capsys, monkeypatch):
    monkeypatch.setattr(keras.applications, "DenseNet121", small_backbone)
    monkeypatch.setattr(check, "_STEPS", 1)
    make_images = check._make_images
    monkeypatch.setattr(check, "_make_images", lambda count, side: make_images(2, side))
    main(["check"])
    printed = capsys.readouterr().out
    assert printed.startswith("cancernet 1.")
    assert "images a second" in printed
    assert "cpu:0" in printed
    assert printed.endswith("No problem found.\n")


def test_json_and_the_script(capsys, monkeypatch):
    monkeypatch.setattr(check, "_time_training", lambda: 20.0)
    monkeypatch.setattr(check, "_time_backbone", lambda: 10.0)
    train_model.main(["--check", "--json"])
    found = json.loads(capsys.readouterr().out)
    (device,) = found["devices"]
    assert device["training"] == 20.0
    assert device["backbone"] == 10.0
    assert found["packages"]["keras"] == keras.__version__
    assert found["problems"] == []


def test_a_device_that_fails_and_a_full_disk_are_problems(capsys, monkeypatch):
    def fail():
        raise RuntimeError("PTX 8.5 does not support sm_120\nmore")

    monkeypatch.setattr(check, "_time_training", fail)
    monkeypatch.setattr(check, "_LEAST_DISK", 10**9)
    monkeypatch.setattr(check, "_LEAST_MEMORY", 10**9)
    found = check.check(check.CheckOptions())
    assert found.devices[0].training is None
    assert found.problems[0].startswith("cpu:0: PTX 8.5 does not support sm_120 ")
    assert [problem.split(" of ")[1].split()[0] for problem in found.problems[1:]] == ["memory", "disk"]
    assert "failed" in capsys.readouterr().out
