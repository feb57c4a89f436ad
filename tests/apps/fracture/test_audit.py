"""Tests of the audit and of the commands prepare and audit: leaks, damage and contradictions are found and named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from se_fused import __main__
from se_fused._errors import InputError
from se_fused.apps.fracture import duplicates
from se_fused.apps.fracture.audit import audit, draw_pairs
from se_fused.apps.fracture.manifest import Manifest, Record
from se_fused.apps.fracture.preparing import prepare
from se_fused.apps.fracture.synth import draw

Image = pytest.importorskip("PIL.Image")
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def pictures():
    return [np.rint(draw(7, i, 64)[0] * 255).astype(np.uint8) for i in range(18)]


def save(path, grey):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(grey)).save(path)
    return path


@pytest.fixture
def folder(pictures, tmp_path):
    """A folder with two classes and 18 patients, each with a mirrored copy."""
    for i, grey in enumerate(pictures):
        save(tmp_path / "set" / ("none", "oblique")[i % 2] / f"{i}.png", grey)
        save(tmp_path / "set" / ("none", "oblique")[i % 2] / f"{i}-flipped.png", grey[:, ::-1])
    return tmp_path / "set"


def records(folder, pictures, *rows):
    """A manifest of rows (number of a picture, change, label, patient, split)."""
    made = []
    for place, (number, change, label, patient, split) in enumerate(rows):
        grey = pictures[number][:, ::-1] if change else pictures[number]
        made.append(Record(save(folder / f"{place}.png", grey), label, patient, split=split))
    return Manifest(tuple(made), ("layout x",))


def test_a_sound_data_set_is_ok(pictures, tmp_path):
    rows = [(i, False, "ab"[i % 2], f"p{i}", ("train", "valid", "test")[i % 3]) for i in range(12)]
    seen = audit(records(tmp_path, pictures, *rows))
    assert seen.ok and (seen.images, seen.patients, seen.copies, seen.unlabelled) == (12, 12, 0, 0)
    assert seen.counts == {s: {"a": 2, "b": 2} for s in ("train", "valid", "test")}
    assert seen.split_patients == {"train": 4, "valid": 4, "test": 4}
    assert seen.sizes == {"least": 64, "most": 64} and seen.bits == {"8": 12} and seen.folder == str(tmp_path)
    assert seen.shift == {"chi2": 0.0, "degrees": 2, "p": 1.0}
    assert "OK: no leak" in seen.text() and "NOT OK" not in seen.text() and "LEAK" not in seen.text()
    assert "layout x" in seen.text()


def test_leaks_and_contradictions_are_found(pictures, tmp_path):
    manifest = records(
        tmp_path, pictures,
        (0, False, "a", "p0", "train"), (0, True, "b", "p0", "test"),  # a patient in two splits with two labels
        (1, False, "a", "p1", "train"), (1, False, "a", "p2", "valid"),  # a file of two patients
        (2, False, "a", "p3", "train"), (2, True, "a", "p3", "train"),  # a harmless copy
        (3, False, "b", "p4", "test"), (4, False, "", "p5", "valid"),
    )  # fmt: skip
    seen = audit(manifest)
    assert not seen.ok and seen.unlabelled == 1 and (seen.copies, seen.clusters, seen.largest_cluster) == (6, 3, 2)
    assert [row[:5] for row in seen.across_splits] == [
        ("2.png", "train", "3.png", "valid", "file"),
        ("0.png", "train", "1.png", "test", "near"),
    ]
    assert seen.across_splits[0][5] == 1 and 0.95 < seen.across_splits[1][5] <= 1
    assert seen.patients_across_splits == {"p0": ("train", "test")}
    assert [row[:5] for row in seen.conflicting] == [("0.png", "a", "1.png", "b", "near")]
    assert [row[:2] + row[2:5] for row in seen.across_patients] == [
        ("2.png", "patient 2", "3.png", "patient 3", "file")
    ]
    text = seen.text()
    assert "LEAK: duplicate images in two splits: 2" in text and "LEAK: patients in two splits: 1" in text
    assert "duplicate images with two labels: 1" in text and "NOT OK" in text and "images without a label: 1" in text
    assert json.loads(json.dumps(seen.as_dict()))["ok"] is False


def test_a_leak_through_an_image_without_split_is_found(pictures, tmp_path, monkeypatch):
    manifest = records(
        tmp_path, pictures, (0, False, "a", "", "train"), (1, False, "a", "", ""), (2, False, "a", "", "test")
    )
    paths = [record.path for record in manifest.records]
    real = duplicates.find(manifest)
    chain = duplicates.Duplicates(
        (duplicates.Pair(paths[0], paths[1], "near", 0.9), duplicates.Pair(paths[1], paths[2], "near", 0.9)),
        (tuple(paths),),
        real.read,
        {},
    )
    seen = audit(manifest, found=chain)
    assert [row[:4] for row in seen.across_splits] == [("0.png", "train", "2.png", "test")] and not seen.ok
    assert "chain" in seen.text() and "nan" not in seen.text()


def test_damaged_missing_and_flat_files_are_named(pictures, tmp_path):
    manifest = records(tmp_path, pictures, *[(i, False, "ab"[i % 2], f"p{i}", "train") for i in range(4)])
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:300])
    save(tmp_path / "grey.png", np.full((40, 30), 90, np.uint8))
    extra = [Record(tmp_path / name, "a", "p9", split="train") for name in ("cut.png", "gone.png", "grey.png")]
    seen = audit(Manifest((*manifest.records, *extra)))
    assert seen.damaged.keys() == {"cut.png", "gone.png"} and seen.flat == ("grey.png",) and not seen.ok
    assert "no such file" in seen.damaged["gone.png"]
    assert "DAMAGED FILES: 2" in seen.text() and "blank images: 1" in seen.text()
    assert seen.sizes == {"least": 30, "most": 64}


def test_a_shift_of_the_classes_is_told(pictures, tmp_path):
    """A difference in class shares between splits is reported, with the p-value of scipy's chi-squared test."""
    stats = pytest.importorskip("scipy.stats")
    rows = [(i % 18, False, "a" if i < 20 else "b", f"p{i}", "train" if i < 24 else "test") for i in range(36)]
    manifest = records(tmp_path, pictures, *rows)
    empty = duplicates.Duplicates((), (), {}, {})
    seen = audit(manifest, found=empty)
    expected = stats.chi2_contingency([[20, 4], [0, 12]], correction=False)
    assert seen.shift["chi2"] == pytest.approx(expected.statistic) and seen.shift["p"] == pytest.approx(expected.pvalue)
    assert "differ more than by chance" in seen.text()


