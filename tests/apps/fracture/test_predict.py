"""Tests of prediction: the files that are read, the results, and the files that the command writes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.classifier import CLASSES, classifier

pytest.importorskip("PIL")
pytest.importorskip("typer")

from PIL import Image
from typer.testing import CliRunner

from se_fused import cli
from se_fused._errors import InputError
from se_fused.apps.fracture.deploy import overlay
from se_fused.apps.fracture.deploy.inputs import find_images
from se_fused.apps.fracture.deploy.predictor import Predictor, by_study
from se_fused.apps.fracture.evaluation import predict_manifest
from se_fused.apps.fracture.images import decode, load_radiograph
from se_fused.apps.fracture.manifest import Manifest, Record

EPS = torch.finfo(torch.float32).eps


def picture(path: Path, seed: int = 0, shape: tuple[int, int] = (60, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 65536, shape).astype(np.uint16)
    Image.fromarray(values).save(path)
    return path


def invoke(*arguments: object):
    return CliRunner().invoke(cli.app, ["fracture", *map(str, arguments)])


# ---- the files that are read
def test_folders_files_and_manifests_name_images_once_in_natural_order(tmp_path: Path) -> None:
    for name in ("10.png", "2.png", "b/1.png", ".hidden.png", "__MACOSX/3.png", ".git/4.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / "1.2.840.7").write_bytes(bytes(128) + b"DICM" + bytes(8))
    (tmp_path / "empty").mkdir()
    table = tmp_path / "set.csv"
    Manifest((Record(tmp_path / "in" / "2.png", "spiral", "p1", "s1", "AP"),)).save(table)
    records, empty = find_images(
        [tmp_path / "in", tmp_path / "in" / "10.png", tmp_path / "empty", "/none/x.png", table]
    )
    names = [record.path.relative_to(tmp_path / "in").as_posix() for record in records]
    assert names == ["1.2.840.7", "2.png", "10.png", "b/1.png"]
    assert [path.name for path, _ in empty] == ["empty", "x.png"]
    (first,), _ = find_images([table])
    assert (first.label, first.patient, first.study) == ("spiral", "p1", "s1")


# ---- the results
def test_predictions_are_those_of_the_network(tmp_path: Path) -> None:
    """Predictions are the network's for any batch, reader and optimisation; damaged files are named and left out."""
    pytest.importorskip("pydicom", reason='DICOM needs pydicom: pip install "se_fused[train]"')
    paths = [picture(tmp_path / f"{i}.png", i) for i in range(5)]
    (tmp_path / "3.png").write_bytes(paths[3].read_bytes()[:300])
    (tmp_path / "5.dcm").write_bytes(b"no dicom")
    ours = classifier()
    kept = [paths[i] for i in (0, 1, 2, 4)]
    images = torch.stack([load_radiograph(path, 48) for path in kept])
    with torch.no_grad():
        truth = torch.softmax(ours.model.double()((images.double() - 0.4) / 0.2), 1).numpy()
    ours.model.float()
    found = Predictor(ours, batch=2, optimize=False).predict(tmp_path)
    assert found.paths == tuple(map(str, kept)) and (found.labels == -1).all()
    assert [Path(path).name for path, _ in found.skipped] == ["3.png", "5.dcm"]
    assert not any(str(tmp_path) in reason for _, reason in found.skipped)
    plain = np.abs(found.probabilities - truth).max()
    # the softmax of float32 logits of a few units: some eps of a probability of at most 1, times the network's depth
    assert plain < 100 * EPS
    fast = Predictor(ours, batch=3).predict([*paths, tmp_path / "5.dcm"])
    assert np.abs(fast.probabilities - truth).max() <= 2 * plain + 100 * EPS
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-15)


def test_prediction_and_evaluation_agree(tmp_path: Path) -> None:
    records = tuple(
        Record(picture(tmp_path / f"{i}.png", i), CLASSES[i % 3], f"p{i // 2}", f"s{i // 2}", "AP") for i in range(4)
    )
    Manifest(records).save(tmp_path / "set.csv")
    ours = classifier()
    for tta in (False, True):
        theirs = predict_manifest(ours, Manifest(records), batch=2, tta=tta)
        mine = Predictor(ours, batch=2, tta=tta, optimize=False).predict(tmp_path / "set.csv")
        # evaluation takes the mean of two in float32, prediction in float64
        np.testing.assert_allclose(mine.probabilities, theirs.probabilities, rtol=0, atol=EPS if tta else 0)
        assert (mine.labels == theirs.labels).all() and mine.patients == theirs.patients and mine.studies


