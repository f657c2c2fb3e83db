"""The report in words: how numbers are written, the key results as sentences, and warnings."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from cancernet.config import INSIDE_SHARE
from cancernet.evaluation import results
from cancernet.evaluation.decision import FittedOn, ValidationRates
from cancernet.evaluation.intervals import FEW_GROUPS, LEAST_GROUPS, exact_interval
from cancernet.evaluation.metrics import METRICS, Place
from cancernet.evaluation.results import Estimate
from cancernet.reporting.schema import DataSummary, Report, SplitCounts

FIXED_MODEL = (
    "The intervals are for this model and threshold. They do not include variation from retraining or from a different "
    "validation set."
)
OPERATING_POINTS = {"balanced": "highest expected balanced accuracy"}
IDEAL = {"calibration_slope": 1.0, "calibration_intercept": 0.0}
DEVIATIONS = {  # meaning of a value that is too low, and of one that is too high
    "sensitivity": ("More positive images are missed.", "Fewer positive images are missed."),
    "specificity": ("There are more false alarms.", "There are fewer false alarms."),
    "calibration_slope": ("The probabilities are overconfident.", "The probabilities are underconfident."),
    "calibration_intercept": (
        "The probabilities are too high on average.",
        "The probabilities are too low on average.",
    ),
}
WORST_NAMED = 3  # patients in a key result
SPLIT_NAMES = {"file": "a given list", "given": "the folders of the source"}


class KeyResult(NamedTuple):
    """A main result in a sentence, with its estimate; None if it is undefined."""

    text: str
    estimate: Estimate | None


def list_warnings(report: Report) -> list[str]:
    """List all warnings, each once: a model that predicts one class only, the report's own, and about its data."""
    data, matrix = report.data, report.confusion_matrix
    found = []
    predicted = [name for name, column in zip(report.classes, zip(*matrix)) if any(column)]
    if len(predicted) == 1 and sum(map(any, matrix)) > 1:
        found.append(
            f"The model classifies every image as {class_word(report.class_names, predicted[0])}, so it does not "
            "distinguish the classes. Train again with a smaller --learning-rate, more epochs or more images."
        )
    found += report.warnings
    if data.split_by == "image":
        found.append(
            "The dataset was split by image: images of one patient are in both training and testing, so the results "
            "are over-optimistic. Build the dataset with --split-by patient for results that hold for new patients."
        )
    if not data.patients_known:
        found.append(
            "The patients are unknown: images of one patient may be in several splits, and the intervals are over "
            "images and may be too narrow. Give --patient-pattern if the file names contain the patient."
        )
    groups, over = report.interval.groups, report.interval.over
    if groups < FEW_GROUPS:
        meaning = f"the intervals are rough, and results on other {over} may be quite different."
        if groups < LEAST_GROUPS:
            meaning = f"too few to estimate how the results vary between {over}."
        verb = "was" if groups == 1 else "were"
        found.append(f"Only {plural(groups, over.removesuffix('s'))} {verb} evaluated: {meaning}")
    if data.duplicates_across_patients:
        found.append(
            f"{plural(data.duplicates_across_patients, 'group')} of identical image files under different patients."
        )
    return list(dict.fromkeys(found))


def warn_of_change(metrics: Mapping[str, Estimate], expected: ValidationRates | None, fitted_on: FittedOn) -> list[str]:
    """Warn where the interval of a rate or of the calibration excludes the value expected from `fitted_on`."""
    due = IDEAL | (vars(expected) if expected else {})
    return [
        f"Not as expected from {name_fit(fitted_on)}: {METRICS[name].label} is {number(metrics[name].value)} (95% "
        f"interval {interval(metrics[name])}), expected {number(due[name])}. {meaning}"
        for name, meaning in _find_deviations(metrics, due).items()
    ]


def _find_deviations(metrics: Mapping[str, Estimate], due: Mapping[str, float]) -> dict[str, str]:
    """What it means for each metric whose interval excludes the value due."""
    found = {}
    for name, (too_low, too_high) in DEVIATIONS.items():
        metric = metrics.get(name)
        if name not in due or metric is None or metric.value is None or metric.low is None or metric.high is None:
            continue
        if not metric.low <= due[name] <= metric.high:
            found[name] = too_low if metric.value < due[name] else too_high
    return found


