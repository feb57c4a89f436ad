"""Images that are the same but for the file: copies, and copies that were turned, mirrored, cropped or regreyed.

Public fracture sets are full of them (in HBFMID 40 of 64 test images have a copy among the training images), often
made by augmentation before the split, and a network that has seen one knows the other. So where a data set names no
patients, images that are the same become one group, which no split may part.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import InputError
from .fingerprints import Fingerprint, fingerprints
from .manifest import Manifest, natural_key
from .similarity import candidates, confirm

__all__ = ["SAME", "Duplicates", "Pair", "find", "with_groups"]

Progress = Callable[[str, float], None]

SAME = 0.85
"""From this similarity on (NCC of the detail after registration) two images count as the same."""

_ROBOFLOW = re.compile(r"^(?P<source>.+)[_.](?:jpe?g|png|bmp|tiff?)\.rf\.[0-9a-f]{8,}\.\w+$", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """Two images that are the same.

    Attributes:
        one, other: their paths.
        kind: "file" (the same bytes), "pixels" (the same picture in another file), "near" (turned, mirrored, cropped,
            regreyed) or "name" (made from one picture, says Roboflow's naming ``<source>_jpg.rf.<hash>.jpg``).
        similarity: 1 for the same pixels; NCC of the detail after registration otherwise.
    """

    one: Path
    other: Path
    kind: str
    similarity: float


@dataclass(frozen=True)
class Duplicates:
    """Which images of a data set are the same.

    Attributes:
        pairs: enough to connect each cluster, not all pairs in it; the most similar first.
        clusters: paths, each at least two, the largest cluster first.
        read: what is remembered of each image that could be read.
        damaged: {path: why it could not be}.
    """

    pairs: tuple[Pair, ...]
    clusters: tuple[tuple[Path, ...], ...]
    read: dict[Path, Fingerprint]
    damaged: dict[Path, str]


class _Union:
    """Disjoint sets of 0 ... n - 1."""

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
    """Which picture Roboflow made this file from, "" if it did not."""
    found = _ROBOFLOW.match(path.name)
    return found["source"].casefold() if found else ""


def find(paths: Sequence[Path], progress: Progress = lambda what, share: None) -> Duplicates:
    """Look for images that are the same.

    20,000 images take about as long as reading them and a minute or two more.

    Args:
        paths: the images; those that cannot be read are listed in the result.
        progress: told what is being done and the share that is done.

    Returns:
        What was found; the same for the same files in another order.
    """
    ordered = sorted(set(paths), key=natural_key)
    read, damaged = fingerprints(ordered, lambda what, share: progress(what, 0.5 * share))
    names = list(read)
    exact: list[tuple[int, int, str, float]] = []
    stand_ins: list[int] = []  # one of each distinct picture: copies need no search
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
            near.append((stand_ins[pairs[k, 0]], stand_ins[pairs[k, 1]], "near", float(similarity[k])))
        near.sort(key=lambda row: (-row[3], row))
    named: list[tuple[int, int, str, float]] = []
    sources: dict[tuple[str, str], int] = {}
    for i, name in enumerate(names):
        if source := _source(name):
            j = sources.setdefault((_collection(name), source), i)
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


def _collection(path: Path) -> str:
    """Only files of one export were numbered together; "" as splits and classes are folders within it."""
    return ""


def with_groups(
    manifest: Manifest, progress: Progress = lambda what, share: None, found: Duplicates | None = None
) -> Manifest:
    """Fill in the patients that are not known: images that are the same are one group, "group-0001" and so on.

    An image that is the same as one of a known patient becomes that patient's. Known patients are never changed: where
    images of two of them are the same, that is said in the notes.

    Args:
        manifest: the images.
        progress: told what is being done and the share that is done.
        found: what `find` says of them, if it has been asked already.

    Returns:
        The manifest with all patients filled in, without the images that cannot be read, and with notes on both.

    Raises:
        InputError: none of the images can be read.
    """
    if not manifest.records or all(record.patient for record in manifest.records):
        return manifest
    if found is None:
        found = find([record.path for record in manifest.records], progress)
    rows = [record for record in manifest.records if record.path not in found.damaged]
    notes = list(manifest.notes)
    if found.damaged:
        first, why = next(iter(found.damaged.items()))
        if not rows:
            raise InputError(f"none of the {len(found.damaged)} images can be read; the first: {first}: {why}")
        listed = "; ".join(f"{path.name}: {why}" for path, why in list(found.damaged.items())[:5])
        more = f"; and {len(found.damaged) - 5} more" if len(found.damaged) > 5 else ""
        notes.append(f"{len(found.damaged)} images cannot be read and are left out: {listed}{more}")

    cluster = {path: number for number, paths in enumerate(found.clusters) for path in paths}
    known: dict[int, set[str]] = {}
    for record in rows:
        if record.patient and record.path in cluster:
            known.setdefault(cluster[record.path], set()).add(record.patient)
    taken, names, patients, unknown = {record.patient for record in rows}, {}, [], 0
    for record in sorted(rows, key=lambda record: natural_key(record.path)):
        key = cluster.get(record.path, record.path)
        if not record.patient and key not in names and len(known.get(cluster.get(record.path, -1), ())) != 1:
            unknown += 1
            while f"group-{unknown:04d}" in taken:
                unknown += 1
            names[key] = f"group-{unknown:04d}"
    for record in rows:
        owners = known.get(cluster.get(record.path, -1), set())
        own = next(iter(owners)) if len(owners) == 1 else names.get(cluster.get(record.path, record.path), "")
        patients.append(record.patient or own)
    groups = Counter(p for p, r in zip(patients, rows, strict=True) if not r.patient)
    images = sum(groups.values())
    notes.append(
        f"{images} images have no patient: {len(groups)} groups of images that are the same stand in for patients "
        f"(the largest holds {max(groups.values())})"
    )
    for number, owners in known.items():
        if len(owners) > 1:
            example = [path.name for path in found.clusters[number]][:2]
            notes.append(f"{len(owners)} patients share images that are the same ({' and '.join(example)}, ...)")
    notes += _chains(found, len(rows))
    return Manifest(tuple(rows), tuple(notes)).with_columns(patient=patients)


def _chains(found: Duplicates, count: int) -> list[str]:
    """A warning where one cluster is so large that likeness seems to have passed from image to image."""
    if found.clusters and len(found.clusters[0]) > 0.2 * count and len(found.clusters[0]) > 5:
        share = len(found.clusters[0]) / count
        return [
            f"one group of images that are the same holds {share:.0%} of the data ({found.clusters[0][0].name} and "
            f"{len(found.clusters[0]) - 1} more): look at it with se-fused audit --plot; if they are different "
            "people, name the patients in the manifest"
        ]
    return []
