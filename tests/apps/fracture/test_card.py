"""Tests of the model card: all its content is from the run's files, and missing content is reported as missing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for module in ("PIL", "torchmetrics", "sklearn", "yaml", "lightning"):
    pytest.importorskip(module)
# ruff: noqa: E402 (optional packages are checked first)
from support.classifier import CLASSES, classifier

from se_fused._errors import InputError
from se_fused.apps.fracture.deploy import card as cards
from se_fused.apps.fracture.deploy.card import card, write_card
from se_fused.apps.fracture.evaluation import evaluate
from se_fused.apps.fracture.manifest import Manifest, Record
from se_fused.apps.fracture.predictions import Predictions
from se_fused.apps.fracture.training import Config

HEADINGS = [
    "Model details", "Intended use", "Factors", "Training data", "Evaluation data", "Preprocessing", "Training",
    "Quantitative analyses", "Ethical considerations", "Caveats and recommendations", "How to load it", "Versions",
]  # fmt: skip


def records(patients: bool = True, source: str = "hospital") -> tuple[Record, ...]:
    """60 images of 30 patients, half of them for training, a quarter each for validation and test."""
    rows = []
    for i in range(60):
        patient = f"p{i // 2}" if patients else ""
        split = ("train", "train", "valid", "test")[i // 2 % 4]
        view = ("AP", "lateral")[i % 2]
        rows.append(Record(Path(f"/data/{i}.png"), CLASSES[i // 2 % 3], patient, "", view, split, source))
    return tuple(rows)


def figures(rows: tuple[Record, ...]) -> dict[str, Any]:
    """The result of write_evaluation for made-up predictions of the test split."""
    rows = tuple(r for r in rows if r.split == "test")
    labels = np.array([CLASSES.index(r.label) for r in rows], np.int64)
    noise = np.random.default_rng(0).random((len(rows), 3)) + 0.8 * np.eye(3)[labels]
    table = Predictions(
        CLASSES, tuple(str(r.path) for r in rows), tuple(r.patient for r in rows), tuple(r.study for r in rows),
        tuple(r.view for r in rows), labels, noise / noise.sum(1, keepdims=True),
    )  # fmt: skip
    found = evaluate(table, draws=50)
    majority = dict(found["metrics"], accuracy=0.4321)
    heat = {"images": 20, "pointing_game": 0.75, "energy_in_box": 0.5, "box_share": 0.125}
    return {"split": "test", "splits": {"test": found}, "missing": {"test": ["/data/x.png"]}, "gradcam": heat,
            "baselines": {"majority": majority, "logistic": {"why": "nothing to fit on"}}}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = records()
    manifest = Manifest(rows)
    manifest.save(tmp_path / "manifest.csv")
    about = {"run": "run-7", "seed": 5, "epoch": 11, "manifest": manifest.digest(), "source": "hospital"}
    replace(classifier(size=64), about=about).save(tmp_path / "model.pt")
    Config(seed=5).save(tmp_path / "config.yaml")
    environment = {
        "time": "2026-11-23T20:00:00+00:00", "se_fused": "9.8.7", "versions": {"torch": "2.99", "cuda": None},
        "cpu": {"model": "a fine CPU"}, "gpus": [], "python": "3.11.1", "commit": "abc1234",
    }  # fmt: skip
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    (tmp_path / "metrics.json").write_text(json.dumps(figures(rows)))
    return tmp_path


def sections(text: str) -> dict[str, str]:
    parts = text.split("\n## ")
    return {part.split("\n", 1)[0]: part for part in parts[1:]}


def test_a_whole_run(run: Path) -> None:
    assert write_card(run) == run / "MODEL_CARD.md"
    text = (run / "MODEL_CARD.md").read_text()
    assert text.startswith("# Model card: seresnet18, run-7\n\n**Research use only. Not a medical device.**\n")
    found = sections(text)
    assert list(found) == HEADINGS
    assert "synthetic" not in text.casefold()
    details = found["Model details"]
    assert (
        "none, oblique, spiral" in details
        and "Random seed: 5" in details
        and "Selected epoch, counted from 0: 11" in details
    )
    assert "Initial weights: random weights" in details and "fused (se_fused)" in details and "2026-11-23" in details
    train = found["Training data"]
    assert "| train | 32 | 16 | – | 10 | 12 | 10 |" in train and "| test | 14 | 7 | – | 6 | 4 | 4 |" in train
    assert "Splits are by patient." in train and "the same" in train and "hospital (60 images)" in train
    assert "AP (30), lateral (30)" in train
    assert "| test | 14 |" in found["Evaluation data"] and "| train" not in found["Evaluation data"]
    assert "64 pixels" in found["Preprocessing"] and "− 0.4) / 0.2" in found["Preprocessing"]
    assert "| training.optimizer | adamw |" in found["Training"] and "momentum" not in found["Training"]
    assert "9.8.7" in found["Versions"] and "torch: 2.99" in found["Versions"] and "a fine CPU" in found["Versions"]
    assert "cuda" not in found["Versions"]


def test_the_figures_are_those_of_metrics_json(run: Path) -> None:
    content = json.loads((run / "metrics.json").read_text())
    numbers = content["splits"]["test"]
    text = sections(card(run))["Quantitative analyses"]
    low, high = numbers["intervals"]["figures"]["accuracy"]
    accuracy = numbers["metrics"]["accuracy"]
    assert f"| Accuracy (multi-class) | {100 * accuracy:.2f} [{100 * low:.2f}, {100 * high:.2f}] |" in text
    assert "% [95 % confidence interval]" in text and "from 50 bootstrap resamples of 7 patients" in text
    for name in CLASSES:
        row = numbers["metrics"]["per_class"][name]
        low, high = numbers["intervals"]["per_class"][name]["recall"]
        assert f"| {name} | {row['images']} | {row['predicted']} |" in text
        assert f"{100 * row['recall']:.2f} [{100 * low:.2f}, {100 * high:.2f}]" in text
    assert "| baseline: the most frequent class | 14 | 43.21 |" in text and "logistic" not in text
    assert "| view AP | 7 |" in text and "by patients | 7 |" in text
    assert "75.00 % of 20 images" in text and "about 12.50 %" in text
    assert "Any fracture against none: sensitivity" in text
    caveats = sections(card(run))["Caveats and recommendations"]
    assert "Fewer than 20 test images: none, oblique, spiral." in caveats and "1 images of the test split" in caveats


def test_figures_of_a_run_that_is_not_finished(run: Path) -> None:
    content = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").unlink()
    assert "Accuracy (multi-class)" in card(run, content) and "Accuracy (multi-class)" not in card(run)


@pytest.mark.parametrize(
    ("file", "heading"),
    [
        ("config.yaml", "Training"),
        ("manifest.csv", "Training data"),
        ("metrics.json", "Quantitative analyses"),
        ("environment.json", "Versions"),
    ],
)
def test_what_is_missing_is_said_to_be(file: str, heading: str, run: Path) -> None:
    assert f"{file} is missing" not in card(run)
    (run / file).unlink()
    found = sections(card(run))
    assert list(found) == HEADINGS
    assert f"{file} is missing in the run's folder" in found[heading]
    assert not any(character.isdigit() for character in found[heading].replace(file, "")), "and nothing is invented"


def test_a_model_alone(tmp_path: Path) -> None:
    classifier().save(tmp_path / "model.pt")
    found = sections(card(tmp_path))
    assert list(found) == HEADINGS
    for name in (
        "Run",
        "Random seed",
        "Selected epoch, counted from 0",
        "Trained",
        "Initial weights",
        "Kernels in training",
    ):
        assert f"- {name}: Not recorded\n" in found["Model details"]


def test_metrics_of_the_training_alone(run: Path) -> None:
    (run / "metrics.json").write_text(json.dumps({"training": {"epochs": 3}}))
    assert (
        "metrics.json is missing in the run's folder or does not contain"
        in sections(card(run))["Quantitative analyses"]
    )


def test_synthetic_data_are_named_everywhere(run: Path) -> None:
    Manifest(records(source="synthetic phantom, no clinical meaning")).save(run / "manifest.csv")
    text = card(run)
    found = sections(text)
    for part in (text.split("\n## ")[0], found["Intended use"], found["Caveats and recommendations"]):
        assert "Trained on synthetic phantoms: no clinical meaning." in part
    assert "synthetic phantoms of long bones" in found["Intended use"]


def test_the_synthetic_set_names_itself_so(tmp_path: Path) -> None:
    from se_fused.apps.fracture.deploy import is_synthetic
    from se_fused.apps.fracture.synth import write_set

    manifest = write_set(tmp_path, 6, size=32, workers=1)
    assert all(is_synthetic(record.source) for record in manifest.records)


def test_how_the_splits_were_made_is_told(run: Path) -> None:
    def grouping(rows: tuple[Record, ...]) -> str:
        Manifest(rows).save(run / "manifest.csv")
        return sections(card(run))["Training data"]

    assert "Patients are unknown" in grouping(records(patients=False))
    groups = Manifest(records()).with_columns(patient=[f"group-{i // 2:04d}" for i in range(60)])
    assert "Clusters of near-duplicate images" in grouping(groups.records)
    torn = Manifest(records()).with_columns(patient=["p0", "p1"] * 30)
    assert "2 patients or groups have images in more than one split" in grouping(torn.records)
    some = Manifest(records()).with_columns(patient=[f"p{i // 2}" if i < 50 else "" for i in range(60)])
    assert "10 images have no patient" in grouping(some.records)
    assert "different" in sections(card(run))["Training data"], "the manifest is no longer that of the training"


def test_the_recipe_s_settings_are_settings() -> None:
    flat = Config().flat()
    for section, keys in cards._RECIPE.items():
        for key in keys:
            assert f"{section}.{key}" in flat


def test_a_damaged_file_is_named_and_leaves_no_card(run: Path) -> None:
    for name in ("metrics.json", "config.yaml", "environment.json"):
        kept = (run / name).read_bytes()
        (run / name).write_bytes(b'{"a": [')
        with pytest.raises(InputError, match=f"{name}: cannot be read"):
            write_card(run)
        (run / name).write_bytes(b"[]")
        with pytest.raises(InputError, match=f"{name}: is not a mapping"):
            write_card(run)
        (run / name).write_bytes(kept)
    (run / "model.pt").unlink()
    with pytest.raises(InputError, match=r"model\.pt: no such file"):
        write_card(run)
    assert not (run / "MODEL_CARD.md").exists()
