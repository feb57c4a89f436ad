"""Prepare a data set for training: read it, find duplicates, fill in missing patients and splits."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..._errors import InputError
from . import duplicates
from .manifest import Manifest, plural
from .splits import FRACTIONS, split

__all__ = ["open_manifest", "prepare"]

Progress = Callable[[str, float], None]
_AS_THEY_ARE: Mapping[str, str] = {}


def open_manifest(path: str | os.PathLike[str], layout: str = "auto") -> Manifest:
    """Read a manifest from a CSV file with the columns path and label, or from a folder with `layouts.read`.

    Raises:
        InputError: the path does not exist or cannot be read.
    """
    from .layouts import read

    path = Path(path)
    if path.is_file() and layout == "auto":
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            head = {name.strip() for name in file.readline().split(",")}
        if {"path", "label"} <= head:
            return Manifest.load(path)
    return read(path, layout)


def _relabelled(manifest: Manifest, labels: Mapping[str, str]) -> Manifest:
    """Rename classes by the mapping `labels`; classes renamed to "" are left out."""
    counts = Counter(record.label for record in manifest.records)
    for name in labels:
        if name not in counts:
            known = ", ".join(repr(label) for label in sorted(filter(None, counts)))
            raise InputError(f"labels: there is no class {name!r}; the classes are {known}")
    kept = tuple(
        replace(record, label=labels.get(record.label, record.label))
        for record in manifest.records
        if labels.get(record.label) != ""
    )
    if not kept:
        raise InputError("labels: all classes are left out; keep at least two")
    notes = tuple(
        f"class {old!r} ({counts[old]} images) " + (f"renamed to {new!r}" if new else "left out")
        for old, new in labels.items()
    )
    return replace(manifest, records=kept, notes=(*manifest.notes, *notes))


def prepare(
    path: str | os.PathLike[str],
    layout: str = "auto",
    seed: int = 0,
    progress: Progress = lambda what, share: None,
    labels: Mapping[str, str] = _AS_THEY_ARE,
) -> Manifest:
    """Read a data set, find duplicate images, derive groups where patients are unknown, and split.

    Args:
        path: a folder, or a manifest (CSV) of which only the missing fields are filled in.
        layout: one of `layouts.LAYOUTS`, or "auto".
        seed: random seed of the splits.
        progress: called with a description of the current step and the completed share, 0 to 1.
        labels: new names of classes: ``{"spiral": "oblique"}`` merges the two, ``{"none": ""}`` leaves the class out.

    Returns:
        A manifest in which every image is readable and has a label, a patient and a split. Its notes list the images
        left out and the reasons.

    Raises:
        InputError: the data set cannot be read or split, or has no class named in `labels`.
    """
    manifest, _ = prepare_and_find(path, layout, seed, FRACTIONS, None, progress, labels)
    return manifest


def prepare_and_find(
    path: str | os.PathLike[str],
    layout: str,
    seed: int,
    fractions: Sequence[float],
    keep_splits: bool | None,
    progress: Progress,
    labels: Mapping[str, str],
) -> tuple[Manifest, duplicates.Duplicates]:
    """Like `prepare`, but also returns the duplicates, so that an audit need not search for them again."""
    manifest = _relabelled(open_manifest(path, layout), labels)
    found = duplicates.find(manifest, progress)
    manifest = duplicates.with_groups(manifest, found=found)
    unlabelled = sum(not record.label for record in manifest.records)
    if unlabelled:
        kept = tuple(record for record in manifest.records if record.label)
        manifest = replace(
            manifest,
            records=kept,
            notes=(*manifest.notes, f"{plural(unlabelled, 'image')} without a label left out"),
        )
    whose = {record.path: record.patient for record in manifest.records}
    together = [{whose[path] for path in cluster if path in whose} for cluster in found.clusters]
    return split(manifest, fractions, seed, keep_splits, [some for some in together if len(some) > 1]), found
