"""Plots of one report: the drawn data, not its pixels."""

from dataclasses import replace
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from made_reports import make_learning_curve
from matplotlib.figure import Figure
from matplotlib.text import Text

from cancernet.evaluation.results import (
    CalibrationBin,
    Estimate,
    Interval,
    NetBenefit,
    PatientRow,
    Referral,
    Referred,
    RiskPoint,
    TwoClassPatientRow,
)
from cancernet.reporting import plots

DEFINED = Estimate(0.75, 0.5, 1.0)
PATIENTS = Interval(0.95, "patients", 20)
UNDEFINED = Estimate(None, None, None, "no image of class b")
TRUTH = np.array([False, False, True, True])
SCORES = np.array([0.1, 0.4, 0.35, 0.8])


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def line(axes, label: str):
    return next(each for each in axes.lines if each.get_label().startswith(label))


def patient(name: str, tp: int, fn: int, tn: int, fp: int) -> TwoClassPatientRow:
    sensitivity, specificity = tp / (tp + fn) if tp + fn else None, tn / (tn + fp) if tn + fp else None
    images = tp + fn + tn + fp
    return TwoClassPatientRow(name, images, tp, fp, tn, fn, (tp + tn) / images, sensitivity, specificity, None)


def every_figure() -> dict[str, Figure]:
    curve = plots.Curve(TRUTH, SCORES, DEFINED, DEFINED)
    return {
        "history": plots.plot_history(history={"loss": [2, 1], "accuracy": [0, 1]}, kept_epochs=(2, 2)),
        "confusion": plots.plot_confusion_matrix(matrix=[[2, 1], [0, 3]], classes=["a", "b"]),
        "roc": plots.plot_roc(curves={"b": curve}, operating_point=(0.5, 0.5)),
        "precision_recall": plots.plot_precision_recall(curves={"b": curve}, operating_point=(0.5, 0.5)),
        "reliability": plots.plot_reliability(bins=[], probabilities=SCORES, ece=DEFINED, positive="b"),
        "threshold": plots.plot_threshold(positive=TRUTH, probabilities=SCORES, threshold=0.4, name="b"),
        "distribution": plots.plot_distribution(distribution={"a": [2, 0], "b": [0, 3]}, positive="b", threshold=0.4),
        "net_benefit": plots.plot_net_benefit(curve=[NetBenefit(0.2, DEFINED, 0.1, DEFINED)], positive="b"),
        "risk_coverage": plots.plot_risk_coverage(referral=Referral([RiskPoint(1.0, DEFINED)], []), interval=PATIENTS),
        "patients": plots.plot_patients(patients=[patient("p", 1, 1, 1, 1)]),
        "learning_curve": plots.plot_learning_curve(curve=make_learning_curve()),
    }


def test_no_text_is_smaller_than_nine_points():
    for name, figure in every_figure().items():
        sizes = {text.get_text(): text.get_fontsize() for text in figure.findobj(Text) if text.get_text()}
        assert min(sizes.values()) >= 9, name


def test_history_draws_both_curves_and_marks_the_epoch_of_the_final_model():
    history = {
        "loss": [3, 2, 1],
        "val_loss": [3, 1, None],
        "accuracy": [0.1, 0.2, 0.3],
        "val_accuracy": [0.3, 0.2, 0.1],
    }
    figure = plots.plot_history(history=history, kept_epochs=(2, 2))
    loss, accuracy = figure.axes
    assert line(loss, "training").get_xydata().tolist() == [[1, 3], [2, 2], [3, 1]]
    np.testing.assert_array_equal(line(loss, "validation").get_ydata(), [3, 1, np.nan])
    assert line(accuracy, "validation").get_ydata().tolist() == [0.3, 0.2, 0.1]
    assert line(loss, "final model: epoch 2").get_xdata() == [2, 2]
    assert line(accuracy, "final model: epoch 2").get_xdata() == [2, 2]


def test_history_without_accuracy_or_validation_has_one_panel():
    (axes,) = plots.plot_history(history={"loss": [1.0]}, kept_epochs=(1, 1)).axes
    assert [each.get_label() for each in axes.lines] == ["training", "final model: epoch 1"]


def test_history_shades_the_epochs_that_the_final_model_averages():
    (axes,) = plots.plot_history(history={"loss": [3.0, 2.0, 1.0, 1.0]}, kept_epochs=(3, 4)).axes
    (span,) = axes.patches
    assert (span.get_x(), span.get_width(), span.get_label()) == (3, 1, "final model: mean of epochs 3 to 4")