def describe_calibration(report: Report) -> str:
    """Say whether the probabilities can be used as they are."""
    metrics = report.metrics
    if report.positive is None:
        return f"Mean difference between predicted probability and observed share: {number(metrics['ece'].value)}."
    unknown = missing_reasons(metrics[name] for name in IDEAL)
    if unknown:
        return f"Whether the probabilities can be used as they are is unknown: {unknown[0]}."
    values = ", ".join(
        f"{METRICS[name].label} {number(metrics[name].value)} ({interval(metrics[name])}; ideal {ideal:g})"
        for name, ideal in IDEAL.items()
    )
    wrong = " ".join(_find_deviations(metrics, IDEAL).values())
    advice = "The probabilities can be used as they are: no miscalibration was found"
    if wrong:
        advice = f"{wrong} Use their order and the classes, but not the probabilities before they are recalibrated"
    return f"{advice} ({values})."


def describe_net_benefit(curve: Sequence[results.NetBenefit], positive: str) -> str:
    """Say at which thresholds the model is better than classifying all or no images as positive."""
    better = [each.threshold for each in curve if each.gain.low is not None and each.gain.low > 0]
    if all(each.gain.low is None for each in curve):
        return f"Whether the model is useful is unknown: {curve[0].gain.reason}."
    alternatives = f"classifying all images or none as {positive}"
    if not better:
        return f"At no threshold is the net benefit of the model significantly higher than that of {alternatives}."
    between = [each.threshold for each in curve if better[0] <= each.threshold <= better[-1]]
    where = f"thresholds from {better[0]:g} to {better[-1]:g}"
    if better != between:
        where = f"{len(better)} of {plural(len(between), 'threshold')} from {better[0]:g} to {better[-1]:g}"
    return f"The net benefit of the model is significantly higher than that of {alternatives} at {where}."


def describe_groups(groups: results.ColumnResults) -> str:
    """Say on which values of a column the results differ significantly from those on all other images."""
    differences = [difference for each in groups.values for difference in each.difference.values()]
    if all(each.low is None for each in differences):
        return f"Whether the results differ by {groups.column} is unknown: {differences[0].reason}."
    different = {
        name_value(groups.column, each.value): [
            f"{METRICS[name].label} {signed(difference.value)}"
            for name, difference in each.difference.items()
            if difference.verdict != "unclear"
        ]
        for each in groups.values
    }
    found = [f"{value} ({', '.join(metrics)})" for value, metrics in different.items() if metrics]
    if not found:
        return f"No {groups.column} differs significantly from all other images."
    return f"Significantly different from all other images: {'; '.join(found)}."


def name_value(column: str, value: str) -> str:
    """Name a value of a column; images may have none."""
    return value or f"no {column}"


def describe_value(column: str, found: results.ValueResults) -> str:
    """`Berlin: 1,200 images from 12 patients, prevalence 27.0%`."""
    counts = describe_counts(SplitCounts(found.images, found.patients, {}))
    prevalence = "" if found.prevalence is None else f", prevalence {share(found.prevalence)}"
    return f"{name_value(column, found.value)}: {counts}{prevalence}"


def describe_referral(referral: results.Referral) -> str:
    """Say what referring the least certain 10% of the images to a person would achieve."""
    row, of_all = referral.table[1], referral.curve[0].error.value
    if row.caught.value is None or row.error.value is None or of_all is None:
        return "Every image was classified correctly, so there is no error that a person could catch."
    bounds = "" if row.caught.low is None else f" (95% interval {interval(row.caught, percent)})"
    return (
        f"If the least certain {row.share:.0%} of the images were referred to a person, {percent(row.caught.value)} of "
        f"the errors would be among them{bounds}, and {percent(row.error.value)} of the other images would be "
        f"classified wrongly instead of {percent(of_all)}."
    )


def describe_band(report: Report) -> str:
    """Say which images the run itself refers to a person; "" if it refers none."""
    band, decision = report.referral and report.referral.band, report.decision
    if not band:
        return ""
    fit = name_fit(decision.fitted_on) if decision else "its own validation set in each fold"
    share_of = f"the least certain {decision.refer:.0%}" if decision and decision.refer else "the least certain share"
    outside = ", and images that are out of distribution" if report.outside else ""
    return (
        f"This run answers “uncertain: refer to a person” for images as uncertain as {share_of} of {fit}{outside}. "
        f"Here, these are {percent(band.share)} of the images."
    )


