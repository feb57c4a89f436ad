"""Splits into train, valid and test that part no patient and keep the shares of the classes."""

import hashlib
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..._errors import InputError
from .manifest import SPLITS, Manifest

__all__ = ["FRACTIONS", "parted", "split"]

FRACTIONS = (0.7, 0.15, 0.15)
"""Of the images in train, valid and test."""

_TRIES = 20


def _units(manifest: Manifest, together: Iterable[Collection[str]]) -> dict[str, str]:
    """{patient: the first one of those that stay together with it}."""
    unit = {record.patient: record.patient for record in manifest.records}
    for group in together:
        joined = {unit[patient] for patient in group if patient in unit}
        for patient, old in unit.items():
            if old in joined:
                unit[patient] = min(joined)
    return unit


def parted(manifest: Manifest, together: Iterable[Collection[str]] = ()) -> dict[str, set[str]]:
    """{patient: splits} of the patients, with those that stay together with them, that lie in more than one split."""
    unit, found = _units(manifest, together), dict[str, set[str]]()
    for record in manifest.records:
        if record.patient and record.split:
            found.setdefault(unit[record.patient], set()).add(record.split)
    return {patient: where for patient, where in found.items() if len(where) > 1}


def _check(manifest: Manifest, parts: int, unit: dict[str, str]) -> None:
    """InputError unless there is something to split into so many parts, each holding each class."""
    if not manifest.records:
        raise InputError("the manifest holds no images; make one with se-fused fracture prepare")
    missing = [record for record in manifest.records if not record.patient]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(manifest)} images have no patient, the first {missing[0].path.name}: "
            "se-fused fracture prepare derives groups"
        )
    unlabelled = [record for record in manifest.records if not record.label]
    if unlabelled:
        raise InputError(
            f"{len(unlabelled)} of {len(manifest)} images have no label, the first {unlabelled[0].path.name}: "
            "label them or leave them out"
        )
    if len(manifest.classes) < 2:
        raise InputError(f"all images are of one class, {manifest.classes[0]!r}: a classifier needs two or more")
    people = set(unit.values())
    if len(people) < parts:
        raise InputError(
            f"{_patients(len(people))} cannot fill {parts} splits: at least {parts} are needed; add images of others"
        )
    few = []
    for name in manifest.classes:
        having = {unit[record.patient] for record in manifest.records if record.label == name}
        if len(having) < parts:
            few.append(f"{name!r} has images of {_patients(len(having))}")
    if few:
        raise InputError(
            f"each class needs images of {parts} patients, for each of {parts} splits; {', '.join(few)}: add images, "
            "merge classes (se-fused fracture prepare --label CLASS=OTHER) or leave them out (--label CLASS=)"
        )


def _patients(number: int) -> str:
    return f"{number} patient{'' if number == 1 else 's'} (or group{'' if number == 1 else 's'} of the same image)"


def _assign(counts: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """(patients,) the part of each: greedily, the largest first, to where it brings the classes closest to `shares`.

    Args:
        counts: (patients, classes) images.
        shares: (parts,) that sum to 1.
        rng: breaks ties and orders patients of one size.
    """
    total = counts.sum(0)
    wanted = shares[:, None] * total
    weight = 1 / np.maximum(total, 1)  # every class counts alike, however rare
    people_wanted = shares[:, None] * (counts > 0).sum(0)
    have, people_have = np.zeros_like(wanted), np.zeros_like(wanted)
    waiting = (counts > 0).sum(0)
    place = np.full(len(counts), -1)
    order = rng.permutation(len(counts))
    # Large ones first, while there is room; then those of rare classes.
    rarity = (counts * weight).max(1)
    order = order[np.lexsort((-rarity[order], -counts.sum(1)[order]))]
    for i in order:
        row, there = counts[i], counts[i] > 0
        # The rise of the squared distance to what each part shall have, relative to its share.
        images = (((have + row - wanted) ** 2 - (have - wanted) ** 2) * weight**2 / shares[:, None]).sum(1)
        people = (
            ((people_have + there - people_wanted) ** 2 - (people_have - people_wanted) ** 2)
            / np.maximum((counts > 0).sum(0), 1) ** 2
            / shares[:, None]
        ).sum(1)
        cost = images + people + 1e-12 * rng.random(len(shares))
        # The last patients of a class go where there is none of it yet.
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
    """How far the classes' shares are from those wanted, and 1000 more for each class that a part lacks."""
    have = np.stack([counts[place == part].sum(0) for part in range(len(shares))])
    total = np.maximum(counts.sum(0), 1)
    return float(((have / total - shares[:, None]) ** 2 / shares[:, None]).sum() + 1000 * (have == 0).sum())


def _parts(
    manifest: Manifest, shares: Sequence[float], seed: int, together: Iterable[Collection[str]] = ()
) -> list[int]:
    """The part of each record: the best of several greedy runs."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed must be an integer of at least 0, got {seed!r}")
    unit = _units(manifest, together)
    _check(manifest, len(shares), unit)
    # By hash, so that neither the order of records nor the names' own order tells who comes first.
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
                f"class {name!r} could not be put into all of {len(shares)} splits without parting a patient: "
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
    """Fill in the splits: stratified by class, no patient in two of them.

    Args:
        manifest: every record with a label and a patient.
        fractions: of the images in train, valid and test; above 0, sum 1.
        seed: other seeds give other splits; the order of the records does not matter.
        keep: what to do where every record has a split already. None keeps it unless it parts a patient (then a note
            says so and all is split anew); True keeps it in any case; False splits anew.
        together: patients who go into one split, such as two with the same image.

    Returns:
        The manifest with all splits filled in, and with a note if the given ones were not kept.

    Raises:
        InputError: fractions are not three that sum to 1; a record lacks its label or patient, or some have a split and
            others none; one class only; fewer patients than splits, in all or in a class.
    """
    fractions = tuple(float(f) for f in fractions)
    if len(fractions) != 3 or not all(f > 0 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(f"fractions must be three numbers above 0 that sum to 1 (train, valid, test): {fractions}")
    notes = list(manifest.notes)
    if all(record.split for record in manifest.records) and manifest.records and keep is not False:
        together = list(together)
        leaking = parted(manifest, together)
        lacking = [name for name in SPLITS if not any(record.split == name for record in manifest.records)]
        if keep or not (leaking or lacking):
            if leaking:
                notes.append(
                    f"the given splits are kept as asked, though they part {_patients(len(leaking))}: they leak"
                )
            return Manifest(manifest.records, tuple(notes))
        if leaking:
            notes.append(
                f"the given splits part {_patients(len(leaking))}, so scores on them would be too good: split anew; "
                "--keep-splits keeps them"
            )
        else:
            notes.append(f"the given splits lack {' and '.join(lacking)}: split anew")
    elif keep and any(record.split for record in manifest.records):
        some = next(record for record in manifest.records if not record.split)
        raise InputError(f"{some.path.name} has no split and others have: give it one, or split all anew")
    parts = _parts(manifest, fractions, seed, together)
    return Manifest(manifest.records, tuple(notes)).with_columns(split=[SPLITS[part] for part in parts])
