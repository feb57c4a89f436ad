"""Tests of the tables and the file by which the parts of the application exchange data."""

import errno
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import se_fused
from se_fused import _atomic_write
from se_fused._errors import InputError
from se_fused.apps.fracture.classifier import Classifier
from se_fused.apps.fracture.manifest import Manifest, Record, natural_key, ordered_classes
from se_fused.apps.fracture.predictions import Predictions
from se_fused.apps.fracture.preprocessing import Preprocessing

pytestmark = pytest.mark.quick

NARROW = {"channels": (4, 8, 8, 16), "stem_channels": 4}


def records(folder):
    return (
        Record(folder / "images/a 1.png", "Spiral", "p1", "s1", "AP", "train", "set"),
        Record(folder / "images/ä,2.png", "Normal", "p2", "s1", "lateral", "test", "set"),
        Record(Path("/elsewhere/c.png"), "", "p3"),
    )


def refused(call, *words):
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    manifest = Manifest(records(tmp_path), ("a note",))
    manifest.save(tmp_path / "m.csv")
    assert Manifest.load(tmp_path / "m.csv") == manifest  # notes are not compared
    lines = (tmp_path / "m.csv").read_text(encoding="utf-8").splitlines()
    assert lines[1].startswith("images/a 1.png,Spiral,p1") and lines[3].startswith("/elsewhere/c.png,,p3")


def test_a_folder_with_its_manifest_can_be_moved(tmp_path):
    (tmp_path / "one").mkdir()
    manifest = Manifest(records(tmp_path / "one"))
    manifest.save(tmp_path / "one/m.csv")
    (tmp_path / "one").rename(tmp_path / "two")
    moved = Manifest.load(tmp_path / "two/m.csv")
    assert moved.records[0].path == tmp_path / "two/images/a 1.png"
    assert moved.digest() == manifest.digest()


def test_the_digest_tells_any_change_but_that_of_order(tmp_path):
    manifest = Manifest(records(tmp_path))
    assert Manifest(manifest.records[::-1]).digest() == manifest.digest()
    for column in ("label", "patient", "study", "view", "split"):
        changed = manifest.with_columns(**{column: ["x", *(getattr(r, column) for r in manifest.records[1:])]})
        assert changed.digest() != manifest.digest(), column


def test_a_manifest_of_a_spreadsheet(tmp_path):
    """A manifest from a spreadsheet is read: byte order mark, other order, more columns, surrounding blanks."""
    (tmp_path / "m.csv").write_text("\ufefflabel,extra,path\n spiral ,1, a.png\nnone,2,sub/b.png\n", encoding="utf-8")
    manifest = Manifest.load(tmp_path / "m.csv")
    assert [(r.path, r.label, r.patient) for r in manifest.records] == [
        (tmp_path / "a.png", "spiral", ""),
        (tmp_path / "sub/b.png", "none", ""),
    ]
    assert manifest.classes == ("none", "spiral")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label\nx\n", ("no column path",)),
        ("a,b\n1,2\n", ("path and label",)),
        ("path,label\n", ("contains no images", "se-fused fracture prepare")),
        ("path,label\n,x\n", ("line 2", "no path")),
        ("path,label,split\na.png,x,train\nb.png,x,val\n", ("line 3", "'val'")),
        ("path,label\na.png,x\nsub/../a.png,y\n", ("line 3", "a.png", "twice")),
        ("", ("no column",)),
    ],
)
def test_a_bad_manifest_is_refused_in_one_line(tmp_path, text, words):
    (tmp_path / "m.csv").write_text(text)
    refused(lambda: Manifest.load(tmp_path / "m.csv"), "m.csv", *words)


def test_no_manifest_at_all(tmp_path):
    refused(lambda: Manifest.load(tmp_path / "m.csv"), "m.csv", "se-fused fracture prepare")
    (tmp_path / "m.csv").write_bytes(b"\xff\xfe\x00\x01")
    refused(lambda: Manifest.load(tmp_path / "m.csv"), "m.csv", "se-fused fracture prepare")


def test_columns_are_replaced_whole(tmp_path):
    manifest = Manifest(records(tmp_path), ("note",))
    other = manifest.with_columns(split=["", "valid", "test"], patient=["a", "b", "c"])
    assert [(r.split, r.patient) for r in other.records] == [("", "a"), ("valid", "b"), ("test", "c")]
    assert other.notes == ("note",) and other.where("valid").records == (other.records[1],)
    assert {k: dict(v) for k, v in other.counts().items()} == {
        "": {"Spiral": 1},
        "valid": {"Normal": 1},
        "test": {"": 1},
    }
    with pytest.raises(ValueError, match="split must have one value for each of 3"):
        manifest.with_columns(split=["train"])


def test_no_fracture_comes_first_and_numbers_count():
    assert ordered_classes(["type 10", "type 2", "", "Non_Fractured", "type 2"]) == (
        "Non_Fractured",
        "type 2",
        "type 10",
    )
    assert ordered_classes(["healthy", "Greenstick", "comminuted"]) == ("healthy", "comminuted", "Greenstick")
    assert sorted(["b", "A 10", "a 9"], key=natural_key) == ["a 9", "A 10", "b"]


