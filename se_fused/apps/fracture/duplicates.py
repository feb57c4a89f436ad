"""Images that are the same but for the file: copies, and copies that were turned, mirrored, cropped or regreyed.

Public fracture sets are full of them (in HBFMID 40 of 64 test images have a copy among the training images), often
made by augmentation before the split, and a network that has seen one knows the other. So where a data set names no
patients, images that are the same become one group, which no split may part.
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
"""From this similarity on (NCC of detail after registration) two images count as the same, if nobody says otherwise.

Measured: the 46 pairs of turned, sheared and mirrored copies among 47 real radiographs lie at 0.86 to 1.00, pairs of
different patients below 0.46. Among 900 synthetic phantoms, all of them straight bones and so as alike as different
patients can be, 17 of the 404,550 pairs lie above; of copies that were mirrored, turned by up to 7.5 degrees, sheared,
zoomed, regreyed, made noisy and compressed all at once, 89 % do."""

SURE = 0.92
"""From this on even where the data set names two patients: no pair of those phantoms lies above (most: 0.89)."""

_GROUP = re.compile(r"^group-\d{4,}$")
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


def known(record: Record) -> bool:
    """Whether the data set names the image's patient; a group of ours is none."""
    return bool(record.patient) and not _GROUP.match(record.patient)


def find(manifest: Manifest, progress: Progress = lambda what, share: None) -> Duplicates:
    """Look for images that are the same.

    Args:
        manifest: the images; those that cannot be read are listed in the result.
        progress: told what is being done and the share that is done.

    Returns:
        What was found; the same for the same records in another order.
    """
    patients = {record.path: record.patient for record in manifest.records if known(record)}
    ordered = sorted({record.path for record in manifest.records}, key=natural_key)
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
    """The manifest without the images that cannot be read; a note names and counts them.

    Raises:
        InputError: none can be read.
    """
    if not found.damaged:
        return manifest
    rows = tuple(record for record in manifest.records if record.path not in found.damaged)
    first, why = next(iter(found.damaged.items()))
    if not rows:
        raise InputError(f"none of the {len(found.damaged)} images can be read; the first: {first}: {why}")
    listed = "; ".join(f"{path.name}: {why}" for path, why in list(found.damaged.items())[:5])
    more = f"; and {len(found.damaged) - 5} more" if len(found.damaged) > 5 else ""
    note = f"{plural(len(found.damaged), 'image')} left out as unreadable: {listed}{more}"
    return replace(manifest, records=rows, notes=(*manifest.notes, note))


def with_groups(
    manifest: Manifest, progress: Progress = lambda what, share: None, found: Duplicates | None = None
) -> Manifest:
    """Fill in the patients that are not known: images that are the same are one group, "group-0001" and so on.

    An image that is the same as one of a known patient becomes that patient's; one that is the same as several
    patients' becomes the first one's. Known patients are never changed: where images of two of them are the same, a
    note says so.

    Args:
        manifest: the images.
        progress: told what is being done and the share that is done.
        found: what `find` says of them, if it has been asked already.

    Returns:
        The manifest with all patients filled in, without the images that cannot be read, and with notes on both. As it
        is if all patients are known and `found` was not given.

    Raises:
        InputError: none of the images can be read.
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
            f"{plural(derived.total(), 'image')} had no patient: {plural(len(derived), 'group')} of images that are "
            f"the same stand in (the largest: {plural(max(derived.values()), 'image')})"
        )
        notes += _chain(found, manifest)
    notes += [
        f"{len(those)} patients have the same image, so they go into one split: "
        f"{_some(found.clusters[number], patients, those)}"
        for number, those in owners.items()
        if len(those) > 1
    ]
    return replace(manifest, notes=tuple(notes)).with_columns(patient=[patients[r.path] for r in manifest.records])


def _some(paths: tuple[Path, ...], patients: dict[Path, str], those: set[str]) -> str:
    """One file of each of those patients."""
    first: dict[str, Path] = {}
    for path in paths:
        if patients[path] in those:
            first.setdefault(patients[path], path)
    return ", ".join(path.name for path in first.values())


def _chain(found: Duplicates, manifest: Manifest) -> list[str]:
    """A warning where one cluster is so large that likeness seems to have passed on from image to image."""
    largest = found.clusters[0] if found.clusters else ()
    if len(largest) <= max(0.2 * len(manifest), 5):
        return []
    return [
        f"one group of images that are the same holds {len(largest) / len(manifest):.0%} of all, {largest[0].name} and "
        f"{len(largest) - 1} more: look at them with se-fused fracture audit --plot; if they are different people, "
        "name the patients in the manifest"
    ]
