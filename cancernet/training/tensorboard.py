"""Event files for TensorBoard, written by TensorFlow alone: Keras' own callback needs the package tensorboard."""

from pathlib import Path

import keras
import tensorflow as tf

_SCALARS = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"), data_class=1
)


class EventWriter(keras.callbacks.Callback):
    """Writes loss, accuracy and learning rate after each epoch, those of `validation` apart from `training`."""

    def __init__(self, folder: Path):
        super().__init__()
        self.writers = {part: tf.summary.create_file_writer(f"{folder}/{part}") for part in ("training", "validation")}

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        for name, value in {**(logs or {}), "learning_rate": rate}.items():
            part = "validation" if name.startswith("val_") else "training"
            with self.writers[part].as_default():
                tag = name.removeprefix("val_")
                tf.summary.write(tag, tf.constant(value, tf.float32), step=epoch + 1, metadata=_SCALARS)
        for writer in self.writers.values():
            writer.flush()
