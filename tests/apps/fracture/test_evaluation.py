"""Tests of evaluation from images to a report: predictions, groups and patients, baselines, files in a run's folder."""

import json

import numpy as np
import pytest
import torch
from support.evaluation import NAMES, SIZE, drawn_table, narrow, table, tables_from, write_images

pytest.importorskip("sklearn", reason="scikit-learn is in the extra se_fused[train]")
pytest.importorskip("torchmetrics", reason="torchmetrics is in the extra se_fused[train]")
pytest.importorskip("PIL", reason="Pillow is in the extra se_fused[train]")

from se_fused.__main__ import main
from se_fused._errors import InputError
from se_fused.apps.fracture.evaluation import (
    by_patient,
    by_study,
    by_view,
    cracks_of,
    evaluate,
    logistic,
    majority,
    metrics,
    predict_manifest,
    write_evaluation,
    write_metrics,
)
from se_fused.apps.fracture.evaluation.aggregate import groups, strata
from se_fused.apps.fracture.evaluation.report import percent
from se_fused.apps.fracture.images import load_radiograph
from se_fused.apps.fracture.manifest import Manifest
from se_fused.apps.fracture.predictions import Predictions


# ---- predicting
def test_predictions_are_the_networks(tmp_path):
    manifest, classifier, told = write_images(tmp_path, 5), narrow(), []
    classifier.model.train()
    found = predict_manifest(classifier, manifest, batch=4, progress=lambda what, share: told.append(share))
    assert classifier.model.training and told == pytest.approx([0.4, 0.8, 1.0])
    classifier.model.eval()
    images = torch.stack([load_radiograph(r.path, SIZE) for r in manifest.records])
    expected = classifier.probabilities(images).double()
    # Batches of another size sum in another order.
    np.testing.assert_allclose(found.probabilities, expected / expected.sum(1, keepdim=True), rtol=0, atol=1e-5)
    assert found.probabilities.sum(1) == pytest.approx(1, abs=1e-12)
    assert found.paths == tuple(str(r.path) for r in manifest.records)
    assert [found.classes[k] for k in found.labels] == [r.label for r in manifest.records]
    assert found.patients == tuple(r.patient for r in manifest.records) and found.views[:2] == ("AP", "lateral")
    assert found.skipped == ()


def test_mirror_images_are_averaged_in(tmp_path):
    manifest, classifier = write_images(tmp_path, 2), narrow()
    images = torch.stack([load_radiograph(r.path, SIZE) for r in manifest.records])
    mean = (classifier.probabilities(images) + classifier.probabilities(images.flip(3))) / 2
    found = predict_manifest(classifier, manifest, tta=True)
    np.testing.assert_allclose(found.probabilities, mean, rtol=0, atol=1e-5)
    assert not np.allclose(found.probabilities, predict_manifest(classifier, manifest).probabilities, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_damaged_and_missing_files_are_named_and_counted(tmp_path, batch):
    manifest = write_images(tmp_path, 3, damaged=["p01_AP.png"])
    (tmp_path / "images" / "p02_AP.png").unlink()
    found = predict_manifest(narrow(), manifest, batch=batch)
    assert len(found) == 4 and [p.rsplit("/", 1)[1] for p, _ in found.skipped] == ["p01_AP.png", "p02_AP.png"]
    assert all(why and tmp_path.name not in why for _, why in found.skipped)
    assert [p.rsplit("/", 1)[1] for p in found.paths] == [
        "p00_AP.png",
        "p00_lateral.png",
        "p01_lateral.png",
        "p02_lateral.png",
    ]
    assert found.views == ("AP", "lateral", "lateral", "lateral")
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"p02_lateral\.png: none of 6 images could be read; .*no such file"):
        predict_manifest(narrow(), manifest)


def test_labels_outside_the_list_are_refused(tmp_path):
    manifest = write_images(tmp_path, 3)
    odd = manifest.with_columns(label=["none"] * 3 + ["torus", "buckle", ""])
    with pytest.raises(
        InputError, match=r"p01_lateral\.png: .*'buckle', 'torus' \(2 images\); its classes are none, oblique"
    ):
        predict_manifest(narrow(), odd)
    unlabelled = manifest.with_columns(label=[""] * 6)
    assert predict_manifest(narrow(), unlabelled).labels.tolist() == [-1] * 6
    with pytest.raises(InputError, match="has no images"):
        predict_manifest(narrow(), Manifest(()))


# ---- groups
def test_patients_are_the_mean_of_their_images():
    predictions = table(
        [0, 0, 1, 1, 1, 0],
        [[0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.4, 0.6], [0.5, 0.5], [0.5, 0.5]],
        ["a", "a", "b", "b", "", "b"],
    )
    found, conflicting = by_patient(predictions)
    assert found.patients == ("a",) and conflicting == 1  # b has two labels; an image without a patient counts in none
    assert found.probabilities[0] == pytest.approx([0.55, 0.45]) and found.predicted[0] == 0
    assert len(by_study(predictions)[0]) == 0
    found, conflicting = by_patient(predictions.take(np.arange(4)))
    assert (
        conflicting == 0 and metrics(found)["accuracy"] == 1 and found.probabilities[1] == pytest.approx([0.25, 0.75])
    )


