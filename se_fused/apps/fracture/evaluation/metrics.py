"""Metrics of a table of predictions. Values are shares from 0 to 1 unless stated otherwise, and are not rounded.

Macro averages include only the classes of which the test set has images: recall, AUROC and average precision of an
absent class are undefined, and counting them as 0 would describe the data, not the model. The precision of a class that
is never predicted is undefined too; it counts as 0, and the class is listed. torchmetrics computes the metrics that it
has.
"""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional import classification as tm

from ...._errors import InputError
from ..manifest import NEGATIVES
from ..predictions import Predictions

__all__ = ["BINS", "accuracy_one_vs_rest", "confusion", "labelled", "metrics"]

BINS = 15
"""Number of equal-width bins of the calibration error, as in Guo et al. 2017, arXiv:1706.04599."""


def labelled(predictions: Predictions) -> Predictions:
    """The rows that have a label.

    Raises:
        InputError: no row has a label, or there is only one class.
    """
    known = predictions.labels >= 0
    if not known.any():
        raise InputError("none of the predicted images has a label to compare with; give a manifest with labels")
    if len(predictions.classes) < 2:
        raise InputError(f"there is only one class, {predictions.classes[0]!r}; train with two or more classes")
    return predictions if known.all() else predictions.take(known)


def confusion(predictions: Predictions) -> NDArray[np.int64]:
    """Confusion matrix (K, K): rows are true classes, columns predicted classes. Rows without a label do not count."""
    size = len(predictions.classes)
    known = predictions.labels >= 0
    places = predictions.labels[known] * size + predictions.predicted[known]
    return np.bincount(places, minlength=size * size).reshape(size, size)


def accuracy_one_vs_rest(matrix: NDArray[np.int64]) -> float:
    """One-vs-rest accuracy: the paper's equation 12, (TP + TN) / (TP + FP + FN + TN), averaged over all K classes.

    With one label per image, each error is a false negative of one class and a false positive of another, so the value
    is ``1 - 2 (1 - accuracy) / K``. It is too favourable: random predictions of six balanced classes have .72, where
    the accuracy is .17.

    Args:
        matrix: (K, K), from :func:`confusion`.
    """
    total, hits = matrix.sum(), np.diag(matrix)
    wrong = matrix.sum(0) + matrix.sum(1) - 2 * hits
    return float(np.mean((total - wrong) / total))


def _number(value: Tensor | float) -> float:
    return float(value)


