"""A run's report in words: what its figures are called, what they say, and what to beware of."""

from collections.abc import Mapping, Sequence

from cancernet.config import INSIDE_SHARE
from cancernet.data.dataset import label_class
from cancernet.evaluation import metrics
from cancernet.evaluation.intervals import FEW_GROUPS, LEAST_GROUPS

# name in the report -> label, explanation
METRICS = {metric.name: (metric.label, metric.explanation) for metric in metrics.METRICS.values() if not metric.same_as}
CLASS_RATES = {name: metric.label for name, metric in metrics.CLASS_METRICS.items()}
PATIENT_RATES = ("accuracy", "sensitivity", "specificity", "auroc")
TWICE = {metric.name for metric in metrics.METRICS.values() if metric.same_as}  # shown once, under the other name
HELD_FIXED = (
    "The intervals hold the model and its threshold fixed: what another training, or other validation patients, would "
    "change comes on top."
)
SPLIT_WORDS = {"file": "a given list", "given": "the source's own folders"}  # others are as they are called


def all_warnings(report: dict) -> list[str]:
    """That it answers one class for everything, its own warnings, and those that its data call for; none twice."""
    data = report["data"]
    found = []
    answered = [name for name, column in zip(report["classes"], zip(*report["confusion_matrix"])) if any(column)]
    if len(answered) == 1 and sum(map(any, report["confusion_matrix"])) > 1:
        found.append(
            f"The network answers {class_word(report, answered[0])} for every image: it tells no class from another. "
            "Train again with a smaller --learning-rate, more epochs or more images."
        )
    found += report["warnings"]
    if data["split_by"] == "image":
        found.append(
            "Split by image: images of one patient are in training and in testing alike, which flatters these figures. "
            "Build the dataset with --split-by patient for figures that hold for new patients."
        )
    if not data["patients_known"]:
        found.append(
            "The patients are unknown: images of one patient may be in several splits, and the intervals are over "
            "images, so that they may be too narrow. Give --patient-pattern if the file names tell the patient."
        )
    if report["interval"]["groups"] < FEW_GROUPS:
        found.append(_warn_of_few(**report["interval"]))
    if data.get("duplicates_across_patients"):
        found.append(f"{data['duplicates_across_patients']:,} images appear, byte for byte, under two patients.")
    return list(dict.fromkeys(found))


def warn_of_change(metrics: Mapping[str, dict], expected: Mapping[str, float] | None) -> list[str]:
    """Where an evaluation's figures leave what validation led to expect: its rates, and calibrated probabilities.

    Args:
        expected: sensitivity and specificity on validation; None of more than two classes.
    """
    due = {"calibration_slope": 1.0, "calibration_intercept": 0.0, **(expected or {})}
    meaning = {
        "sensitivity": "the threshold finds another share of these images",
        "specificity": "the threshold clears another share of these images",
        "calibration_slope": "probabilities are too sure below 1, too modest above it",
        "calibration_intercept": "probabilities are too high on the whole below 0, too low above it",
    }
    warnings = []
    for name, words in meaning.items():
        low, high = (metrics.get(name, {}).get(end) for end in ("low", "high"))
        if name in due and low is not None and high is not None and not low <= due[name] <= high:
            warnings.append(
                f"Not as validation led to expect: {METRICS[name][0]} is {number(metrics[name]['value'])} (interval "
                f"{interval(metrics[name])}), expected was {number(due[name])}; {words}."
            )
    return warnings


def answers(report: dict) -> list[dict]:
    """The main figures as sentences, the most important first: dicts with `text`, and `metric` or None.

    Two classes: sensitivity, specificity, PPV (also at the given prevalence). More: accuracy, best and worst class.
    """
    metrics, positive = report["metrics"], report["positive"]
    if positive is None:
        first = _answer(report, "Of 100 images it gives {} their own class{}.", metrics["accuracy"])
        return [first, *_best_and_worst(report)]
    negative = next(name for name in report["classes"] if name != positive)
    ill, well = class_word(report, positive), class_word(report, negative)
    called = f"{{}} of 100 that it calls {ill} are so{{}}."
    found = [
        _answer(report, f"Of 100 {ill} images it finds {{}}{{}}.", metrics["sensitivity"]),
        _answer(report, f"Of 100 {well} images it clears {{}}{{}}.", metrics["specificity"]),
        _answer(report, f"Where {_share(report)} in 100 images are {ill}, as here, {called}", metrics["ppv"]),
    ]
    prevalence = report.get("prevalence")
    if prevalence:
        where = f"Where {of_hundred(prevalence['value'])} in 100 images are {ill}, {called}"
        found.append(_answer(report, where, prevalence["ppv"]))
    return found


