"""What several thresholds give on the same images of two classes, beside the one in use."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from cancernet.evaluation.intervals import class_rates, jackknife
from cancernet.evaluation.metrics import as_metric, group_images

RATES = ("sensitivity", "specificity", "ppv", "f1", "balanced_accuracy")


def judge_points(
    labels: np.ndarray,
    predicted: Mapping[str, np.ndarray],
    patients: Sequence[str],
    *,
    classes: Sequence[str],
    positive: str,
) -> dict[str, dict[str, dict]]:
    """RATES of each point as metrics, their intervals as those of `metrics.evaluate`.

    Args:
        labels: [n] class index, 0 or 1.
        predicted: name of a point -> [n] decided class index.
        patients: [n]; '' where unknown.
    """
    names, groups = group_images(patients)
    n_groups, index = int(groups.max()) + 1, list(classes).index(positive)
    tables = {
        point: np.bincount(groups * 4 + labels * 2 + calls, minlength=n_groups * 4).reshape(n_groups, 4).astype(float)
        for point, calls in predicted.items()
    }

    def figures(weights: np.ndarray) -> dict[Hashable, np.ndarray]:
        found: dict[Hashable, np.ndarray] = {}
        for point, table in tables.items():
            rates = class_rates((weights @ table).reshape(-1, 2, 2))
            found |= {(point, rate): rates[rate][:, index] for rate in ("sensitivity", "specificity", "f1")}
            found[point, "ppv"] = rates["precision"][:, index]
            found[point, "balanced_accuracy"] = rates["sensitivity"].mean(axis=1)
        return found

    values, left_out = figures(np.ones((1, n_groups))), jackknife(figures, n_groups, len(labels))
    unit = "patients" if names else "images"
    why = dict.fromkeys(RATES, "one class has no image") | {"ppv": f"no image was decided as class {positive}"}
    return {
        point: {
            rate: as_metric(rate, float(values[point, rate][0]), left_out[point, rate], why[rate], n_groups, unit)
            for rate in RATES
        }
        for point in predicted
    }