def _per_class(predictions: Predictions, matrix: NDArray[np.int64]) -> dict[str, dict[str, Any]]:
    scores = torch.from_numpy(predictions.probabilities)
    best, truth = torch.from_numpy(predictions.predicted), torch.from_numpy(predictions.labels)
    size = len(predictions.classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torchmetrics warns of absent classes; "absent" lists them
        counted = {
            "precision": tm.multiclass_precision(best, truth, size, average=None),
            "recall": tm.multiclass_recall(best, truth, size, average=None),
            "f1": tm.multiclass_f1_score(best, truth, size, average=None),
            "specificity": tm.multiclass_specificity(best, truth, size, average=None),
        }
    result: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(predictions.classes):
        support = int(matrix[k].sum())
        row: dict[str, Any] = {"images": support, "predicted": int(matrix[:, k].sum())}
        row |= {key: _number(values[k]) for key, values in counted.items()}
        ranked = 0 < support < len(predictions)  # otherwise there are no positives or no negatives to rank
        positive = (truth == k).long()
        row["auroc"] = _number(tm.binary_auroc(scores[:, k], positive)) if ranked else None
        row["average_precision"] = _number(tm.binary_average_precision(scores[:, k], positive)) if ranked else None
        if support == 0:
            row |= dict.fromkeys(("recall", "f1"))
        if support == len(predictions):
            row["specificity"] = None
        result[name] = row
    return result


def _mean(rows: list[dict[str, Any]], key: str, weights: list[int] | None = None) -> float | None:
    chosen = [i for i, row in enumerate(rows) if row[key] is not None]
    if not chosen:
        return None
    return float(np.average([rows[i][key] for i in chosen], weights=weights and [weights[i] for i in chosen]))


def _any_fracture(predictions: Predictions, matrix: NDArray[np.int64]) -> dict[str, Any] | None:
    """Metrics of any fracture against "no fracture"; None without such a class, or if one side has no images."""
    first = predictions.classes[0].casefold().replace("_", " ").replace("-", " ")
    positive = torch.from_numpy((predictions.labels > 0).astype(np.int64))
    if first not in NEGATIVES or not 0 < int(positive.sum()) < len(predictions):
        return None
    return {
        "negative": predictions.classes[0],
        "sensitivity": float(matrix[1:, 1:].sum() / matrix[1:].sum()),
        "specificity": float(matrix[0, 0] / matrix[0].sum()),
        "auroc": _number(tm.binary_auroc(torch.from_numpy(1 - predictions.probabilities[:, 0]), positive)),
    }


def metrics(predictions: Predictions) -> dict[str, Any]:
    """All metrics of a table of predictions as JSON-compatible values; None where a metric is undefined.

    Keys: images, patients (number; None if unknown), classes, absent (classes without images), never_predicted,
    confusion (rows: true class), accuracy, accuracy_one_vs_rest (:func:`accuracy_one_vs_rest`), balanced_accuracy (mean
    recall of the classes present), {precision, recall, f1, specificity}_macro, {precision, recall, f1}_weighted (by
    images of the class), auroc_macro and average_precision_macro (one-vs-rest), calibration_error (`BINS` bins of the
    largest probability, weighted by their images), brier (sum over classes, 0 to 2; Brier 1950), log_loss (natural
    logarithm), cohen_kappa, mcc, per_class, and any_fracture (sensitivity, specificity and AUROC of any fracture
    against none; None unless the first class means "no fracture").

    Args:
        predictions: rows without a label are ignored.

    Raises:
        InputError: no row has a label, or there is only one class.
    """
    predictions = labelled(predictions)
    size, total = len(predictions.classes), len(predictions)
    matrix = confusion(predictions)
    per_class = _per_class(predictions, matrix)
    present = [name for name, row in per_class.items() if row["images"]]
    rows = [per_class[name] for name in present]
    weights = [row["images"] for row in rows]
    best, truth = torch.from_numpy(predictions.predicted), torch.from_numpy(predictions.labels)
    scores = torch.from_numpy(predictions.probabilities)
    mine = predictions.probabilities[np.arange(total), predictions.labels]
    brier = (predictions.probabilities**2).sum(1) - 2 * mine + 1
    kappa = _number(tm.multiclass_cohen_kappa(best, truth, size))  # NaN if one class is always true and predicted
    return {
        "images": total,
        "patients": len(set(predictions.patients)) if any(predictions.patients) else None,
        "classes": list(predictions.classes),
        "absent": [name for name in predictions.classes if name not in present],
        "never_predicted": [name for name in present if not per_class[name]["predicted"]],
        "confusion": matrix.tolist(),
        "accuracy": float(np.trace(matrix) / total),
        "accuracy_one_vs_rest": accuracy_one_vs_rest(matrix),
        "balanced_accuracy": _mean(rows, "recall"),
        **{f"{key}_macro": _mean(rows, key) for key in ("precision", "recall", "f1", "specificity")},
        **{f"{key}_weighted": _mean(rows, key, weights) for key in ("precision", "recall", "f1")},
        **{f"{key}_macro": _mean(rows, key) for key in ("auroc", "average_precision")},
        "calibration_error": _number(tm.multiclass_calibration_error(scores, truth, size, n_bins=BINS, norm="l1")),
        "brier": float(brier.mean()),
        # Clipped at the float64 epsilon, as in scikit-learn.
        "log_loss": float(-np.log(np.clip(mine, np.finfo(np.float64).eps, 1)).mean()),
        "cohen_kappa": kappa if np.isfinite(kappa) else None,
        "mcc": _number(tm.multiclass_matthews_corrcoef(best, truth, size)),
        "per_class": per_class,
        "any_fracture": _any_fracture(predictions, matrix),
    }
