"""Temperature and bias that turn scores into probabilities: softmax(scores / temperature + bias).

Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks") with a bias for each class (Alexandari
et al. 2020, "Maximum Likelihood with Bias-Corrected Calibration"). Class weights in training shift all log-odds alike,
which no temperature can take back.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax
from sklearn.model_selection import StratifiedKFold

TEMPERATURES = (0.01, 100.0)  # the fit looks between these
BIASES = 20.0  # and between this and its negative
FOLDS = 5
# What is expected of two classes before validation is seen: means and standard deviations of normal distributions.
USUAL_INVERSE, SPREAD_OF_LOG_INVERSE = 0.7, 0.7  # one over the temperature; networks are too sure of themselves
SPREAD_OF_BIAS = 0.5  # around the bias that takes the class weights back
IMAGES_A_PATIENT = 5  # a patient's images are alike: together they tell as much as so many that are not


def apply_calibration(scores: np.ndarray, temperature: float, bias: Sequence[float]) -> np.ndarray:
    """Probabilities `[n, k]` of scores `[n, k]`; of two classes the order of any two images by log-odds is kept."""
    if scores.shape[1] != 2:
        return softmax(scores / temperature + np.asarray(bias), axis=1)
    log_odds = (scores[:, 1] - scores[:, 0]) / temperature + bias[1]  # one number an image: its order cannot change
    return np.stack([expit(-log_odds), expit(log_odds)], axis=1)


def fit_calibration(
    scores: np.ndarray, labels: np.ndarray, patients: Sequence[str], log_class_weight: float = 0.0
) -> tuple[float, tuple[float, ...]]:
    """Fit temperature and biases, the first of them 0, on validation images.

    - Two classes: the most probable of both, given the images and what is expected of a network before: a temperature
      above 1 and the bias that takes the class weights back, -log_class_weight / temperature (see the constants above).
      A patient's images count as IMAGES_A_PATIENT, so that a few patients move the expectation only a little, and a
      hundred outvote it (docs/recipes.md has what this gave).
    - More: those with the least log-loss, or 1 and zeros where that is better for images left out of the fit, in turn
      by fifths: what some twenty images tell is mostly their own noise (docs/recipes.md). So too where every image can
      be put on its right side: the log-loss then falls without end as the temperature nears 0.

    Args:
        scores: [n, k] log-probabilities.
        labels: [n] class indices, of two classes at least.
        patients: [n]; '' where unknown, and such an image counts as a patient.
        log_class_weight: of two classes, log of the weight of class 1 over that of class 0 in training.
    """
    if scores.shape[1] > 2:
        return _fit_where_it_helps(scores, labels)
    known = {patient for patient in patients if patient}
    n_patients = len(known) + sum(not patient for patient in patients)
    worth = min(1.0, IMAGES_A_PATIENT * n_patients / len(labels))
    log_odds = scores[:, 1] - scores[:, 0] - log_class_weight
    start = [math.log(USUAL_INVERSE), 0.0]
    bounds = [tuple(-math.log(temperature) for temperature in reversed(TEMPERATURES)), (-BIASES, BIASES)]
    given = {"args": (log_odds, labels, worth), "jac": True, "bounds": bounds, "options": {"ftol": 1e-12}}
    log_inverse, shift = minimize(_improbability, start, method="L-BFGS-B", **given).x
    inverse = math.exp(log_inverse)
    return 1 / inverse, (0.0, float(shift - inverse * log_class_weight))


def _improbability(
    parameters: np.ndarray, log_odds: np.ndarray, labels: np.ndarray, worth: float
) -> tuple[float, np.ndarray]:
    """Minus the log of the probability, up to a constant, of log(1 / temperature) and a shift, and its gradient."""
    log_inverse, shift = parameters
    scaled = np.exp(log_inverse) * log_odds
    line = scaled + shift
    loss = worth * np.sum(np.logaddexp(0, line) - labels * line)
    error = worth * (expit(line) - labels)
    from_usual = (log_inverse - math.log(USUAL_INVERSE)) / SPREAD_OF_LOG_INVERSE
    from_weights = shift / SPREAD_OF_BIAS
    gradient = [
        np.sum(error * scaled) + from_usual / SPREAD_OF_LOG_INVERSE,
        np.sum(error) + from_weights / SPREAD_OF_BIAS,
    ]
    return float(loss + from_usual**2 / 2 + from_weights**2 / 2), np.array(gradient)


def _fit_where_it_helps(scores: np.ndarray, labels: np.ndarray) -> tuple[float, tuple[float, ...]]:
    unchanged = np.append(1.0, np.zeros(scores.shape[1] - 1))
    gain, folds = 0.0, min(FOLDS, np.unique(labels, return_counts=True)[1].min())
    if folds > 1:
        for rest, left_out in StratifiedKFold(folds, shuffle=True, random_state=0).split(scores, labels):
            best = minimise_log_loss(scores[rest], labels[rest])
            before, after = (log_loss(each, scores[left_out], labels[left_out])[0] for each in (unchanged, best))
            gain += len(left_out) * (before - after)
    best = minimise_log_loss(scores, labels)
    all_right = (apply_calibration(scores, 1 / best[0], [0.0, *best[1:]]).argmax(axis=1) == labels).all()
    inverse, *bias = (best if gain > 0 and not all_right else unchanged).tolist()
    return 1 / inverse, (0.0, *bias)


def minimise_log_loss(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One over the temperature, and the biases but the first."""
    # convex in these, so there is one minimum
    classes = scores.shape[1]
    widest = BIASES if len(np.unique(labels)) == classes else 0.0  # an absent class would be talked out of existence
    bounds = [(1 / TEMPERATURES[1], 1 / TEMPERATURES[0]), *[(-widest, widest)] * (classes - 1)]
    start = np.append(1.0, np.zeros(classes - 1))
    given = {"args": (scores, labels), "jac": True, "bounds": bounds, "options": {"ftol": 1e-12}}
    return minimize(log_loss, start, method="L-BFGS-B", **given).x


def log_loss(parameters: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean log-loss of scores calibrated by parameters as of `minimise_log_loss`, and its gradient by them."""
    calibrated = scores * parameters[0] + np.append(0.0, parameters[1:])
    loss = np.mean(logsumexp(calibrated, axis=1) - calibrated[np.arange(len(labels)), labels])
    error = (softmax(calibrated, axis=1) - np.eye(scores.shape[1])[labels]) / len(labels)
    return float(loss), np.append(np.sum(error * scores), error.sum(axis=0)[1:])
