"""Audit of a data set before training: leaks between splits, conflicting labels, damaged files."""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..._errors import InputError
from . import duplicates, images
from .duplicates import Duplicates, Pair
from .manifest import SPLITS, Manifest, Record, ordered_classes
from .splits import parted

__all__ = ["Audit", "audit", "draw_pairs"]

Progress = Callable[[str, float], None]
Row = tuple[str, str, str, str, str, float | None]

_FLAT = 0.01  # images with a smaller standard deviation (black is 0, white is 1) are blank
_SHOWN = 8  # entries of a list printed
_DRAWN = 24  # pairs drawn on a sheet


@dataclass(frozen=True)
class Audit:
    """Findings of `audit`. Paths of images are relative to `folder`.

    Attributes:
        folder: the deepest folder that contains all images.
        images, patients, unlabelled: numbers of images, of patients (including derived groups) and of images without
            a label.
        damaged: {path: reason} of the images that cannot be read.
        across_splits: duplicates in two splits as (one, its split, other, its split, kind, similarity); kind as in
            :class:`se_fused.apps.fracture.duplicates.Pair`, or "chain" (connected through images without a split).
        patients_across_splits: {patient: splits} of patients in several splits.
        across_patients: duplicates of two patients, as above with "patient N" (N counts the patients of this data set)
            instead of the split.
        conflicting: duplicates with two labels, as above with the label instead of the split.
        copies, clusters: number of images with a duplicate, and of the clusters that they form.
        largest_cluster: number of images of the largest cluster.
        counts: {split: {label: images}}.
        split_patients: {split: patients}.
        images_per_patient: {least, median, most}.
        sizes: {least, most} of height and width in pixels; bits: {bits per pixel: images}.
        flat: blank images.
        shift: test for differing class shares between splits, {chi2, degrees, p}; None with fewer than two splits or
            classes.
        notes: notes of the manifest.
    """

    folder: str
    images: int
    patients: int
    unlabelled: int
    damaged: dict[str, str]
    across_splits: tuple[Row, ...]
    patients_across_splits: dict[str, tuple[str, ...]]
    across_patients: tuple[Row, ...]
    conflicting: tuple[Row, ...]
    copies: int
    clusters: int
    largest_cluster: int
    counts: dict[str, dict[str, int]]
    split_patients: dict[str, int]
    images_per_patient: dict[str, float]
    sizes: dict[str, int]
    bits: dict[str, int]
    flat: tuple[str, ...]
    shift: dict[str, float] | None
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether no image or patient leaks between splits and every image can be read."""
        return not (self.across_splits or self.patients_across_splits or self.damaged)

    def as_dict(self) -> dict[str, Any]:
        """All findings as JSON-compatible values."""
        return {"ok": self.ok, **json.loads(json.dumps(asdict(self)))}

    def text(self) -> str:
        """The findings as text for the terminal."""
        return "\n".join(_lines(self)) + "\n"


def _lines(found: Audit) -> list[str]:
    every = {name for row in found.counts.values() for name in row}
    labels = [*ordered_classes(every), *[""] * ("" in every)]
    splits = [name for name in (*SPLITS, "") if name in found.counts]
    head = ["", *[name or "(no split)" for name in splits]]
    rows = [[name or "(no label)", *[str(found.counts[s].get(name, 0)) for s in splits]] for name in labels]
    rows.append(["images", *[str(sum(found.counts[s].values())) for s in splits]])
    rows.append(["patients or groups", *[str(found.split_patients.get(s, 0)) for s in splits]])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *[cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]]
        return "  " + "  ".join(cells).rstrip()

    several = found.images_per_patient
    out = [f"{found.images} images in {found.folder}"]
    out += [f"  {note}" for note in found.notes]
    out += ["", line(head), *[line(row) for row in rows], ""]
    out.append(
        f"images per patient or group: {several['least']:g} to {several['most']:g}, median {several['median']:g}; "
        f"{found.sizes['least']} to {found.sizes['most']} pixels a side; "
        + ", ".join(f"{n} of {bits} bits" if bits != "0" else f"{n} of unknown depth" for bits, n in found.bits.items())
    )
    if found.copies:
        out.append(
            f"{found.copies} images have duplicates (equal, or rotated, mirrored, cropped, changed in grey levels): "
            f"{found.clusters} clusters; images in the largest cluster: {found.largest_cluster}"
        )
    if found.shift is not None:
        differ = "differ more than by chance" if found.shift["p"] < 0.01 else "differ no more than by chance"
        out.append(f"class shares {differ} between splits (chi-squared p = {found.shift['p']:.2g})")
    out.append("")

    def section(title: str, entries: Sequence[str]) -> None:
        if entries:
            out.append(f"{title}: {len(entries)}")
            out.extend(f"  {entry}" for entry in entries[:_SHOWN])
            if len(entries) > _SHOWN:
                out.append(f"  ... and {len(entries) - _SHOWN} more (--json FILE lists all)")

    def pairs(rows: Sequence[Row]) -> list[str]:
        return [f"{one} ({a}) = {other} ({b}): {_KINDS[kind]}{_value(kind, v)}" for one, a, other, b, kind, v in rows]

    section("LEAK: duplicate images in two splits", pairs(found.across_splits))
    section(
        "LEAK: patients in two splits",
        [f"{patient}: {', '.join(where)}" for patient, where in found.patients_across_splits.items()],
    )
    section("DAMAGED FILES", [f"{path}: {why}" for path, why in found.damaged.items()])
    section("duplicate images of two patients", pairs(found.across_patients))
    section("duplicate images with two labels", pairs(found.conflicting))
    section("blank images", found.flat)
    if found.unlabelled:
        out.append(f"images without a label: {found.unlabelled}")
    unsplit = "" in found.counts
    if not found.ok:
        remedy = "se-fused fracture prepare writes splits without leaks and leaves out damaged files"
        out.append(f"NOT OK: {remedy}")
    elif unsplit:
        out.append("OK: no damaged files; images have no split yet: run se-fused fracture prepare")
    else:
        out.append("OK: no leaks between splits, no damaged files")
    return out


_KINDS = {"file": "equal files", "pixels": "equal pixels", "near": "modified copy", "name": "same source image by name",
          "chain": "connected through a chain of duplicates"}  # fmt: skip


def _value(kind: str, value: float | None) -> str:
    return f", NCC {value:.2f}" if kind == "near" else ""


def _shift(counts: dict[str, Counter[str]]) -> dict[str, float] | None:
    """Pearson's chi-squared test of homogeneity of the class shares over the splits."""
    splits = [name for name in SPLITS if counts.get(name)]
    labels = sorted({label for name in splits for label in counts[name] if label})
    if len(splits) < 2 or len(labels) < 2:
        return None
    import torch

    seen = np.array([[counts[name][label] for label in labels] for name in splits], np.float64)
    seen = seen[seen.sum(1) > 0]
    expected = seen.sum(1, keepdims=True) * seen.sum(0, keepdims=True) / seen.sum()
    chi2 = float(((seen - expected) ** 2 / expected).sum())
    degrees = (len(seen) - 1) * (len(labels) - 1)
    # The upper tail of the chi-squared distribution is the regularised upper incomplete gamma function.
    p = float(torch.special.gammaincc(torch.tensor(degrees / 2).double(), torch.tensor(chi2 / 2).double()))
    return {"chi2": chi2, "degrees": degrees, "p": p}