def test_history_cuts_off_a_loss_that_would_flatten_all_others_and_says_so():
    quiet = [0.7, *[0.5] * 18, 0.4]
    (axes,) = plots.plot_history(history={"loss": quiet, "val_loss": quiet}, kept_epochs=(1, 1)).axes
    assert not [text for text in axes.texts if "off scale" in text.get_text()]
    spiked = [*quiet[:7], 14.2, *quiet[8:]]
    (axes,) = plots.plot_history(history={"loss": quiet, "val_loss": spiked}, kept_epochs=(1, 1)).axes
    assert axes.get_ylim()[1] == pytest.approx(0.4 + 4 * 0.1)  # the lowest, and four times from it to 9 in 10
    cut = [text.get_text() for text in axes.texts]
    assert cut == ["off scale: 14.2"]
    (arrows,) = [each for each in axes.lines if each.get_marker() == "^" and each.get_color() == plots.ORANGE]
    assert arrows.get_xdata().tolist() == [8]


def test_history_shows_validation_losses_below_all_training_losses():
    training, validation = [60.0, *[1.0] * 19], [0.9, 0.8, *[0.7] * 17, 0.5]
    (axes,) = plots.plot_history(history={"loss": training, "val_loss": validation}, kept_epochs=(1, 1)).axes
    bottom, top = axes.get_ylim()
    assert top == pytest.approx(0.5 + 4 * 0.5)
    assert bottom == pytest.approx(0.5 - 0.05 * 2.0)


