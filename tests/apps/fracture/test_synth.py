"""Tests of sets of synthetic phantoms: patients with two views, positions of their cracks, and files on disk."""

import csv
import json
import math
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from se_fused._errors import InputError
from se_fused.apps.fracture.images import load_radiograph
from se_fused.apps.fracture.manifest import Manifest
from se_fused.apps.fracture.synth import (
    CLASSES,
    DIFFICULTIES,
    VIEWS,
    draw,
    draw_patient,
    draw_sheet,
    drawing,
    exposure,
    fractures,
    limbs,
    load_cracks,
    sets,
    write_set,
)

image_module = pytest.importorskip("PIL.Image", reason="images are written with Pillow")

BROKEN = CLASSES[1:]


def contents(folder):
    """{name: bytes} of all files in a folder, including hidden ones."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def unmoved(monkeypatch):
    """Make fractures without displacement, so that an image changes at the crack only."""

    def still(*arguments):
        broken = fractures.fracture(*arguments)
        parts = (replace(part, shift=(0, 0, 0), lean=(0, 0), hinge=(0, 0)) for part in broken.fragments)
        return replace(broken, fragments=tuple(parts))

    monkeypatch.setattr(drawing, "fracture", still)


# ---- patients
def test_a_patient_has_one_fracture_in_two_views():
    for index in range(12):
        for kind in BROKEN:
            front, side = draw_patient(1, index, 48, kind)
            assert (front.view, side.view) == VIEWS == ("AP", "lateral")
            for name in ("radius", "gap", "displacement", "angulation", "tilt", "hairline"):
                one, other = getattr(front.crack, name), getattr(side.crack, name)
                assert one == other or (math.isnan(one) and math.isnan(other)), name
            # Each view's pose is 6 degrees off (one deviation), so the parts of a vector are at most 20 degrees from a
            # right angle: the remaining |cos + sin| changes the sum by at most sin(20°).
            for name in ("displacement", "angulation"):
                whole = getattr(front.crack, name)
                parts = math.hypot(getattr(front.crack, name + "_seen"), getattr(side.crack, name + "_seen"))
                assert parts == pytest.approx(whole, rel=math.sin(math.radians(20)), abs=1e-9)
            assert front.crack.facing + side.crack.facing == pytest.approx(90, abs=20)
            assert np.abs(front.image - side.image).mean() > 0.02  # two exposures, not one


def test_draw_is_the_view_that_shows_the_fracture_best():
    seen = set()
    for index in range(8):
        views = draw_patient(2, index, 40, "oblique", 0.3)
        best = min(views, key=lambda view: view.crack.facing)
        assert np.array_equal(draw(2, index, 40, "oblique", 0.3)[0], best.image)
        seen.add(best.view)
    assert seen == set(VIEWS)


def test_an_oblique_plane_is_a_line_edge_on_and_an_ellipse_en_face():
    ratios = []
    for index in range(8):
        patient = limbs.limb(0, index, 96, 0.0)
        patient = replace(patient, toward=patient.turns[0])
        broken = fractures.fracture("oblique", np.random.default_rng(index), patient.main.radius, patient.toward, 0.0)
        broken = replace(broken, fragments=tuple(replace(f, shift=(0, 0, 0), lean=(0, 0)) for f in broken.fragments))
        cut = [exposure.expose(patient, broken, view, 0, index, 96, 0.0).cut.sum() for view in (0, 1)]
        ratios.append(cut[1] / cut[0])
    # Edge-on, only roughness and gap spread the crossing rays; en face, it is the section's area times the tilt.
    assert min(ratios) > 1.5 and np.median(ratios) > 2


@pytest.mark.parametrize("kind", BROKEN)
def test_boxes_hold_what_the_fracture_changes(kind, unmoved):
    sure = 0
    for index in range(10):
        views = zip(draw_patient(4, index, 96, kind), draw_patient(4, index, 96, "none"), strict=True)
        for broken, intact in views:
            changed = np.abs(broken.image - intact.image)
            x0, y0, x1, y1 = broken.crack.box
            assert 0 <= x0 < x1 <= 96 and 0 <= y0 < y1 <= 96
            inside = changed[y0:y1, x0:x1]
            # The halo of unsharp masking reaches further, but is small.
            assert np.delete(changed.ravel(), np.ravel_multi_index(np.mgrid[y0:y1, x0:x1], (96, 96))).max() < 0.02
            rows, columns = np.flatnonzero((inside > 0.004).any(1)), np.flatnonzero((inside > 0.004).any(0))
            if len(rows) and broken.crack.visible:  # changed pixels span 60 % of the box minus 3 pixels per edge
                sure += 1
                assert np.ptp(rows) + 1 >= 0.6 * (y1 - y0) - 6 and np.ptp(columns) + 1 >= 0.6 * (x1 - x0) - 6
    assert sure >= 10


def test_no_crack_where_nothing_is_broken():
    assert [view.crack for view in draw_patient(0, 3, 40, "none")] == [None, None]
    assert all(view.crack is not None for view in draw_patient(0, 3, 40, "spiral"))


@pytest.mark.parametrize("kind", BROKEN)
def test_one_view_at_least_shows_an_easy_fracture(kind):
    shown = [any(view.crack.visible for view in draw_patient(5, index, 96, kind)) for index in range(20)]
    assert sum(shown) >= 19


def test_tilts_leave_a_gap_between_transverse_and_oblique():
    tilts = {
        kind: [fractures.fracture(kind, np.random.default_rng(k), 10.0, 0.0, 0.0).tilt for k in range(60)]
        for kind in ("transverse", "oblique")
    }
    assert max(tilts["transverse"]) + 20 < min(tilts["oblique"])


def test_difficulty_lowers_contrast_and_hides_more():
    contrast, visible, hairlines, gaps = [], [], [], []
    for difficulty in (0.0, 0.5, 1.0):
        cracks = [
            view.crack for index in range(30) for view in draw_patient(6, index, 96, BROKEN[index % 5], difficulty)
        ]
        contrast.append(np.mean([crack.contrast for crack in cracks]))
        visible.append(np.mean([crack.visible for crack in cracks]))
        hairlines.append(np.mean([crack.hairline for crack in cracks]))
        gaps.append(np.mean([crack.gap / crack.radius for crack in cracks]))
        if difficulty == 0:
            assert min(crack.radius / 96 for crack in cracks) >= 0.09
            assert min(crack.gap / crack.radius for crack in cracks) >= 0.10
    assert contrast[0] > 1.1 * contrast[1] > 1.1 * 1.1 * contrast[2]  # for the same patients
    assert gaps[0] > 1.3 * gaps[1] > 1.3 * 1.3 * gaps[2] > 0
    assert visible[0] >= visible[1] > visible[2] and hairlines[0] < hairlines[2]


def test_names_of_difficulties():
    assert DIFFICULTIES == {"easy": 0.0, "medium": 0.5, "hard": 1.0}
    for name, number in DIFFICULTIES.items():
        assert np.array_equal(draw(0, 1, 32, None, name)[0], draw(0, 1, 32, None, number)[0])
    for wrong in ("harder", -0.1, 1.01, math.nan, None, [0]):
        with pytest.raises(InputError, match="difficulty must be easy, medium, hard or a number from 0 to 1"):
            draw(0, 0, 32, None, wrong)


def test_a_seed_draws_what_it_drew_before():
    """A seed gives the same images in every version: a change of these figures must add one to GENERATOR.

    Otherwise sets that others identify by a seed would change.
    """
    assert sets.GENERATOR == 1
    means = [
        draw(*what)[0].mean() for what in ((0, 0, 64, 0, 0), (0, 1, 64, 3, 0), (7, 5, 64, 4, 0.5), (9, 2, 64, 2, 1))
    ]
    np.testing.assert_allclose(means, [0.2410, 0.3319, 0.3619, 0.2206], atol=2e-4)  # 4 digits; rounding elsewhere


# ---- sets on disk
@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "one"
    shares = []
    manifest = write_set(folder, 24, 40, seed=3, workers=1, progress=lambda what, share: shares.append((what, share)))
    return folder, manifest, shares


def test_a_set_holds_what_is_drawn(written):
    folder, manifest, shares = written
    assert shares[-1] == ("48 of 48 images", 1.0) and [share for _, share in shares] == sorted(s for _, s in shares)
    assert manifest == Manifest.load(folder / "manifest.csv") and len(manifest) == 48
    assert manifest.classes[0] == "none" and set(manifest.classes) == set(CLASSES)
    assert Counter(record.label for record in manifest.records) == dict.fromkeys(CLASSES, 8)
    names = {"manifest.csv", "cracks.csv", "about.json"} | {
        f"images/{k:05d}-{view}.png" for k in range(24) for view in VIEWS
    }
    assert set(contents(folder)) == names
    cracks = load_cracks(folder)
    assert list(cracks) == [record.path for record in manifest.records]
    for k, record in enumerate(manifest.records):
        view = draw_patient(3, k // 2, 40)[k % 2]
        assert (record.label, record.view) == (CLASSES[draw(3, k // 2, 40)[1]], view.view)
        assert record.patient == f"patient-{k // 2:05d}" and record.study == "1"
        with image_module.open(record.path) as image:
            assert image.mode == "L" and image.text["Comment"] == "synthetic phantom, no clinical meaning"
            assert np.array_equal(np.asarray(image), np.round(view.image * 255))
        if record.label == "none":
            assert cracks[record.path] is None
        else:
            told, truth = asdict(cracks[record.path]), asdict(view.crack)
            assert told.pop("box") == truth.pop("box")
            assert told == pytest.approx(truth, rel=1e-4, nan_ok=True)  # five digits are written
    about = json.loads((folder / "about.json").read_text())
    assert about["kind"] == "synthetic phantom, no clinical meaning" and about["seed"] == 3 and about["size"] == 40
    assert about["command"] == "se-fused fracture synth one --patients 24 --size 40 --difficulty 0 --seed 3 --bits 8"


def test_splits_part_patients_and_keep_classes(written):
    _, manifest, _ = written
    home = {}
    for record in manifest.records:
        assert home.setdefault(record.patient, record.split) == record.split
    assert {split: set(labels) for split, labels in manifest.counts().items()} == {
        split: set(CLASSES) for split in ("train", "valid", "test")
    }
    classes = [drawing.class_of(0, index) for index in range(400)]
    splits = sets._splits(classes, 0)
    for label in range(6):
        counts = Counter(split for split, value in zip(splits, classes, strict=True) if value == label)
        assert counts["valid"] == counts["test"] == 10 and counts["train"] in (46, 47)  # of 66 or 67
    assert splits != sets._splits(classes, 1)
    assert set(sets._splits([0, 0, 1, 1], 0)) == {"train"}  # too few to split


@pytest.mark.nightly
def test_a_set_depends_on_its_settings_alone(written, tmp_path):
    folder, _, _ = written
    other = tmp_path / "one"
    write_set(other, 24, 40, seed=3, workers=2)  # in other processes, in another order
    assert contents(other) == contents(folder)
    third = write_set(tmp_path / "three", 24, 40, seed=4, workers=1)
    assert not np.array_equal(
        load_radiograph(third.records[0].path, 40), load_radiograph(other / "images/00000-AP.png", 40)
    )


def test_an_interrupted_set_goes_on_where_it_stopped(written, tmp_path, monkeypatch):
    folder, _, _ = written
    drawn = []

    def stopping(seed, index, *rest):
        drawn.append(index)
        if len(drawn) == 9:
            raise KeyboardInterrupt
        return draw_patient(seed, index, *rest)

    monkeypatch.setattr(sets, "draw_patient", stopping)
    with pytest.raises(KeyboardInterrupt):
        write_set(tmp_path / "one", 24, 40, seed=3, workers=1)
    left = contents(tmp_path / "one")
    assert not {"manifest.csv", "cracks.csv"} & set(left)
    assert all(contents(folder)[name] == data for name, data in left.items())  # existing files are complete
    (tmp_path / "one/images/.00009-AP.77.part.png").write_bytes(b"half")  # a file that a killed process leaves
    (tmp_path / "one/images/00002-AP.png").write_bytes(b"no image")
    write_set(tmp_path / "one", 24, 40, seed=3, workers=1)
    assert contents(tmp_path / "one") == contents(folder)
    assert drawn[9:] == [2, *range(8, 24)]

    drawn.clear()
    assert len(write_set(tmp_path / "one", 24, 40, seed=3)) == 48 and not drawn  # finished: read, not drawn
    (tmp_path / "one/images/00003-AP.png").unlink()
    write_set(tmp_path / "one", 24, 40, seed=3, workers=1)
    assert drawn == [3] and contents(tmp_path / "one") == contents(folder)


def test_other_settings_replace_a_set(tmp_path):
    write_set(tmp_path / "x", 7, 40)
    (tmp_path / "x" / "images" / "mine.png").write_bytes(b"kept")
    write_set(tmp_path / "x", 4, 32, seed=1)
    write_set(tmp_path / "y", 4, 32, seed=1)
    replaced, fresh = contents(tmp_path / "x"), contents(tmp_path / "y")
    assert replaced.pop("images/mine.png") == b"kept"  # other files are not touched
    assert json.loads(replaced.pop("about.json"))["command"].split()[3] == "x"
    del fresh["about.json"]
    assert replaced == fresh


def test_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("hello")
    with pytest.raises(InputError, match="is not empty and contains no synthetic set; give"):
        write_set(tmp_path / "mine", 2, 32)
    (tmp_path / "mine/about.json").write_text('{"kind": "else"}')
    with pytest.raises(InputError, match="is not empty"):
        write_set(tmp_path / "mine", 2, 32)
    with pytest.raises(InputError, match="is a file"):
        write_set(tmp_path / "mine/notes.txt", 2, 32)
    assert set(contents(tmp_path)) == {"mine/notes.txt", "mine/about.json"}
    with pytest.raises(InputError, match="is not a table of cracks"):
        load_cracks(tmp_path / "mine")


def test_sixteen_bits_hold_what_eight_round(tmp_path):
    deep = write_set(tmp_path / "deep", 2, 48, bits=16)
    flat = write_set(tmp_path / "flat", 2, 48, bits=8)
    for a, b, k in zip(deep.records, flat.records, range(4), strict=True):
        with image_module.open(a.path) as image:
            assert image.mode.startswith("I")
            values = np.asarray(image).astype(np.int64)
        with image_module.open(b.path) as image:
            coarse = np.asarray(image).astype(np.int64)
        truth = draw_patient(0, k // 2, 48)[k % 2].image
        assert np.abs(values / 65535 - truth).max() <= 0.5 / 65535 + 1e-7
        assert np.abs(coarse / 255 - truth).max() <= 0.5 / 255 + 1e-7
        assert len(np.unique(values % 257)) > 100  # not 8 bits spread over 16
        np.testing.assert_allclose(load_radiograph(a.path, 48)[0], truth, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"patients": 0}, ValueError, "patients must be an int of at least 1"),
        ({"patients": 1.5}, TypeError, "patients must be an int of at least 1"),
        ({"size": 31}, ValueError, "size must be an int of at least 32"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"bits": 12}, InputError, "bits must be 8 or 16, got 12"),
        ({"difficulty": 2}, InputError, "difficulty must be"),
        ({"workers": 0}, ValueError, "workers must be"),
    ],
)
def test_wrong_settings_touch_nothing(wrong, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        write_set(tmp_path / "x", **{"patients": 2, "size": 32, **wrong})
    assert not (tmp_path / "x").exists()


def test_a_full_disk_leaves_no_manifest(tmp_path, monkeypatch):
    def full(path, text):
        if path.name == "cracks.csv":
            raise OSError(28, "No space left on device", str(path))
        path.write_text(text)

    monkeypatch.setattr(sets, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_set(tmp_path / "x", 2, 32)
    assert not (tmp_path / "x/manifest.csv").exists()
    monkeypatch.undo()
    assert len(write_set(tmp_path / "x", 2, 32)) == 4


# ---- contact sheets and the command line
def test_the_sheet_marks_cracks(written, tmp_path):
    pytest.importorskip("matplotlib")
    folder, _, _ = written
    marked = {}
    for boxes in (True, False):
        draw_sheet(folder, tmp_path / "sheet.png", boxes)
        with image_module.open(tmp_path / "sheet.png") as image:
            colours = np.asarray(image.convert("RGB")).astype(int)
        marked[boxes] = (colours.max(2) - colours.min(2) > 60).sum()
        assert colours.shape[1] > 1500 and colours.std() > 20
    assert marked[False] == 0 and marked[True] > 5 * 4 * 20
    with pytest.raises(InputError, match="cannot be read as a manifest"):
        draw_sheet(tmp_path, tmp_path / "sheet.png")


def test_command_line(tmp_path, capfd, monkeypatch):
    pytest.importorskip("typer")
    pytest.importorskip("matplotlib")
    from se_fused.cli import run

    target = tmp_path / "set"
    arguments = [
        "fracture",
        "synth",
        str(target),
        "--patients",
        "6",
        "--size",
        "32",
        "--difficulty",
        "medium",
        "--bits",
        "16",
    ]
    assert run([*arguments, "--workers", "1"]) == 0
    told = capfd.readouterr().out
    assert "no clinical meaning" in told and str(target / "manifest.csv") in told and "spiral" in told
    assert {"manifest.csv", "cracks.csv", "sheet.png", "about.json"} <= set(contents(target))
    with (target / "cracks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    assert json.loads((target / "about.json").read_text())["difficulty"] == 0.5
    wrong = {"--patients": ("0", "at least 1"), "--size": ("8", "at least 32"), "--bits": ("12", "8, 16"),
             "--difficulty": ("impossible", "easy, medium, hard"), "--workers": ("0", "at least 1"),
             "--seed": ("-1", "at least 0")}  # fmt: skip
    for option, (value, said) in wrong.items():
        assert run(["fracture", "synth", str(tmp_path / "other"), option, value]) == 2
        said_now = capfd.readouterr().err
        assert said_now.count("\n") == 1 and option in said_now and said in said_now
    assert run(["fracture", "synth", str(Path(__file__).parent)]) == 2
    assert "contains no synthetic set" in capfd.readouterr().err
    assert not (tmp_path / "other").exists()
