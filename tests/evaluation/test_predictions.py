"""The containers of scored and of decided patches."""

import numpy as np
import pytest
from made_up_predictions import predictions_of

from cancernet.data.dataset import Patch
from cancernet.evaluation.predictions import Predictions, Scores, pool_predictions

PATCHES = [Patch(f"{number}.png", "0", "p", 50 * number, 0, "", "") for number in range(3)]


def test_scores_must_be_as_many_as_patches():
    with pytest.raises(ValueError, match="3 patches but 2 scores"):
        Scores(PATCHES, np.zeros((2, 2)))


def test_scores_know_the_slides_of_their_patches():
    scores = Scores(PATCHES, np.zeros((3, 2)))
    assert scores.layout.slides[0].columns.tolist() == [0, 1, 2]
    assert scores.layout is scores.layout


def test_rows_are_taken_of_every_column():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    whole = Predictions(PATCHES, np.array([0, 1, 1]), probabilities, np.array([0, 1, 0]), np.array([0.5, 2.0, 1.0]))
    taken = whole.take(np.array([2, 0]))
    assert [patch.file for patch in taken.patches] == ["2.png", "0.png"]
    assert taken.labels.tolist() == [1, 0]
    assert taken.probabilities.tolist() == [[0.4, 0.6], [0.9, 0.1]]
    assert taken.predicted.tolist() == [0, 0]
    assert taken.distances.tolist() == [1.0, 0.5]
    assert taken.patients == ["p", "p"]


def test_new_images_have_no_true_classes():
    new = Predictions(PATCHES, None, np.full((3, 2), 0.5), np.zeros(3, int)).take(np.array([0]))
    assert new.true_classes is None
    assert new.distances is None
    with pytest.raises(ValueError, match="The true classes of these images are unknown"):
        _ = new.labels


def test_pooled_predictions_follow_one_another():
    one = predictions_of([0, 1], [[0.9, 0.1], [0.2, 0.8]], [0, 1], ["a", "b"])
    pooled = pool_predictions([one, one.take(np.array([1]))])
    assert [patch.file for patch in pooled.patches] == ["0.png", "1.png", "1.png"]
    assert pooled.labels.tolist() == [0, 1, 1]
    assert pooled.probabilities[:, 1].tolist() == [0.1, 0.8, 0.8]
    assert pooled.predicted.tolist() == [0, 1, 1]
