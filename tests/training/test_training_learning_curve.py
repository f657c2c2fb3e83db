"""Learning curves of heads: which patients a head is fitted to, that more of them help, and which runs have one."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.metrics import log_loss

from cancernet.config import Experiment
from cancernet.data.dataset import Patch
from cancernet.data.splits import Fold, split_members
from cancernet.training import learning_curve
from cancernet.training.heads import HeadData, fit_heads
from cancernet.training.learning_curve import score_subsets
from cancernet.workflow.fit import learn

PATIENTS, EACH, PARTS = 48, 6, 3


@pytest.fixture
def made_up(tmp_path):
    """48 patients of six images; every feature tells a little of the class, and each patient is shifted."""
    random = np.random.default_rng(0)
    groups = np.repeat([f"p{n:02}" for n in range(PATIENTS)], EACH)
    labels = np.tile([0, 1], PATIENTS * EACH // 2)
    features = random.normal(size=(len(labels), 24)) + 0.25 * labels[:, None]
    features += np.repeat(random.normal(scale=0.5, size=(PATIENTS, 24)), EACH, axis=0)
    part = np.repeat(np.arange(PATIENTS) % PARTS, EACH)
    folds = [Fold(np.flatnonzero(part != k), np.flatnonzero(part == k)) for k in range(PARTS)]
    return HeadData(features[:, None].astype(np.float32), labels, np.array([0.5, 2.0]), tmp_path), folds, groups


def score_all(data, folds):
    heads = fit_heads(data, folds).heads
    blocks = [head.predict(data.features, fold.validation) for head, fold in zip(heads, folds, strict=True)]
    return np.log(np.concatenate(blocks))


def test_heads_are_fitted_to_more_and_more_of_the_same_patients_without_those_they_predict(made_up, monkeypatch):
    (data, folds, groups), asked = made_up, []

    def record(data, subset):
        asked.append(subset)
        return fit_heads(data, subset)

    monkeypatch.setattr(learning_curve, "fit_heads", record)
    found = score_subsets(data, folds, groups, score_all(data, folds), seed=1)
    assert [each.patients for each in found] == [4, 8, 16, 24, 32]  # of each fold's 32
    first_draws, second_draws = asked[::2], asked[1::2]
    for subsets in (first_draws, second_draws):
        for number, fold in enumerate(folds):
            seen = [set(groups[subset[number].training]) for subset in subsets]
            assert [len(each) for each in seen] == [4, 8, 16, 24]
            assert seen[0] < seen[1] < seen[2] < seen[3]
            assert not seen[3] & set(groups[fold.validation])
            assert [len(subset[number].training) for subset in subsets] == [24, 48, 96, 144]  # all their images
    assert set(groups[first_draws[0][0].training]) != set(groups[second_draws[0][0].training])


def test_more_patients_predict_better_and_all_are_the_runs_own_heads(made_up):
    data, folds, groups = made_up
    own, labels = score_all(data, folds), data.labels[np.concatenate([fold.validation for fold in folds])]
    found = score_subsets(data, folds, groups, own, seed=1)
    assert [len(each.draws) for each in found] == [2, 2, 2, 2, 1]
    np.testing.assert_allclose(found[-1].draws[0], log_softmax(own - np.log([0.5, 2.0]), axis=1))
    losses = [np.mean([log_loss(labels, np.exp(scores)) for scores in each.draws]) for each in found]
    assert losses[0] > losses[2] > losses[-1]
    # class weights of 1 to 4 raise the odds of class 1 four times; that is removed
    assert np.exp(found[-1].draws[0][:, 1]).mean() == pytest.approx(0.5, abs=0.05)


def test_a_share_without_one_of_the_classes_is_skipped(made_up):
    data, folds, groups = made_up
    rare = np.where(np.isin(groups, [f"p{n:02}" for n in range(6)]), data.labels, 0)  # two patients of each fold
    found = score_subsets(data._replace(labels=rare), folds, groups, score_all(data, folds), seed=1)
    assert found[-1].patients == 32
    assert found[0].patients > 4


def test_a_run_of_several_members_has_a_learning_curve_and_others_have_none(made_up, capsys):
    data, _, groups = made_up
    patches = [
        Patch(f"{row}.png", str(label), group, None, None, "training", "")
        for row, (label, group) in enumerate(zip(data.labels, groups, strict=True))
    ]
    experiment = Experiment(model="densenet121", strategy="frozen", members=PARTS, seed=1)
    folds = split_members(patches, PARTS, by_patient=True, seed=1)
    plan = SimpleNamespace(experiment=experiment, by_patient=True, options=SimpleNamespace(folds=None), positive="1")
    finished = SimpleNamespace(
        fitted=SimpleNamespace(head_data=data, left_out=score_all(data, folds)),
        left_out=[patches[row] for fold in folds for row in fold.validation],
        run=SimpleNamespace(settings=SimpleNamespace(classes=("0", "1"))),
    )
    curve = learn(plan, finished, patches)
    assert [point.patients for point in curve.points] == [4, 8, 16, 24, 32]
    assert 0.5 < curve.points[0].auroc.value < curve.points[-1].auroc.value
    assert "for the learning curve" in capsys.readouterr().out
    for changes in (
        {"experiment": replace(experiment, members=1)},
        {"experiment": replace(experiment, members=7)},  # each leaves out fewer than eight patients
        {"by_patient": False},
        {"options": SimpleNamespace(folds=5)},
    ):
        assert learn(SimpleNamespace(**vars(plan) | changes), finished, patches) is None
    finished.fitted.head_data = None
    assert learn(plan, finished, patches) is None
    assert not capsys.readouterr().out
