"""Tests of the difference between two models: paired bootstrap, McNemar's exact test, Holm correction.

Both models must have predictions of the same images; other tables raise an error.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...._errors import InputError
from ..predictions import Predictions
from .bootstrap import DRAWS, clusters, drawn, interval, seed_draws, statistics
from .metrics import labelled

__all__ = ["aligned", "holm", "mcnemar", "paired", "seed_mean"]


def _keys(predictions: Predictions) -> list[str]:
    """Paths relative to their common folder, which do not depend on the location of the data set."""
    folders = [os.path.dirname(path) for path in predictions.paths]
    base = os.path.commonpath(folders) if folders else ""
    return [os.path.relpath(path, base) if base else path for path in predictions.paths]


def aligned(tables: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """Align tables: labelled rows only, in the order of the first table.

    Args:
        tables: {name for error messages: predictions}.

    Raises:
        InputError: two tables differ in classes, images or labels; the message names both and the difference.
    """
    names = list(tables)
    ready = {name: labelled(table) for name, table in tables.items()}
    first = ready[names[0]]
    order = {key: i for i, key in enumerate(_keys(first))}
    result = {names[0]: first}
    for name in names[1:]:
        table = ready[name]
        pair, remedy = (
            f"{names[0]} and {name}",
            "evaluate both on one manifest: se-fused fracture evaluate RUN --data MANIFEST",
        )
        if table.classes != first.classes:
            ours, theirs = ", ".join(first.classes), ", ".join(table.classes)
            raise InputError(
                f"{pair}: different classes: {ours} against {theirs}; compare models with the same classes"
            )
        keys = _keys(table)
        if odd := sorted(set(keys) ^ set(order)):
            raise InputError(f"{pair}: different test sets: {len(odd)} images are in one only, e.g. {odd[0]}; {remedy}")
        places = np.empty(len(keys), np.int64)
        for row, key in enumerate(keys):
            places[order[key]] = row
        table = table.take(places)
        wrong = np.flatnonzero(table.labels != first.labels)
        if len(wrong):
            place = list(order)[int(wrong[0])]
            raise InputError(f"{pair}: {len(wrong)} images have different labels, e.g. {place}; {remedy}")
        # The same paths and patients in all tables, so that the bootstrap resamples are the same.
        result[name] = replace(table, paths=first.paths, patients=first.patients, studies=first.studies)
    return result


def seed_mean(tables: Sequence[Predictions]) -> Predictions:
    """Ensemble of several training runs: the mean of their probabilities. The tables must be :func:`aligned`."""
    return replace(tables[0], probabilities=np.mean([table.probabilities for table in tables], axis=0))


def _p_value(differences: NDArray[np.float64]) -> float:
    """Two-sided p value from bootstrap differences. One resample is added on either side, so that p is never 0.

    Davison and Hinkley 1997, section 4.2.
    """
    n = len(differences)
    less, more = int((differences <= 0).sum()), int((differences >= 0).sum())
    return min(1.0, 2 * (min(less, more) + 1) / (n + 1))


def paired(
    first: Sequence[Predictions],
    second: Sequence[Predictions],
    metrics: Sequence[str] = ("accuracy", "f1_macro"),
    n: int = DRAWS,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Paired bootstrap: the first model's metrics minus the second's, each the mean over its training runs.

    Args:
        first, second: predictions of each model's training runs, one or more, all aligned (:func:`aligned`).
        metrics: metric names of :func:`se_fused.apps.fracture.evaluation.statistics`.
        n: number of bootstrap resamples of the patients.
        seed: random seed of the resamples.

    Returns:
        ``{metric: {"difference", "interval", "p", "interval_seeds", "p_seeds"}}``. "interval" and "p" resample the
        patients only, "interval_seeds" and "p_seeds" also the training runs of each model. p is two-sided.

    Raises:
        InputError: the tables are not of the same images in the same order.
    """
    tables = [*first, *second]
    if any(t.paths != tables[0].paths or (t.labels != tables[0].labels).any() for t in tables):
        raise InputError("the two models' predictions are of different images; evaluate both on one manifest")
    groups = clusters(tables[0])
    draws, ones = drawn(groups.count, n, seed), np.ones((1, groups.count))
    result: dict[str, dict[str, Any]] = {name: {} for name in metrics}
    ranking = any(name.startswith(("auroc", "average_precision")) for name in metrics)
    found = [statistics(t, groups, draws, ranking)[0] for t in tables]
    points = [statistics(t, groups, ones, ranking)[0] for t in tables]
    cut = len(first)
    shares = (seed_draws(cut, n, seed + 1), seed_draws(len(second), n, seed + 2))
    for name in metrics:
        sides = [np.stack([one[name] for one in part], 1) for part in (found[:cut], found[cut:])]
        means = [float(np.mean([p[name][0] for p in part])) for part in (points[:cut], points[cut:])]
        fixed = sides[0].mean(1) - sides[1].mean(1)
        free = (sides[0] * shares[0]).sum(1) - (sides[1] * shares[1]).sum(1)
        result[name] = {
            "difference": means[0] - means[1],
            "interval": interval(fixed),
            "p": _p_value(fixed[np.isfinite(fixed)]),
            "interval_seeds": interval(free),
            "p_seeds": _p_value(free[np.isfinite(free)]),
        }
    return result


def mcnemar(first: Predictions, second: Predictions) -> dict[str, Any]:
    """McNemar's exact test of two models: compares the numbers of images that only one of them predicts correctly.

    The test assumes independent images, but images of one patient are not independent. Prefer :func:`paired`.

    Args:
        first, second: predictions of the same images in the same order (:func:`aligned`).

    Returns:
        ``{"first_only", "second_only", "p"}``: number of images that only the first, or only the second, predicts
        correctly; p is two-sided, of a binomial distribution with probability 1/2 (Edwards 1948 without the
        correction).

    Raises:
        InputError: the tables are not of the same images.
    """
    if first.paths != second.paths or (first.labels != second.labels).any():
        raise InputError("the two models' predictions are of different images; evaluate both on one manifest")
    right, other = first.predicted == first.labels, second.predicted == second.labels
    mine, theirs = int((right & ~other).sum()), int((other & ~right).sum())
    # Twice the smaller tail of Binomial(n, 1/2), in exact integers until the last step.
    n, tail = mine + theirs, sum(math.comb(mine + theirs, k) for k in range(min(mine, theirs) + 1))
    p = min(1.0, float(Fraction(2 * tail, 2**n)))
    return {"first_only": mine, "second_only": theirs, "p": p}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction of p values, which controls the family-wise error rate.

    Returns:
        The corrected p values, in the order of `p_values`.

    Raises:
        ValueError: a value is not in [0, 1].
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"p_values must be in [0, 1], got {list(p_values)}")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