def list_referred(report: Report) -> dict[str, results.Referred]:
    """List what is left where no image, the least certain 5, 10 or 20%, or those of the run's own are referred."""
    if not report.referral:
        return {}
    none, rates = Estimate(None, None, None), ("sensitivity", "specificity", "ppv")
    error = report.referral.curve[0].error
    of_two = {rate: report.metrics[rate] for rate in rates if report.positive is not None}
    rows = {"none": results.Referred(0.0, none, error, **of_two)}
    rows |= {f"least certain {row.share:.0%}": row for row in report.referral.table}
    band = report.referral.band
    return rows | ({f"uncertain: {share(band.share)}": band} if band else {})


def key_results(report: Report) -> list[KeyResult]:
    """Write the main results as sentences, the most important first.

    Two classes: in how many patients the positive class was missed or falsely found, sensitivity, specificity, and PPV
    at the prevalence of the images and at a given one. More than two: accuracy, and the classes with the lowest and the
    highest sensitivity.
    """
    metrics, positive = report.metrics, report.positive
    level = f"{report.interval.level:.0%} interval"
    if positive is None:
        text = ("The model classifies ", " of images correctly (accuracy", ").")
        return [_key_result("Accuracy", text, metrics["accuracy"], level), *_lowest_and_highest(report, level)]
    ill, well = class_words(report)
    images = {name: each.images for name, each in report.per_class.items()}
    here = percent(images[positive] / sum(images.values()))
    detects = ("The model detects ", f" of {ill} images (sensitivity", ").")
    classifies = ("It correctly classifies ", f" of {well} images as {well} (specificity", ").")
    of_those = (f" of the images classified as {ill} are {ill} (PPV", ").")
    found = [
        (f"Sensitivity for {ill}", detects, metrics["sensitivity"]),
        (f"Specificity for {ill}", classifies, metrics["specificity"]),
        (f"PPV for {ill}", (f"At this prevalence ({here}), ", *of_those), metrics["ppv"]),
    ]
    if report.prevalence:
        at = f"a prevalence of {percent(report.prevalence.value)}"
        found.append((f"PPV at {at}", (f"At {at}, ", *of_those), report.prevalence.ppv))
    return [*_count_patients(report, ill), *(_key_result(*each, level) for each in found)]


def _count_patients(report: Report, ill: str) -> list[KeyResult]:
    """Count patients with the positive class of whom no image was detected, and patients without it of whom some was.

    The patients with the lowest sensitivity and with the most false alarms are named.
    """
    rows = [each for each in report.patients if isinstance(each, results.TwoClassPatientRow)]
    having = sorted((each for each in rows if each.sensitivity is not None), key=lambda each: each.sensitivity or 0)
    free = sorted((each for each in rows if each.sensitivity is None), key=lambda each: -each.fp)
    detected = [(each.patient, each.tp, each.tp + each.fn) for each in having]
    alarms = [(each.patient, each.fp, each.images) for each in free if each.fp]
    found = []
    if having:
        what, missed = "all of it was missed", sum(not each.tp for each in having)
        found.append(_share_patients(what, missed, having, f"with {ill}", "Lowest sensitivity", detected))
    if free:
        what = f"at least one image was classified as {ill}"
        found.append(_share_patients(what, len(alarms), free, f"without {ill}", "Most", alarms))
    return found


def _share_patients(
    what: str, number: int, patients: Sequence[object], of: str, worst: str, named: Sequence[tuple[str, int, int]]
) -> KeyResult:
    """Write of how many patients something holds, and the first of `named`: patient, images concerned, all images."""
    share_of = Estimate(number / len(patients), *exact_interval(number, len(patients)))
    names = [f"{patient} ({some:,} of {plural(images, 'image')})" for patient, some, images in named[:WORST_NAMED]]
    text = f"In {number:,} of {plural(len(patients), 'patient')} {of}, {what}"
    text += f" (95% interval {interval(share_of, percent)})."
    text += f" {worst}: {', '.join(names)}." if names else ""
    return KeyResult(text, share_of)


