"""Reports made up by hand for the tests of pages and printed text."""

from dataclasses import replace

from cancernet.evaluation.results import (
    Calibration,
    CalibrationBin,
    ClassMetrics,
    ColumnResults,
    Difference,
    Estimate,
    Interval,
    LearningCurve,
    LearningPoint,
    PointRates,
    Spread,
    TwoClassPatientRow,
    ValueResults,
)
from cancernet.reporting.schema import (
    ConfidentError,
    DataSummary,
    DecisionSummary,
    FittedOn,
    Report,
    SplitCounts,
    TrainingSummary,
    ValidationRates,
)

THIRD, HALF = Estimate(2 / 3, 0.25, 1.0), Estimate(0.5, 0.0, 1.0)


def undefined(reason: str) -> Estimate:
    return Estimate(None, None, None, reason)


def without_interval(value: float, reason: str = "too few patients") -> Estimate:
    return Estimate(value, None, None, reason)


def make_learning_curve() -> LearningCurve:
    """Half, three quarters and all of 128 patients in five folds."""
    points = [
        LearningPoint(patients, Estimate(auroc, auroc - 0.03, auroc + 0.02), Estimate(loss, loss - 0.05, loss + 0.05))
        for patients, auroc, loss in ((51.2, 0.92, 0.34), (76.8, 0.926, 0.32), (102.4, 0.93, 0.31))
    ]
    change = Difference(0.004, 0.001, 0.007, verdict="better"), Difference(-0.01, -0.03, 0.01, verdict="unclear")
    return LearningCurve(points, dict(zip(("auroc", "log_loss"), change, strict=True)))


def make_report(**changes) -> Report:
    """Five test images of two patients, at a threshold of 0.5: one of two IDC and two of three benign are correct."""
    auroc = Estimate(5 / 6, 0.5, 1.0)
    report = Report(
        name="a_run",
        created="2026-01-02",
        statement="Tested on 5 images from 2 patients that the model was not trained on.",
        evaluated_on="testing",
        warnings=[],
        classes=["0", "1"],
        class_names={"0": "benign", "1": "IDC"},
        positive="1",
        interval=Interval(0.95, "patients", 40),
        data=DataSummary(
            source_images=1234,
            rejected=3,
            left_out=1202,
            split_by="patient",
            patients_known=True,
            splits={
                "training": SplitCounts(20, 8, {"0": 15, "1": 5}),
                "validation": SplitCounts(4, 2, {"0": 3, "1": 1}),
                "testing": SplitCounts(5, 2, {"0": 3, "1": 2}),
            },
        ),
        class_weights={"0": 1.0, "1": 3.0},
        metrics={
            "accuracy": Estimate(0.6, 0.4, 0.8),
            "sensitivity": HALF,
            "specificity": THIRD,
            "precision": HALF,
            "ppv": HALF,
            "npv": Estimate(2 / 3, 0.5, 1.0),
            "lr_positive": Estimate(12.345, 1.5, 20.25),
            "auroc": auroc,
            "auprc": without_interval(0.8, "no interval: too few patients"),
            "ece": Estimate(0.1, 0.05, 0.2),
            "calibration_slope": Estimate(1.1, 0.9, 1.3),
            "calibration_intercept": Estimate(-0.2, -0.5, 0.1),
            "mcc": undefined("all images were classified as one class"),
        },
        prevalence=None,
        per_class={
            "0": ClassMetrics(THIRD, HALF, Estimate(2 / 3, 0.5, 1.0), Estimate(2 / 3, 0.4, 1.0), auroc, images=3),
            "1": ClassMetrics(HALF, THIRD, HALF, HALF, auroc, images=2),
        },
        confusion_matrix=[[2, 1], [1, 1]],
        calibration=Calibration([CalibrationBin(0.44, 0.4, 5)], 1, "equal mass"),
        patients=[
            TwoClassPatientRow("8863", 3, 1, 1, 1, 0, 2 / 3, 1.0, 0.5, 1.0),
            TwoClassPatientRow("8864", 2, 0, 0, 1, 1, 0.5, 0.0, 1.0, None),
        ],
        patient_spread={
            "accuracy": Spread(7 / 12, 0.54, 0.625, 0.5, 2 / 3, 2),
            "sensitivity": Spread(0.5, 0.25, 0.75, 0.0, 1.0, 2),
            "specificity": Spread(0.75, 0.625, 0.875, 0.5, 1.0, 2),
            "auroc": Spread(1.0, 1.0, 1.0, 1.0, 1.0, 1),
        },
        decision=DecisionSummary(1.5, 0.5, "balanced", FittedOn(4, 2), ["0", "1"], "1", [0.0, 0.0]),
        expected_on_validation=ValidationRates(0.75, 0.8),
        training=TrainingSummary(3.2, "CPU", epochs=2, kept_epochs=(1, 1), images_per_second=12.6),
        settings={
            "model": "cancernet",
            "weights": None,
            "seed": 42,
            "mirror": True,
            "classes": ["0", "1"],
            "dropout": 0.5,
        },
        worst_errors=[
            ConfidentError("testing/1/d.png", "missed", "1", "0", 0.4),
            ConfidentError("testing/0/<b>.png", "false alarm", "0", "1", 0.7),
        ],
    )
    return replace(report, **changes)