def audit(manifest: Manifest, found: Duplicates | None = None) -> Audit:
    """Check a data set for faults that falsify test scores.

    Args:
        manifest: the data set; patients, splits and labels may be missing.
        found: result of :func:`se_fused.apps.fracture.duplicates.find` for this manifest, if it is available.

    Returns:
        The findings. No file is changed; damaged images are listed.

    Raises:
        InputError: the manifest is empty.
    """
    if not manifest.records:
        raise InputError("the manifest contains no images; make one with se-fused fracture prepare")
    if found is None:
        found = duplicates.find(manifest)
    records = {record.path: record for record in manifest.records}
    folder = Path(os.path.commonpath([path.parent for path in records]))

    def short(path: Path) -> str:
        return path.relative_to(folder).as_posix()

    def differing(attribute: str) -> tuple[Row, ...]:
        rows = []
        for pair in _connected(found, records, attribute):
            a, b = (str(getattr(records[path], attribute)) for path in (pair.one, pair.other))
            if attribute == "patient":
                a, b = numbers[a], numbers[b]
            rows.append(
                (
                    short(pair.one),
                    a,
                    short(pair.other),
                    b,
                    pair.kind,
                    None if math.isnan(pair.similarity) else pair.similarity,
                )
            )
        return tuple(rows)

    people = sorted({record.patient for record in manifest.records if record.patient})
    numbers = {patient: f"patient {number}" for number, patient in enumerate(people, 1)}
    per_patient = list(Counter(record.patient for record in manifest.records if record.patient).values()) or [0]
    sides = [side for one in found.read.values() for side in (one.height, one.width)] or [0]
    bits = Counter(str(one.bits) for one in found.read.values())
    counts = manifest.counts()
    return Audit(
        folder=str(folder),
        images=len(manifest),
        patients=len(people),
        unlabelled=sum(not record.label for record in manifest.records),
        damaged={short(path): why for path, why in found.damaged.items() if path in records},
        across_splits=differing("split"),
        patients_across_splits={
            patient: tuple(name for name in SPLITS if name in where) for patient, where in parted(manifest).items()
        },
        across_patients=differing("patient"),
        conflicting=differing("label"),
        copies=sum(map(len, found.clusters)),
        clusters=len(found.clusters),
        largest_cluster=len(found.clusters[0]) if found.clusters else 0,
        counts={split: dict(row) for split, row in counts.items()},
        split_patients={
            split: len({record.patient for record in manifest.where(split).records if record.patient})
            for split in counts
        },
        images_per_patient={
            "least": float(min(per_patient)),
            "median": float(np.median(per_patient)),
            "most": float(max(per_patient)),
        },
        sizes={"least": min(sides), "most": max(sides)},
        bits={name: bits[name] for name in sorted(bits, key=int)},
        flat=tuple(short(path) for path, one in found.read.items() if one.contrast < _FLAT),
        shift=_shift(counts),
        notes=manifest.notes,
    )


