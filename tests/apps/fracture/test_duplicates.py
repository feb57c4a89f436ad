"""Tests of finding duplicates: changed copies of an image are found, different patients are not confused."""

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from se_fused._errors import InputError
from se_fused.apps.fracture import similarity
from se_fused.apps.fracture.duplicates import SAME, SURE, find, known, with_groups
from se_fused.apps.fracture.fingerprints import fingerprint
from se_fused.apps.fracture.manifest import Manifest, Record
from se_fused.apps.fracture.splits import split
from se_fused.apps.fracture.synth import draw

Image = pytest.importorskip("PIL.Image")

SIZE = 128
DISTINCT = 24


@pytest.fixture(scope="module")
def pictures():
    """Straight bones of different patients, which are the hardest to distinguish."""
    return [np.rint(draw(11, i, SIZE)[0] * 255).astype(np.uint8) for i in range(DISTINCT)]


def scale_shift_act(grey, matrix):
    middle = np.array(grey.shape[::-1]) / 2
    shift = middle - matrix @ middle
    values = (matrix[0, 0], matrix[0, 1], shift[0], matrix[1, 0], matrix[1, 1], shift[1])
    return np.asarray(
        Image.fromarray(grey).transform(
            grey.shape[::-1], Image.Transform.AFFINE, values, resample=Image.Resampling.BILINEAR
        )
    )


def turned(grey, degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return scale_shift_act(grey, np.array([[c, -s], [s, c]]))


def compressed(grey, quality):
    data = io.BytesIO()
    Image.fromarray(grey).save(data, "JPEG", quality=quality)
    return np.asarray(Image.open(data))


def resized(grey, height, width):
    return np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BICUBIC))


def regreyed(grey, gamma, gain, offset):
    return np.rint(np.clip(gain * (grey / 255) ** gamma + offset, 0, 1) * 255).astype(np.uint8)


CHANGES = {
    "flip": lambda g: g[:, ::-1],
    "upside down": lambda g: g[::-1],
    "quarter turn": lambda g: np.rot90(g),
    "half turn": lambda g: np.rot90(g, 2),
    "transposed": lambda g: g.T,
    "antitransposed": lambda g: np.rot90(g, 2).T,
    "turn 12": lambda g: turned(g, 12),
    "turn -12, flip": lambda g: turned(g, -12)[:, ::-1],
    "shear": lambda g: scale_shift_act(g, np.array([[1, 0.12], [0.03, 1]])),
    "zoom": lambda g: scale_shift_act(g, np.eye(2) * 0.87),
    "crop": lambda g: g[6:-9, 8:-4],
    "brightness": lambda g: regreyed(g, 1, 0.8, 0.12),
    "gamma": lambda g: regreyed(g, 0.65, 1, 0),
    "contrast": lambda g: regreyed(g, 1, 1.3, -0.1),
    "jpeg": lambda g: compressed(g, 25),
    "half": lambda g: resized(g, SIZE // 2, SIZE // 2),
    "thrice": lambda g: resized(g, 3 * SIZE, 3 * SIZE),
    "stretched": lambda g: resized(g, SIZE, round(1.15 * SIZE)),
    "black border": lambda g: np.pad(g, ((20, 5), (0, 40))),
    "white border": lambda g: np.pad(g, 12, constant_values=255),
    "noise": lambda g: np.clip(g + np.random.default_rng(0).normal(0, 4, g.shape), 0, 255).astype(np.uint8),
}


def written(folder, pictures, **columns):
    records = []
    for name, grey in pictures.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(grey)).save(path)
        records.append(Record(path, **{key: value(name) for key, value in columns.items()}))
    return Manifest(tuple(records))


def test_different_patients_are_not_the_same(pictures, tmp_path):
    found = find(written(tmp_path, {f"{i}.png": grey for i, grey in enumerate(pictures)}))
    assert len(found.read) == DISTINCT and not found.damaged
    assert found.clusters == () and found.pairs == ()


