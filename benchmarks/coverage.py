"""Do intervals hold what they say? Simulated studies of few patients, and how many intervals hold the true figure.

Patients are made up after the test patients of runs on IDC (docs/reporting.md): their numbers of patches, shares of IDC
and scores vary from patient to patient. The true figures are those of 20,000 such patients; a study has a few.
"""

import argparse
import json
import math
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm, t

from cancernet.data.dataset import Patch
from cancernet.evaluation.comparison import compare_figures
from cancernet.evaluation.evaluate import evaluate
from cancernet.evaluation.metrics import list_metrics, net_benefit
from cancernet.evaluation.predictions import Predictions
from cancernet.evaluation.referral import Certainty, evaluate_referral
from cancernet.evaluation.results import Difference, Estimate
from cancernet.evaluation.tables import EvaluatedImages, WeightedImages

POPULATION = 20_000  # patients that the true figures are of
THRESHOLD = 0.28  # about the share of IDC
CLASSES = {"classes": ["0", "1"], "positive": "1"}
COMPUTATIONS = {metric.name: metric.compute for metric in list_metrics(two_classes=True) if not metric.same_as}
NET_BENEFIT = "net benefit at a threshold of 0.2"
COMPUTATIONS[NET_BENEFIT] = partial(net_benefit, threshold=0.2)
REFERRAL = ("error rate of the most certain 90%", "share of errors among the least certain 10%")
FIGURES = [*COMPUTATIONS, *REFERRAL]
METHODS = ("jackknife", "percentiles")
SHARED = 0.8  # correlation of the errors that two runs make on one patch


class Study(NamedTuple):
    """Images of some patients."""

    labels: np.ndarray  # [n] 0 or 1
    probability: np.ndarray  # [n] of class 1
    patients: np.ndarray  # [n] index from 0


def simulate(random: np.random.Generator, n_patients: int, shift: float = 0.0) -> Study:
    """Draw patients: a median of 24 patches each (3 to 200), from nearly no IDC to nearly all, median share 0.24.

    A patient's scores of both classes are shifted together: with standard deviations of 1.2 (benign) and 1.8 (IDC) and
    correlation 0.6, as large as the spread among the images of one class of one patient.

    Args:
        shift: added to the scores of IDC and taken from those of benign patches: at 3 most studies of few patients have
            no missed image, or no false alarm.
    """
    size = np.clip(np.round(24 * np.exp(0.9 * random.normal(size=n_patients))), 3, 200).astype(int)
    patients = np.repeat(np.arange(n_patients), size)
    share = random.beta(1.0, 2.5, n_patients)
    common, own = random.normal(size=(2, n_patients))
    labels = (random.random(len(patients)) < share[patients]).astype(int)
    benign = -2.7 + 1.2 * common[patients] + 1.95 * random.normal(size=len(patients))
    idc = 1.3 + 1.8 * (0.6 * common + 0.8 * own)[patients] + 1.7 * random.normal(size=len(patients))
    return Study(labels, expit(np.where(labels == 1, idc + shift, benign - shift)), patients)


def simulate_pair(random: np.random.Generator, n_patients: int) -> tuple[Study, Study]:
    """Draw patients and the predictions of two runs with correlated errors; the second run is a little worse."""
    first = simulate(random, n_patients)
    noise = random.normal(size=len(first.labels)) * 1.8 * math.sqrt(1 / SHARED**2 - 1)
    return first, first._replace(probability=expit(SHARED * (logit(first.probability) + noise)))


def find_truth(shift: float = 0.0) -> dict[str, float]:
    """The figures of the whole population."""
    return whole_figures(simulate(np.random.default_rng(0), POPULATION, shift))


def find_paired_truth() -> dict[str, float]:
    """The second run's figures of the whole population less the first's."""
    first, second = map(whole_figures, simulate_pair(np.random.default_rng(0), POPULATION))
    return {name: second[name] - first[name] for name in FIGURES}


def whole_figures(study: Study) -> dict[str, float]:
    """The figures of all images of a study together."""
    study = study._replace(patients=np.zeros_like(study.patients))
    figures = {name: float(values[0]) for name, values in weigh_figures(study, np.ones((1, 1))).items()}
    return figures | {name: float(estimate.value or 0) for name, estimate in refer_images(study).items()}