def _key_result(name: str, sentence: tuple[str, str, str], estimate: Estimate, level: str) -> KeyResult:
    """Join the three parts of the sentence; between them are the value and its interval."""
    if estimate.value is None:
        return KeyResult(f"{name} is undefined: {estimate.reason}.", None)
    bounds = "" if estimate.low is None else f", {level} {interval(estimate, percent)}"
    before, between, after = sentence
    return KeyResult(f"{before}{percent(estimate.value)}{between}{bounds}{after}", estimate)


def _lowest_and_highest(report: Report, level: str) -> list[KeyResult]:
    rates = {name: report.per_class[name].sensitivity for name in report.classes}
    values = {name: rate.value for name, rate in rates.items() if rate.value is not None}
    if len(set(values.values())) < 2:
        return []
    found = []
    for end, choose in (("lowest", min), ("highest", max)):
        name = choose(values, key=values.__getitem__)
        sentence = (f"Sensitivity is {end} for {class_word(report.class_names, name)} (", "", ").")
        found.append(_key_result("", sentence, rates[name], level))
    return found


def describe_out_of_distribution(counts: tuple[int, int] | None, noun: str) -> str:
    """Say how many images are out of distribution; "" if none is.

    `counts` are of these and of all images; None if the run cannot measure it. `noun` is `image` or `patch`.
    """
    if counts is None:
        return (
            f"It is unknown whether any {noun} is out of distribution, that is, unlike the images the model was "
            "validated on: this run has no statistics of these images. Train it again to get them."
        )
    outside, images = counts
    if not outside:
        return ""
    meaning = "unlike the images the model was validated on, in colour or in the features that the network computes"
    if outside == images:
        which = f"All {plural(images, noun)} are" if images > 1 else f"The only {noun} is"
        return f"{which} out of distribution: {meaning}. Do not rely on these results."
    verb = "is" if outside == 1 else "are"
    return (
        f"{outside:,} of {plural(images, noun)} ({outside / images:.1%}) {verb} out of distribution: {meaning}. Of the "
        f"images it was validated on, {1 - INSIDE_SHARE:.1%} are."
    )


def warn_of_distribution(report: Report) -> str:
    """Say how many images of an evaluation are out of distribution; "" for a training, which does not measure it."""
    if report.title is None:
        return ""
    found = report.outside
    return describe_out_of_distribution((found.outside, found.images) if found else None, "image")


def explain_intervals(report: Report) -> str:
    """Say what the intervals do not include; "" if there are none."""
    return FIXED_MODEL if any(metric.high is not None for metric in report.metrics.values()) else ""


def describe_sample_size(report: Report) -> str:
    """Say about how many patients would give intervals of +-5 points of the main metrics; "" without intervals."""
    place: Place = "many-class text" if report.positive is None else "two-class text"
    names = [name for name in list_shown(place, report.metrics) if report.metrics[name].needed]
    needed = ", ".join(f"{' '.join(spell_needed(report, name))} for {METRICS[name].label}" for name in names)
    here = f"{plural(report.interval.groups, report.interval.over.removesuffix('s'))} evaluated here"
    return f"An interval of ±5 points would need about {needed} ({here})." if needed else ""


def spell_needed(report: Report, name: str) -> tuple[str, str]:
    """`190`, `patients with IDC images`: about how many would give an interval of +-5 points; `n/a` if unknown."""
    needed, over, nouns = report.metrics[name].needed, report.interval.over, {}
    if needed is None:
        return "n/a", ""
    if report.positive is not None:
        ill, well = class_words(report)
        nouns = {"sensitivity": f"{ill} images", "specificity": f"{well} images"}
        nouns |= {"ppv": f"images classified as {ill}", "npv": f"images classified as {well}"}
    number = f"{round(needed, min(0, 2 - len(str(needed)))):,}"  # two digits
    if name not in nouns:
        return number, over
    return number, nouns[name] if over == "images" else f"{over} with {nouns[name]}"


def describe_learning_curve(curve: results.LearningCurve) -> str:
    """Say whether more training patients would help, by the change from the last point but one to the last."""
    changes, verdicts = curve.change.items(), {each.verdict for each in curve.change.values()}
    fewer, most = (f"{point.patients:.0f}" for point in curve.points[-2:])
    step = ", ".join(f"{METRICS[name].label} {signed(each.value)} ({signed_interval(each)})" for name, each in changes)
    advice = "Whether more training patients would help is unclear"
    if "better" in verdicts and "worse" not in verdicts:
        advice = "More training patients would probably help"
    return f"{advice}. From {fewer} to {most} patients: {step}."


