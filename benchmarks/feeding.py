"""Rows of the table of training_speed.py that are measured inside one process: data loading, prediction, the cache.

Data loading: training steps of CancerNet on images that are decoded in memory, shuffled and augmented as in training,
compared with the same steps on one repeated batch. Prediction: from files, compared with the slower of decoding alone
and the network alone.
"""

import dataclasses
import itertools
import statistics
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.table import Row, measure_in_turn

if typing.TYPE_CHECKING:  # imported where it is needed, which takes seconds
    import keras

STAIN_JITTER = 0.1
IMAGES_PER_ROUND = 1024  # about two seconds per row on two cores


def time_steps(model: "keras.Model", batches: Iterator, steps: int) -> tuple[float, float]:
    """Time training steps.

    Returns:
        Total seconds, and the part of them that the steps waited for their batches.
    """
    waited, started = 0.0, time.perf_counter()
    for _ in range(steps):
        requested = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - requested
        model.train_on_batch(*batch)
    return time.perf_counter() - started, waited


def compare_feeding(files: list[Path], batch_size: int, steps: int, rounds: int) -> dict[str, list[tuple]]:
    """Time steps with each source of batches in each round.

    Returns:
        Total and waiting seconds, a pair per round, for `memory` (one repeated batch), `tutorial` (batches with the
        tutorial's augmentation) and `stain` (with stain jitter as well).
    """
    import keras
    import numpy as np

    from cancernet.config import RECIPES, TUTORIAL_AUGMENTATION, Augmentation
    from cancernet.data.images import ImageStore
    from cancernet.models import architectures
    from cancernet.training import batch_normalization, fitting, pipeline

    files = files[: len(files) // batch_size * batch_size]  # so that all batches are whole
    store = ImageStore(files, image_size=48, channels=3)
    store.fetch(np.arange(len(files)))
    targets = keras.utils.to_categorical([index % 2 for index in range(len(files))], 2)
    model = architectures.build_model(RECIPES["tutorial"], 2)
    batch_normalization.fuse_batch_normalization(model)
    fitting.compile_model(model, RECIPES["tutorial"], steps_per_epoch=len(files) // batch_size)

    def feed(augmentation: Augmentation) -> Iterator:
        experiment = dataclasses.replace(
            RECIPES["tutorial"], augmentation=augmentation, batch_size=batch_size, epochs=1_000_000
        )
        return iter(pipeline.training_batches(store, targets, experiment))

    stain = dataclasses.replace(TUTORIAL_AUGMENTATION, stain_jitter=STAIN_JITTER)
    feeds = {"tutorial": feed(TUTORIAL_AUGMENTATION), "stain": feed(stain)}
    feeds["memory"] = itertools.repeat(next(feeds["tutorial"]))
    for batches in feeds.values():
        time_steps(model, batches, 3)  # builds the graph
    return measure_in_turn({name: lambda b=b: time_steps(model, b, steps) for name, b in feeds.items()}, rounds)


def feeding_rows(files: list[Path], rounds: int) -> list[Row]:
    """Measure the rows of data loading; on a GPU also the share of time that a step waits for its batch."""
    from cancernet.training import pipeline

    rows = []
    for batch_size in (32, 128):
        found = compare_feeding(files, batch_size, IMAGES_PER_ROUND // batch_size, rounds)
        seconds = {name: [each[0] for each in turns] for name, turns in found.items()}
        for name, least in (("tutorial", 0.95), ("stain", 0.90)):
            augmentation = "the tutorial's augmentation" + " and stain jitter" * (name == "stain")
            speeds = [[IMAGES_PER_ROUND / each for each in seconds[which]] for which in (name, "memory")]
            rows.append(
                Row(f"steps of {batch_size}, {augmentation}", "images/s", "arrays in memory", *speeds, least=least)
            )
    name, on_gpu = "waiting for a batch of 256", pipeline.describe_device().startswith("GPU")
    turns = compare_feeding(files, 256, 100, rounds)["tutorial"] if on_gpu else []
    waited, whole = [each[1] for each in turns], [each[0] for each in turns]
    return [*rows, Row(name, "s", "total time", waited, whole, most=0.05, reason="" if on_gpu else "no GPU")]


def prediction_rows(files: list[Path], run: Path, rounds: int) -> list[Row]:
    """Measure the rows of predicting from files that were not read before, as the verbs evaluate and predict do."""
    import numpy as np

    from cancernet.data.images import ImageStore, decode_image
    from cancernet.inference import prediction
    from cancernet.models.test_time_augmentation import average_over_views
    from cancernet.run import load_run
    from cancernet.training import pipeline, scoring

    loaded = load_run(run)
    views = loaded.settings.experiment.views
    network = average_over_views(loaded.model, views)
    stores = [ImageStore(files, image_size=48, channels=3, cache=cache) for cache in (False, True)]
    images = stores[1].fetch(np.arange(len(files)))

    def read() -> Iterator:
        return (decode_image(file.read_bytes(), 3) for file in files)

    def exhaust(batches: Iterator) -> None:
        for _ in batches:
            pass

    def speed(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        return len(files) / (time.perf_counter() - started)

    works = {
        "evaluation, from files": lambda: scoring.predict(network, stores[0]),
        "evaluation, network": lambda: scoring.predict(network, stores[1]),
        "evaluation, decoding": lambda: exhaust(pipeline.evaluation_batches(stores[0], batch_size=scoring.BATCH)),
        "prediction, from files": lambda: prediction.score_images(loaded, read()),
        "prediction, network": lambda: prediction.score_images(loaded, images),
        "prediction, decoding": lambda: exhaust(read()),
    }
    for work in works.values():
        work()  # builds the graph
    speeds = measure_in_turn({name: lambda work=work: speed(work) for name, work in works.items()}, rounds)
    rows = []
    for name in ("evaluation", "prediction"):
        alone = speeds[f"{name}, network"], speeds[f"{name}, decoding"]
        slower = min(alone, key=statistics.median)
        which = "the network alone" if slower is alone[0] else "decoding alone"
        name, fed = f"{name} from files, views: {views}", speeds[f"{name}, from files"]
        rows.append(Row(name, "images/s", which, fed, slower, least=0.90))
    return rows


def cache_row(files: list[Path]) -> Row:
    """Measure how much memory the cache of decoded images takes."""
    import numpy as np
    import psutil

    from cancernet.data.images import ImageStore

    ImageStore(files[:256], image_size=48, channels=3, cache=False).fetch(
        np.arange(256)
    )  # the memory of decoding itself
    store = ImageStore(files, image_size=48, channels=3)
    before = psutil.Process().memory_info().rss
    for start in range(0, len(files), 128):
        store.fetch(np.arange(start, min(start + 128, len(files))))
    grown = psutil.Process().memory_info().rss - before
    return Row("cache", "MB", "one byte per colour value", [grown / 1e6], [len(files) * 48 * 48 * 3 / 1e6], most=1.1)


def checkpoint_row(folder: Path, rounds: int) -> Row:
    """Measure the seconds that flushing takes of each minute, the shortest time between two checkpoints."""
    from cancernet import storage
    from cancernet.config import Experiment
    from cancernet.models.architectures import build_model
    from cancernet.training import fitting
    from cancernet.training.checkpoints import Recorder, Workspace

    experiment = Experiment()
    model = build_model(experiment, 2)
    fitting.compile_model(model, experiment, steps_per_epoch=10)
    recorder = Recorder(Workspace(folder / "checkpoint", "", print), "float32", experiment, images=320)
    recorder.set_model(model)
    flush, flush_folder = storage.flush, storage.flush_folder

    def save(*, flushed: bool) -> float:
        storage.flush, storage.flush_folder = (flush, flush_folder) if flushed else (lambda _: None, lambda _: None)
        started = time.perf_counter()
        recorder.save()
        return time.perf_counter() - started

    found = measure_in_turn({"on": lambda: save(flushed=True), "off": lambda: save(flushed=False)}, rounds)
    cost = [on - off for on, off in zip(found["on"], found["off"], strict=True)]
    return Row("flushing a checkpoint to disk", "s", "a minute", cost, [60.0] * rounds, most=0.01)