def refer_images(study: Study) -> dict[str, Estimate]:
    """REFERRAL figures, as reports give them."""
    predictions, p = predict(study), study.probability
    certainty = np.where(p < THRESHOLD, (THRESHOLD - p) / THRESHOLD, (p - THRESHOLD) / (1 - THRESHOLD))
    row = evaluate_referral(predictions, Certainty(certainty, None), **CLASSES).table[1]
    return dict(zip(REFERRAL, (row.error, row.caught), strict=True))


def weigh_figures(study: Study, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics and net benefit `[rows]` of a study under weights `[rows, patients]`."""
    weighted = WeightedImages(EvaluatedImages.of(predict(study), **CLASSES), weights)
    return {name: compute(weighted) for name, compute in COMPUTATIONS.items()}


def predict(study: Study) -> Predictions:
    """A study as predictions. Patients are in the order of their numbers, which are written with leading zeros."""
    patches = [
        Patch("", str(label), f"{patient:06}", None, None, "", "")
        for label, patient in zip(study.labels, study.patients, strict=True)
    ]
    probabilities = np.stack([1 - study.probability, study.probability], axis=1)
    return Predictions(patches, study.labels, probabilities, (study.probability >= THRESHOLD).astype(int))


def percentile_intervals(study: Study, draws: int) -> dict[str, tuple[float | None, float | None]]:
    """Expanded percentiles of a bootstrap over patients, what the jackknife is compared with (Hesterberg 2015).

    The levels are moved outwards as Student's t and the n / (n - 1) of a variance ask for with few patients ("What
    Teachers Should Know About the Bootstrap", The American Statistician 69:371).
    """
    n = int(study.patients.max()) + 1
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=draws).astype(float)
    spread = math.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1)
    figures = weigh_figures(study, weights)
    ends = {name: np.nanquantile(values, norm.cdf([-spread, spread])) for name, values in figures.items()}
    return {name: (low, high if np.isfinite(high) else None) for name, (low, high) in ends.items()}


def jackknife_intervals(study: Study) -> dict[str, tuple[float | None, float | None]]:
    """What reports give."""
    found = evaluate(predict(study), **CLASSES)
    (benefit,) = (each.model for each in found.decision_curve or () if each.threshold == 0.2)
    figures = found.metrics | {NET_BENEFIT: benefit} | refer_images(study)
    return {name: (figures[name].low, figures[name].high) for name in FIGURES}


def locate_truth(interval: tuple[float | None, float | None], truth: float) -> str | None:
    """Say whether the truth is `in`, `below` or `above` an interval; None if there is no interval."""
    low, high = (-math.inf if interval[0] is None else interval[0]), interval[1]
    if high is None:
        return None
    return "below" if truth < low else "above" if truth > high else "in"


def run_studies(n_patients: int, studies: int, draws: int, truth: dict[str, float], shift: float = 0.0) -> dict:
    """method -> figure -> results of `locate_truth`, one per study."""
    found = {method: {name: [] for name in FIGURES} for method in METHODS}
    for number in range(studies):
        study = simulate(np.random.default_rng([n_patients, number]), n_patients, shift)
        if len(np.unique(study.labels)) < 2:
            continue
        given = {"jackknife": jackknife_intervals(study)}
        if draws:
            given["percentiles"] = percentile_intervals(study, draws)
        for method, intervals in given.items():
            for name, interval in intervals.items():
                found[method][name].append(locate_truth(interval, truth[name]))
    return found


def run_paired_studies(n_patients: int, studies: int, truth: dict[str, float]) -> dict:
    """The same of differences between two runs, whose intervals leave the same patients out of both."""
    found = {name: [] for name in truth}
    for number in range(studies):
        pair = simulate_pair(np.random.default_rng([n_patients, number]), n_patients)
        for name, metric in difference(pair).items():
            if name in truth and metric.value is not None:
                found[name].append(locate_truth((metric.low, metric.high), truth[name]))
    return {"jackknife": found}


def difference(pair: tuple[Study, Study]) -> dict[str, Difference]:
    """Every figure of the second run less the first's."""
    return compare_figures(list(map(predict, pair)), **CLASSES)[0]


def run_size_studies(n_patients: int, studies: int) -> dict[str, tuple[list[int], list[float]]]:
    """figure -> the sizes that studies predict for +-5 points, and half the width in cohorts of their median size.

    A size may be a number of patients with some images only; a cohort then has as many of these.
    """
    predicted: dict[str, list[int]] = {}
    for number in range(studies):
        study = simulate(np.random.default_rng([n_patients, number]), n_patients)
        for name, metric in evaluate(predict(study), **CLASSES).metrics.items():
            if metric.needed and name in FIGURES:
                predicted.setdefault(name, []).append(metric.needed)
    found = {}
    for name, sizes in predicted.items():
        seeds = np.random.default_rng([n_patients, FIGURES.index(name)]).integers(2**32, size=studies // 4)
        found[name] = (sizes, [half_width(name, int(np.median(sizes)), int(seed)) for seed in seeds])
    return found


def half_width(name: str, size: int, seed: int) -> float:
    """Half the width of the interval of one figure, of `size` patients that have images it is a share of."""
    study = simulate(np.random.default_rng(seed), 2 * size)
    counts = {"sensitivity": study.labels == 1, "ppv": study.probability >= THRESHOLD}.get(name, study.labels >= 0)
    last = np.unique(study.patients[counts])[size - 1]
    cohort = Study(*(column[study.patients <= last] for column in study))
    metric = evaluate(predict(cohort), **CLASSES).metrics[name]
    return (metric.high - metric.low) / 2


def format_sizes(found: dict[int, dict[str, tuple[list[int], list[float]]]]) -> str:
    """A Markdown row for each figure: predicted size (median, quartiles), and the median half width in points."""
    heads = " | ".join(f"from {n} patients | half width" for n in found)
    lines = [f"| figure | {heads} |", "|---" + "|--:|--:" * len(found) + "|"]
    for name in next(iter(found.values())):
        cells = []
        for each in found.values():
            sizes, widths = each[name]
            first, median, third = np.quantile(sizes, [0.25, 0.5, 0.75])
            cells += [f"{median:.0f} ({first:.0f} to {third:.0f})", f"{100 * np.median(widths):.1f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def share_covered(answers: list[str | None]) -> str:
    """Per cent of the intervals that hold the truth; n/a where more than half of the studies give none."""
    given = [answer for answer in answers if answer]
    return f"{100 * given.count('in') / len(given):.0f}" if 2 * len(given) > len(answers) else "n/a"


def format_table(found: dict[int, dict]) -> str:
    """A Markdown row for each figure: coverage by number of patients, of one method / the other."""
    heads = [f"{n} patients" for n in found]
    lines = ["| figure | " + " | ".join(heads) + " |", "|---" + "|--:" * len(heads) + "|"]
    for name in next(iter(found.values()))["jackknife"]:
        cells = [
            " / ".join(share_covered(rows[name]) for rows in each.values() if rows[name]) for each in found.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def count_answers(found: dict[int, dict]) -> dict:
    """Number of patients -> method -> figure -> how many studies gave each answer."""
    return {
        n_patients: {
            method: {name: dict(Counter(answer or "none" for answer in row)) for name, row in rows.items()}
            for method, rows in each.items()
        }
        for n_patients, each in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, nargs="+", default=[6, 12, 32, 100], help="of a study (%(default)s)")
    parser.add_argument("--studies", type=int, default=600, help="simulated for each number (%(default)s)")
    parser.add_argument("--draws", type=int, default=500, help="of the bootstrap; 0 leaves it out (%(default)s)")
    parser.add_argument(
        "--pairs", action="store_true", help="of differences between two runs, not of one run's figures"
    )
    parser.add_argument("--sizes", action="store_true", help="how many patients intervals of +-5 points need, instead")
    parser.add_argument("--shift", type=float, default=0.0, help="how much better than on IDC (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for how many intervals hold, lie below and above")
    arguments = parser.parse_args()
    if arguments.sizes:
        print(format_sizes({n: run_size_studies(n, arguments.studies) for n in arguments.patients}))
        return
    truth, found = find_paired_truth() if arguments.pairs else find_truth(arguments.shift), {}
    for n_patients in arguments.patients:
        print(f"{arguments.studies} studies of {n_patients} patients ...", file=sys.stderr, flush=True)
        if arguments.pairs:
            found[n_patients] = run_paired_studies(n_patients, arguments.studies, truth)
        else:
            found[n_patients] = run_studies(n_patients, arguments.studies, arguments.draws, truth, arguments.shift)
    methods = " / ".join(next(iter(found.values())))
    print(f"Per cent of 95% intervals that hold the true figure: {methods}\n\n{format_table(found)}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"truth": truth, "counts": count_answers(found)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