def describe_decision(report: Report) -> str:
    """Describe the calibration, the threshold and the smoothing over neighbours."""
    decision = report.decision
    if not decision:
        return "Each fold has its own calibration and threshold, fitted without its test images."
    fit = f"{name_fit(decision.fitted_on)} ({describe_fit(decision.fitted_on)})"
    temperature, point = number(decision.temperature), decision.operating_point
    said = f"Probabilities were calibrated (temperature {temperature}) on {fit}."
    if decision.temperature == 1:
        said = f"Probabilities are the network's own: calibration on {fit} did not improve them."
    if decision.fitted_on.out_of_fold:
        unseen = "its patient" if report.data.patients_known and report.data.split_by != "image" else "it"
        said += f" Each image was predicted by an ensemble member that was trained without {unseen}."
    if report.positive is None:
        said += " Each image is assigned its most probable class."
    else:
        said += (
            f" An image is classified as {class_word(report.class_names, report.positive)} if its probability is at "
            f"least {number(decision.threshold)} (operating point: {OPERATING_POINTS.get(point, point)})."
        )
    if decision.neighbour_sigma:
        width, smoothed = plural(decision.neighbour_sigma, "patch"), report.smoothed_images
        said += f" On a slide with enough of its patches, scores of neighbours are averaged (Gaussian, SD {width}): "
        said += f"{plural(smoothed, 'image')} here." if smoothed else "no image here is on such a slide."
    return said


def name_fit(fitted_on: FittedOn) -> str:
    """Name the predictions that a decision was fitted on."""
    if fitted_on.out_of_fold:
        return "out-of-fold predictions of the training and validation images"
    return "the validation set"


def describe_fit(fitted_on: FittedOn) -> str:
    """Say how many images and patients a decision was fitted on."""
    return describe_counts(SplitCounts(fitted_on.images, fitted_on.patients or 0, {}))


def describe_training(report: Report) -> str:
    """Describe the training and which epochs the final model averages; "" for an evaluation."""
    training = report.training
    if not training:
        return ""
    minutes = training.seconds / 60
    duration = plural(round(training.seconds), "second") if minutes < 2 else f"{minutes:.0f} minutes"
    if not training.epochs or not training.kept_epochs:
        return f"A classification head was fitted to features in {duration} on {training.device}."
    speed = f" ({speed_of(training.images_per_second)})" if training.images_per_second else ""
    return (
        f"Trained for {plural(training.epochs, 'epoch')} in {duration} on {training.device}{speed}. "
        f"{describe_kept_epochs(*training.kept_epochs)}"
    )


def describe_kept_epochs(first: int, last: int) -> str:
    """Say which epochs the final model comes from."""
    if first == last:
        return f"The final model is that of epoch {first}."
    return f"The final model averages the weights of epochs {first} to {last}."


def describe_label_check(report: Report) -> str:
    """Say how many labels are suspicious and how they were found; "" without out-of-fold predictions."""
    check = report.label_check
    if not check:
        return ""
    unseen = "its patient" if report.data.patients_known and report.data.split_by != "image" else "it"
    return (
        f"Labels to check: {check.suspicious:,} of {plural(check.images, 'image')} "
        f"({share(check.suspicious / check.images)}). The prediction of a model that was trained without {unseen} "
        "contradicts the label (confident learning). This is a suspicion, not an error: the model may be wrong. "
        "labels_to_check.csv lists them, the most suspicious first."
    )


def describe_source(data: DataSummary) -> str:
    """Say how many source images were used and how they were split."""
    return (
        f"Source images: {data.source_images:,} ({data.rejected:,} rejected, {data.left_out:,} left out), split by "
        f"{describe_split(data)}."
    )


def describe_split(data: DataSummary) -> str:
    """Say how the images were split: `patient`, `image`, ..."""
    if data.split_by == "patient" and not data.patients_known:
        return "image (patients unknown)"
    return SPLIT_NAMES.get(data.split_by, data.split_by)


def class_word(class_names: Mapping[str, str] | None, name: str) -> str:
    """Name a class in sentences: `IDC`, `malignant`, or `class 1` if only a number is known."""
    meaning = (class_names or {}).get(name, name)
    return f"class {meaning}" if meaning.isdigit() else meaning


