"""Train CancerNet as the tutorial does: the reference for the speed of this project. Imports nothing from the project.

Keras' legacy `ImageDataGenerator` (deprecated, still in Keras 3 as `tf.keras.preprocessing.image.ImageDataGenerator`)
reads images from class folders: in every epoch, one worker opens each file with Pillow, augments it with SciPy and
rescales it. The network, Adagrad with a decreasing learning rate, binary cross-entropy, class weights and the
validation after each epoch also follow the tutorial. Needs Pillow and SciPy.

    python benchmarks/tutorial_way.py --dataset datasets/idc --epochs 40 --auroc --json
"""

import argparse
import contextlib
import json
import os
import sys
import time
import typing
import warnings
from collections.abc import Iterable
from pathlib import Path

if typing.TYPE_CHECKING:  # imported where it is needed, which takes seconds
    import keras

SIDE = 48  # pixels
BATCH_SIZE = 32
LEARNING_RATE = 0.01


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dataset", type=Path, default=Path("datasets/idc"), help="built dataset (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--auroc", action="store_true", help="evaluate the test images at the end (two classes)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error(f"--epochs must be 1 or more, not {arguments.epochs}")
    for split in ("training", "validation", "testing"):
        if not (arguments.dataset / split).is_dir():
            parser.error(f"no folder {arguments.dataset / split}; run build_dataset.py first")
    return arguments


def open_splits(dataset: Path, seed: int) -> tuple[Iterable, Iterable, Iterable]:
    """Open training (shuffled), validation and testing.

    Returns:
        Batches of images [32, 48, 48, 3] from 0 to 1 and one-hot labels, for each split.
    """
    from tensorflow.keras.preprocessing.image import ImageDataGenerator

    augmenting = ImageDataGenerator(
        rescale=1 / 255.0,
        rotation_range=20,
        zoom_range=0.05,
        width_shift_range=0.1,
        height_shift_range=0.1,
        shear_range=0.05,
        horizontal_flip=True,
        vertical_flip=True,
        fill_mode="nearest",
    )
    plain = ImageDataGenerator(rescale=1 / 255.0)

    def open_split(generator, split, shuffle):
        return generator.flow_from_directory(
            str(dataset / split),
            class_mode="categorical",
            target_size=(SIDE, SIDE),
            color_mode="rgb",
            shuffle=shuffle,
            seed=seed,
            batch_size=BATCH_SIZE,
        )

    return (
        open_split(augmenting, "training", True),
        open_split(plain, "validation", False),
        open_split(plain, "testing", False),
    )


def build_cancernet(classes: int) -> "keras.Sequential":
    """Build the tutorial's network: blocks of one, two and three separable convolutions, then two dense layers."""
    from keras import Input, Sequential, layers

    model = Sequential([Input((SIDE, SIDE, 3))])
    for convolutions, filters in ((1, 32), (2, 64), (3, 128)):
        for _ in range(convolutions):
            model.add(layers.SeparableConv2D(filters, 3, padding="same"))
            model.add(layers.Activation("relu"))
            model.add(layers.BatchNormalization())
        model.add(layers.MaxPooling2D(2))
        model.add(layers.Dropout(0.25))
    model.add(layers.Flatten())
    model.add(layers.Dense(256))
    model.add(layers.Activation("relu"))
    model.add(layers.BatchNormalization())
    model.add(layers.Dropout(0.5))
    model.add(layers.Dense(classes, activation="softmax"))
    return model


def make_clock() -> "keras.callbacks.Callback":
    """Make a callback that measures the seconds of `epochs`, without validation, and of `first_step`."""
    import keras

    class Clock(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.epochs, self.first_step = [], None

        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            if self.first_step is None:
                self.first_step = time.perf_counter() - self.start

        def on_test_begin(self, logs=None):
            self.epochs.append(time.perf_counter() - self.start)

    return Clock()


def train(training: Iterable, validation: Iterable, epochs: int) -> tuple["keras.Model", "keras.callbacks.Callback"]:
    """Train; return the model and the clock that timed its epochs."""
    import keras
    import numpy as np

    model = build_cancernet(training.num_classes)
    # The tutorial uses Adagrad's `decay` argument, which Keras 3 no longer has.
    rate = keras.optimizers.schedules.InverseTimeDecay(LEARNING_RATE, decay_steps=1, decay_rate=LEARNING_RATE / epochs)
    model.compile(optimizer=keras.optimizers.Adagrad(rate), loss="binary_crossentropy", metrics=["accuracy"])
    counts = np.bincount(training.classes)
    clock = make_clock()
    model.fit(
        training,
        validation_data=validation,
        epochs=epochs,
        class_weight={label: float(counts.max() / count) for label, count in enumerate(counts)},
        callbacks=[clock],
        verbose=0,
    )
    return model, clock


def images_per_second(clock: "keras.callbacks.Callback", images: int) -> float:
    """Compute the rate without the first epoch, which builds the graph; for one epoch, without its first step."""
    if len(clock.epochs) > 1:
        return images * (len(clock.epochs) - 1) / sum(clock.epochs[1:])
    return (images - BATCH_SIZE) / (clock.epochs[0] - clock.first_step)


def main() -> None:
    arguments = parse_arguments()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", message="Please import `affine_transform`", category=DeprecationWarning)
    import keras

    keras.utils.set_random_seed(arguments.seed)
    with contextlib.redirect_stdout(sys.stderr):  # Keras prints the number of images
        training, validation, testing = open_splits(arguments.dataset, arguments.seed)
    model, clock = train(training, validation, arguments.epochs)
    result = {
        "training_images": training.samples,
        "epochs": arguments.epochs,
        "images_per_second": images_per_second(clock, training.samples),
        "training_seconds": sum(clock.epochs),
    }
    if arguments.auroc:
        from sklearn.metrics import roc_auc_score

        result["auroc"] = float(roc_auc_score(testing.classes == 1, model.predict(testing, verbose=0)[:, 1]))
    print(json.dumps(result) if arguments.json else "\n".join(f"{name}: {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
