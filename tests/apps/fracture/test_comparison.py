"""Tests of model comparisons: tables, figures and text; trained, saved and resumed runs; the command compare-models.

The networks are untrained and the predictions are random, so the correct results are known.
"""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.evaluation import NAMES, NARROW, narrow, table, write_images

pytest.importorskip("sklearn", reason="scikit-learn is in the extra se_fused[train]")
pytest.importorskip("torchmetrics", reason="torchmetrics is in the extra se_fused[train]")
pytest.importorskip("PIL", reason="Pillow is in the extra se_fused[train]")

from se_fused.__main__ import main
from se_fused._errors import InputError
from se_fused.apps.fracture.evaluation import metrics
from se_fused.apps.fracture.evaluation.comparison import compare, write_comparison
from se_fused.apps.fracture.evaluation.comparison_report import headline, mean_sd, p_value, report_text, table_markdown
from se_fused.apps.fracture.evaluation.runs import by_model, load_runs, runs_below, title, train_missing
from se_fused.apps.fracture.evaluation.speed import SpeedOptions, measure_speed
from se_fused.apps.fracture.manifest import Manifest
from se_fused.apps.fracture.predictions import Predictions


def said_of(manifest, skill, seed):
    """Random predictions of the test split; `skill` makes them more accurate."""
    part = manifest.where("test").records
    rng = np.random.default_rng(seed)
    labels = np.array([NAMES.index(r.label) for r in part])
    scores = rng.dirichlet(np.ones(3), len(part))
    scores[np.arange(len(part)), labels] += skill * rng.random(len(part))
    scores /= scores.sum(1, keepdims=True)
    return table(labels, scores, [r.patient for r in part], [r.view for r in part], paths=[str(r.path) for r in part])


def write_run(folder, name, seed, manifest, skill):
    """Write the files of a finished run."""
    (folder / "predictions").mkdir(parents=True)
    narrow(name, seed=seed).save(folder / "model.pt")
    manifest.save(folder / "manifest.csv")
    said_of(manifest, skill, 10 * seed + len(name)).save(folder / "predictions" / "test.csv")
    (folder / "metrics.json").write_text("{}")
    return folder