def outside_sentence(counts: tuple[int, int] | None, noun: str) -> str:
    """That images lie outside what a run was made for; "" where none does.

    Args:
        counts: how many do, of how many; None where the run does not know.
        noun: what the images are called: images or patches.
    """
    if counts is None:
        return (
            f"Whether these {noun} are of the kind that the run was made for is not known: the run does not keep what "
            "its validation images were like. One trained again does."
        )
    outside, images = counts
    if not outside:
        return ""
    how = "what this run was made for, by their colours or what the network sees in them"
    if outside == images:
        which = f"All {images:,} {noun} lie" if images > 1 else "The only one lies"
        return f"{which} outside {how}: do not believe the answers."
    usual = f"of its validation images {1 - INSIDE_SHARE:.1%} do"
    return f"{outside:,} of {images:,} {noun} ({outside / images:.1%}) lie outside {how}; {usual}."


def report_outside(report: dict) -> str:
    """That sentence of a report; "" of one that did not measure it, as that of a training."""
    if "outside" not in report:
        return ""
    outside = report["outside"]
    return outside_sentence(outside and (outside["outside"], outside["images"]), "images")


def held_fixed(report: dict) -> str:
    """What the intervals of a report leave out; "" of one that has no interval."""
    return HELD_FIXED if any(metric["high"] is not None for metric in report["metrics"].values()) else ""


def split_words(data: dict) -> str:
    """By what the images were split."""
    if data["split_by"] == "patient" and not data["patients_known"]:
        return "image (patients unknown)"
    return SPLIT_WORDS.get(data["split_by"], data["split_by"])


def class_label(report: dict, name: str) -> str:
    """For tables and pictures: the class's folder, and its meaning where the report knows one, as `1 (IDC)`."""
    return label_class(report.get("class_names"), name)


def class_word(report: dict, name: str) -> str:
    """For sentences: `IDC`, `malignant`, or `class 1` where a number is all there is."""
    meaning = (report.get("class_names") or {}).get(name, name)
    return f"class {meaning}" if meaning.isdigit() else meaning


def possible_flaws(report: dict) -> str:
    """What to look for among the worst errors: of grey images, which are not of stained tissue, other things."""
    settings = report.get("settings") or {}
    grey = settings.get("images_are_grey") or settings.get("of the run.images_are_grey")
    return "blur, borders, marks or writing in the picture" if grey else "blurred or torn tissue, folds"


def number(value: float | None) -> str:
    """Three decimals, fewer above 10; n/a for None."""
    if value is None:
        return "n/a"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def signed(value: float | None) -> str:
    """A difference, with its sign; n/a for None."""
    return "n/a" if value is None else f"{'+' if value > 0 else ''}{number(value)}"


def share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1%}"


def count(value: int | None) -> str:
    return "n/a" if value is None else f"{value:,}"


def interval(metric: dict) -> str:
    """`0.790 to 0.880`, `at most 0.050`, or why there is none."""
    if metric["low"] is None and metric["high"] is not None:
        return f"at most {number(metric['high'])}"
    if metric["low"] is None or metric["high"] is None:
        return metric.get("reason", "")
    return f"{number(metric['low'])} to {number(metric['high'])}"


def short_interval(metric: dict) -> str:
    """As `interval`, with a dash where there is none: for narrow cells, above `missing_reasons`."""
    return interval(metric) if metric["high"] is not None else "–"


def short_signed_interval(metric: dict) -> str:
    """As `signed_interval`, with a dash where there is none."""
    return signed_interval(metric) if metric["high"] is not None else "–"


def missing_reasons(metrics: Sequence[dict]) -> list[str]:
    """Why some of the metrics have no interval or are undefined, each reason once."""
    found = [metric["reason"] for metric in metrics if metric["high"] is None and metric.get("reason")]
    return list(dict.fromkeys(found))


