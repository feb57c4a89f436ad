"""Stratified splits into train, valid and test. All images of a patient go into the same split."""

import hashlib
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..._errors import InputError
from .manifest import SPLITS, Manifest

__all__ = ["FRACTIONS", "parted", "split"]

FRACTIONS = (0.7, 0.15, 0.15)
"""Default shares of the images in train, valid and test."""

_TRIES = 20


def _units(manifest: Manifest, together: Iterable[Collection[str]]) -> dict[str, str]:
    """{patient: representative of the patients that must go into the same split}."""
    unit = {record.patient: record.patient for record in manifest.records}
    for group in together:
        joined = {unit[patient] for patient in group if patient in unit}
        for patient, old in unit.items():
            if old in joined:
                unit[patient] = min(joined)
    return unit


def parted(manifest: Manifest, together: Iterable[Collection[str]] = ()) -> dict[str, set[str]]:
    """{representative patient: splits} of the patients, or sets of patients in `together`, in more than one split."""
    unit, found = _units(manifest, together), dict[str, set[str]]()
    for record in manifest.records:
        if record.patient and record.split:
            found.setdefault(unit[record.patient], set()).add(record.split)
    return {patient: where for patient, where in found.items() if len(where) > 1}


def _check(manifest: Manifest, parts: int, unit: dict[str, str]) -> None:
    """Raise InputError unless the records can be split into `parts` parts that each contain every class."""
    if not manifest.records:
        raise InputError("the manifest contains no images; make one with se-fused fracture prepare")
    missing = [record for record in manifest.records if not record.patient]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(manifest)} images have no patient, first {missing[0].path.name}: "
            "run se-fused fracture prepare, which derives groups"
        )
    unlabelled = [record for record in manifest.records if not record.label]
    if unlabelled:
        raise InputError(
            f"{len(unlabelled)} of {len(manifest)} images have no label, first {unlabelled[0].path.name}: "
            "label them or remove them from the manifest"
        )
    if len(manifest.classes) < 2:
        raise InputError(f"all images are of one class, {manifest.classes[0]!r}: a classifier needs two or more")
    people = set(unit.values())
    if len(people) < parts:
        raise InputError(
            f"{_patients(len(people))} cannot fill {parts} splits: at least {parts} are needed; add more patients"
        )
    few = []
    for name in manifest.classes:
        having = {unit[record.patient] for record in manifest.records if record.label == name}
        if len(having) < parts:
            few.append(f"{name!r} has images of {_patients(len(having))}")
    if few:
        raise InputError(
            f"each class needs images of {parts} patients, one for each of {parts} splits; {', '.join(few)}: add "
            "images, merge classes (se-fused fracture prepare --label CLASS=OTHER) or leave them out (--label CLASS=)"
        )


def _patients(number: int) -> str:
    return f"{number} patient{'' if number == 1 else 's'} (or group{'' if number == 1 else 's'} of duplicate images)"