def test_an_ensemble_is_the_mean_and_keeps_each_preprocessing(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    members = classifier(0), classifier(1, size=64)
    files = []
    for i, member in enumerate(members):
        member.save(tmp_path / f"{i}.pt")
        files.append(tmp_path / f"{i}.pt")
    alone = [Predictor(m, optimize=False).predict(path).probabilities for m in members]
    together = Predictor(files, optimize=False).predict(path).probabilities
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    np.testing.assert_allclose(together, (alone[0] + alone[1]) / 2, rtol=0, atol=EPS)  # rows of float32 sum nearly to 1
    with pytest.raises(InputError, match=r"its classes are a, b.*but the first classifier's are none, oblique, spiral"):
        Predictor([members[0], classifier(classes=("a", "b"))])


def test_mirror_images_are_averaged(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    values = np.asarray(Image.open(path))[:, ::-1]
    Image.fromarray(np.ascontiguousarray(values)).save(tmp_path / "b.png")
    ours = classifier()
    plain = Predictor(ours, optimize=False).predict([path, tmp_path / "b.png"]).probabilities
    both = Predictor(ours, optimize=False, tta=True).predict([path, tmp_path / "b.png"]).probabilities
    assert np.abs(plain[0] - plain[1]).max() > 1e-3
    # letterboxing commutes with mirroring, except for the order of its sums
    np.testing.assert_allclose(both[0], plain.mean(0), atol=100 * EPS)
    np.testing.assert_allclose(both[0], both[1], atol=100 * EPS)


def test_studies_are_averaged(tmp_path: Path) -> None:
    rows = [("a/1.png", "p1", "s1", "spiral"), ("b/2.png", "p1", "s1", "spiral"), ("b/3.png", "p2", "s1", "none"),
            ("b/4.png", "", "", ""), ("c/5.png", "", "", ""), ("b/6.png", "", "", "none")]  # fmt: skip
    for i, (name, *_) in enumerate(rows):
        picture(tmp_path / name, i)
    Manifest(tuple(Record(tmp_path / n, label, p, s, "AP") for n, p, s, label in rows)).save(tmp_path / "set.csv")
    each = Predictor(classifier(), optimize=False).predict(tmp_path / "set.csv")
    found = by_study(each)
    assert [Path(path).name for path in found.paths] == ["1.png", "3.png", "4.png", "5.png"]
    expected = [each.probabilities[list(places)].mean(0) for places in ((0, 1), (2,), (3, 5), (4,))]
    np.testing.assert_array_equal(found.probabilities, expected)
    assert found.labels.tolist() == [2, 0, -1, -1], "unknown where the images differ"
    assert found.patients == ("p1", "p2", "", "")
    nothing = by_study(each.take(np.zeros(6, bool)))
    assert len(nothing) == 0 and nothing.probabilities.shape == (0, 3)


def test_a_network_that_cannot_be_optimised_runs_as_it_is_and_says_so(tmp_path: Path) -> None:
    class Deciding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(1, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.mean((2, 3))
            return self.fc(x) if x.sum() > 0 else self.fc(-x)

    ours = replace(classifier(), model=Deciding(), name="deciding")
    predictor = Predictor(ours)
    assert len(predictor.notes) == 1 and predictor.notes[0].startswith("deciding runs without optimisation: ")
    assert predictor.predict(picture(tmp_path / "a.png")).probabilities.shape == (1, 3)
    assert Predictor(classifier()).notes == []


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch must be an int of at least 1"):
        Predictor(classifier(), batch=0)
    with pytest.raises(ValueError, match="classifiers must be one or several"):
        Predictor([])
    with pytest.raises(InputError, match="no such file"):
        Predictor(tmp_path / "none.pt")


# ---- heat maps
def test_heat_lies_where_the_picture_lies() -> None:
    """A spot in a letterboxed image is mapped back to its own pixels, for wide and tall images."""
    for shape, spot in (((40, 80), (10, 60)), ((80, 40), (60, 10)), ((33, 50), (30, 5))):
        grey = np.zeros(shape, np.float32)
        grey[spot[0] - 2 : spot[0] + 3, spot[1] - 2 : spot[1] + 3] = 1
        square = overlay.heat_on_picture(Predictor.squares(_Sizes, grey)[80][0], shape)  # type: ignore[arg-type]
        assert square.shape == shape
        assert max(abs(np.subtract(np.unravel_index(square.argmax(), shape), spot))) <= 2
        assert square.sum() == pytest.approx(25, rel=0.35)


class _Sizes:
    sizes = (80,)


def test_colours_are_clear_where_nothing_is_seen() -> None:
    colours = overlay.heat_colours(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert colours.shape == (1, 3, 4) and colours.dtype == np.uint8
    alpha = colours[0, :, 3].astype(int)
    assert alpha[0] == 0 and alpha[0] < alpha[1] < alpha[2]
    assert np.diff(colours[0, :, :3].astype(int).sum(1)).min() > 0, "lighter where hotter"


def test_pictures_to_look_at_are_no_larger_than_asked() -> None:
    grey = np.linspace(0, 1, 3000 * 10, dtype=np.float32).reshape(3000, 10)
    assert overlay.shown(grey).shape == (1024, 3)
    same = np.array([[0, 0.5, 1]], np.float32)
    assert overlay.shown(same).tolist() == [[0, 128, 255]]


# ---- the command
@pytest.fixture
def model(tmp_path: Path) -> Path:
    classifier(seed=1, source="synthetic phantoms").save(tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_the_command_writes_json_csv_and_overlays(tmp_path: Path, model: Path) -> None:
    for i in range(3):
        picture(tmp_path / "in" / f"{i} [x].png", i)
    for output in ("out.json", "out.csv"):
        done = invoke("predict", model, tmp_path / "in", "--output", tmp_path / output, "--overlays", tmp_path / "over")
        assert done.exit_code == 0, done.output
        assert "Research use only. Not a medical device. Trained on synthetic phantoms" in done.stdout
        assert "1 [x].png" in done.stdout
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["notice"] == "Research use only. Not a medical device."
    assert "synthetic" in content["warning"] and content["unreadable"] == []
    assert content["models"] == [{"name": "seresnet18", "size": 48, "source": "synthetic phantoms"}]
    first = content["images"][0]
    assert first["predicted"] == max(first["probabilities"], key=first["probabilities"].get)
    from se_fused.apps.fracture.predictions import Predictions

    table = Predictions.load(tmp_path / "out.csv")
    assert [list(row["probabilities"].values()) for row in content["images"]] == table.probabilities.tolist()
    drawn = sorted(path.name for path in (tmp_path / "over").iterdir())
    assert drawn == ["1 0 [x].png", "2 1 [x].png", "3 2 [x].png"]
    with Image.open(tmp_path / "over" / drawn[0]) as sheet:
        assert sheet.mode == "RGB" and sheet.width > 2 * 200
        halves = np.asarray(sheet, int)[:300]
    left, right = halves[:, :200], halves[:, -200:]
    assert np.ptp(left, axis=2).max() == 0 and np.ptp(right, axis=2).max() > 30, "grey beside coloured"


def test_json_alone_on_stdout(tmp_path: Path, model: Path) -> None:
    done = invoke("predict", model, picture(tmp_path / "a.png"), "--output", "-", "--per-study", "--tta")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["classes"] == list(CLASSES)


def test_unreadable_files_are_named_and_counted(tmp_path: Path, model: Path) -> None:
    good = picture(tmp_path / "in" / "good.png")
    bad = tmp_path / "in" / "bad.png"
    bad.write_bytes(b"nothing")
    done = invoke("predict", model, good.parent, tmp_path / "missing.png", "--output", tmp_path / "out.json")
    assert done.exit_code == 1
    assert f"{bad}: " in done.stderr and "1 of " not in done.stderr and "2 of 3 could not be read" in done.stderr
    content = json.loads((tmp_path / "out.json").read_text())
    assert [Path(row["path"]).name for row in content["unreadable"]] == ["missing.png", "bad.png"]
    studies = invoke("predict", model, good.parent, "--per-study", "--output", tmp_path / "studies.json")
    assert studies.exit_code == 1 and "1 of 2 could not be read" in studies.stderr
    assert [row["path"] for row in json.loads((tmp_path / "studies.json").read_text())["unreadable"]] == [str(bad)]
    assert cli.run(["fracture", "predict", str(model), str(bad), "--output", str(tmp_path / "none.json")]) == 2
    assert not (tmp_path / "none.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--output", "x.txt"], "must end in .csv or .json"),
        (["--batch", "0"], "--batch"),
        (["--device", "tpu"], "--device"),
        (["--also", "nowhere"], "nowhere: no such file"),
        (["--overlays", "model.pt"], "give a folder"),
        (["--output", "nowhere/x.csv"], "there is no folder"),
    ],
)
def test_options_are_checked_first(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["fracture", "predict", "model.pt", "in.png", *arguments]) == 2
    stderr = capsys.readouterr().err
    assert said in stderr and stderr.count("\n") == 1


def test_decoding_is_the_loader_s(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    grey = decode(path)
    assert grey.shape == (60, 40) and grey.dtype == np.float32 and 0.9 < grey.max() <= 1