SKILLS = {"seresnet50": 8.0, "resnet50": 0.2, "unet": 0.5, "densenet121": 0.5}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two trainings of each of the four systems, where SE-ResNet is far better than the others."""
    root = tmp_path_factory.mktemp("comparison")
    manifest = write_images(root / "data", 36)
    for name, skill in SKILLS.items():
        for seed in (1, 0):
            write_run(root / "runs" / f"{name}-seed{seed}", name, seed, manifest, skill)
    return root / "runs"


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "comparison"
    return output, write_comparison(
        load_runs(runs_below(runs)), output, draws=200, speed=SpeedOptions(batch=2, rounds=1)
    )


def test_models_in_the_papers_order_by_seed(runs):
    groups = by_model(load_runs(runs_below(runs)))
    assert list(groups) == ["resnet50", "unet", "densenet121", "seresnet50"]
    assert all([run.seed for run in group] == [0, 1] for group in groups.values())
    assert [title(name) for name in (*groups, "resnext50_32x4d")] == [
        "ResNet-50", "U-Net", "DenseNet-121", "SE-ResNet-50", "resnext50_32x4d",
    ]  # fmt: skip


def test_files(written):
    output, content = written
    names = {"table1.md", "table1.csv", "figure2.png", "figure3.png", "confusion.png", "report.md", "results.json"}
    assert {path.name for path in output.iterdir()} == names
    assert json.loads((output / "results.json").read_text()) == json.loads(json.dumps(content, allow_nan=False))


def test_table_1_is_of_the_runs(written, runs):
    output, content = written
    tables = [run.predictions for run in by_model(load_runs(runs_below(runs)))["seresnet50"]]
    found = [metrics(t) for t in tables]
    with (output / "table1.csv").open() as stream:
        rows = {row["model"]: row for row in csv.DictReader(stream)}
    row = rows["seresnet50"]
    for name, key in (("precision", "precision_macro"), ("recall", "recall_macro"), ("f1_score", "f1_macro"),
                      ("accuracy", "accuracy")):  # fmt: skip
        values = [100 * f[key] for f in found]
        assert row[name] == f"{np.mean(values):.2f}" and row[f"{name}_sd"] == f"{np.std(values, ddof=1):.2f}"
        assert float(row[f"{name}_low"]) <= float(row[name]) <= float(row[f"{name}_high"])
    assert (row["paper_precision"], row["paper_f1_score"], row["paper_accuracy"]) == ("94.56", "97.67", "98.02")
    assert row["paper_note"] == "different data, not comparable; its F1 exceeds its precision and its recall"
    assert rows["resnet50"]["paper_note"] == "different data, not comparable"
    assert rows["most frequent class"]["accuracy"] == "33.33" and rows["most frequent class"]["paper_recall"] == ""
    text = (output / "table1.md").read_text()
    accuracy = content["models"]["seresnet50"]["figures"]["accuracy"]
    assert f"| {mean_sd(accuracy)} |" in text and "± " in mean_sd(accuracy)
    assert (
        "*the paper's Proposed SE-ResNet: different data, not comparable* | *94.56* | *96.78* | *97.67 †* | *98.02*"
        in text
    )
    assert "their harmonic mean is 95.66" in text and "their harmonic mean is 74.72" in text
    assert text.count("\n† ") == 2


def test_report_brings_it_together(written):
    output, content = written
    text = (output / "report.md").read_text()
    for wanted in (
        "Research use only, not a medical device",
        "Data: drawn.",
        content["headline"],
        "(figure2.png)",
        "(figure3.png)",
        "74.72",
        "Pairwise tests",
        "SE-ResNet-50 − ResNet-50",
        "## Speed and memory",
        "patients (9)",
        "most frequent class",
        "logistic regression",
        "| 1 | unet-seed1 |",
        "1 − 2(1 − accuracy)/K, with K = 3",
    ):
        assert wanted in text, wanted
    assert len(content["pairs"]) == 6 and not any("nan" in line for line in text.splitlines())


def test_pairs_are_held_against_each_other(written):
    _, content = written
    pairs = {(p["first"], p["second"]): p for p in content["pairs"]}
    best = pairs["seresnet50", "resnet50"]
    accuracy = {n: m["figures"]["accuracy"]["mean"] for n, m in content["models"].items()}
    assert best["accuracy"]["difference"] == pytest.approx(accuracy["seresnet50"] - accuracy["resnet50"])
    assert best["accuracy"]["interval_seeds"][0] > 0 and best["mcnemar"]["first_only"] > best["mcnemar"]["second_only"]
    for row in content["pairs"]:
        assert row["accuracy"]["p_seeds_holm"] >= row["accuracy"]["p_seeds"]
        assert row["mcnemar"]["p_holm"] >= row["mcnemar"]["p"]
    smallest = min(p["mcnemar"]["p"] for p in content["pairs"])
    assert min(p["mcnemar"]["p_holm"] for p in content["pairs"]) == pytest.approx(min(1, 6 * smallest))


def test_parts_and_baselines(written):
    _, content = written
    assert content["models"]["unet"]["parts"]["AP"]["images"] == 9
    assert content["models"]["unet"]["parts"]["patients"]["images"] == 9
    assert content["baselines"]["logistic"]["accuracy"] == 1  # the thumbnails show the bands


def test_speed_of_all_both_ways(written):
    _, content = written
    for mode in ("infer", "train"):
        rows = content["speed"]["modes"][mode]
        assert set(rows) == set(SKILLS)
        for row in rows.values():
            assert row["differs"] == "" and row["fused"]["peak_bytes"] > 0 and len(row["plain"]["rounds"]) == 1
            assert row["speedup"]["median"] == row["plain"]["rounds"][0] / row["fused"]["rounds"][0]
            assert row["fused"]["images_per_second"] == pytest.approx(2 / row["fused"]["seconds"]["median"])


def test_what_differs_is_not_timed(monkeypatch):
    """A network whose kernels give wrong results is reported and not timed; the other one is timed."""
    from se_fused.backends import forced

    wrong = narrow("resnet50")
    forward = type(wrong.model).forward

    def lying(self, x):
        return forward(self, x) * (1.001 if forced() == "auto" and self is not None else 1.0)

    monkeypatch.setattr(type(wrong.model), "forward", lying)
    rows = measure_speed({"a": wrong, "b": narrow("unet")}, SpeedOptions(batch=2, rounds=1))["modes"]["infer"]
    assert "logits: error" in rows["a"]["differs"] and "fused" not in rows["a"]
    assert rows["b"]["differs"] == "" and "fused" in rows["b"]


# ---- text
def changed(content, accuracy, p, low, high):
    """The content with another difference between SE-ResNet and ResNet."""
    made = json.loads(json.dumps(content))
    made["models"]["seresnet50"]["figures"]["accuracy"]["mean"] = 0.5 + accuracy
    made["models"]["resnet50"]["figures"]["accuracy"]["mean"] = 0.5
    for pair in made["pairs"]:
        if {pair["first"], pair["second"]} == {"seresnet50", "resnet50"}:
            pair["accuracy"] |= {"difference": accuracy, "p_seeds": p, "interval_seeds": [low, high]}
    return made


def test_headline_says_what_the_figures_say(written):
    _, content = written
    said = headline(changed(content, 0.02, 0.01, 0.005, 0.04))
    assert (
        "difference of +2.00 points [+0.50, +4.00]" in said and "SE-ResNet-50 is more accurate on this test set" in said
    )
    assert "ratio" not in said and "times the speed" in said and "fewer than three training runs" in said
    said = headline(changed(content, -0.02, 0.01, -0.04, -0.005))
    assert "difference of -2.00 points" in said and "more accurate on this" in said and "SE-ResNet-50 is" not in said
    assert "ResNet-50 is more accurate on this test set" in said
    said = headline(changed(content, 0.02, 0.3, -0.01, 0.05))
    assert "the difference is not significant" in said and "is more accurate" not in said
    swapped = changed(content, 0.02, 0.01, 0.005, 0.04)
    for pair in swapped["pairs"]:
        if {pair["first"], pair["second"]} == {"seresnet50", "resnet50"}:
            pair["first"], pair["second"] = pair["second"], pair["first"]
    assert "difference of -2.00 points [-4.00, -0.50]" in headline(swapped)


def test_headline_of_speed_is_of_the_same_rounds(written):
    made = json.loads(json.dumps(written[1]))
    for model, seconds in (("seresnet50", [2.0, 4.0, 2.0]), ("resnet50", [1.0, 2.0, 4.0])):
        made["speed"]["modes"]["infer"][model]["fused"] |= {"rounds": seconds, "images_per_second": 10.0}
    assert "0.50 times the speed [0.50, 1.25]" in headline(made)
    made["speed"]["modes"]["infer"]["resnet50"]["differs"] = "logits"
    assert "Speed of inference was not measured because the results differ." in headline(made)


def test_one_model_and_no_speed(runs):
    content = compare(load_runs([runs / "unet-seed0"]), draws=100)
    assert "do not include both" in content["headline"] and content["pairs"] == []
    assert content["models"]["unet"]["figures"]["accuracy"]["sd"] is None
    text = report_text(content)
    assert "Speed and memory" not in text and "Pairwise tests" not in text
    assert "**U-Net**, 1 training run |" in table_markdown(content)


def test_small_p_values():
    assert p_value(0.0004) == "< 0.001" and p_value(0.0316) == "0.032"


# ---- refusals
def test_runs_of_different_test_sets_are_refused_by_name(runs, tmp_path):
    manifest = Manifest.load(runs / "unet-seed0" / "manifest.csv")
    fewer = Manifest(tuple(r for r in manifest.records if not r.path.name.startswith("p11")))
    other = write_run(tmp_path / "other", "resnet50", 0, fewer, 1.0)
    with pytest.raises(
        InputError, match=r"unet-seed0 and .*other: different test sets: 2 images are in one only, e.g. p11"
    ):
        load_runs([runs / "unet-seed0", other])


def test_two_runs_of_one_seed_are_refused(runs, tmp_path):
    manifest = Manifest.load(runs / "unet-seed0" / "manifest.csv")
    again = write_run(tmp_path / "again", "unet", 0, manifest, 1.0)
    with pytest.raises(InputError, match=r"unet-seed0 and .*again: both are unet with seed 0"):
        by_model(load_runs([runs / "unet-seed0", again]))


def test_models_of_one_name_and_other_options_are_told_apart(runs):
    found = load_runs([runs / "unet-seed0", runs / "unet-seed1"])
    found[1].classifier = replace(found[1].classifier, options={"width": 4})
    assert list(by_model(found)) == ["unet (width=2)", "unet (width=4)"]
    assert list(compare(found, draws=100)["models"]) == ["unet (width=2)", "unet (width=4)"]


def test_unfinished_runs_are_refused(runs, tmp_path):
    with pytest.raises(InputError, match="not a finished run"):
        load_runs([tmp_path])
    with pytest.raises(InputError, match="no runs to compare"):
        load_runs([])


def test_missing_predictions_are_made(runs, tmp_path):
    manifest = Manifest.load(runs / "unet-seed0" / "manifest.csv")
    run = write_run(tmp_path / "run", "unet", 0, manifest, 1.0)
    (run / "predictions" / "test.csv").unlink()
    (found,) = load_runs([run])
    assert len(found.predictions) == 18 and (run / "predictions" / "test.csv").is_file()


# ---- training of missing runs
@pytest.fixture
def trained(monkeypatch):
    """A replacement for training, which records its calls and writes a finished run, or stops with an error."""
    pytest.importorskip("lightning", reason="Lightning is in the extra se_fused[train]")
    from se_fused.apps.fracture.training import run as training

    calls = []

    def train(config, *, resume, progress, say):
        assert resume
        name, seed = config.model.name, config.seed
        calls.append((name, seed))
        if len(calls) == train.dies_at:
            raise KeyboardInterrupt
        from pathlib import Path

        folder = write_run(Path(config.output), name, seed, Manifest.load(config.data.path), SKILLS[name])
        config.save(folder / "config.yaml")
        progress("training", 1.0)
        return folder

    train.dies_at = 0
    train.calls = calls
    monkeypatch.setattr(training, "train", train)
    return train


def write_config(path, **models):
    recipe = "data: {size: 32}\ntraining: {epochs: 1, batch: 4, device: cpu}\n"
    path.write_text(f"{recipe}model: {{variants: {json.dumps(models)}}}\n")
    return path


def test_a_comparison_that_was_killed_goes_on(trained, tmp_path, runs):
    from se_fused.apps.fracture.training import Config

    base = Config.load(write_config(tmp_path / "c.yaml", unet={"width": 2}, resnet50=NARROW["resnet50"]))
    base = base.with_values({"data.path": str(runs / "unet-seed0" / "manifest.csv")})
    models = ["unet", "resnet50"]
    trained.dies_at = 3
    with pytest.raises(KeyboardInterrupt):
        train_missing(tmp_path / "out", base, models, 2)
    assert trained.calls == [("unet", 0), ("resnet50", 0), ("unet", 1)]
    trained.calls.clear()
    trained.dies_at = 0
    shares = []
    folders = train_missing(tmp_path / "out", base, models, 2, lambda what, share: shares.append((what, share)))
    assert trained.calls == [("unet", 1), ("resnet50", 1)]
    assert [f.name for f in folders] == ["unet-seed0", "resnet50-seed0", "unet-seed1", "resnet50-seed1"]
    assert shares == [("unet, seed 1: training", 0.75), ("resnet50, seed 1: training", 1.0)]
    trained.calls.clear()
    assert len(load_runs(train_missing(tmp_path / "out", base, models, 2))) == 4 and trained.calls == []
    assert Config.load(folders[0] / "config.yaml").model.options == {"width": 2}
    with pytest.raises(InputError, match=r"unet-seed0: was trained with a different training\.epochs"):
        train_missing(tmp_path / "out", base.with_values({"training.epochs": 9}), models, 2)
    wider = Config.load(write_config(tmp_path / "d.yaml", unet={"width": 3}))
    with pytest.raises(InputError, match=r"unet-seed0: was trained with a different model\.options"):
        train_missing(tmp_path / "out", wider.with_values({"data.path": base.data.path}), ["unet"], 2)
    with pytest.raises(InputError, match="--models: there is no 'resnet5'"):
        train_missing(tmp_path, base, ["resnet5"], 1)
    assert trained.calls == []


# ---- the command
def test_command_with_runs(runs, tmp_path, capsys):
    output = tmp_path / "out"
    chosen = [str(runs / f"{name}-seed{seed}") for name in ("resnet50", "seresnet50") for seed in (0, 1)]
    assert (
        main(["fracture", "compare-models", "--runs", *chosen, "--output", str(output), "--no-speed", "--draws", "100"])
        == 0
    )
    said = capsys.readouterr().out
    assert "SE-ResNet-50 against ResNet-50" in said and "paper, different data" in said and "98.02" in said
    assert list(json.loads((output / "results.json").read_text())["models"]) == ["resnet50", "seresnet50"]


def test_command_trains_and_compares(trained, runs, tmp_path, capsys):
    config = write_config(tmp_path / "c.yaml", **NARROW)
    data = str(runs / "unet-seed0" / "manifest.csv")
    options = ["fracture", "compare-models", "--data", data, "--models", "resnet50, seresnet50", "--seeds", "2"]
    options += ["--config", str(config), "--output", str(tmp_path / "out"), "--no-speed", "--draws", "100"]
    assert main(options) == 0
    assert trained.calls == [("resnet50", 0), ("seresnet50", 0), ("resnet50", 1), ("seresnet50", 1)]
    assert "resnet50, seed 0: run 1 of 4" in capsys.readouterr().err
    assert (tmp_path / "out" / "report.md").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--runs"),
        (["--runs", "a", "--data", "b"], "--runs"),
        (["--runs", "nowhere"], "nowhere: not a finished run"),
        (["--data", "nowhere.csv", "--seeds", "0"], "--seeds"),
        (["--runs", "a", "--dtype", "int8"], "--dtype"),
        (["--runs", "a", "--device", "tpu"], "--device"),
    ],
)
def test_wrong_options_are_one_line(options, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fracture", "compare-models", *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.nightly
def test_two_real_trainings_and_their_comparison(tmp_path, capsys):
    """From images to a report with real trainings of one epoch each."""
    pytest.importorskip("lightning", reason="Lightning is in the extra se_fused[train]")
    torch.manual_seed(0)
    write_images(tmp_path / "data", 24)
    models = {name: NARROW[name] for name in ("resnet50", "seresnet50")}
    config = write_config(tmp_path / "c.yaml", **models)
    options = ["fracture", "compare-models", "--data", str(tmp_path / "data" / "manifest.csv"), "--seeds", "1"]
    options += ["--config", str(config), "--output", str(tmp_path / "out"), "--batch", "2", "--draws", "100"]
    assert main(options) == 0, capsys.readouterr().err
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(content["models"]) == ["resnet50", "seresnet50"] and content["speed"] is not None
    kept = Predictions.load(tmp_path / "out" / "runs" / "resnet50-seed0" / "predictions" / "test.csv")
    assert content["models"]["resnet50"]["figures"]["accuracy"]["values"] == [metrics(kept)["accuracy"]]