def _assign(counts: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Assign each patient to a part, (patients,): greedily, so that the class shares approach `shares`.

    Patients with the most images are assigned first.

    Args:
        counts: (patients, classes) numbers of images.
        shares: (parts,) shares that sum to 1.
        rng: breaks ties and orders patients with equally many images.
    """
    total = counts.sum(0)
    wanted = shares[:, None] * total
    weight = 1 / np.maximum(total, 1)  # rare classes weigh as much as frequent ones
    people_wanted = shares[:, None] * (counts > 0).sum(0)
    have, people_have = np.zeros_like(wanted), np.zeros_like(wanted)
    waiting = (counts > 0).sum(0)
    place = np.full(len(counts), -1)
    order = rng.permutation(len(counts))
    # Patients with the most images first; among equal ones, those with images of rare classes first.
    rarity = (counts * weight).max(1)
    order = order[np.lexsort((-rarity[order], -counts.sum(1)[order]))]
    for i in order:
        row, there = counts[i], counts[i] > 0
        # Increase of the squared distance to the target counts of each part, relative to its share.
        images = (((have + row - wanted) ** 2 - (have - wanted) ** 2) * weight**2 / shares[:, None]).sum(1)
        people = (
            ((people_have + there - people_wanted) ** 2 - (people_have - people_wanted) ** 2)
            / np.maximum((counts > 0).sum(0), 1) ** 2
            / shares[:, None]
        ).sum(1)
        cost = images + people + 1e-12 * rng.random(len(shares))
        # The last patients of a class go to parts that do not have the class yet.
        lacking = (people_have == 0) & there & (waiting <= (people_have == 0).sum(0))
        if lacking.any():
            cost = np.where(lacking.sum(1) == lacking.sum(1).max(), cost, np.inf)
        waiting -= there
        part = int(cost.argmin())
        place[i] = part
        have[part] += row
        people_have[part] += there
    return place


def _unbalance(counts: NDArray[np.int64], shares: NDArray[np.float64], place: NDArray[np.int64]) -> float:
    """Squared distance of the class shares from the target shares, plus 1000 for each class missing from a part."""
    have = np.stack([counts[place == part].sum(0) for part in range(len(shares))])
    total = np.maximum(counts.sum(0), 1)
    return float(((have / total - shares[:, None]) ** 2 / shares[:, None]).sum() + 1000 * (have == 0).sum())


def _parts(
    manifest: Manifest, shares: Sequence[float], seed: int, together: Iterable[Collection[str]] = ()
) -> list[int]:
    """Part of each record: the best of `_TRIES` greedy assignments."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed must be an integer of at least 0, got {seed!r}")
    unit = _units(manifest, together)
    _check(manifest, len(shares), unit)
    # Sorted by hash, so that neither the order of the records nor the order of the names affects the splits.
    people = sorted(set(unit.values()), key=lambda p: hashlib.sha256(p.encode()).digest())
    person, label = {p: i for i, p in enumerate(people)}, {c: i for i, c in enumerate(manifest.classes)}
    counts = np.zeros((len(people), len(label)), np.int64)
    for record in manifest.records:
        counts[person[unit[record.patient]], label[record.label]] += 1
    wanted = np.array(shares, np.float64)
    wanted /= wanted.sum()
    runs = [_assign(counts, wanted, np.random.default_rng([seed, run])) for run in range(_TRIES)]
    scores = [_unbalance(counts, wanted, run) for run in runs]
    best = runs[int(np.argmin(scores))]
    for part in range(len(shares)):
        lacking = np.flatnonzero(counts[best == part].sum(0) == 0)
        if len(lacking):
            name = manifest.classes[lacking[0]]
            raise InputError(
                f"class {name!r} could not be put into all {len(shares)} splits without dividing a patient's images: "
                "add images of it, merge it with another class, or choose other fractions"
            )
    return [int(best[person[unit[record.patient]]]) for record in manifest.records]


def split(
    manifest: Manifest,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    keep: bool | None = None,
    together: Iterable[Collection[str]] = (),
) -> Manifest:
    """Fill in the splits, stratified by class, so that no patient is in two splits.

    Args:
        manifest: records that all have a label and a patient.
        fractions: shares of the images in train, valid and test; each above 0, sum 1.
        seed: random seed of the splits; the order of the records does not matter.
        keep: whether to keep existing splits if every record has one. None keeps them unless they divide a patient or
            a split is empty (a note then reports the new splits); True always keeps them; False always splits again.
        together: sets of patients that must go into the same split, such as two patients with duplicate images.

    Returns:
        The manifest with all splits filled in, with a note if existing splits were replaced or leak.

    Raises:
        InputError: `fractions` are not three numbers above 0 that sum to 1; a record has no label or patient; with
            keep=True, only some records have a split; there is only one class; or there are fewer patients than
            splits, in total or in a class.
    """
    fractions = tuple(float(f) for f in fractions)
    if len(fractions) != 3 or not all(f > 0 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(f"fractions must be three numbers above 0 that sum to 1 (train, valid, test); got {fractions}")
    notes = list(manifest.notes)
    if all(record.split for record in manifest.records) and manifest.records and keep is not False:
        together = list(together)
        leaking = parted(manifest, together)
        lacking = [name for name in SPLITS if not any(record.split == name for record in manifest.records)]
        if keep or not (leaking or lacking):
            if leaking:
                notes.append(
                    f"the existing splits are kept as requested, but they divide {_patients(len(leaking))}: they leak"
                )
            return Manifest(manifest.records, tuple(notes))
        if leaking:
            notes.append(
                f"the existing splits divide {_patients(len(leaking))}, so test scores would be too high: split again; "
                "--keep-splits keeps the existing splits"
            )
        else:
            notes.append(f"the existing splits lack {' and '.join(lacking)}: split again")
    elif keep and any(record.split for record in manifest.records):
        some = next(record for record in manifest.records if not record.split)
        raise InputError(f"{some.path.name} has no split, but other images have one: add it, or split all images again")
    parts = _parts(manifest, fractions, seed, together)
    return Manifest(manifest.records, tuple(notes)).with_columns(split=[SPLITS[part] for part in parts])
