"""Results of trainings, averaged over ensemble members and summarized for the report."""

from cancernet.training.results import TrainingResult, TrainingSummary, average_results, summarize


def test_the_results_of_members_are_averaged_by_hand():
    first = TrainingResult({"loss": [4.0, 2.0], "val_loss": [3.0, 1.0]}, (1, 1), 10.0, 100.0)
    second = TrainingResult({"loss": [2.0, 1.0, 0.5], "val_loss": [1.0, 2.0, 3.0]}, (0, 2), 5.0, 300.0)
    both = average_results([first, second])
    assert both.history == {"loss": [3.0, 1.5, 0.5], "val_loss": [2.0, 1.5, 3.0]}
    assert (both.kept_epochs, both.seconds, both.images_per_second) == ((0, 2), 15.0, 200.0)


def test_epochs_are_counted_from_1_in_a_summary():
    result = TrainingResult({"loss": [4.0, 2.0, 1.0]}, (1, 2), 10.0, 100.0, "mixed_bfloat16", 0.1)
    assert summarize(result, "CPU") == TrainingSummary(10.0, "CPU", 0.1, 3, (2, 3), 100.0)


def test_a_linear_head_has_a_strength_and_no_epochs():
    result = TrainingResult({}, None, 5.0, None, strength=0.001)
    assert summarize(result, "CPU") == TrainingSummary(5.0, "CPU", head_strength=0.001)
