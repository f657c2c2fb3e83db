"""Runs over each other in pictures: what is drawn is what was compared."""

import numpy as np
import pytest
from evaluated_runs import make_predictions, write_run
from matplotlib.text import Text

from cancernet.reporting import comparison, comparison_plots


def test_one_picture_lays_the_runs_over_each_other(folders):
    compared, predictions = comparison.compare_runs(folders)
    figures = comparison_plots.draw_figures(compared, predictions)
    assert set(figures) == {"comparison", "patients"}
    differences, roc, precision, reliability = figures["comparison"].axes
    for axes in (roc, precision, reliability):
        labels = [line.get_label() for line in axes.lines]
        assert [sum(label.startswith(f"{name}: ") for label in labels) for name in ("weak", "strong", r"\$mine")] == [
            1
        ] * 3
    line = next(line for line in roc.lines if line.get_label().startswith("strong"))
    area = np.trapezoid(line.get_ydata(), line.get_xdata())
    assert area == pytest.approx(compared.runs[1].metrics["auroc"].value)
    points = [line.get_xdata()[0] for line in differences.lines if line.get_marker() == "o"]
    of_log_loss = [-pair.metrics["log_loss"].value for pair in compared.differences]
    assert points[-2:] == pytest.approx(of_log_loss)  # with the sign that better is to the right
    filled = [line.get_markerfacecolor() != "white" for line in differences.lines if line.get_marker() == "o"]
    assert filled[:2] == [True, False]
    for figure in figures.values():
        assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 9


def test_bars_and_dots_are_the_patients_differences(folders):
    compared, predictions = comparison.compare_runs(folders[:2])
    every, named = comparison_plots.draw_figures(compared, predictions)["patients"].axes
    rows = compared.differences[0].patients
    assert sorted(bar.get_height() for bar in every.patches) == pytest.approx(sorted(row.difference for row in rows))
    first = named.lines[0].get_xdata()
    assert tuple(first) == (rows[0].first.accuracy, rows[0].other.accuracy)
    assert named.get_yticklabels()[0].get_text() == f"{rows[0].patient} (10)"


def test_three_classes_have_the_mean_curve_and_the_sensitivity_of_each(tmp_path):
    classes = ("benign", "in situ", "invasive")
    runs = [
        write_run(tmp_path / name, make_predictions(number, strength, classes), classes)
        for number, (name, strength) in enumerate({"weak": 0.5, "strong": 2.5}.items())
    ]
    compared, predictions = comparison.compare_runs(runs)
    (result,) = comparison.key_differences(compared)
    assert [line.text.split(":")[0] for line in result.lines[:4]] == [
        *("Balanced accuracy", "F1, macro mean", "AUROC", "Log-loss")
    ]
    _, roc, by_class, _ = comparison_plots.draw_figures(compared, predictions)["comparison"].axes
    line = next(line for line in roc.lines if line.get_label().startswith("strong"))
    area = np.trapezoid(line.get_ydata(), line.get_xdata())
    assert area == pytest.approx(compared.runs[1].metrics["auroc"].value, abs=0.01)
    assert [label.get_text() for label in by_class.get_yticklabels()] == list(classes)