def make_report_of_three(**changes) -> Report:
    """Three classes, patients unknown, no testing split."""
    two = make_report()
    normal = replace(two.per_class["0"], images=1)
    absent = undefined("no image of class malignant")
    assert two.decision
    report = replace(
        two,
        classes=["normal", "benign", "malignant"],
        class_names=None,
        positive=None,
        evaluated_on="validation",
        chose_model=True,
        data=replace(
            two.data,
            splits={"validation": SplitCounts(2, 0, {"normal": 1, "benign": 1, "malignant": 0})},
            patients_known=False,
            split_by="given",
        ),
        class_weights=None,
        interval=Interval(0.95, "images", 40),
        metrics={"accuracy": Estimate(0.5, 0.2, 0.8), "auroc": absent, "ece": Estimate(0.1, 0.0, 0.2)},
        per_class={
            "normal": normal,
            "benign": replace(normal, sensitivity=Estimate(0.25, 0.1, 0.4)),
            "malignant": replace(normal, sensitivity=absent, images=0),
        },
        confusion_matrix=[[1, 0, 0], [1, 0, 0], [0, 0, 0]],
        patients=[],
        patient_spread={},
        decision=replace(two.decision, threshold=None, fitted_on=FittedOn(2)),
        expected_on_validation=None,
        training=None,
        worst_errors=[],
    )
    return replace(report, **changes)


def make_difference(value, low=None, high=None, verdict="unclear", reason=None) -> Difference:
    return Difference(value, low, high, reason, verdict=verdict)


def make_groups() -> ColumnResults:
    """Two sites, of which one differs from the other, and images without a site."""
    better, same = make_difference(0.25, 0.1, 0.4, "better"), make_difference(-0.125, reason="too few patients")
    absent = undefined("no image of class 1")
    return ColumnResults(
        "site",
        [
            ValueResults(
                "Bonn", 1200, 12, 0.25, {"sensitivity": HALF, "auroc": THIRD}, {"sensitivity": better, "auroc": same}
            ),
            ValueResults(
                "<Köln>", 20, 1, 0.0, {"sensitivity": absent, "auroc": THIRD}, {"sensitivity": same, "auroc": same}
            ),
            ValueResults("", 1, 0, 1.0, {"sensitivity": HALF, "auroc": THIRD}, {"sensitivity": same, "auroc": same}),
        ],
    )


def make_point_rates(**changes) -> PointRates:
    rate = Estimate(0.5, 0.25, 0.75)
    return replace(PointRates(rate, rate, rate, rate, rate), **changes)