def patches(value: float) -> str:
    """A width in patches: `1 patch`, `0.5 patches`."""
    return f"{value:g} patch" + ("" if value == 1 else "es")


def counted(split: dict) -> str:
    """`60 images of 16 patients`, or `60 images, 29 of them of 16 known patients`, or only the images."""
    images = _several(split["images"], "image")
    if not split["patients"]:
        return images
    unknown = split.get("images_without_patient", 0)
    if unknown:
        known = _several(split["patients"], "known patient")
        return f"{images}, {split['images'] - unknown:,} of them of {known}"
    return f"{images} of {_several(split['patients'], 'patient')}"


def _several(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def count_without_patient(report: dict) -> tuple[int, int] | None:
    """Of the images that were judged, those whose patient is unknown, and all; None where there are none such."""
    images = sum(each["images"] for each in report["per_class"].values())
    unknown = images - sum(each["images"] for each in report.get("patients") or [])
    return (unknown, images) if unknown and report["data"]["patients_known"] else None


def signed_interval(metric: dict) -> str:
    """Of a difference: `+0.004 to +0.027`, or why there is none."""
    if metric["low"] is None or metric["high"] is None:
        return metric.get("reason", "")
    return f"{signed(metric['low'])} to {signed(metric['high'])}"


def of_hundred(value: float) -> str:
    """A share as a number of 100; 0 and 100 only where it is exactly none or all."""
    whole = f"{100 * value:.0f}"
    if whole in ("0", "100") and 0 < value < 1:
        return f"{min(max(100 * value, 0.1), 99.9):.1f}"
    return whole


def shown_metrics(metrics: dict[str, dict]) -> list[tuple[str, str, dict]]:
    """(label, what it says, metric) in the order of METRICS; one that is not in it comes last, under its own name."""
    names = [name for name in METRICS if name in metrics]
    names += [name for name in metrics if name not in METRICS and name not in TWICE]
    return [(*METRICS.get(name, (name.replace("_", " "), "")), metrics[name]) for name in names]


def shown_names(metrics: dict[str, dict]) -> list[str]:
    """Those figures' names in the order in which they are shown, each figure once."""
    return [name for name in METRICS if name in metrics]


def interval_words(report: dict) -> str:
    """`95% interval over patients`."""
    return f"{report['interval']['level']:.0%} interval over {report['interval']['over']}"


def _warn_of_few(level: float, over: str, groups: int) -> str:
    judged = f"Only {groups} {over} were judged:" if groups > 1 else f"Only 1 {over.removesuffix('s')} was judged:"
    if groups < LEAST_GROUPS:
        return f"{judged} too few to say how far the figures may be from those of other {over}."
    return f"{judged} the intervals are rough, and others may give quite other figures."


def _answer(report: dict, sentence: str, metric: dict) -> dict:
    """Fills the two places of the sentence: the number of 100, and its interval."""
    if metric["value"] is None:
        return {"text": f"{sentence.format('n/a', '')[:-1]} ({metric['reason']}).", "metric": None}
    bounds = ""
    if metric["low"] is not None and metric["high"] is not None:
        bounds = (
            f" ({report['interval']['level']:.0%} interval {of_hundred(metric['low'])} to {of_hundred(metric['high'])})"
        )
    return {"text": sentence.format(of_hundred(metric["value"]), bounds), "metric": metric}


def _best_and_worst(report: dict) -> list[dict]:
    rates = {name: report["per_class"][name]["sensitivity"] for name in report["classes"]}
    known = sorted((name for name in rates if rates[name]["value"] is not None), key=lambda name: rates[name]["value"])
    values = [rates[name]["value"] for name in known]
    ends = [("worst", known[0]), ("best", known[-1])] if values and values[0] < values[-1] else []
    return [
        _answer(
            report, f"It is {end} at {class_word(report, name)}: of 100 such images it finds {{}}{{}}.", rates[name]
        )
        for end, name in ends
    ]


def _share(report: dict) -> str:
    images = {name: report["per_class"][name]["images"] for name in report["classes"]}
    return of_hundred(images[report["positive"]] / sum(images.values()))