def test_groups_do_not_say_the_same_twice():
    predictions = drawn_table(20)
    found = groups(predictions)
    assert list(found) == ["patients"] and found["patients"]["count"] == 10
    assert groups(drawn_table(20, images=1)) == {}  # one image for each
    assert groups(tables_from([0, 1], [0, 1])) == {}


def test_views():
    predictions = drawn_table(40)
    found = by_view(predictions)
    ap = predictions.take(np.arange(0, 40, 2))
    assert list(found) == ["AP", "lateral"] and found["AP"]["accuracy"] == metrics(ap)["accuracy"]
    assert by_view(ap) == {}


def test_strata():
    labels, said = [0, 1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 2, 1, 0]
    predictions = tables_from(said, labels)
    cracks = {predictions.paths[0]: {"visible": "", "x0": ""}}
    for i, (hairline, visible) in enumerate(((0, 1), (1, 1), (0, 1), (1, 1), (0, 0), (0, 1)), 1):
        cracks[predictions.paths[i]] = {
            "x0": "3" if visible else "",
            "hairline": str(hairline),
            "visible": str(visible),
            "gap": str(i),
        }
    found = strata(predictions, cracks)
    assert found["hairline"]["images"] == 2 and found["hairline"]["right"] == 0
    assert found["hairline"]["taken_for_first_class"] == 0.5 and found["hairline"]["first_class"] == "none"
    assert found["open"]["images"] == 4 and found["open"]["right"] == 0.75
    assert found["hidden in this view"]["images"] == 1 and found["visible in this view"]["images"] == 5
    assert found["gap: narrowest third"]["images"] == 2 and found["gap: narrowest third"]["right"] == 0.5
    assert strata(predictions, {}) == {}


# ---- baselines
def test_majority(tmp_path):
    manifest = write_images(tmp_path, 12)
    labels = ["spiral"] + [r.label for r in manifest.records[1:]]
    found = majority(manifest.with_columns(label=labels))
    assert (found.predicted == 2).all() and len(found) == len(manifest.where("test"))
    assert found.probabilities[0] == pytest.approx([3 / 12, 4 / 12, 5 / 12])
    assert metrics(found)["auroc_macro"] == 0.5
    with pytest.raises(InputError, match="no labelled images of the split train"):
        majority(manifest.where("test"))


def test_logistic_learns_what_thumbnails_show(tmp_path):
    manifest = write_images(tmp_path, 12, damaged=["p00_AP.png", "p09_AP.png"])
    found = logistic(manifest)
    assert metrics(found)["accuracy"] == 1  # the class is the place of a bright band
    assert [p.rsplit("/", 1)[1] for p, _ in found.skipped] == ["p00_AP.png", "p09_AP.png"]
    assert len(found) == len(manifest.where("test")) - 1
    with pytest.raises(InputError, match="images of one class only in train"):
        logistic(manifest.with_columns(label=["none"] * len(manifest)))
    with pytest.raises(InputError, match="no readable images of the split test"):
        logistic(manifest.where("train"))


# ---- evaluate and the report
def test_evaluate_is_plain_json():
    predictions = drawn_table(30, 4, classes=NAMES[:4])
    found = evaluate(predictions, draws=50)
    json.dumps(found, allow_nan=False)
    assert found["metrics"] == metrics(predictions) and list(found["views"]) == ["AP", "lateral"]
    # With one patient and classes without images there are no draws, but still figures.
    odd = evaluate(tables_from([0, 0, 1], [0, 0, 0], patients=["a"] * 3), draws=50)
    json.dumps(odd, allow_nan=False)
    assert odd["intervals"]["figures"]["accuracy"] == pytest.approx([2 / 3, 2 / 3])
    assert odd["intervals"]["figures"]["auroc_macro"] is None


def test_percent_as_the_paper_prints_it():
    assert percent(0.98024) == "98.02" and percent(None) == "–" and percent(1) == "100.00"
    assert percent(0.5, [0.25, 0.75]) == "50.00 [25.00, 75.00]"


@pytest.fixture
def run(tmp_path):
    """A finished run with its images, one of them damaged."""
    manifest = write_images(tmp_path / "data", 12, damaged=["p10_AP.png"])
    rows = ["path,x0,y0,x1,y1,visible,hairline"]
    rows += [f"images/{r.path.name}," + ("8,10,24,14,1,0" if r.label != "none" else ",,,,,") for r in manifest.records]
    (tmp_path / "data" / "cracks.csv").write_text("\n".join(rows) + "\n")
    folder = tmp_path / "run"
    folder.mkdir()
    narrow().save(folder / "model.pt")
    manifest.save(folder / "manifest.csv")
    (folder / "metrics.json").write_text(json.dumps({"training": {"epochs": 3}}))
    return folder


PLOTS = {"confusion_matrix.png", "roc.png", "precision_recall.png", "reliability.png", "classes.png", "gradcam.png"}


