"""Search for duplicate images: exact copies, and copies that were rotated, mirrored, cropped or changed in grey levels.

Public fracture data sets contain many of them (in HBFMID, 40 of 64 test images have a copy in the training split),
often because images were augmented before the split. A network that was trained on one copy recognises the other, so
the test scores are too high. Where a data set names no patients, duplicates therefore form one group, and all images
of a group go into the same split.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np

from ..._errors import InputError
from .fingerprints import Fingerprint, fingerprints
from .manifest import Manifest, Record, natural_key, plural
from .similarity import candidates, confirm

__all__ = ["SAME", "SURE", "Duplicates", "Pair", "find", "known", "readable", "with_groups"]

Progress = Callable[[str, float], None]

SAME = 0.8
"""Minimum similarity (NCC of detail after registration) of duplicates, unless the data set names two patients.

Measured: the 46 pairs of rotated, sheared and mirrored copies among 47 real radiographs have a similarity of 0.86 to
1.00, pairs of different patients less than 0.46. Among 900 synthetic phantoms (all straight bones, the most similar
that different patients can be), 17 of the 404,550 pairs exceed the threshold. Of copies that were mirrored, rotated by
up to 7.5 degrees, sheared, zoomed, changed in grey levels, made noisy and compressed all at once, 89 % exceed it."""

SURE = 0.92
"""Minimum similarity of duplicates where the data set names two patients: no pair of the 900 phantoms exceeds it
(the highest is 0.89)."""

_GROUP = re.compile(r"^group-\d{4,}$")
_ROBOFLOW = re.compile(r"^(?P<source>.+)[_.](?:jpe?g|png|bmp|tiff?)\.rf\.[0-9a-f]{8,}\.\w+$", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """A pair of duplicate images.

    Attributes:
        one, other: paths of the two images.
        kind: "file" (equal bytes), "pixels" (equal pixels in different files), "near" (rotated, mirrored, cropped or
            changed in grey levels) or "name" (both derived from one source image, according to the file names that
            Roboflow writes: ``<source>_jpg.rf.<hash>.jpg``).
        similarity: 1 for "file" and "pixels", the NCC of the detail after registration for "near", NaN for "name".
    """

    one: Path
    other: Path
    kind: str
    similarity: float


@dataclass(frozen=True)
class Duplicates:
    """Result of a search for duplicates in a data set.

    Attributes:
        pairs: enough pairs to connect each cluster, not all of its pairs: equal files first, then equal pixels, near
            duplicates by falling similarity, and equal names.
        clusters: paths of the images of each cluster (at least two), the largest cluster first.
        read: fingerprint of each readable image.
        damaged: {path: reason} of the images that cannot be read.
    """

    pairs: tuple[Pair, ...]
    clusters: tuple[tuple[Path, ...], ...]
    read: dict[Path, Fingerprint]
    damaged: dict[Path, str]


class _Union:
    """Union-find over the integers 0 to count - 1."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def root(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = i = self.parent[self.parent[i]]
        return i

    def join(self, i: int, j: int) -> bool:
        i, j = self.root(i), self.root(j)
        self.parent[max(i, j)] = min(i, j)
        return i != j


def _source(path: Path) -> str:
    """Name of the source image of a file exported by Roboflow; "" for other files."""
    found = _ROBOFLOW.match(path.name)
    return found["source"].casefold() if found else ""


def known(record: Record) -> bool:
    """Whether the data set names the image's patient. A derived group ("group-0001") is not a patient."""
    return bool(record.patient) and not _GROUP.match(record.patient)


def find(manifest: Manifest, progress: Progress = lambda what, share: None) -> Duplicates:
    """Find the duplicate images of a data set.

    Args:
        manifest: the images. The result lists those that cannot be read.
        progress: called with a description of the current step and the completed share, 0 to 1.

    Returns:
        The duplicates found. The order of the records does not change the result.
    """
    patients = {record.path: record.patient for record in manifest.records if known(record)}
    ordered = sorted({record.path for record in manifest.records}, key=natural_key)
    read, damaged = fingerprints(ordered, lambda what, share: progress(what, 0.5 * share))
    names = list(read)
    exact: list[tuple[int, int, str, float]] = []
    stand_ins: list[int] = []  # one image of each set of equal pixels: exact copies are not searched again
    for key, kind in (("file", "file"), ("pixels", "pixels")):
        first: dict[str, int] = {}
        for i, name in enumerate(names):
            j = first.setdefault(getattr(read[name], key), i)
            if i != j:
                exact.append((j, i, kind, 1.0))
            elif key == "pixels":
                stand_ins.append(i)
    near: list[tuple[int, int, str, float]] = []
    if len(stand_ins) > 1:
        thumbnails = np.stack([read[names[i]].thumbnail for i in stand_ins])
        pairs, poses = candidates(thumbnails, progress=lambda share: progress("comparing", 0.5 + 0.2 * share))
        similarity = confirm(thumbnails, pairs, poses, lambda share: progress("confirming", 0.7 + 0.3 * share))
        for k in np.flatnonzero(similarity >= SAME):
            i, j = stand_ins[pairs[k, 0]], stand_ins[pairs[k, 1]]
            whose = {patients.get(names[i], ""), patients.get(names[j], "")}
            if similarity[k] >= SURE or len(whose) == 1 or "" in whose:
                near.append((i, j, "near", float(similarity[k])))
        near.sort(key=lambda row: (-row[3], row))
    named: list[tuple[int, int, str, float]] = []
    sources: dict[str, int] = {}
    for i, name in enumerate(names):
        if source := _source(name):
            j = sources.setdefault(source, i)
            if i != j:
                named.append((j, i, "name", float("nan")))
    union, found = _Union(len(names)), []
    for i, j, kind, value in (*exact, *near, *named):
        if union.join(i, j) or kind == "near":
            found.append(Pair(names[i], names[j], kind, value))
    clusters: dict[int, list[Path]] = {}
    for i, name in enumerate(names):
        clusters.setdefault(union.root(i), []).append(name)
    large = sorted((tuple(c) for c in clusters.values() if len(c) > 1), key=lambda c: (-len(c), natural_key(c[0])))
    return Duplicates(tuple(found), tuple(large), read, damaged)


