"""Metrics by view, by patient, by study and by visibility of the fracture."""

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
    """The main metrics of :func:`se_fused.apps.fracture.evaluation.metrics`."""
    found = metrics(predictions)
    return {name: found[name] for name in _BRIEF}


def by_view(predictions: Predictions) -> dict[str, dict[str, Any]]:
    """{view: main metrics}, sorted by name; empty if there are fewer than two views."""
    predictions = labelled(predictions)
    views = np.array(predictions.views)
    names = sorted(set(predictions.views))
    if len(names) < 2:
        return {}
    return {name or "unknown": brief(predictions.take(views == name)) for name in names}


def _by(predictions: Predictions, keys: Sequence[tuple[str, ...] | None]) -> tuple[Predictions, int]:
    """Average labelled predictions by key; returns the rows of keys with one label, and the number of other keys."""
    table = predictions.averaged(keys)
    kept = table.take(table.labels >= 0)
    return kept, len(table) - len(kept)


def by_patient(predictions: Predictions) -> tuple[Predictions, int]:
    """Predictions by patient: the mean probabilities of the patient's images, with the path of the first image.

    Returns:
        The table, and the number of patients left out because their images have different labels. Images without a
        patient or without a label are ignored.
    """
    predictions = labelled(predictions)
    return _by(predictions, [(name,) if name else None for name in predictions.patients])


def by_study(predictions: Predictions) -> tuple[Predictions, int]:
    """Predictions by study of a patient, as in the evaluation of MURA; otherwise like :func:`by_patient`.

    Images without a study are ignored.
    """
    predictions = labelled(predictions)
    pairs = zip(predictions.patients, predictions.studies, strict=True)
    return _by(predictions, [(patient, study) if study else None for patient, study in pairs])


def groups(predictions: Predictions) -> dict[str, dict[str, Any]]:
    """Main metrics by patient and by study, {"patients": ..., "studies": ...}.

    Each entry also has "count", the number of patients or studies, and "conflicting", the number left out because of
    different labels. An entry is omitted if there are none, if each has one image, or if the studies equal the
    patients.
    """
    result: dict[str, dict[str, Any]] = {}
    sizes = []
    for name, (table, conflicting) in (("patients", by_patient(predictions)), ("studies", by_study(predictions))):
        if len(table) and len(table) < len(labelled(predictions)) and (len(table), conflicting) not in sizes:
            sizes.append((len(table), conflicting))
            result[name] = {"count": len(table), "conflicting": conflicting, **brief(table)}
    return result


# ---- the table of cracks of a synthetic data set
def read_cracks(*near: str | os.PathLike[str]) -> dict[str, dict[str, str]]:
    """Rows of the first ``cracks.csv`` beside the given files or in the given folders, by the image's absolute path.

    Args:
        near: manifests or folders of images.

    Returns:
        {path of the image: row}; {} if there is no such file.

    Raises:
        InputError: the file cannot be read, or has no column path.
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
            f"{path}: cannot be read: {error}; write it again with se-fused fracture synth, or remove it"
        ) from None
    if rows and "path" not in rows[0]:
        raise InputError(f"{path}: has no column path; write it again with se-fused fracture synth, or remove it")
    return {os.path.normpath(path.parent / row["path"]): row for row in rows}


def cracks_of(manifest: Manifest, *near: str | os.PathLike[str]) -> dict[str, dict[str, str]]:
    """Like :func:`read_cracks`, but also searches the folder of the manifest's images and its parent folder."""
    folder = Path(os.path.commonpath([record.path.parent for record in manifest.records]))
    return read_cracks(*near, folder, folder.parent)


def _number(row: Mapping[str, str], name: str) -> float | None:
    try:
        return float(row[name])
    except (KeyError, ValueError, TypeError):
        return None


def is_true(row: Mapping[str, str], name: str, otherwise: bool = False) -> bool:
    """Whether a table cell is true, i.e. not "0", "0.0", "false" or "no"; `otherwise` if the cell is empty."""
    text = (row.get(name) or "").strip().casefold()
    return otherwise if not text else text in ("1", "true", "yes") or text not in ("0", "false", "no", "0.0")


def strata(predictions: Predictions, cracks: Cracks) -> dict[str, dict[str, Any]]:
    """Accuracy by visibility of the fracture, from the columns of ``cracks.csv``.

    A stratum contains fractured images only.

    Args:
        predictions: predictions for images listed in the table.
        cracks: from :func:`read_cracks`.

    Returns:
        {stratum: {"images", "right" (share of correct predictions), "taken_for_first_class" (share predicted as the
        first class, which means no fracture), "first_class"}}. The strata are "hairline" and "open" (column hairline),
        "hidden in this view" and "visible in this view" (column visible), and "gap: narrowest third", "gap: middle
        third" and "gap: widest third" (column gap). Strata without a column or without images are omitted.
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
