"""Tests of the splits: no patient in two, equal class shares, reproducible by the seed, and errors of one line."""

from pathlib import Path

import numpy as np
import pytest

from se_fused._errors import InputError
from se_fused.apps.fracture.manifest import SPLITS, Manifest, Record
from se_fused.apps.fracture.splits import parted, split

pytestmark = pytest.mark.quick

CLASSES = ("none", "transverse", "oblique", "spiral")


def made(patients=120, seed=0, weights=(0.5, 0.3, 0.15, 0.05), mixed=False):
    """Patients with 1 to 6 images, all of one class or, if `mixed`, each with its own."""
    rng, records = np.random.default_rng(seed), []
    for person in range(patients):
        label = rng.choice(CLASSES, p=weights)
        for image in range(rng.integers(1, 7)):
            label = rng.choice(CLASSES, p=weights) if mixed else label
            records.append(Record(Path(f"/data/{person}-{image}.png"), str(label), f"p{person}"))
    return Manifest(tuple(records))


def together(manifest):
    where = {}
    for record in manifest.records:
        where.setdefault(record.patient, set()).add(record.split)
    return all(len(splits) == 1 for splits in where.values())


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_no_patient_is_parted_and_the_shares_are_kept(seed, mixed):
    manifest = split(made(seed=seed, mixed=mixed), seed=seed)
    assert together(manifest) and not parted(manifest)
    assert {record.split for record in manifest.records} == set(SPLITS)
    counts = manifest.counts()
    for name in CLASSES:
        total = sum(counts[part][name] for part in SPLITS)
        largest = 6  # images of one patient: no smaller part can be moved
        for part, share in zip(SPLITS, (0.7, 0.15, 0.15), strict=True):
            assert counts[part][name] > 0
            assert abs(counts[part][name] - share * total) <= largest / 2, (name, part)


def test_better_balanced_than_sklearns():
    """Class shares are at least as well balanced as those of sklearn's StratifiedGroupKFold.

    That splitter only supports the fractions 1/k, so the application has its own.
    """
    selection = pytest.importorskip("sklearn.model_selection")
    ours, theirs = [], []
    for seed in range(4):
        manifest = made(seed=seed)
        total = {name: sum(r.label == name for r in manifest.records) for name in CLASSES}
        labels, people = [r.label for r in manifest.records], [r.patient for r in manifest.records]
        kfold = selection.StratifiedGroupKFold(7, shuffle=True, random_state=seed)
        parts = np.zeros(len(labels), int)
        for number, (_, test) in enumerate(kfold.split(labels, labels, people)):
            parts[test] = number

        def off(where, part, share, total=total, labels=labels):
            return max(
                abs(sum(w == part and v == n for w, v in zip(where, labels, strict=True)) / total[n] - share)
                for n in total
            )

        mine = [r.split for r in split(manifest, (5 / 7, 1 / 7, 1 / 7), seed).records]
        ours.append(max(off(mine, "test", 1 / 7), off(mine, "valid", 1 / 7)))
        theirs.append(max(off(list(parts), 0, 1 / 7), off(list(parts), 1, 1 / 7)))
    assert np.mean(ours) <= np.mean(theirs)


def test_the_same_for_a_seed_whatever_the_order():
    manifest = made()
    first = {r.path: r.split for r in split(manifest, seed=3).records}
    shuffled = Manifest(tuple(manifest.records[i] for i in np.random.default_rng(1).permutation(len(manifest))))
    assert {r.path: r.split for r in split(shuffled, seed=3).records} == first
    assert {r.path: r.split for r in split(manifest, seed=4).records} != first


def test_fractions():
    counts = split(made(patients=300), (0.5, 0.2, 0.3)).counts()
    sizes = np.array([counts[name].total() for name in SPLITS]) / sum(c.total() for c in counts.values())
    np.testing.assert_allclose(sizes, (0.5, 0.2, 0.3), atol=0.02)