HARD = {
    "turn 12": 0.75, "turn -12, flip": 0.75, "zoom": 0.9, "crop": 0.8, "gamma": 0.85, "white border": 0.9, "noise": 0.9,
}  # fmt: skip
"""Share of copies that must be found for these changes; along a straight bone, a shift of the copy is hard to see."""


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found(change, pictures, tmp_path):
    changed = {f"c{i}.png": CHANGES[change](grey) for i, grey in enumerate(pictures)}
    manifest = written(tmp_path, {**{f"{i}.png": grey for i, grey in enumerate(pictures)}, **changed})
    clusters = [{path.name for path in cluster} for cluster in find(manifest).clusters]
    assert sum({f"{i}.png", f"c{i}.png"} in clusters for i in range(DISTINCT)) >= HARD.get(change, 1) * DISTINCT
    assert all(len({name.lstrip("c") for name in names}) == 1 for names in clusters), "different patients joined"


def test_exact_copies(pictures, tmp_path):
    manifest = written(tmp_path, {"a.png": pictures[0], "b.bmp": pictures[0], "c.png": pictures[1]})
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes())
    found = find(Manifest((*manifest.records, Record(tmp_path / "d.png"))))
    assert {(p.one.name, p.other.name, p.kind, p.similarity) for p in found.pairs} == {
        ("a.png", "d.png", "file", 1.0),
        ("a.png", "b.bmp", "pixels", 1.0),
    }
    assert [path.name for path in found.clusters[0]] == ["a.png", "b.bmp", "d.png"]


def test_sixteen_bits_count_as_they_are(pictures, tmp_path):
    deep = pictures[0].astype(np.uint16) * 257
    found = find(written(tmp_path, {"deep.png": deep, "flat.png": pictures[0]}))
    assert len(found.clusters) == 1
    assert (fingerprint(tmp_path / "deep.png").bits, fingerprint(tmp_path / "flat.png").bits) == (16, 8)


def test_roboflows_names_join(pictures, tmp_path):
    names = [
        f"hand-3_jpg.rf.{'0123456789abcdef' * 2}.jpg",
        f"hand-3_jpg.rf.{'f' * 32}.jpg",
        "hand-3.jpg",
        "hand-31.jpg",
    ]
    found = find(written(tmp_path, dict(zip(names, pictures, strict=False))))
    assert [{path.name for path in cluster} for cluster in found.clusters] == [set(names[:2])]
    assert found.pairs[0].kind == "name"


def test_flat_pictures_and_a_single_one(tmp_path):
    flat = {f"{grey}.png": np.full((40, 40), grey, np.uint8) for grey in (0, 90, 255)}
    found = find(written(tmp_path, flat))
    assert found.clusters == () and len(found.read) == 3
    assert find(written(tmp_path, {"0.png": flat["0.png"]})).clusters == ()


def test_the_order_of_records_does_not_matter(pictures, tmp_path):
    many = {f"{i}.png": grey for i, grey in enumerate(pictures[:8])} | {"x.png": pictures[3][:, ::-1]}
    manifest = written(tmp_path, many)
    one, other = find(manifest), find(Manifest(manifest.records[::-1]))
    assert one.clusters == other.clusters and one.pairs == other.pairs
    groups = {r.path: r.patient for r in with_groups(manifest).records}
    assert groups == {r.path: r.patient for r in with_groups(Manifest(manifest.records[::-1])).records}


def test_groups_stand_in_for_patients(pictures, tmp_path):
    manifest = written(tmp_path, {"1.png": pictures[0], "2.png": pictures[1], "10.png": np.rot90(pictures[0])})
    told = []
    grouped = with_groups(manifest, lambda what, share: told.append(share))
    assert {r.path.name: r.patient for r in grouped.records} == {
        "1.png": "group-0001",
        "2.png": "group-0002",
        "10.png": "group-0001",
    }
    assert "3 images had no patient: 2 groups" in grouped.notes[-1] and "largest group: 2 images" in grouped.notes[-1]
    assert told == sorted(told) and told[-1] == pytest.approx(1)
    assert with_groups(grouped) is grouped, "nothing to do, so nothing is read"
    assert not any(known(record) for record in grouped.records)