def test_an_empty_manifest_is_refused():
    with pytest.raises(InputError, match="contains no images"):
        audit(Manifest(()))


def test_long_lists_are_cut_on_the_screen_only(pictures, tmp_path):
    rows = [row for i in range(12) for row in ((i, False, "a", "", "train"), (i, True, "b", "", "test"))]
    seen = audit(records(tmp_path, pictures, *rows))
    assert len(seen.across_splits) == 12
    assert "two splits: 12" in seen.text() and "and 4 more" in seen.text()


def test_the_sheet_shows_leaks_first(pictures, tmp_path, monkeypatch):
    manifest = records(
        tmp_path, pictures, (0, False, "a", "p0", "train"), (0, True, "a", "p0", "train"),
        (1, False, "a", "p1", "train"), (1, True, "a", "p1", "test"),
    )  # fmt: skip
    found = duplicates.find(manifest)
    titles = []
    real = __import__("se_fused.apps.fracture.images", fromlist=["x"]).save_sheet
    monkeypatch.setattr(
        "se_fused.apps.fracture.images.save_sheet", lambda p, t, path, h: (titles.extend(t), real(p, t, path, h))
    )
    assert draw_pairs(manifest, found, tmp_path / "pairs.png") == 2
    assert (tmp_path / "pairs.png").read_bytes().startswith(PNG)
    assert "LEAK" in titles[1] and "test" in titles[1] and "train" in titles[0] and "LEAK" not in titles[3]
    assert draw_pairs(Manifest(manifest.records[:1]), found, tmp_path / "none.png") == 0
    assert not (tmp_path / "none.png").exists()


# ---- prepare
def test_prepare_makes_a_manifest_that_does_not_leak(folder, tmp_path):
    shares = []
    manifest = prepare(folder, progress=lambda what, share: shares.append(share))
    assert len(manifest) == 36 and shares == sorted(shares)
    assert {r.split for r in manifest.records} == {"train", "valid", "test"}
    assert all(r.patient.startswith("group-") and r.label for r in manifest.records)
    seen = audit(manifest)
    assert seen.ok and seen.copies >= 32 and not seen.across_splits
    assert prepare(folder, seed=1).records != manifest.records == prepare(folder).records