@pytest.mark.quick
def test_write_evaluation(run):
    content = write_evaluation(run, draws=50)
    test = Predictions.load(run / "predictions" / "test.csv")
    assert content["splits"]["test"] == json.loads(json.dumps(content["splits"]["test"], allow_nan=False))
    assert content["splits"]["test"]["metrics"] == metrics(test) and list(content["splits"]) == ["valid", "test"]
    assert [p.rsplit("/", 1)[1] for p in content["missing"]["test"]] == ["p10_AP.png"]
    assert {path.name for path in (run / "plots").iterdir()} == PLOTS
    assert content["gradcam"]["images"] > 0 and content["splits"]["test"]["strata"]["open"]["images"] > 0
    text = (run / "report.md").read_text()
    accuracy = content["splits"]["test"]["metrics"]["accuracy"]
    for wanted in (
        "Research use only, not a medical device", f"| Accuracy (multi-class) | {100 * accuracy:.2f} [",
        "1 images could not be read", "p10_AP.png", "Data: drawn.", "logistic regression", "## Views", "| patients |",
    ):  # fmt: skip
        assert wanted in text, wanted
    for name in PLOTS:
        assert f"(plots/{name})" in text
    assert json.loads((run / "metrics.json").read_text()) == {"training": {"epochs": 3}}
    write_metrics(run, content)
    kept = json.loads((run / "metrics.json").read_text())
    assert kept["training"] == {"epochs": 3} and kept["split"] == "test"


def test_predictions_that_are_there_are_judged(run):
    path = run / "predictions" / "test.csv"
    path.parent.mkdir()
    manifest = Manifest.load(run / "manifest.csv").where("test")
    labels = [NAMES.index(r.label) for r in manifest.records]
    readable = np.array([0, 1, 3, 4, 5])
    tables_from(labels, labels, paths=[str(r.path) for r in manifest.records]).take(readable).save(path)
    content = write_evaluation(run, draws=50)
    assert content["splits"]["test"]["metrics"]["accuracy"] == 1
    assert len(content["missing"]["test"]) == 1


def test_images_that_have_gone_since_are_named(run):
    write_evaluation(run, draws=50)
    for path in (run.parent / "data" / "images").glob("p11*"):
        path.unlink()
    with pytest.raises(InputError, match=r"p11_AP\.png: was predicted, but can no longer be read: No such file"):
        write_evaluation(run, draws=50)


def test_cracks_are_found_beside_the_images(run):
    manifest = Manifest.load(run / "manifest.csv")
    assert len(cracks_of(manifest, run / "manifest.csv")) == len(manifest)


def test_a_run_without_images_to_judge_is_refused(run):
    manifest = Manifest.load(run / "manifest.csv")
    manifest.where("train").save(run / "manifest.csv")
    with pytest.raises(InputError, match=r"manifest\.csv: has no images of test or valid"):
        write_evaluation(run)


def test_a_damaged_metrics_json_is_not_overwritten(run):
    (run / "metrics.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        write_metrics(run, {})
    assert (run / "metrics.json").read_text() == "{"


# ---- the command
def test_command(run, capsys):
    assert main(["fracture", "evaluate", str(run), "--draws", "100"]) == 0
    said = capsys.readouterr().out
    assert "Accuracy (multi-class)" in said and "Research use only" in said and "1 images could not be read" in said
    kept = json.loads((run / "metrics.json").read_text())
    assert kept["training"] == {"epochs": 3} and kept["splits"]["test"]["intervals"]["draws"] == 100


def test_command_on_another_manifest(run, tmp_path, capsys):
    other = Manifest.load(run / "manifest.csv").where("valid")
    other.save(tmp_path / "data" / "other.csv")
    before = (run / "metrics.json").read_text()
    options = ["--data", str(tmp_path / "data" / "other.csv"), "--split", "valid", "--tta", "--draws", "100"]
    assert main(["fracture", "evaluate", str(run), *options]) == 0
    output = run / "evaluation" / "other-valid-tta"
    kept = json.loads((output / "metrics.json").read_text())
    assert kept["split"] == "valid" and "why" not in kept["baselines"]["logistic"]
    assert (output / "report.md").is_file() and (output / "predictions" / "valid.csv").is_file()
    assert (run / "metrics.json").read_text() == before and not (run / "report.md").exists()
    capsys.readouterr()
    assert main(["fracture", "evaluate", str(run), "--data", str(tmp_path / "data" / "other.csv")]) == 2
    assert "other.csv: has no images of the split test (it has: valid)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--split", "all"], "--split"),
        (["--batch", "0"], "--batch"),
        (["--draws", "5"], "--draws"),
        (["--device", "tpu"], "--device"),
        (["--data", "nowhere.csv"], "nowhere.csv: cannot be read as a manifest"),
    ],
)
def test_wrong_options_are_one_line(run, capsys, options, said):
    assert main(["fracture", "evaluate", str(run), *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (run / "report.md").exists()


def test_no_run_is_one_line(tmp_path, capsys):
    assert main(["fracture", "evaluate", str(tmp_path / "nothing")]) == 2
    assert "give the folder of a finished se-fused fracture train run" in capsys.readouterr().err
