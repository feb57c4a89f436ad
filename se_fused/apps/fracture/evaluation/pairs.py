"""Which of two models is better, and whether the test set can tell: paired bootstrap, McNemar's exact test, Holm.

All compare on the same images; tables of different ones are refused.
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
    """Paths below what they have in common: the same wherever the data set lies."""
    folders = [os.path.dirname(path) for path in predictions.paths]
    base = os.path.commonpath(folders) if folders else ""
    return [os.path.relpath(path, base) if base else path for path in predictions.paths]


def aligned(tables: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """The same tables with their rows in the first one's order, without those that have no label.

    Args:
        tables: by the name that messages give them.

    Raises:
        InputError: two of them are of different classes, images or labels; it names them and what differs.
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
            raise InputError(f"{pair}: different classes: {ours} against {theirs}; compare models of the same classes")
        keys = _keys(table)
        if odd := sorted(set(keys) ^ set(order)):
            raise InputError(f"{pair}: different test sets: {len(odd)} images are in one only, as {odd[0]}; {remedy}")
        places = np.empty(len(keys), np.int64)
        for row, key in enumerate(keys):
            places[order[key]] = row
        table = table.take(places)
        wrong = np.flatnonzero(table.labels != first.labels)
        if len(wrong):
            place = list(order)[int(wrong[0])]
            raise InputError(f"{pair}: {len(wrong)} images have different labels in them, as {place}; {remedy}")
        # One spelling of paths and patients, so that the draws are the same.
        result[name] = replace(table, paths=first.paths, patients=first.patients, studies=first.studies)
    return result


def seed_mean(tables: Sequence[Predictions]) -> Predictions:
    """The mean of the probabilities of several trainings: their ensemble. Tables as from :func:`aligned`."""
    return replace(tables[0], probabilities=np.mean([table.probabilities for table in tables], axis=0))


def _p_value(differences: NDArray[np.float64]) -> float:
    """Two-sided share of draws beyond 0, with one more on either side: never 0 (Davison and Hinkley 1997, 4.2)."""
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
    """How much better the first model is than the second on the same patients: differences of means over trainings.

    Args:
        first, second: tables of each model's trainings, one or more, all aligned (:func:`aligned`).
        metrics: names of :func:`se_fused.apps.fracture.evaluation.statistics`.
        n: draws of patients.
        seed: of the draws.

    Returns:
        ``{metric: {"difference", "interval", "p", "interval_seeds", "p_seeds"}}``: patients drawn with these trainings,
        and with the trainings of each model drawn too. p is two-sided.

    Raises:
        InputError: tables are not of the same images in the same order.
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
    """McNemar's exact test: whether the images that one model alone gets right are as many as the other's.

    It takes images for independent, which those of one patient are not: beside it, :func:`paired` is the one to read.

    Args:
        first, second: tables of the same images in the same order (:func:`aligned`).

    Returns:
        ``{"first_only", "second_only", "p"}``: images that only the first, only the second got right; p is two-sided,
        of a binomial with 1/2 (Edwards 1948 without the correction).

    Raises:
        InputError: tables are not of the same images.
    """
    if first.paths != second.paths or (first.labels != second.labels).any():
        raise InputError("the two models' predictions are of different images; evaluate both on one manifest")
    right, other = first.predicted == first.labels, second.predicted == second.labels
    mine, theirs = int((right & ~other).sum()), int((other & ~right).sum())
    # Twice the smaller tail of Binomial(n, 1/2), in whole numbers until the last step.
    n, tail = mine + theirs, sum(math.comb(mine + theirs, k) for k in range(min(mine, theirs) + 1))
    p = min(1.0, float(Fraction(2 * tail, 2**n)))
    return {"first_only": mine, "second_only": theirs, "p": p}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction: p values of a family of tests, in their order, for one error in any of them.

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
