"""Run folders that were tampered with: one line that says what is wrong, never a traceback."""

import contextlib
import io
import json
import pickle
import resource
import shutil
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import h5py
import keras
import numpy as np
import pytest
from conftest import thin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cancernet import CancerNetError, StorageError
from cancernet.evaluation.decision import load_decision
from cancernet.evaluation.results import as_json
from cancernet.reporting import wording
from cancernet.reporting.schema import Report
from cancernet.run import _limit_weights, load_run, read_report, read_settings
from cancernet.web import run_summary

NESTED = b"[" * 100_000 + b"]" * 100_000
HUGE = b'{"temperature": 1' + b"0" * 400 + b"}"
WRONG = [b"", b"null", b"[]", b"{}", b'"x"', b"1e400", b"NaN", NESTED, HUGE, b"\xff\xfe\x00", b"{" * 10]


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.mark.parametrize("content", WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize(
    "name", ["config.json", "decision.json", "report.json", "model.keras", "out_of_distribution.npz"]
)
def test_a_file_of_something_else_is_named(run, name, content):
    (run / name).write_bytes(content)
    with pytest.raises(StorageError, match=name.replace(".", r"\.")):
        read_report(run, Report) if name == "report.json" else load_run(run)


def places(value, path=()):
    """All paths into a JSON value."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def change(content, path, value):
    """JSON text in which one value is another."""
    place = content
    for key in path[:-1]:
        place = place[key]
    before, place[path[-1]] = place[path[-1]], value
    text = json.dumps(content)
    place[path[-1]] = before
    return text


OTHERS = [None, "x", -1, 10**400, 1e308, True, [], {}, [[]], {"": None}, "9" * 5000]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "read"), [("config.json", read_settings), ("decision.json", None)])
def test_each_value_of_a_wrong_type_is_refused_or_of_no_consequence(run, name, read):
    """What is read has the types that the code relies on, whichever value was changed to whatever."""
    whole = json.loads((run / name).read_text())
    for path in list(places(whole))[1:200]:
        for other in OTHERS:
            (run / name).write_text(change(whole, path, other))
            with contextlib.suppress(CancerNetError):
                read_settings(run) if read else load_decision(run / name)


def test_unknown_views_are_refused(run):
    config = json.loads((run / "config.json").read_text())
    config["experiment"]["views"] = "x"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(StorageError, match=r"config\.json is damaged: experiment\.views: .* not 'x'"):
        read_settings(run)


def forget_hash(run, **changes):
    """As a run of an earlier version, or one that was tampered with."""
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"model_sha256": ""} | changes))


def rewrite(run, method=zipfile.ZIP_STORED, **parts):
    with zipfile.ZipFile(run / "model.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()} | parts
    with zipfile.ZipFile(run / "model.keras", "w", method) as archive:
        for part, data in parts.items():
            archive.writestr(part, data)


def edit_weights(run, change):
    with zipfile.ZipFile(run / "model.keras") as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content, "r+") as file:
        change(file)
    rewrite(run, **{"model.weights.h5": content.getvalue()})


def find_arrays(file):
    arrays = []
    file.visititems(lambda name, item: arrays.append(name) if isinstance(item, h5py.Dataset) and item.ndim else None)
    return arrays


def spoil(value):
    def change(file):
        file[find_arrays(file)[0]][...] = value

    return change


def test_a_run_of_an_earlier_version_has_no_hash_and_loads(run):
    forget_hash(run)
    load_run(run)


def test_a_model_that_was_changed_is_refused(run):
    edit_weights(run, spoil(0))
    with pytest.raises(StorageError, match=r"model\.keras is .*: it is not the file that config.json describes"):
        load_run(run)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(run, value):
    forget_hash(run)
    edit_weights(run, spoil(value))
    with pytest.raises(StorageError, match=r"model\.keras is .*: it has weights that are not finite numbers"):
        load_run(run)


def test_a_model_that_another_version_of_keras_made_and_this_one_cannot_load_names_that_version(run):
    with zipfile.ZipFile(run / "model.keras") as archive:
        config = json.loads(archive.read("config.json"))
    config["config"]["layers"][-1]["class_name"] = "LayerOfTheFuture"
    rewrite(run, **{"config.json": json.dumps(config)})
    forget_hash(run)
    with pytest.raises(StorageError, match=r"model\.keras is missing or damaged\. Train"):
        load_run(run)
    forget_hash(run, versions={"keras": "9.1.0"})
    message = r"model\.keras was made with Keras 9\.1\.0, and Keras 3\.\S+ cannot load it\. Install "
    with pytest.raises(StorageError, match=message):
        load_run(run)


def test_the_only_output_is_a_tensor_also_if_it_was_saved_as_a_list_as_keras_3_8_does(run):
    import keras

    network, image = load_run(run).model, keras.Input((48, 48, 3))
    keras.Model(image, [network(image)]).save(run / "model.keras")
    (run / "out_of_distribution.npz").unlink()
    forget_hash(run)
    assert load_run(run).model(image).shape == (None, 2)


def declare(file):
    file.create_dataset("large", (10**9,), "f4", chunks=(10**6,), compression="gzip")


def widen(run):
    with zipfile.ZipFile(run / "model.keras") as archive:
        config = json.loads(archive.read("config.json"))
    config["config"]["layers"][-1]["config"]["units"] = 40_000_000
    rewrite(run, **{"config.json": json.dumps(config)})


@pytest.mark.parametrize(
    ("inflate", "reason"),
    [
        (lambda run: rewrite(run, zipfile.ZIP_DEFLATED, more=bytes(10**8)), "its parts are larger than the file"),
        (lambda run: edit_weights(run, declare), "its arrays are larger than the file"),
        (widen, "its layers need more weights than it contains"),
    ],
)
def test_what_is_larger_than_the_file_is_not_allocated(run, inflate, reason):
    forget_hash(run)
    inflate(run)
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StorageError, match=r"model\.keras is missing or damaged") as caught:
        load_run(run)
    assert reason in str(caught.value.__cause__)
    assert time.monotonic() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_classes_in_another_order_are_refused(run):
    """They are reversed in all files that name them; the network is the same."""
    for name in ("config.json", "decision.json"):
        text = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(text | {"classes": text["classes"][::-1]}))
    with pytest.raises(StorageError, match="config.json has the classes 1, 0, model.keras their names in order"):
        load_run(run)


def test_a_model_that_is_a_wrapper_of_another_library_is_refused(run):
    forget_hash(run)
    for module, name in (
        ("torch.nn", "Module"),
        ("keras.src.utils.torch_utils", "TorchModuleWrapper"),
        ("os", "system"),
    ):
        config = {"module": module, "class_name": name, "config": {"module": pickle.dumps(1).hex()}}
        rewrite(run, **{"config.json": json.dumps(config)})
        with pytest.raises(StorageError, match=r"model\.keras is missing or damaged"):
            load_run(run)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)


def describe(run, decision):
    """What the page shows of a report."""
    report = read_report(run, Report)
    for name in wording.list_shown("run summary", report.metrics):
        wording.number(report.metrics[name].value)
        wording.interval(report.metrics[name])
    wording.describe_counts(report.data.splits["training"])
    wording.list_warnings(report)
    run_summary.find_test_rates(report, decision, 0.5, unsmoothed=False)
    return report


@pytest.mark.slow
def test_the_page_can_describe_every_report_that_is_not_refused(run):
    loaded, whole = load_run(run), json.loads((run / "report.json").read_text())
    assert as_json(describe(run, loaded.decision)) == whole  # nothing is left out
    refused = 0
    for path in list(places(whole))[1:]:
        for other in (None, "x", 10**400, []):
            (run / "report.json").write_text(change(whole, path, other))
            try:
                describe(run, loaded.decision)
            except CancerNetError:
                refused += 1
    assert refused > 200


def change_config(run, place, value):
    content = json.loads((run / "config.json").read_text())
    paths = list(places(content))[1:]
    changed = run.parent / "changed"
    changed.mkdir(exist_ok=True)
    (changed / "config.json").write_text(change(content, paths[place % len(paths)], value))
    with contextlib.suppress(CancerNetError):
        read_settings(changed)


@pytest.mark.slow
@given(st.integers(0, 1000), JSON)
@settings(max_examples=thin(2000), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_config_ends_in_a_traceback(run, place, value):
    change_config(run, place, value)


def test_threads_that_load_at_once_leave_keras_as_it_was():
    add_weight = keras.layers.Layer.add_weight
    with ThreadPoolExecutor(2) as threads:
        both = Barrier(2)

        def load(most):
            both.wait()
            with _limit_weights(most):
                time.sleep(0.05)

        list(threads.map(load, (1, 2)))
    assert keras.layers.Layer.add_weight is add_weight


def test_weights_of_other_threads_do_not_count():
    with _limit_weights(3), ThreadPoolExecutor(1) as threads:
        threads.submit(keras.layers.Dense(5).build, (None, 5)).result()
        with pytest.raises(ValueError, match="more weights than it contains"):
            keras.layers.Dense(2).build((None, 2))