def test_prepare_adds_to_a_manifest_only_what_is_missing(folder, tmp_path):
    first = prepare(folder)
    first.save(tmp_path / "manifest.csv")
    assert prepare(tmp_path / "manifest.csv", seed=5).records == first.records
    first.with_columns(split=[""] * 36).save(tmp_path / "unsplit.csv")
    again = prepare(tmp_path / "unsplit.csv", seed=5)
    assert [r.patient for r in again.records] == [r.patient for r in first.records]
    assert audit(again).ok


def test_prepare_leaves_out_what_has_no_label(folder, tmp_path):
    manifest = prepare(folder)
    labels = ["" if i == 0 else r.label for i, r in enumerate(manifest.records)]
    manifest.with_columns(label=labels, split=[""] * 36).save(tmp_path / "some.csv")
    kept = prepare(tmp_path / "some.csv")
    assert len(kept) == 35 and any("1 image without a label" in note for note in kept.notes)


def test_prepare_merges_classes_and_leaves_them_out(pictures, tmp_path, capfd):
    data, out = tmp_path / "data.csv", tmp_path / "manifest.csv"
    records(tmp_path, pictures, *((i, False, "abc"[i % 3], f"p{i}", "") for i in range(12))).save(data)
    assert prepare(data).classes == ("a", "b", "c")
    merged = prepare(data, labels={"c": "b"})
    assert merged.classes == ("a", "b") and len(merged) == 12
    exchanged = {r.path: r.label for r in prepare(data, labels={"c": "b", "b": "c"}).records}
    assert [exchanged[r.path] for r in prepare(data).records if r.label == "b"] == ["c"] * 4
    assert __main__.main(["fracture", "prepare", str(data), "--output", str(out), "--label", "c="]) == 0
    assert "class 'c' (4 images) left out" in capfd.readouterr().out
    fewer = Manifest.load(out)
    assert fewer.classes == ("a", "b") and len(fewer) == 8
    for labels, message in (
        ({"tibia": "x"}, "there is no class 'tibia'; the classes are 'a', 'b', 'c'"),
        (dict.fromkeys("abc", ""), "all classes are left out"),
        ({"b": "", "c": ""}, "a classifier needs two"),
    ):
        with pytest.raises(InputError, match=message):
            prepare(data, labels=labels)
    for wrong in (["a"], ["=a"], ["a=b", "a=c"]):
        options = [part for text in wrong for part in ("--label", text)]
        assert __main__.main(["fracture", "prepare", str(data), "--output", str(out), *options]) == 2
        assert "--label" in capfd.readouterr().err
    assert Manifest.load(out).classes == ("a", "b")


def test_a_class_of_one_patient_is_told_how_to_leave_it_out(pictures, tmp_path):
    rows = [(i, False, "abc"[i % 2], f"p{i}", "") for i in range(12)]
    records(tmp_path, pictures, *rows, (12, False, "lone one", "p0", "")).save(tmp_path / "manifest.csv")
    with pytest.raises(InputError, match=r"'lone one' has images of 1 patient .*prepare --label CLASS=OTHER"):
        prepare(tmp_path / "manifest.csv")
    assert prepare(tmp_path / "manifest.csv", labels={"lone one": ""}).classes == ("a", "b")


