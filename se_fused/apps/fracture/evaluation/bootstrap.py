"""Confidence intervals of metrics: percentile intervals of the cluster bootstrap over patients.

Images of one patient resemble each other, so patients are resampled with all their images (Field and Welsh 2007,
"Bootstrapping clustered data"). A resample ("draw") is stored as the number of times that it contains each patient, so
every sum over images is a matrix product. Where no patient is known, each image counts as a patient and the intervals
are too narrow; :func:`clusters` returns which of the two was resampled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...._checks import check_int
from ...._errors import InputError
from ..predictions import Predictions
from .metrics import BINS, confusion, labelled

__all__ = ["DRAWS", "Groups", "clusters", "drawn", "interval", "intervals", "over_seeds", "statistics"]

Array = NDArray[np.float64]

DRAWS = 2000
LEVEL = 0.95
_CHUNK = 4_000_000  # elements (draws x images) processed at a time: 32 MB


@dataclass(frozen=True)
class Groups:
    """Clusters for the bootstrap: the patient of each image.

    Attributes:
        of: (N,) int64, the patient's number of each image, from 0 to count - 1.
        count: number of patients.
        what: "patients", or "images" where no patient is known.
    """

    of: NDArray[np.int64]
    count: int
    what: str


def clusters(predictions: Predictions) -> Groups:
    """The patients of the images, sorted by name; an image without a patient counts as a patient."""
    if not any(predictions.patients):
        return Groups(np.arange(len(predictions)), len(predictions), "images")
    names = [(0, p) if p else (1, path) for p, path in zip(predictions.patients, predictions.paths, strict=True)]
    places = {name: i for i, name in enumerate(sorted(set(names)))}
    return Groups(np.array([places[name] for name in names], np.int64), len(places), "patients")


def drawn(count: int, n: int = DRAWS, seed: int = 0) -> Array:
    """Bootstrap resamples, (n, count) float64: how often each of `count` patients is in each of `n` resamples."""
    check_int(count, "count", 1)
    check_int(n, "n", 1)
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=n).astype(np.float64)


def _divided(of: Array, by: Array, otherwise: float = np.nan) -> Array:
    return np.divide(of, by, out=np.full(np.broadcast_shapes(of.shape, by.shape), otherwise), where=by > 0)


def _mean(values: Array, weights: Array) -> Array:
    """Weighted mean over the last axis, without NaN values; NaN if no weight remains."""
    weights = np.where(np.isnan(values), 0.0, weights)
    return _divided((np.nan_to_num(values) * weights).sum(-1), weights.sum(-1))


def _of_confusion(matrices: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """Metrics of confusion matrices (B, K, K) as defined in :mod:`metrics`: overall (B,), and by class (B, K)."""
    hits = matrices.diagonal(axis1=1, axis2=2)
    true, said, total = matrices.sum(2), matrices.sum(1), matrices.sum((1, 2))
    everyone = total[:, None]
    here = (true > 0).astype(np.float64)
    precision, recall = _divided(hits, said, 0.0), _divided(hits, true)
    each = {
        "precision": precision,
        "recall": recall,
        "f1": np.where(true > 0, _divided(2 * hits, true + said, 0.0), np.nan),
        "specificity": _divided(everyone - true - said + hits, everyone - true),
    }
    figures = {
        "accuracy": hits.sum(1) / total,
        "accuracy_one_vs_rest": 1 - (true + said - 2 * hits).mean(1) / total,
        "balanced_accuracy": _mean(recall, here),
        **{f"{key}_macro": _mean(values, here) for key, values in each.items()},
        **{f"{key}_weighted": _mean(each[key], true) for key in ("precision", "recall", "f1")},
    }
    agreed, chance = hits.sum(1) * total, (true * said).sum(1)
    figures["cohen_kappa"] = _divided(agreed - chance, total**2 - chance)
    spread = np.sqrt(total**2 - (true**2).sum(1)) * np.sqrt(total**2 - (said**2).sum(1))
    figures["mcc"] = _divided(agreed - chance, spread, 0.0)
    return figures, each


def _ranked(scores: Array, positive: NDArray[np.bool_], weights: Array) -> tuple[Array, Array]:
    """AUROC and average precision under image weights (B, N): (B,) each, NaN without positives or without negatives.

    Ties count half.
    """
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf))  # starts of runs of equal scores
    weights, positive = weights[:, order], positive[order]
    hits = np.add.reduceat(weights * positive, starts, axis=1)
    misses = np.add.reduceat(weights * ~positive, starts, axis=1)
    seen_hits, seen_misses = hits.cumsum(1), misses.cumsum(1)
    all_hits, all_misses = seen_hits[:, -1], seen_misses[:, -1]
    below = all_misses[:, None] - seen_misses + misses / 2
    area = _divided((hits * below).sum(1), all_hits * all_misses)
    average = _divided((hits * _divided(seen_hits, seen_hits + seen_misses, 0.0)).sum(1), all_hits)
    return area, np.where(all_misses > 0, average, np.nan)


def statistics(
    predictions: Predictions, groups: Groups, draws: Array, ranking: bool = True
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The metrics of :func:`se_fused.apps.fracture.evaluation.metrics` for each bootstrap resample.

    Averages over classes include only the classes of which the resample has images.

    Args:
        predictions: N labelled rows.
        groups: clusters of the rows.
        draws: (B, groups.count), from :func:`drawn`; a row of ones gives the metrics of the original data.
        ranking: whether to compute AUROC and average precision, which take nearly all of the time.

    Returns:
        {metric: (B,)} and {metric: (B, K)} by class. NaN where the metric is undefined in a resample.
    """
    size, rows = len(predictions.classes), np.arange(len(predictions))
    labels, best, scores = predictions.labels, predictions.predicted, predictions.probabilities
    per_group = np.zeros((groups.count, size * size))
    np.add.at(per_group, (groups.of, labels * size + best), 1.0)
    figures, each = _of_confusion((draws @ per_group).reshape(-1, size, size))

    mine, largest = scores[rows, labels], scores.max(1)
    images = np.bincount(groups.of, minlength=groups.count).astype(np.float64)
    drawn_images = draws @ images
    logs = -np.log(np.clip(mine, np.finfo(np.float64).eps, 1))
    for name, values in (("brier", (scores**2).sum(1) - 2 * mine + 1), ("log_loss", logs)):
        figures[name] = draws @ np.bincount(groups.of, values, groups.count) / drawn_images
    bins = np.clip(np.searchsorted(np.linspace(0, 1, BINS + 1), largest, side="right") - 1, 0, BINS - 1)
    gaps = np.zeros((groups.count, BINS))
    np.add.at(gaps, (groups.of, bins), (best == labels) - largest)
    figures["calibration_error"] = np.abs(draws @ gaps).sum(1) / drawn_images
    if not ranking:
        return figures, each

    ranked: dict[str, list[list[Array]]] = {"auroc": [], "average_precision": []}
    step = max(1, _CHUNK // len(predictions))
    for start in range(0, len(draws), step):
        weights = draws[start : start + step][:, groups.of]
        areas = [_ranked(scores[:, k], labels == k, weights) for k in range(size)]
        for name, values in zip(ranked, zip(*areas, strict=True), strict=True):
            ranked[name].append(list(values))
    for name, chunks in ranked.items():
        each[name] = np.concatenate([np.stack(chunk, 1) for chunk in chunks])
        figures[f"{name}_macro"] = _mean(each[name], np.ones_like(each[name]))
    return figures, each


def interval(values: Array, level: float = LEVEL) -> list[float] | None:
    """Percentile interval [low, high] of a metric's bootstrap values; None if the metric is undefined in over half."""
    values = values[np.isfinite(values)] if np.isfinite(values).mean() >= 0.5 else values[:0]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def intervals(predictions: Predictions, n: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """Confidence intervals (95 %) of all metrics of a table of predictions.

    Args:
        predictions: rows without a label are ignored.
        n: number of bootstrap resamples, >= 1.
        seed: random seed; the same seed and patients give the same resamples.

    Returns:
        ``{"level", "draws", "seed", "clusters": {"what", "count"}, "figures": {metric: [low, high]}, "per_class":
        {class: {metric: [low, high]}}}``; None in place of an undefined interval.

    Raises:
        InputError: no row has a label.
    """
    predictions = labelled(predictions)
    groups = clusters(predictions)
    figures, each = statistics(predictions, groups, drawn(groups.count, n, seed))
    return {
        "level": LEVEL,
        "draws": n,
        "seed": seed,
        "clusters": {"what": groups.what, "count": groups.count},
        "figures": {name: interval(values) for name, values in figures.items()},
        "per_class": {
            label: {name: interval(values[:, k]) for name, values in each.items()}
            for k, label in enumerate(predictions.classes)
        },
    }


def seed_draws(count: int, n: int, seed: int) -> Array:
    """(n, count): the share of each of `count` training runs in each of `n` bootstrap resamples of the runs."""
    return drawn(count, n, seed) / count


def over_seeds(tables: Sequence[Predictions], n: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """Mean, standard deviation and confidence intervals of each metric over several training runs of one model.

    All runs are evaluated on the same images. Each bootstrap resample of patients is the same for all runs; the
    intervals are those of the mean over the runs. "interval" resamples the patients only. "interval_seeds" also
    resamples the training runs (two levels, Davison and Hinkley 1997, section 3.8), and so includes the variation
    between runs. With three runs it is still too narrow; therefore the standard deviation is reported too.

    Args:
        tables: predictions of each run, with the same images in the same order (:func:`pairs.aligned`).
        n, seed: as in :func:`intervals`.

    Returns:
        ``{metric: {"mean", "sd" (divisor n - 1; None for a single run), "values", "interval", "interval_seeds"}}``,
        without metrics that are undefined for these images.

    Raises:
        InputError: there are no tables, or they are not of the same images.
    """
    if not tables:
        raise InputError("no predictions to evaluate; give at least one finished run")
    tables = [labelled(table) for table in tables]
    if any(table.paths != tables[0].paths for table in tables):
        raise InputError(
            "training runs of one model have predictions of different images; evaluate them on one manifest"
        )
    groups = clusters(tables[0])
    draws, ones = drawn(groups.count, n, seed), np.ones((1, groups.count))
    points = [statistics(table, groups, ones)[0] for table in tables]
    found = [statistics(table, groups, draws)[0] for table in tables]
    shares = seed_draws(len(tables), n, seed + 1)
    result: dict[str, Any] = {}
    for name in points[0]:
        values = [float(point[name][0]) for point in points]
        if not np.isfinite(values).all():
            continue
        stacked = np.stack([one[name] for one in found], 1)
        result[name] = {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "values": values,
            "interval": interval(stacked.mean(1)),
            "interval_seeds": interval((stacked * shares).sum(1)),
        }
    return result


def matrices(tables: Sequence[Predictions]) -> NDArray[np.int64]:
    """(K, K): the sum of the confusion matrices of several training runs."""
    total: NDArray[np.int64] = sum((confusion(t) for t in tables[1:]), confusion(tables[0]))
    return total
