"""One training in several processes: their shares are the whole."""

import keras
import numpy as np
import pytest

from cancernet import InputError
from cancernet.config import Augmentation, Experiment
from cancernet.data.images import ImageStore
from cancernet.learning import distribution, fitting, pipeline, training

CHANGED = Experiment(
    epochs=1, batch_size=4, image_size=8, augmentation=Augmentation(shift=0.2, mirror=True, stain_jitter=0.1)
)


class Noise(ImageStore):
    """Ten images of noise, in memory."""

    def __init__(self):
        super().__init__(["-"] * 10, image_size=8, channels=3)
        self._images[:] = np.random.default_rng(0).integers(0, 256, self._images.shape)
        self._ready[:] = True


def take_shares(monkeypatch, make, processes=2):
    """What `make` returns in each of the processes."""
    taken = []
    for process in range(processes):
        monkeypatch.setattr(distribution, "share", lambda process=process: distribution.Share(process, processes))
        taken.append([[part.numpy() for part in batch] for batch in make()])
    monkeypatch.undo()
    return taken


def test_the_shares_of_a_training_are_the_whole(monkeypatch):
    targets, weights = np.arange(10, dtype=np.float32)[:, None], np.arange(10) + 1

    def make():
        return pipeline.training_batches(Noise(), targets, CHANGED, weights=weights)

    whole = [[part.numpy() for part in batch] for batch in make()]
    shares = take_shares(monkeypatch, make)
    assert [[len(images) for images, *_ in share] for share in shares] == [[2, 2, 2], [2, 2, 2]]
    joined = [[np.concatenate(parts) for parts in zip(*steps, strict=True)] for steps in zip(*shares, strict=True)]
    for step in (0, 1):
        for part, expected in zip(joined[step], whole[step], strict=True):
            np.testing.assert_allclose(part, expected, atol=0.01)
    (_, last, of_last), (_, expected, of_expected) = joined[2], whole[2]
    assert last[:, 0].tolist() == [*expected[:, 0], *whole[0][1][:2, 0]]  # filled up with the epoch's first two
    assert of_last.tolist() == [*(2 * of_expected), 0, 0]  # the mean of four is that of the two


def test_the_shares_of_a_validation_have_its_mean(monkeypatch):
    targets = np.arange(10, dtype=np.float32)[:, None]
    shares = take_shares(monkeypatch, lambda: pipeline.evaluation_batches(Noise(), batch_size=4, targets=targets))
    assert [answers[:, 0].tolist() for _, answers, _ in shares[0]] == [[0, 1], [4, 5], [8, 9]]
    assert [answers[:, 0].tolist() for _, answers, _ in shares[1]] == [[2, 3], [6, 7], [0, 1]]
    summed = sum(float((answers[:, 0] * weights).sum()) for share in shares for _, answers, weights in share)
    assert summed / 12 == pytest.approx(4.5)  # of 12 rows the mean of the ten
    assert shares[1][2][2].tolist() == [0, 0]


def test_each_scores_equally_many_rows(monkeypatch):
    rows = []
    for process in range(2):
        share = distribution.Share(process, 2)
        monkeypatch.setattr(distribution, "_count_processes", lambda share=share: share)
        rows.append(distribution.own_rows(5).tolist())
    assert rows == [[0, 1, 2], [3, 4, 0]]
    monkeypatch.undo()
    assert distribution.own_rows(5).tolist() == [0, 1, 2, 3, 4]


def test_rows_that_fill_up_do_not_count_as_right():
    accuracy = training.FilledAccuracy()
    sure = np.eye(2)[[0, 1, 0, 0]]
    accuracy.update_state(np.eye(2)[[0, 0, 1, 0]], sure, sample_weight=np.array([3.0, 1, 1, 0]))
    assert float(accuracy.result()) == pytest.approx(1 / 3)


def test_a_batch_must_go_evenly_into_the_devices(monkeypatch, tmp_path):
    monkeypatch.setattr(distribution, "count_devices", lambda: 3)
    with pytest.raises(InputError, match="A batch of 4 images cannot be shared evenly by 3 devices"):
        fitting.fit_network(None, CHANGED, {}, {}, {}, tmp_path)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="on JAX it joins")
def test_tensorflow_is_refused():
    with pytest.raises(InputError, match="--distributed needs Keras on JAX, not on tensorflow"), distribution.joined():
        pass