def test_shipped_splits_that_leak_are_made_anew(pictures, tmp_path, capfd):
    for i, grey in enumerate(pictures):
        save(tmp_path / "set" / ("train", "valid", "test")[i % 3] / "ab"[i // 3 % 2] / f"{i}.png", grey)
    save(tmp_path / "set" / "test" / "a" / "copy.png", pictures[0])
    out = tmp_path / "m.csv"
    assert __main__.main(["fracture", "prepare", str(tmp_path / "set"), "--output", str(out)]) == 0
    assert "split again; --keep-splits keeps the existing splits" in capfd.readouterr().out
    assert audit(Manifest.load(out)).ok
    assert __main__.main(["fracture", "prepare", str(tmp_path / "set"), "--output", str(out), "--keep-splits"]) == 0
    told = capfd.readouterr().out
    assert "kept as requested" in told and "NOT OK" in told
    assert {r.split for r in Manifest.load(out).records if r.path.name in ("0.png", "copy.png")} == {"train", "test"}
    assert __main__.main(["fracture", "audit", str(out)]) == 1


def test_patients_with_one_image_go_into_one_split(pictures, tmp_path):
    rows = [(i, False, "ab"[i % 2], f"p{i}", "") for i in range(12)]
    manifest = records(tmp_path, pictures, *rows, (0, True, "a", "q0", ""), (1, True, "b", "q1", ""))
    manifest.save(tmp_path / "manifest.csv")
    for seed in range(4):
        prepared = prepare(tmp_path / "manifest.csv", seed=seed)
        where = {r.patient: r.split for r in prepared.records}
        assert where["p0"] == where["q0"] and where["p1"] == where["q1"], "and they stay two patients"
    assert any("2 patients share duplicate images" in note for note in prepared.notes)


# ---- the command line
def test_prepare_and_audit_on_the_screen(folder, tmp_path, capfd):
    (folder / "none" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    out = tmp_path / "manifest.csv"
    assert __main__.main(["fracture", "prepare", str(folder), "--output", str(out), "--seed", "2"]) == 0
    told = capfd.readouterr()
    assert told.err == "" and f"written: {out}" in told.out and "OK: no leak" in told.out
    assert "1 image left out as unreadable: broken.png" in told.out
    assert len(Manifest.load(out)) == 36 and sorted(p.name for p in tmp_path.iterdir()) == ["manifest.csv", "set"]

    sheet, file = tmp_path / "pairs.png", tmp_path / "found.json"
    assert __main__.main(["fracture", "audit", str(out), "--plot", str(sheet), "--json", str(file)]) == 0
    assert f"drawn: {sheet}" in capfd.readouterr().out and sheet.read_bytes().startswith(PNG)
    assert json.loads(file.read_text())["ok"] is True

    assert __main__.main(["fracture", "audit", str(folder), "--json", "-"]) == 1, "a damaged file in the folder"
    assert list(json.loads(capfd.readouterr().out)["damaged"]) == ["none/broken.png"]


def test_an_audit_of_an_unsplit_folder(folder, capfd):
    shutil.rmtree(folder / "oblique")
    (folder / "none").rename(folder / "spiral")
    shutil.copytree(folder / "spiral", folder / "none")
    assert __main__.main(["fracture", "audit", str(folder)]) == 0
    told = capfd.readouterr().out
    assert "no split yet" in told and "duplicate images with two labels" in told and "(no split)" in told


WRONG = [
    (["prepare", "/nowhere"], "/nowhere"),
    (["audit", "/nowhere.csv"], "/nowhere.csv"),
    (["prepare", "FOLDER", "--fractions", ".7,.3"], "--fractions"),
    (["prepare", "FOLDER", "--fractions", ".7,.2,.2"], "sum to 1"),
    (["prepare", "FOLDER", "--fractions", "a,b,c"], "three numbers"),
    (["prepare", "FOLDER", "--layout", "tree"], "--layout"),
    (["prepare", "FOLDER", "--seed", "-1"], "--seed"),
    (["prepare", "FOLDER", "--output", "/nowhere/m.csv"], "/nowhere"),
    (["prepare", "FOLDER", "--output", "m.txt"], "must end in .csv"),
    (["audit", "FOLDER", "--layout", "tree"], "--layout"),
    (["audit", "FOLDER", "--plot", "pairs.txt"], ".png"),
    (["audit", "FOLDER", "--json", "/nowhere/a.json"], "--json"),
    (["prepare", "ONE"], "class"),
    (["prepare", "EMPTY"], "EMPTY"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
def test_what_is_wrong_is_one_line(arguments, says, pictures, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    for name in ("FOLDER/a", "FOLDER/b", "ONE/a"):
        save(tmp_path / name / "1.png", pictures[0])
    assert __main__.main(["fracture", *arguments]) == 2
    told = capfd.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith(f"se-fused fracture {arguments[0]}")
    assert says in told.err
    assert not list(tmp_path.glob("*.csv")) and not list(tmp_path.glob("*.png"))


def test_too_few_patients_of_a_class(pictures, tmp_path, capfd):
    for i in range(8):
        save(tmp_path / "set" / ("a" if i < 6 else "b") / f"{i}.png", pictures[i])
    assert __main__.main(["fracture", "prepare", str(tmp_path / "set"), "--output", str(tmp_path / "m.csv")]) == 2
    told = capfd.readouterr().err
    assert "'b' has images of 2 patients" in told and "merge classes" in told
    assert not (tmp_path / "m.csv").exists()


def test_a_full_disk_leaves_nothing(folder, tmp_path, capfd, monkeypatch):
    def full(self, *_, **__):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    assert __main__.main(["fracture", "prepare", str(folder), "--output", str(tmp_path / "m.csv")]) == 2
    told = capfd.readouterr().err
    assert "No space left" in told and told.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