def test_patients_who_belong_together_stay_so():
    manifest = made()
    pairs = [{"p0", "p1"}, {"p1", "p2"}, {"p5", "p90"}]
    for seed in range(5):
        where = {r.patient: r.split for r in split(manifest, seed=seed, together=pairs).records}
        assert where["p0"] == where["p1"] == where["p2"] and where["p5"] == where["p90"]


def test_given_splits_are_kept_unless_they_leak():
    manifest = split(made(), seed=1)
    assert split(manifest, seed=2) is not manifest and split(manifest, seed=2).records == manifest.records
    assert split(manifest, seed=2, keep=False).records != manifest.records

    first = next(i for i, r in enumerate(manifest.records) if r.patient == manifest.records[i + 1].patient)
    names = [r.split for r in manifest.records]
    names[first] = next(name for name in SPLITS if name != names[first])
    leaking = manifest.with_columns(split=names)
    assert parted(leaking).keys() == {manifest.records[first].patient}
    anew = split(leaking, seed=2)
    assert not parted(anew) and "divide 1 patient " in anew.notes[-1] and "--keep-splits" in anew.notes[-1]
    kept = split(leaking, seed=2, keep=True)
    assert kept.records == leaking.records and "leak" in kept.notes[-1]


def test_two_patients_with_one_image_make_given_splits_leak():
    manifest = split(made(), seed=1)
    a, b = (next(r.patient for r in manifest.records if r.split == name) for name in ("train", "test"))
    anew = split(manifest, seed=1, together=[{a, b}])
    assert anew.records != manifest.records and "leak" not in " ".join(manifest.notes)
    assert len({r.split for r in anew.records if r.patient in (a, b)}) == 1


def test_splits_without_validation_are_made_anew():
    manifest = made()
    halves = manifest.with_columns(split=["train" if int(r.patient[1:]) % 4 else "test" for r in manifest.records])
    anew = split(halves)
    assert {r.split for r in anew.records} == set(SPLITS) and "lack valid" in anew.notes[-1]


def without(manifest, **columns):
    return manifest.with_columns(**{name: [value] * len(manifest) for name, value in columns.items()})


def rare(images_of):
    records = [*made(weights=(0.5, 0.3, 0.2, 0)).records]
    return Manifest((*records, *(Record(Path(f"/r{i}"), "spiral", f"r{i}") for i in range(images_of))))


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (Manifest(()), "contains no images"),
        (without(made(), patient=""), "images have no patient, first 0-0.png"),
        (without(made(), label="none"), "one class, 'none'"),
        (Manifest((*made().records[:1], Record(Path("/x.png"), "", "p9"))), "images have no label, first x.png"),
        (without(made(), patient="p1"), "1 patient "),
        (rare(2), "'spiral' has images of 2 patients"),
    ],
)
def test_what_cannot_be_split(manifest, says):
    with pytest.raises(InputError, match=says) as caught:
        split(manifest)
    assert "\n" not in str(caught.value)


def test_a_class_of_three_patients_reaches_all_splits():
    counts = split(rare(3)).counts()
    assert [counts[name]["spiral"] for name in SPLITS] == [1, 1, 1]


def test_a_patient_who_is_most_of_the_data_goes_to_train():
    records = [Record(Path(f"/big{i}"), "none", "big") for i in range(200)]
    records += [Record(Path(f"/{i}"), CLASSES[i % 2], f"p{i}") for i in range(60)]
    counts = split(Manifest(tuple(records))).counts()
    assert counts["train"]["none"] >= 200 and all(counts[s][c] for s in SPLITS for c in CLASSES[:2])


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.7, 0.2, 0.2), (1, 0, 0), (0.7, -0.1, 0.4)])
def test_wrong_fractions(fractions):
    with pytest.raises(InputError, match="fractions must be three"):
        split(made(), fractions)


def test_wrong_seeds():
    with pytest.raises(InputError, match="seed"):
        split(made(), seed=-1)


def test_half_given_splits_are_asked_about():
    manifest = made()
    half = manifest.with_columns(split=["train" if i % 2 else "" for i in range(len(manifest))])
    with pytest.raises(InputError, match=r"0-0\.png has no split"):
        split(half, keep=True)
    assert together(split(half))