def readable(manifest: Manifest, found: Duplicates) -> Manifest:
    """Remove the images that cannot be read from a manifest and add a note that counts and names them.

    Raises:
        InputError: no image can be read.
    """
    if not found.damaged:
        return manifest
    rows = tuple(record for record in manifest.records if record.path not in found.damaged)
    first, why = next(iter(found.damaged.items()))
    if not rows:
        raise InputError(f"none of the {len(found.damaged)} images can be read; the first is {first}: {why}")
    listed = "; ".join(f"{path.name}: {why}" for path, why in list(found.damaged.items())[:5])
    more = f"; and {len(found.damaged) - 5} more" if len(found.damaged) > 5 else ""
    note = f"{plural(len(found.damaged), 'image')} left out as unreadable: {listed}{more}"
    return replace(manifest, records=rows, notes=(*manifest.notes, note))


def with_groups(
    manifest: Manifest, progress: Progress = lambda what, share: None, found: Duplicates | None = None
) -> Manifest:
    """Fill in missing patients: each set of duplicate images becomes a group ("group-0001" and so on).

    A duplicate of a known patient's image is assigned to that patient; a duplicate of images of several patients is
    assigned to the first of them. Known patients never change. A note reports duplicates of different patients.

    Args:
        manifest: the images.
        progress: called with a description of the current step and the completed share, 0 to 1.
        found: result of `find` for this manifest, if it is available.

    Returns:
        The manifest with all patients filled in and without the images that cannot be read; notes report both. The
        manifest is returned unchanged if all patients are known and `found` is None.

    Raises:
        InputError: no image can be read.
    """
    if found is None:
        if all(record.patient for record in manifest.records):
            return manifest
        found = find(manifest, progress)
    manifest = readable(manifest, found)
    cluster = {path: number for number, paths in enumerate(found.clusters) for path in paths}
    owners: dict[int, set[str]] = {}
    for record in manifest.records:
        if record.patient and record.path in cluster:
            owners.setdefault(cluster[record.path], set()).add(record.patient)
    names: dict[int | Path, str] = {}
    patients = {record.path: record.patient for record in manifest.records}
    taken = set(patients.values())
    free = (name for name in map("group-{:04d}".format, count(1)) if name not in taken)
    derived: Counter[str] = Counter()
    for path in sorted(patients, key=natural_key):
        if patients[path]:
            continue
        key: int | Path = cluster.get(path, path)
        if key not in names:
            names[key] = min(owners[key], key=natural_key) if isinstance(key, int) and key in owners else next(free)
        patients[path] = names[key]
        derived[names[key]] += 1
    notes = list(manifest.notes)
    if derived:
        notes.append(
            f"{plural(derived.total(), 'image')} had no patient: {plural(len(derived), 'group')} of duplicate images "
            f"replace the patients (largest group: {plural(max(derived.values()), 'image')})"
        )
        notes += _chain(found, manifest)
    notes += [
        f"{len(those)} patients share duplicate images, so they go into the same split: "
        f"{_some(found.clusters[number], patients, those)}"
        for number, those in owners.items()
        if len(those) > 1
    ]
    return replace(manifest, notes=tuple(notes)).with_columns(patient=[patients[r.path] for r in manifest.records])


def _some(paths: tuple[Path, ...], patients: dict[Path, str], those: set[str]) -> str:
    """Names of one file of each given patient."""
    first: dict[str, Path] = {}
    for path in paths:
        if patients[path] in those:
            first.setdefault(patients[path], path)
    return ", ".join(path.name for path in first.values())


def _chain(found: Duplicates, manifest: Manifest) -> list[str]:
    """Warn of a cluster so large that it probably joins different images through chains of similar ones."""
    largest = found.clusters[0] if found.clusters else ()
    if len(largest) <= max(0.2 * len(manifest), 5):
        return []
    return [
        f"one group of duplicate images has {len(largest) / len(manifest):.0%} of all images: {largest[0].name} and "
        f"{len(largest) - 1} more. Inspect them with se-fused fracture audit --plot; if they show different patients, "
        "add the patients to the manifest"
    ]
