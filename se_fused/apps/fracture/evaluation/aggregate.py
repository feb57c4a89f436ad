"""Figures of parts of a test set (a view, a stratum), and of patients and studies in place of single images."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...._errors import InputError
from ..manifest import Manifest
from ..predictions import Predictions
from .metrics import confusion, labelled, metrics

__all__ = ["brief", "by_patient", "by_study", "by_view", "read_cracks", "strata"]

Cracks = Mapping[str, Mapping[str, str]]

_BRIEF = (
    "images", "accuracy", "balanced_accuracy", "precision_macro", "recall_macro", "f1_macro", "auroc_macro", "absent",
)  # fmt: skip


def brief(predictions: Predictions) -> dict[str, Any]:
    """The main figures of :func:`se_fused.apps.fracture.evaluation.metrics`."""
    found = metrics(predictions)
    return {name: found[name] for name in _BRIEF}


def by_view(predictions: Predictions) -> dict[str, dict[str, Any]]:
    """The main figures of each view, in the order of their names; empty unless there are two or more."""
    predictions = labelled(predictions)
    views = np.array(predictions.views)
    names = sorted(set(predictions.views))
    if len(names) < 2:
        return {}
    return {name or "unknown": brief(predictions.take(views == name)) for name in names}


def _by(predictions: Predictions, keys: Sequence[tuple[str, ...] | None]) -> tuple[Predictions, int]:
    """A row for each key whose images have one label, all being labelled; and how many keys have several."""
    table = predictions.averaged(keys)
    kept = table.take(table.labels >= 0)
    return kept, len(table) - len(kept)


def by_patient(predictions: Predictions) -> tuple[Predictions, int]:
    """A row for each patient: the mean of the probabilities over all images; the path is the first image's.

    Returns:
        The table; and how many patients are left out of it because their images have different labels. Images without
        a patient, or without a label, are in neither.
    """
    predictions = labelled(predictions)
    return _by(predictions, [(name,) if name else None for name in predictions.patients])


def by_study(predictions: Predictions) -> tuple[Predictions, int]:
    """As :func:`by_patient`, for each study of a patient, as MURA is scored; images without a study are left out."""
    predictions = labelled(predictions)
    pairs = zip(predictions.patients, predictions.studies, strict=True)
    return _by(predictions, [(patient, study) if study else None for patient, study in pairs])


def groups(predictions: Predictions) -> dict[str, dict[str, Any]]:
    """{"patients": ..., "studies": ...}: the main figures, "count", and "conflicting", those left out of them.

    Without those that there are none of; studies only where they are not the patients over again.
    """
    result: dict[str, dict[str, Any]] = {}
    sizes = []
    for name, (table, conflicting) in (("patients", by_patient(predictions)), ("studies", by_study(predictions))):
        if len(table) and len(table) < len(labelled(predictions)) and (len(table), conflicting) not in sizes:
            sizes.append((len(table), conflicting))
            result[name] = {"count": len(table), "conflicting": conflicting, **brief(table)}
    return result


# ---- the synthetic set's table of cracks
def read_cracks(*near: str | os.PathLike[str]) -> dict[str, dict[str, str]]:
    """The first ``cracks.csv`` beside one of these files or folders, by the image's absolute path; {} if there is none.

    Args:
        near: a manifest, a folder of images, ...

    Raises:
        InputError: it cannot be read, or has no column path.
    """
    places = [path if path.is_dir() else path.parent for path in (Path(place).resolve() for place in near)]
    path = next((found for place in places if (found := place / "cracks.csv").is_file()), None)
    if path is None:
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path}: cannot be read: {error}; write it anew with se-fused fracture synth, or remove it"
        ) from None
    if rows and "path" not in rows[0]:
        raise InputError(f"{path}: has no column path; write it anew with se-fused fracture synth, or remove it")
    return {os.path.normpath(path.parent / row["path"]): row for row in rows}


def cracks_of(manifest: Manifest, *near: str | os.PathLike[str]) -> dict[str, dict[str, str]]:
    """As :func:`read_cracks`, looking also beside a manifest's images and one folder above them."""
    folder = Path(os.path.commonpath([record.path.parent for record in manifest.records]))
    return read_cracks(*near, folder, folder.parent)


def _number(row: Mapping[str, str], name: str) -> float | None:
    try:
        return float(row[name])
    except (KeyError, ValueError, TypeError):
        return None


def is_true(row: Mapping[str, str], name: str, otherwise: bool = False) -> bool:
    """Whether a cell says yes, in any of the ways of writing it."""
    text = (row.get(name) or "").strip().casefold()
    return otherwise if not text else text in ("1", "true", "yes") or text not in ("0", "false", "no", "0.0")


def strata(predictions: Predictions, cracks: Cracks) -> dict[str, dict[str, Any]]:
    """Recall of fractures that are hard to see and of those that are not, where ``cracks.csv`` tells them apart.

    A stratum holds fractured images only, so what it has is the share of right answers, of images that were taken for
    no fracture, and how many images it is.

    Args:
        predictions: with the paths of the table.
        cracks: from :func:`read_cracks`.

    Returns:
        By stratum: "hairline" and "open" (by the column hairline), "hidden" and "visible" (by visible), and "gap:
        narrowest third" and so on (by gap); those that the table has columns for.
    """
    predictions = labelled(predictions)
    rows = [cracks.get(os.path.normpath(path), {}) for path in predictions.paths]
    fractured = [i for i, row in enumerate(rows) if row.get("visible") or row.get("x0")]
    found: dict[str, list[int]] = {}
    if any("hairline" in rows[i] for i in fractured):
        found["hairline"] = [i for i in fractured if is_true(rows[i], "hairline")]
        found["open"] = [i for i in fractured if not is_true(rows[i], "hairline")]
    if any("visible" in rows[i] for i in fractured):
        found["hidden in this view"] = [i for i in fractured if not is_true(rows[i], "visible", True)]
        found["visible in this view"] = [i for i in fractured if is_true(rows[i], "visible", True)]
    gaps = {i: gap for i in fractured if (gap := _number(rows[i], "gap")) is not None}
    if len(set(gaps.values())) >= 3:
        order = sorted(gaps, key=lambda i: gaps[i])
        for name, part in zip(("narrowest", "middle", "widest"), np.array_split(np.array(order), 3), strict=True):
            found[f"gap: {name} third"] = part.tolist()
    result = {}
    for name, places in found.items():
        if places:
            stratum = predictions.take(np.array(places, np.int64))
            matrix = confusion(stratum)
            result[name] = {
                "images": len(stratum),
                "right": float(np.trace(matrix) / len(stratum)),
                "taken_for_first_class": float(matrix[1:, 0].sum() / len(stratum)),
                "first_class": stratum.classes[0],
            }
    return result