def test_a_known_patient_is_never_changed(pictures, tmp_path):
    who = {"1.png": "ann", "2.png": "", "3.png": "bob", "4.png": "", "5.png": "group-0001"}
    greys = [pictures[0], pictures[0][::-1], pictures[1], pictures[2], pictures[3]]
    manifest = written(tmp_path, dict(zip(who, greys, strict=True)), patient=who.get)
    grouped = with_groups(manifest)
    assert {r.path.name: r.patient for r in grouped.records} == {
        "1.png": "ann", "2.png": "ann", "3.png": "bob", "4.png": "group-0002", "5.png": "group-0001",
    }  # fmt: skip
    assert "2 images had no patient: 2 groups" in grouped.notes[0] and len(grouped.notes) == 1


def test_two_known_patients_with_one_image_are_told(pictures, tmp_path):
    manifest = written(
        tmp_path,
        {"1.png": pictures[0], "2.png": pictures[0][::-1], "3.png": pictures[0][:, ::-1], "4.png": pictures[1]},
        patient=lambda name: {"1.png": "ann", "2.png": "bob"}.get(name, ""),
    )
    grouped = with_groups(manifest)
    assert [r.patient for r in grouped.records[:3]] == ["ann", "bob", "ann"]
    assert any("2 patients share duplicate images" in note and "1.png, 2.png" in note for note in grouped.notes)


def test_named_patients_take_more_to_be_the_same(pictures, tmp_path, monkeypatch):
    """A similarity that suffices for images without patients does not suffice for images of two different patients."""
    value = (SAME + SURE) / 2
    monkeypatch.setattr(
        "se_fused.apps.fracture.duplicates.confirm",
        lambda thumbnails, pairs, *_: np.full(len(pairs), value, np.float32),
    )
    images = {"1.png": pictures[0], "2.png": pictures[1]}
    assert find(written(tmp_path, images)).clusters
    assert not find(written(tmp_path, images, patient=str)).clusters
    value = SURE + 1e-3
    assert find(written(tmp_path, images, patient=str)).clusters


def test_chains_are_warned_of(pictures, tmp_path):
    same = {f"{i}.png": np.roll(pictures[0], i, 0) for i in range(7)}
    grouped = with_groups(written(tmp_path, same | {f"o{i}.png": pictures[i] for i in range(1, 5)}))
    assert any("64% of all" in note and "0.png and 6 more" in note for note in grouped.notes)


def test_damaged_images_are_named_and_left_out(pictures, tmp_path):
    manifest = written(tmp_path, {"1.png": pictures[0], "2.png": pictures[1]})
    (tmp_path / "cut.png").write_bytes((tmp_path / "1.png").read_bytes()[:900])
    (tmp_path / "text.png").write_text("no picture")
    bad = [tmp_path / "cut.png", tmp_path / "text.png", tmp_path / "gone.png"]
    grouped = with_groups(Manifest((*map(Record, bad), *manifest.records)))
    assert [r.path.name for r in grouped.records] == ["1.png", "2.png"]
    note = next(note for note in grouped.notes if "unreadable" in note)
    assert note.startswith("3 images left out") and all(path.name in note for path in bad)
    assert str(tmp_path) not in note, "the names are enough"
    with pytest.raises(InputError, match=r"none of the 3 images can be read; the first is .*cut\.png"):
        with_groups(Manifest(tuple(map(Record, bad))))


