"""A finished run made in seconds: 122 weights trained on synthetic slides, saved as train_model.py saves a run."""

import dataclasses
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from conftest import make_summary

from cancernet import run
from cancernet.config import Experiment
from cancernet.data.dataset import Patch
from cancernet.data.grid import lay_out_patches
from cancernet.data.images import fit_image
from cancernet.data.sample import cut_patches, make_slide
from cancernet.evaluation import decision, smoothing
from cancernet.evaluation.predictions import Scores
from cancernet.explain import out_of_distribution
from cancernet.models import image_features
from cancernet.reporting import content, report
from cancernet.reporting.schema import DataSummary
from cancernet.training.scoring import log_scores

SIZE = 48
SIGMA = 1.0
SPLIT_OF = {1: "training", 2: "training", 3: "validation", 4: "validation", 5: "testing", 6: "testing"}


def make_run(folder: Path, *, classes: tuple[str, ...] = ("0", "1"), mpp: float | None = 4.0) -> Path:
    """Write config.json, model.keras, decision.json, report.json and its pictures into a new folder."""
    folder.mkdir(parents=True)
    images, patches = _paint(classes)
    labels = np.array([classes.index(patch.label) for patch in patches])
    rows = {split: [i for i, patch in enumerate(patches) if patch.split == split] for split in set(SPLIT_OF.values())}
    model = _train(images[rows["training"]], labels[rows["training"]], len(classes))
    scores = log_scores(model.predict(images, verbose=0))
    of_validation = [patches[i] for i in rows["validation"]]
    frozen = _decide(of_validation, scores[rows["validation"]], classes)
    described, predictions, _ = content.evaluate_split(
        Scores([patches[i] for i in rows["testing"]], scores[rows["testing"]]),
        frozen,
        content.ReportContext(folder.name, "testing", _describe(patches)),
    )
    settings = run.Settings(
        experiment=Experiment(image_size=SIZE, model="tiny", epochs=30),
        classes=classes,
        positive=frozen.positive,
        training_precision="float32",
        operating_point="balanced",
        neighbours=True,
        manifest_sha256="0" * 64,
        images_are_grey=False,
        usual_size="50x50",
        mpp=mpp,
        versions={},
        hardware={},
        class_names=described.class_names,
        seen=run.describe_seen(patches),
    )
    _, values = image_features.add_image_features(model).predict(images[rows["validation"]], verbose=0)
    detector = out_of_distribution.fit_detector([(values, [patch.patient for patch in of_validation])], channels=3)
    run.save_run(run.Run(model, frozen, settings, folder, detector), {"loss": [1.0]}, predictions)
    report.write_report(folder, described, report.draw_figures(described, predictions))
    return folder


def _paint(classes: tuple[str, ...]) -> tuple[np.ndarray, list[Patch]]:
    images, patches = [], []
    for patient, split in SPLIT_OF.items():
        for number, (image, label, x, y) in enumerate(cut_patches(make_slide(7, patient, side=350))):
            label = label if len(classes) == 2 else classes[number % len(classes)]
            images.append(fit_image(image, SIZE))
            patches.append(Patch(f"{patient}_idx5_x{x}_y{y}.png", label, str(patient), x, y, split, f"{number:064}"))
    return np.stack(images), patches


def _train(images: np.ndarray, labels: np.ndarray, classes: int) -> keras.Model:
    keras.utils.set_random_seed(7)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(classes, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    model.fit(images, labels, epochs=30, batch_size=64, verbose=0)
    return model


def _decide(patches: list[Patch], scores: np.ndarray, classes: tuple[str, ...]) -> decision.Decision:
    """Smoothed over neighbours whether or not that helps, so that there is something to switch off."""
    positive = classes[1] if len(classes) == 2 else None
    given = {"classes": classes, "positive": positive, "operating_point": "balanced"}
    plain = smoothing.fit_on_validation(Scores(patches, scores), neighbours=False, **given)
    smoothed = smoothing.smooth_scores(scores, lay_out_patches(patches).slides, SIGMA)
    fitted = decision.fit_decision(Scores(patches, smoothed), **given)
    return dataclasses.replace(fitted, neighbour_sigma=SIGMA, without_neighbours=plain)


def _describe(patches: list[Patch]) -> DataSummary:
    summary = make_summary(source_images=len(patches), rejected=0, left_out_images=0, split="patient")
    return content.describe_data(patches, summary)