def test_confusion_matrix_gives_counts_and_row_percentages():
    figure = plots.plot_confusion_matrix(matrix=[[1500, 500], [1, 3]], classes=["benign", "IDC"])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["1,500\n75.0%", "500\n25.0%", "1\n25.0%", "3\n75.0%"]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0.25, 0.75]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["benign", "IDC"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["benign\n(2,000)", "IDC\n(4)"]


def test_confusion_matrix_of_many_classes_has_no_share_where_a_class_has_no_image():
    matrix = np.eye(10, dtype=int)
    matrix[4] = 0
    figure = plots.plot_confusion_matrix(matrix=matrix, classes=[f"a_rather_long_class_name_{i}" for i in range(10)])
    (axes,) = figure.axes
    assert len(axes.texts) == 100
    assert {text.get_text() for text in axes.texts[40:50]} == {"0\nn/a"}
    assert axes.get_xticklabels()[3].get_text() == "a_rather_\nlong_class_\nname_3"
    assert figure.get_figwidth() > 10


def test_roc_draws_the_curve_the_operating_point_and_the_area_with_its_interval():
    figure = plots.plot_roc(curves={"IDC": plots.Curve(TRUTH, SCORES, DEFINED)}, operating_point=(0.5, 0.9))
    (axes,) = figure.axes
    curve = line(axes, "IDC")
    assert curve.get_xydata().tolist() == [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]
    assert curve.get_label() == "IDC: AUROC 0.750 (0.500 to 1.000)"
    np.testing.assert_allclose(
        line(axes, "decision threshold: sensitivity 0.50, specificity 0.90").get_xydata(), [[0.1, 0.5]]
    )
    assert "IDC: AUROC 0.750" in figure.legends[0].get_texts()[1].get_text()


def test_roc_of_many_classes_says_why_a_curve_is_missing_and_tells_all_lines_apart():
    curves = {f"class {i}": plots.Curve(TRUTH, SCORES, DEFINED) for i in range(9)}
    curves["b"] = plots.Curve(np.zeros(4, bool), SCORES, UNDEFINED)
    (axes,) = plots.plot_roc(curves=curves).axes
    missing = line(axes, "b: AUROC n/a (no image of class b)")
    assert len(missing.get_xdata()) == 0
    drawn = [each for each in axes.lines if not each.get_label().startswith("chance")]
    assert len({(each.get_color(), each.get_linestyle()) for each in drawn}) == 10


def test_precision_recall_has_the_prevalence_as_its_floor():
    truth, scores = np.array([False, True, False, False]), np.array([0.9, 0.8, 0.1, 0.2])
    figure = plots.plot_precision_recall(
        curves={"IDC": plots.Curve(truth, scores, DEFINED, DEFINED)}, operating_point=(1.0, 0.5)
    )
    (axes,) = figure.axes
    curve = line(axes, "IDC")
    assert curve.get_label() == "IDC: AUPRC 0.750 (0.500 to 1.000), prevalence 25.0%"
    assert [1, 0.5] in curve.get_xydata().tolist()  # at a threshold of 0.8 one of two is right
    assert [each.get_ydata() for each in axes.lines if each.get_linestyle() == ":"] == [[0.25, 0.25]]
    assert line(axes, "decision threshold: recall 1.00, precision 0.50").get_xydata().tolist() == [[1, 0.5]]


def test_reliability_draws_the_bins_over_the_count_of_images():
    bins = [CalibrationBin(0.1, 0.0, 3), CalibrationBin(0.9, 0.75, 4)]
    probabilities = np.array([0.11, 0.12, 0.13, 0.91, 0.92, 0.93, 1.0])
    figure = plots.plot_reliability(bins=bins, probabilities=probabilities, ece=DEFINED, positive="IDC")
    axes, counts = figure.axes
    assert line(axes, "this model, in 2 bins").get_xydata().tolist() == [[0.1, 0.0], [0.9, 0.75]]
    assert line(axes, "perfect calibration").get_xydata().tolist() == [[0, 0], [1, 1]]
    assert sum(bar.get_height() for bar in counts.patches) == 7
    assert counts.patches[2].get_height() == 3  # 0.10 to 0.15
    assert "calibration error 0.750 (0.500 to 1.000)" in words(figure)


def test_threshold_counts_a_probability_at_the_threshold_as_positive():
    figure = plots.plot_threshold(positive=TRUTH, probabilities=SCORES, threshold=0.35, name="IDC")
    (axes,) = figure.axes
    sensitivity, specificity = line(axes, "sensitivity: 1.000"), line(axes, "specificity: 0.500")
    thresholds = sensitivity.get_xdata().tolist()
    at = dict(zip(thresholds, zip(sensitivity.get_ydata(), specificity.get_ydata(), strict=True), strict=True))
    assert at[0.0] == (1.0, 0.0)
    assert at[0.35] == (1.0, 0.5)
    assert at[thresholds[thresholds.index(0.35) + 1]] == (0.5, 0.5)
    assert at[0.5] == (0.5, 1.0)
    assert at[1.0] == (0.0, 1.0)
    assert line(axes, "decision threshold: 0.350").get_xdata() == [0.35, 0.35]


def test_threshold_with_one_class_says_that_a_rate_is_undefined():
    figure = plots.plot_threshold(positive=np.ones(4, bool), probabilities=SCORES, threshold=0.35, name="IDC")
    assert "specificity: n/a (no such images)" in words(figure)
    assert "sensitivity: 0.750 at the threshold" in words(figure)


def test_patients_are_sorted_and_those_without_a_rate_counted():
    rows = [patient("high", 3, 1, 2, 0), patient("low", 1, 3, 1, 1), patient("none", 0, 0, 4, 0)]
    figure = plots.plot_patients(patients=rows)
    accuracy, sensitivity, specificity = figure.axes
    assert sensitivity.collections[0].get_offsets().tolist() == [[0, 0.25], [1, 0.75]]
    assert [label.get_text() for label in sensitivity.get_xticklabels()] == ["low", "high"]
    assert sensitivity.get_xlabel() == "2 patients, lowest first\n(undefined for 1 patient)"
    assert accuracy.get_xlabel() == "3 patients, lowest first"
    assert specificity.collections[0].get_offsets()[:, 1].tolist() == [0.5, 1, 1]
    assert "median 0.50, quartiles 0.38 to 0.62" in sensitivity.get_title()


def test_many_patients_are_dots_without_names_and_many_classes_have_accuracy_only():
    rows = [PatientRow(str(i), 9, 9, i / 150) for i in range(150)]
    figure = plots.plot_patients(patients=rows)
    assert figure.get_figwidth() == plots.plot_patients(patients=[patient("p", 1, 1, 1, 1)]).get_figwidth()
    (axes,) = figure.axes
    assert len(axes.collections[0].get_offsets()) == 150
    assert not axes.get_xticklabels()


def test_a_long_word_is_not_broken_in_the_confusion_matrix():
    classes = ["fibroadenoma_2", "adenocarcinoma", "ok"]
    (axes,) = plots.plot_confusion_matrix(matrix=np.eye(3, dtype=int), classes=classes).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["fibroadenoma_2", "adenocarcinoma", "ok"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("10253_idx5_x1351_y1101.png", ["10253_idx5_", "x1351_", "y1101.png"]),
        ("fibroadenoma_2", ["fibroadenoma_", "2"]),  # a word as long as the line is left whole
        ("of no-special type", ["of no-", "special type"]),
        ("a" * 30, ["a" * 12, "a" * 12, "a" * 6]),
        ("$5 $" * 3, [r"\$5 \$\$5 \$\$5 \$"]),  # no formula; the strokes are not counted
        ("", [""]),
    ],
)
def test_lines_are_broken_between_words_first(text, lines):
    assert plots.break_lines(text, 12).split("\n") == lines


def test_long_names_lose_their_middle():
    assert plots.shorten("abcdefghij", 5) == "ab…ij"
    assert plots.break_lines("abcdefghij", 3, limit=5) == "ab…\nij"
    assert plots.shorten("a$b", 5) == r"a\$b"


