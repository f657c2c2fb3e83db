"""Temperature and bias that turn scores into probabilities: softmax(scores / temperature + bias).

Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks") with a bias for each class (Alexandari
et al. 2020, "Maximum Likelihood with Bias-Corrected Calibration"). Class weights in training shift all log-odds by a
constant, which a temperature cannot undo.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, softmax
from sklearn.model_selection import StratifiedKFold

TEMPERATURES = (0.01, 100.0)  # bounds of the fit
MAX_BIAS = 20.0  # bound of the absolute bias
FOLDS = 5
# Prior of the fit for two classes: normal distributions of log(1 / temperature) and of the bias.
PRIOR_INVERSE, PRIOR_LOG_INVERSE_DEVIATION = 0.7, 0.7  # of 1 / temperature: networks are overconfident
PRIOR_BIAS_DEVIATION = 0.5  # around the bias that undoes the class weights
IMAGES_PER_PATIENT = 5  # the effective number: images of one patient are similar


def apply_calibration(scores: np.ndarray, temperature: float, bias: Sequence[float]) -> np.ndarray:
    """Turn scores `[n, k]` into probabilities `[n, k]`; two classes keep the order of any two images by log-odds."""
    if scores.shape[1] != 2:
        return softmax(scores / temperature + np.asarray(bias), axis=1)
    log_odds = (scores[:, 1] - scores[:, 0]) / temperature + bias[1]  # one number keeps the order
    return np.stack([expit(-log_odds), expit(log_odds)], axis=1)


def fit_calibration(
    scores: np.ndarray, labels: np.ndarray, patients: Sequence[str], log_class_weight: float = 0.0
) -> tuple[float, tuple[float, ...]]:
    """Fit temperature and biases, the first of which is 0, on validation images.

    - Two classes: the maximum a posteriori estimate. The prior expects a temperature above 1 and the bias that undoes
      the class weights, -log_class_weight / temperature (see the constants above). The images of a patient count as at
      most IMAGES_PER_PATIENT, so that a few patients change the prior only a little, and a hundred outweigh it
      (docs/recipes.md has the results).
    - More: the minimum of the log-loss, or 1 and zeros where these have a lower log-loss in a five-fold
      cross-validation: a fit to some twenty images is mostly a fit to their noise (docs/recipes.md). They are also kept
      where the fit classifies every image correctly: the log-loss then decreases without bound as the temperature
      approaches 0.

    `scores` are log-probabilities [n, k], `labels` class indices [n] of two classes at least, and `patients` [n] are ''
    where unknown: each such image counts as a patient. `log_class_weight` is, of two classes, the log of the weight of
    class 1 over that of class 0 in training.
    """
    if scores.shape[1] > 2:
        return _fit_if_it_generalises(scores, labels)
    n_patients = len(set(patients) - {""}) + sum(not patient for patient in patients)
    weight = min(1.0, IMAGES_PER_PATIENT * n_patients / len(labels))
    log_odds = scores[:, 1] - scores[:, 0] - log_class_weight
    start = [math.log(PRIOR_INVERSE), 0.0]
    bounds = [tuple(-math.log(temperature) for temperature in reversed(TEMPERATURES)), (-MAX_BIAS, MAX_BIAS)]
    given = {"args": (log_odds, labels, weight), "jac": True, "bounds": bounds, "options": {"ftol": 1e-12}}
    log_inverse, shift = minimize(_negative_log_posterior, start, method="L-BFGS-B", **given).x
    inverse = math.exp(log_inverse)
    return 1 / inverse, (0.0, float(shift - inverse * log_class_weight))


def _negative_log_posterior(
    parameters: np.ndarray, log_odds: np.ndarray, labels: np.ndarray, weight: float
) -> tuple[float, np.ndarray]:
    """Compute -log of the posterior density of log(1 / temperature) and shift, up to a constant, and its gradient."""
    log_inverse, shift = parameters
    scaled = np.exp(log_inverse) * log_odds
    line = scaled + shift
    loss = weight * np.sum(np.logaddexp(0, line) - labels * line)
    error = weight * (expit(line) - labels)
    from_prior = (log_inverse - math.log(PRIOR_INVERSE)) / PRIOR_LOG_INVERSE_DEVIATION
    from_zero = shift / PRIOR_BIAS_DEVIATION
    gradient = [
        np.sum(error * scaled) + from_prior / PRIOR_LOG_INVERSE_DEVIATION,
        np.sum(error) + from_zero / PRIOR_BIAS_DEVIATION,
    ]
    return float(loss + from_prior**2 / 2 + from_zero**2 / 2), np.array(gradient)


def _fit_if_it_generalises(scores: np.ndarray, labels: np.ndarray) -> tuple[float, tuple[float, ...]]:
    unchanged = np.eye(scores.shape[1])[0]  # 1 / temperature of 1, and biases of 0
    gain, folds = 0.0, min(FOLDS, np.unique(labels, return_counts=True)[1].min())
    if folds > 1:
        for rest, left_out in StratifiedKFold(folds, shuffle=True, random_state=0).split(scores, labels):
            best = minimise_log_loss(scores[rest], labels[rest])
            before, after = (log_loss(each, scores[left_out], labels[left_out])[0] for each in (unchanged, best))
            gain += len(left_out) * (before - after)
    best = minimise_log_loss(scores, labels)
    is_perfect = (apply_calibration(scores, 1 / best[0], [0.0, *best[1:]]).argmax(axis=1) == labels).all()
    inverse, *bias = (best if gain > 0 and not is_perfect else unchanged).tolist()
    return 1 / inverse, (0.0, *bias)


def minimise_log_loss(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Fit 1 / temperature and all biases but the first; the log-loss is convex in these."""
    classes = scores.shape[1]
    bound = MAX_BIAS if len(np.unique(labels)) == classes else 0.0  # none where a class is absent
    bounds = [(1 / TEMPERATURES[1], 1 / TEMPERATURES[0]), *[(-bound, bound)] * (classes - 1)]
    given = {"args": (scores, labels), "jac": True, "bounds": bounds, "options": {"ftol": 1e-12}}
    return minimize(log_loss, np.eye(classes)[0], method="L-BFGS-B", **given).x


def log_loss(parameters: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Compute the mean log-loss of scores under parameters as `minimise_log_loss` returns them, and its gradient."""
    calibrated, rows = scores * parameters[0] + np.append(0.0, parameters[1:]), np.arange(len(labels))
    calibrated -= calibrated.max(axis=1, keepdims=True)
    shares = np.exp(calibrated)  # as scipy's logsumexp and softmax, which take three times as long
    total = shares.sum(axis=1, keepdims=True)
    loss = np.mean(np.log(total[:, 0]) - calibrated[rows, labels])
    error = shares / total
    error[rows, labels] -= 1
    error /= len(labels)
    return float(loss), np.append(np.sum(error * scores), error.sum(axis=0)[1:])
