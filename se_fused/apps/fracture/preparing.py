"""From a folder, or a manifest in which something is missing, to a manifest that can be trained on."""

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
    """The manifest of a CSV file with the columns path and label, or of a folder as `layouts.read` reads it.

    Raises:
        InputError: neither is there, or it cannot be read.
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
    """The manifest with its classes called as `labels` says, without those called ""."""
    counts = Counter(record.label for record in manifest.records)
    for name in labels:
        if name not in counts:
            known = ", ".join(repr(label) for label in sorted(filter(None, counts)))
            raise InputError(f"labels: there is no class {name!r}, only {known}")
    kept = tuple(
        replace(record, label=labels.get(record.label, record.label))
        for record in manifest.records
        if labels.get(record.label) != ""
    )
    if not kept:
        raise InputError("labels: they leave no class; keep two at least")
    notes = tuple(
        f"class {old!r} ({counts[old]} images) " + (f"is called {new!r}" if new else "left out")
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
    """Read a data set, look for images that are the same, derive groups where patients are not known, and split.

    Args:
        path: a folder, or a manifest's CSV of which only what is missing is added.
        layout: one of `layouts.LAYOUTS`, or "auto".
        seed: of the split.
        progress: told what is being done and the share that is done.
        labels: what a class is called from here on: ``{"spiral": "oblique"}`` merges the two, ``{"none": ""}`` leaves
            that class out.

    Returns:
        The manifest: every image readable, with label, patient and split. Its notes say what was left out and why.

    Raises:
        InputError: the data set cannot be read or split, or has no such class.
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
    """`prepare`, and the images that are the same, so that an audit need not look for them again."""
    manifest = _relabelled(open_manifest(path, layout), labels)
    found = duplicates.find(manifest, progress)
    manifest = duplicates.with_groups(manifest, found=found)
    unlabelled = sum(not record.label for record in manifest.records)
    if unlabelled:
        kept = tuple(record for record in manifest.records if record.label)
        manifest = replace(
            manifest,
            records=kept,
            notes=(*manifest.notes, f"{plural(unlabelled, 'image')} without label left out"),
        )
    whose = {record.path: record.patient for record in manifest.records}
    together = [{whose[path] for path in cluster if path in whose} for cluster in found.clusters]
    return split(manifest, fractions, seed, keep_splits, [some for some in together if len(some) > 1]), found