@pytest.mark.parametrize("installed", [True, False])
def test_names_in_any_script_take_a_font_that_has_it(monkeypatch, installed):
    own = plots.font_manager.findfont("DejaVu Sans")
    fonts = {own: set("HER2 "), "latin.ttf": set("HER"), "Last Resort.ttf": set("腫瘍"), "cjk.ttf": set("腫瘍H")}
    monkeypatch.setattr(plots, "_list_characters", fonts.get)
    found = [SimpleNamespace(name=path[:-4], fname=path) for path in list(fonts)[1:]]
    monkeypatch.setattr(plots.font_manager.fontManager, "ttflist", found if installed else [])
    with matplotlib.rc_context():
        said = plots.use_fonts(["HER2 腫", "瘍"])
        families = matplotlib.rcParams["font.family"]
    assert families == (["DejaVu Sans", "cjk"] if installed else ["DejaVu Sans"])
    assert ("No installed font has 瘍 腫; pictures show boxes." in said) is not installed


def test_net_benefit_draws_the_model_with_its_interval_and_both_alternatives():
    rows = [(0.1, 0.3, 0.2), (0.2, 0.2, -0.1)]
    curve = [NetBenefit(t, Estimate(v, v - 0.1, v + 0.1), of_all, DEFINED) for t, v, of_all in rows]
    (axes,) = plots.plot_net_benefit(curve=curve, positive="IDC").axes
    assert line(axes, "this model").get_xydata().tolist() == [[0.1, 0.3], [0.2, 0.2]]
    assert line(axes, "classify all as IDC").get_ydata().tolist() == [0.2, -0.1]
    assert line(axes, "classify none as IDC").get_ydata() == [0, 0]
    corners = axes.collections[0].get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == pytest.approx((0.1, 0.4))


def test_distribution_has_a_panel_for_each_true_class():
    figure = plots.plot_distribution(distribution={"benign": [2, 1], "IDC": [0, 4]}, positive="IDC", threshold=0.3)
    assert [[bar.get_height() for bar in axes.patches] for axes in figure.axes] == [[2, 1], [0, 4]]
    assert [axes.get_title() for axes in figure.axes] == ["true class benign: 3 images", "true class IDC: 4 images"]


def test_risk_coverage_draws_the_errors_of_what_is_kept_and_the_run_s_own_point():
    curve = [RiskPoint(1.0, Estimate(0.2, 0.1, 0.3)), RiskPoint(0.5, Estimate(0.1, None, None))]
    band = Referred(0.1, DEFINED, Estimate(0.18, 0.1, 0.3))
    (axes,) = plots.plot_risk_coverage(referral=Referral(curve, [], band), interval=PATIENTS).axes
    assert line(axes, "error rate").get_xydata().tolist() == [[1.0, 0.2], [0.5, 0.1]]
    assert line(axes, "uncertain images of this run referred: 10.0%").get_xydata().tolist() == [[0.9, 0.18]]
    assert find_band(axes) == {1.0}


def test_the_band_of_risk_coverage_ends_with_the_errors_and_needs_twenty_patients():
    errors = [Estimate(0.1, 0.05, 0.2), Estimate(0.05, 0.01, 0.2), Estimate(0.0, 0.0, 0.17), Estimate(0.0, 0.0, 0.18)]
    referral = Referral([RiskPoint(1 - i / 4, error) for i, error in enumerate(errors)], [])
    (axes,) = plots.plot_risk_coverage(referral=referral, interval=PATIENTS).axes
    assert find_band(axes) == {1.0, 0.75}
    mark = line(axes, "no error left: exact 95% interval up to 17.0%")
    assert mark.get_xydata().tolist() == [[0.5, 0.0], [0.5, 0.17]]
    (axes,) = plots.plot_risk_coverage(referral=referral, interval=replace(PATIENTS, groups=19)).axes
    assert find_band(axes) == set()
    assert [each.get_label() for each in axes.lines] == ["error rate (no band: only 19 patients)"]


def find_band(axes):
    """Where along the axis a band is drawn."""
    return {x for band in axes.collections for path in band.get_paths() for x in path.vertices[:, 0].tolist()}


def test_the_learning_curve_has_a_point_with_its_interval_for_each_number_of_patients():
    auroc, loss = plots.plot_learning_curve(curve=make_learning_curve()).axes
    assert auroc.lines[0].get_xydata().tolist() == [[51.2, 0.92], [76.8, 0.926], [102.4, 0.93]]
    assert loss.lines[0].get_ydata().tolist() == [0.34, 0.32, 0.31]
    intervals = [path.vertices[:, 1].tolist() for path in auroc.collections[0].get_paths()]
    assert intervals == [pytest.approx([value - 0.03, value + 0.02]) for value in (0.92, 0.926, 0.93)]
    curve = make_learning_curve()
    without = replace(curve, points=[replace(each, auroc=Estimate(0.9, None, None, "few")) for each in curve.points])
    undrawn = plots.plot_learning_curve(curve=without).axes[0].collections[0].get_paths()
    assert np.isnan([path.vertices[:, 1] for path in undrawn]).all()