def _connected(found: Duplicates, records: dict[Path, Record], attribute: str) -> list[Pair]:
    """Pairs of duplicates that differ in a column of the manifest in which both have a value.

    These are the measured pairs. Where no measured pair of a cluster differs but two of its images do (they are
    connected through images without a value), one pair of kind "chain" represents the cluster.
    """
    direct = [pair for pair in found.pairs if pair.one in records and pair.other in records]

    def values(paths: Sequence[Path]) -> list[str]:
        return [str(getattr(records[path], attribute)) for path in paths if path in records]

    rows = [p for p in direct if all(v := values((p.one, p.other))) and v[0] != v[1]]
    seen = {path for pair in rows for path in (pair.one, pair.other)}
    for cluster in found.clusters:
        filled = [path for path in cluster if path in records and getattr(records[path], attribute)]
        if filled and not seen.intersection(cluster):
            first = filled[0]
            other = next((p for p in filled if values((p,)) != values((first,))), None)
            if other is not None:
                rows.append(Pair(first, other, "chain", float("nan")))
    return rows


def draw_pairs(manifest: Manifest, found: Duplicates, path: str | os.PathLike[str]) -> int:
    """Draw up to 24 pairs of duplicates side by side: pairs in two splits first, near duplicates by rising similarity.

    Args:
        manifest: the data set.
        found: result of :func:`se_fused.apps.fracture.duplicates.find` for this manifest.
        path: a .png, .pdf or .svg, written atomically.

    Returns:
        Number of pairs. Without any pair, no file is written.

    Raises:
        ImportError: matplotlib is not installed.
    """
    records = {record.path: record for record in manifest.records}
    pairs = [pair for pair in found.pairs if pair.one in records and pair.other in records]

    def leaks(pair: Pair) -> bool:
        one, other = records[pair.one].split, records[pair.other].split
        return bool(one and other and one != other)

    pairs.sort(key=lambda pair: (not leaks(pair), pair.kind != "near", pair.similarity))
    if not pairs:
        return 0
    pictures, titles = [], []
    for pair in pairs[:_DRAWN]:
        value = _value(pair.kind, pair.similarity).removeprefix(", ") or _KINDS[pair.kind]
        for one, more in ((pair.one, value), (pair.other, "LEAK" if leaks(pair) else "")):
            pictures.append(images.load_radiograph(one, 224)[0].numpy())
            where = records[one].split or "no split"
            titles.append(f"{_cut(one.name)}\n{where}{', ' + more if more else ''}")
    shown = f"{len(pairs)} pairs" if len(pairs) <= _DRAWN else f"{_DRAWN} of {len(pairs)} pairs"
    images.save_sheet(np.stack(pictures), titles, path, f"duplicate images: {shown}, side by side")
    return len(pairs)


def _cut(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:14]}...{name[-7:]}"