def class_words(report: Report) -> list[str]:
    """Name the classes in sentences, the positive one first."""
    return [
        class_word(report.class_names, name)
        for name in sorted(report.classes, key=lambda name: name != report.positive)
    ]


def name_artefacts(report: Report) -> str:
    """Name what to look for among the errors; grey images are not of stained tissue."""
    settings = report.settings or {}
    grey = settings.get("images_are_grey") or settings.get("of the run.images_are_grey")
    return "blur, image borders, markers or text" if grey else "blurred, torn or folded tissue"


def shown_names(metrics: Iterable[str]) -> list[str]:
    """List the names of these metrics in the order of METRICS, without metrics that equal another one."""
    return [name for name, metric in METRICS.items() if name in metrics and not metric.same_as]


def list_shown(place: Place, metrics: Iterable[str]) -> list[str]:
    """List the names of these metrics that the table of metrics shows in this place, in its order."""
    return [name for name, metric in METRICS.items() if place in metric.shown_in and name in metrics]


def describe_intervals(interval: results.Interval) -> str:
    """`95% interval over patients`."""
    return f"{interval.level:.0%} interval over {interval.over}"


def count_without_patient(report: Report) -> tuple[int, int] | None:
    """Count evaluated images without a known patient, and all images; None if there are none or all are unknown."""
    images = sum(each.images for each in report.per_class.values())
    unknown = images - sum(each.images for each in report.patients)
    return (unknown, images) if unknown and report.data.patients_known else None


def number(value: float | None) -> str:
    """Three decimals, one above 10; n/a for None."""
    if value is None:
        return "n/a"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def signed(value: float | None) -> str:
    """As `number`, with its sign."""
    return "n/a" if value is None else f"{'+' if value > 0 else ''}{number(value)}"


def share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1%}"


def percent(value: float) -> str:
    """A share as whole per cent; 0% and 100% only if it is exactly none or all, else `0.4%`, `99.9%`."""
    whole = f"{value:.0%}"
    return f"{min(max(value, 0.001), 0.999):.1%}" if whole in ("0%", "100%") and 0 < value < 1 else whole


def count(value: int | None) -> str:
    return "n/a" if value is None else f"{value:,}"


def interval(estimate: Estimate, spell: Callable[[float], str] = number) -> str:
    """`0.790 to 0.880`, `at most 0.050`, or the reason why there is none."""
    if estimate.high is None:
        return estimate.reason or ""
    if estimate.low is None:
        return f"at most {spell(estimate.high)}"
    return f"{spell(estimate.low)} to {spell(estimate.high)}"


def signed_interval(difference: Estimate) -> str:
    """`+0.004 to +0.027`, or the reason why there is none."""
    return interval(difference, signed)


def missing_reasons(estimates: Iterable[Estimate]) -> list[str]:
    """List why some have no interval or are undefined, each reason once."""
    return list(dict.fromkeys(each.reason for each in estimates if each.high is None and each.reason))


def speed_of(images_per_second: float) -> str:
    """`1,200 images per second`, or `0.04 images per second`."""
    digits = ",.0f" if images_per_second >= 10 else ".2g"
    return f"{images_per_second:{digits}} images per second"


def plural(number: float, noun: str) -> str:
    """`1 image`, `2,000 images`, `0.5 patches`."""
    ending = "" if number == 1 else "es" if noun.endswith("tch") else "s"
    return f"{number:{',' if isinstance(number, int) else 'g'}} {noun}{ending}"


def cut(text: str, limit: int) -> str:
    """At most `limit` characters: the middle is left out."""
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[: limit - 1 - half]}…{text[-half:]}"


def anchor(title: str) -> str:
    """Name a section in the address of a page: `results-by-patient`."""
    return "-".join(re.findall("[a-z]+", title.lower()))


def describe_counts(split: SplitCounts) -> str:
    """`60 images from 16 patients`, `60 images (29 from 16 known patients)`, or `60 images`."""
    images, unknown = plural(split.images, "image"), split.images_without_patient
    if not split.patients:
        return images
    if unknown:
        return f"{images} ({split.images - unknown:,} from {plural(split.patients, 'known patient')})"
    return f"{images} from {plural(split.patients, 'patient')}"