# ---- parts of the registration
def test_singular_values_are_bounded():
    maps = torch.randn(500, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, stretch, v = torch.linalg.svd(maps)
    expected = u * stretch.clamp(*similarity._STRETCH)[:, None] @ v
    torch.testing.assert_close(similarity._bounded(maps), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(similarity._inverse(maps) @ maps, torch.eye(2).double().expand(500, 2, 2))


def test_registration_finds_the_map(pictures):
    moving = torch.from_numpy(np.stack(pictures[:6]))[:, None].float() / 255
    moving = torch.nn.functional.adaptive_avg_pool2d(moving, similarity.SIDE)
    true = torch.tensor([[1.05, 0.08, 0.06], [-0.06, 0.96, -0.04]]).expand(6, 2, 3)
    still = similarity._warp(moving, true)
    level = [similarity._level(picture, similarity.SIDE / 6) for picture in (still, moving)]
    start = torch.eye(2, 3).expand(6, 2, 3)
    found = similarity._register(*level, similarity._register(*level, start, 10, 0.2), 20, 0.05)
    after, before = (similarity._seen(still, moving, maps, 2.0) for maps in (found, start))
    assert (after > before + 0.1).all() and (after > 0.99).sum() >= 5
    # Along a straight bone the map is not determined, so most agree, but not all.
    assert ((found - true).abs().amax((1, 2)) < 0.03).sum() >= 4


def test_a_pair_found_from_either_side_has_the_same_pose():
    """_unique converts poses of (j, i) to those of (i, j), which is the inverse pose."""
    poses = similarity.poses()
    for number in range(len(poses)):
        pairs, back = similarity._unique(
            torch.tensor([1]), torch.tensor([0]), torch.tensor([[number, number]]), torch.tensor([1.0])
        )
        product = poses[number] @ poses[back[0, 0]]
        assert pairs.tolist() == [[0, 1]]
        assert torch.allclose(product, torch.eye(2), atol=1e-6) or torch.allclose(product, -torch.eye(2), atol=1e-6)


# ---- the effect on a split
@pytest.mark.nightly
def test_splitting_by_images_leaks_and_by_groups_does_not(tmp_path):
    """A split by images leaks copies of training images into the test, and a split by groups does not.

    The set has 40 patients, four changed copies each, and labels without meaning, so that no score above chance is
    possible on new patients. The nearest neighbour exceeds chance if the split is by images, and not if it is by
    groups.
    """
    rng, originals, labels = np.random.default_rng(0), {}, {}
    for person in range(40):
        grey = np.rint(draw(21, person, 96)[0] * 255).astype(np.uint8)
        for copy in range(4):
            name = f"{person:02d}-{copy}.png"
            changed = turned(grey, rng.uniform(-5, 5))[:, :: int(rng.choice([1, -1]))]
            originals[name], labels[name] = regreyed(changed, rng.uniform(0.8, 1.2), 1, 0), "ab"[person % 2]
    manifest = written(tmp_path, originals, label=labels.get)

    def score(split_up):
        thumbnails = {r.path: fingerprint(r.path).thumbnail / 255.0 for r in split_up.records}
        train, test = split_up.where("train").records, split_up.where("test").records
        right = 0
        for record in test:
            seen = thumbnails[record.path]
            views = [seen, seen[:, ::-1]]  # a network also learns from flipped training images
            far = [min(np.abs(view - thumbnails[r.path]).mean() for view in views) for r in train]
            right += train[int(np.argmin(far))].label == record.label
        return right / len(test)

    alone = manifest.with_columns(patient=[str(r.path) for r in manifest.records])
    by_image = [split(alone, seed=seed) for seed in range(4)]
    grouped = with_groups(manifest)
    by_group = [split(grouped, seed=seed) for seed in range(4)]
    for each in by_group:
        people = [{r.path.name[:2] for r in each.where(name).records} for name in ("train", "valid", "test")]
        assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]
    assert np.mean([score(each) for each in by_image]) > 0.85
    assert np.mean([score(each) for each in by_group]) < 0.7  # about 100 images of 25 patients: a standard error of .1


def test_with_real_files_through_a_manifest(pictures, tmp_path):
    manifest = with_groups(written(tmp_path, {"a.png": pictures[0], "b.png": pictures[0].T}))
    manifest.save(tmp_path / "manifest.csv")
    rows = list(csv.DictReader((tmp_path / "manifest.csv").open()))
    assert [row["patient"] for row in rows] == ["group-0001"] * 2
    assert Manifest.load(tmp_path / "manifest.csv") == manifest and Path(rows[0]["path"]) == Path("a.png")