def some_predictions():
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], 5)
    return Predictions(
        ("none", "a,b", "c"), tuple("vwxyz"), ("p1", "p1", "p2", "p3", ""), ("s",) * 5, ("AP", "", "", "", ""),
        np.array([0, 1, 2, -1, 1]), probabilities,
    )  # fmt: skip


def same(one, other):
    assert (one.classes, one.paths, one.patients, one.studies, one.views) == (
        other.classes, other.paths, other.patients, other.studies, other.views,
    )  # fmt: skip
    assert np.array_equal(one.labels, other.labels) and np.array_equal(one.probabilities, other.probabilities)


def test_predictions_are_read_as_they_were_written(tmp_path):
    table = some_predictions()
    table.save(tmp_path / "p.csv")
    same(Predictions.load(tmp_path / "p.csv"), table)
    assert np.array_equal(table.predicted, table.probabilities.argmax(1)) and len(table) == 5
    none = table.take(np.zeros(5, bool))
    none.save(tmp_path / "none.csv")
    same(Predictions.load(tmp_path / "none.csv"), none)


def test_rows_can_be_taken_several_times():
    table = some_predictions()
    some = table.take(np.array([4, 4, 0]))
    assert some.paths == ("z", "z", "v") and some.labels.tolist() == [1, 1, 0]
    assert np.array_equal(some.probabilities, table.probabilities[[4, 4, 0]])


def test_bad_predictions_are_refused_in_one_line(tmp_path):
    file = tmp_path / "p.csv"
    refused(lambda: Predictions.load(file), "p.csv", "cannot be read")
    for text in ("", "path,label\n", some_predictions().text().replace("p:none", "none")):
        file.write_text(text)
        refused(lambda: Predictions.load(file), "p.csv")
    good = some_predictions().text()
    for text in (good.replace('w,"a,b"', "w,d"), good[:-30], re.sub(r"0\.\d+\n", "x\n", good, count=1)):
        file.write_text(text)
        refused(lambda: Predictions.load(file), "p.csv")


def a_classifier():
    torch.manual_seed(0)
    model = se_fused.create_model("seresnet18", num_classes=3, in_chans=1, **NARROW).eval()
    model = model.to(memory_format=torch.channels_last)  # as load() does: another layout rounds differently
    about = {"run": "r", "seed": 3, "parameters": 5}
    return Classifier(model, ("none", "b", "c"), Preprocessing(40, 0.4, 0.2), "seresnet18", NARROW, about)


def test_a_classifier_is_read_as_it_was_saved(tmp_path):
    one = a_classifier()
    images = torch.rand(2, 1, 40, 40)
    one.save(tmp_path / "model.pt")
    for given in (tmp_path, tmp_path / "model.pt"):
        other = Classifier.load(given)
        assert torch.equal(other.probabilities(images), one.probabilities(images))
        assert (other.classes, other.preprocessing, other.name, other.about) == (
            one.classes,
            one.preprocessing,
            one.name,
            one.about,
        )
        assert not other.model.training


def test_probabilities_are_of_the_normalised_image():
    one = a_classifier()
    images = torch.rand(2, 1, 40, 40)
    with torch.inference_mode():
        expected = one.model((images - 0.4) / 0.2).softmax(1)
    torch.testing.assert_close(one.probabilities(images), expected)
    torch.testing.assert_close(one.probabilities(images).sum(1), torch.ones(2))


def test_a_bad_file_of_a_classifier_is_refused_in_one_line(tmp_path):
    file = tmp_path / "model.pt"
    refused(lambda: Classifier.load(file), "model.pt", "no such file", "se-fused fracture train")
    refused(lambda: Classifier.load(tmp_path), "model.pt")
    a_classifier().save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(lambda: Classifier.load(file), "model.pt", "damaged")
    torch.save({"state_dict": {}}, file)
    refused(lambda: Classifier.load(file), "not a classifier")
    a_classifier().save(file)
    content = torch.load(file, weights_only=True)
    for key, value in (
        ("name", "seresnet19"),
        ("classes", ["a"]),
        ("preprocessing", {"size": 3}),
        ("options", {"x": 1}),
    ):
        torch.save({**content, key: value}, file)
        refused(lambda: Classifier.load(file), "model.pt", "its contents are inconsistent")
    torch.save({k: v for k, v in content.items() if k != "about"}, file)
    refused(lambda: Classifier.load(file), "model.pt", "about")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    file = tmp_path / "model.pt"
    file.write_text("old")

    def full(part):
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(part))

    with pytest.raises(OSError, match="No space left"):
        _atomic_write.write_whole(file, full)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"] and file.read_text() == "old"
    _atomic_write.write_text(file, "ü")
    assert file.read_bytes() == "ü".encode()


@pytest.mark.parametrize("wrong", [{"size": 16}, {"std": 0.0}, {"mean": float("nan")}, {"std": -1.0}])
def test_preprocessing_is_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Preprocessing(**wrong)
    assert Preprocessing(**Preprocessing(48, 0.1, 0.3).about()) == Preprocessing(48, 0.1, 0.3)
