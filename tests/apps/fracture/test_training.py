"""Tests of whole runs on a few phantoms: the files they write, the values they compute, the input they refuse."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.provenance import naming_folders
from support.training import (  # noqa: F401 (a fixture)
    SETTINGS,
    evaluate,
    finish,
    no_evaluation,
    small_config,
    start,
    write_phantoms,
)

import se_fused
from se_fused import _atomic_write, backends, cli
from se_fused._errors import InputError
from se_fused.apps.fracture.classifier import Classifier
from se_fused.apps.fracture.images import load_radiograph
from se_fused.apps.fracture.manifest import Manifest
from se_fused.apps.fracture.predictions import Predictions
from se_fused.apps.fracture.training import Config, callbacks, outcome
from se_fused.apps.fracture.training.module import FractureModule, build_model, rate
from se_fused.apps.fracture.training.processes import find_place
from se_fused.apps.fracture.training.run import prepare_run, train
from se_fused.info.provenance import this_command

FILES = {
    "config.yaml", "manifest.csv", "environment.json", "metrics.json", "model.pt", "checkpoints/best.ckpt",
    "checkpoints/last.ckpt", "logs/metrics.csv", "predictions/valid.csv", "predictions/test.csv", "plots/curves.png",
}  # fmt: skip


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms"))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "logs" / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def run_cli(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcome, "finish", evaluate)
        code = cli.run(["fracture", "train", *map(str, arguments)])
    return code, *capsys.readouterr()


# ---- files of a run
@pytest.mark.quick
def test_run_leaves_a_whole_folder(manifest, tmp_path, monkeypatch):
    written, lines = [], []
    real = _atomic_write.write_whole
    monkeypatch.setattr(outcome, "write_text", lambda path, text: (written.append(path.name), path.write_text(text)))
    monkeypatch.setattr(outcome, "finish", lambda folder, *rest: {"after": sorted(files(folder))})
    assert real is _atomic_write.write_whole
    config = small_config(manifest, tmp_path / "run", training__tensorboard=True)
    folder = train(config, say=lines.append)
    found = files(folder)
    assert FILES <= found and any(name.startswith("logs/events") for name in found)
    assert not [name for name in found if ".part" in name]
    assert Config.load(folder / "config.yaml") == config and len(lines) == 2 and "epoch   2/2" in lines[1]

    metrics = json.loads((folder / "metrics.json").read_text())
    assert FILES - {"metrics.json"} <= set(metrics["after"]), "the evaluation finds all but metrics.json"
    assert "metrics.json" not in metrics["after"] and written == ["metrics.json"]
    facts = metrics["training"]
    assert facts["images"] == {"train": 24, "valid": 12, "test": 12} and facts["damaged"] == 0
    history = rows(folder)
    assert facts["best"]["valid/macro_f1"] == max(row["valid/macro_f1"] for row in history)
    assert all(0 <= row["data_wait"] <= 1 and row["images_per_second"] > 0 for row in history)

    made = Classifier.load(folder)
    assert made.classes == Manifest.load(manifest).classes and made.about["epoch"] == facts["best_epoch"] - 1
    assert made.about["parameters"] == sum(p.numel() for p in made.model.parameters())
    assert made.about["manifest"] == Manifest.load(manifest).digest()
    for split in ("valid", "test"):
        table = Predictions.load(folder / "predictions" / f"{split}.csv")
        records = Manifest.load(manifest).where(split).records
        assert table.paths == tuple(str(r.path) for r in records)
        assert [table.classes[i] for i in table.labels] == [r.label for r in records]
        images = torch.stack([load_radiograph(r.path, 32) for r in records])
        # 16-bit pixels are at most 1 / 131070 off, and the network does not magnify this
        assert abs(made.probabilities(images).numpy() - table.probabilities).max() < 1e-4
    accuracy = (Predictions.load(folder / "predictions" / "valid.csv").predicted == table.labels).mean()
    assert math.isfinite(accuracy)


def test_validation_is_that_of_the_kept_weights(manifest, tmp_path):
    """The best epoch's figures are those of model.pt, which contains the averaged weights."""
    folder = train(small_config(manifest, tmp_path / "run", training__epochs=3))
    facts = json.loads((folder / "metrics.json").read_text())["training"]
    table = Predictions.load(folder / "predictions" / "valid.csv")
    assert facts["best"]["valid/accuracy"] == pytest.approx((table.predicted == table.labels).mean(), abs=1e-6)
    loss = -sum(math.log(p[k]) for p, k in zip(table.probabilities, table.labels, strict=True)) / len(table)
    assert facts["best"]["valid/loss"] == pytest.approx(loss, rel=1e-4)


def test_average_of_weights_is_its_definition(manifest, tmp_path, monkeypatch):
    seen: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(
        FractureModule,
        "on_before_zero_grad",
        lambda self, optimizer: seen.append({k: v.double().clone() for k, v in self.model.named_parameters()}),
    )
    folder = train(small_config(manifest, tmp_path / "run", training__epochs=4, training__ema=0.6))
    kept = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    # The hook runs before each step, so a step's result is what the next one sees; the last is in the checkpoint.
    steps = [*seen[1:], {k: kept["current_model_state"][f"model.{k}"].double() for k in seen[0]}]
    assert len(steps) == 12
    average = steps[0]
    for i, weights in enumerate(steps[1:], 1):
        decay = min(0.6, (1 + i) / (10 + i))
        average = {k: decay * average[k] + (1 - decay) * v for k, v in weights.items()}
    for name, value in average.items():
        # 12 steps, each rounded to float32
        torch.testing.assert_close(kept["state_dict"][f"model.{name}"].double(), value, rtol=1e-5, atol=1e-6)


def test_small_set_is_learnt_by_heart(manifest, tmp_path):
    config = small_config(
        manifest, tmp_path / "run", training__epochs=40, training__ema=0.0, data__augmentation=0.0,
        training__label_smoothing=0.0, training__learning_rate=5e-3, training__weight_decay=0.0, training__batch=12,
        model__options={"channels": [16, 32, 32, 32], "stem_channels": 16},
    )  # fmt: skip
    assert rows(train(config))[-1]["train/accuracy"] > 0.95


@pytest.mark.parametrize(
    "values",
    [
        {"training__loss": "focal", "training__class_weights": "effective", "data__sampling": "balanced"},
        {"training__optimizer": "sgd", "training__class_weights": "inverse", "training__monitor": "loss",
         "training__ema": 0.0, "training__clip": 0.0},
        {"training__precision": "bf16", "training__class_weights": "sqrt", "data__cache": "none", "data__depth": 8},
        {"model__name": "unet", "model__options": {"width": 4}, "training__accumulate": 2},
        {"model__name": "densenet121", "model__options": {"growth_rate": 4, "num_init_features": 8}},
    ],
    ids=["focal", "sgd", "bf16", "unet", "densenet"],
)  # fmt: skip
def test_recipes(manifest, tmp_path, values):
    folder = train(small_config(manifest, tmp_path / "run", training__epochs=1, **values))
    assert files(folder) >= FILES and math.isfinite(rows(folder)[0]["train/loss"])
    assert Classifier.load(folder).name == values.get("model__name", "seresnet18")


def test_plain_pytorch_gives_the_same_run(manifest, tmp_path, monkeypatch):
    asked = []
    step = FractureModule.training_step
    monkeypatch.setattr(FractureModule, "training_step", lambda *a: (asked.append(backends.forced()), step(*a))[1])
    histories = []
    for fused in (True, False):
        folder = train(small_config(manifest, tmp_path / str(fused), model__fused=fused, training__epochs=1))
        histories.append(rows(folder)[0])
    assert set(asked[:3]) == {"auto"} and set(asked[3:]) == {"reference"} and backends.forced() == "auto"
    # three steps of AdamW in float32; this is the loss of the epoch before its weights diverge
    assert histories[0]["train/loss"] == pytest.approx(histories[1]["train/loss"], rel=1e-3)


def test_run_is_repeatable_and_goes_by_its_seed(manifest, tmp_path):
    values = {"training__epochs": 1, "data__workers": 0}
    one, two = (train(small_config(manifest, tmp_path / name, **values)) for name in ("one", "two"))
    other = train(small_config(manifest, tmp_path / "other", seed=1, **values))
    states = [torch.load(folder / "model.pt", weights_only=True)["state_dict"] for folder in (one, two, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0]["fc.weight"], states[2]["fc.weight"])


def test_folder_of_images_is_prepared(manifest, tmp_path, capsys):
    """A folder per class without patients, with one damaged file: groups and splits are made, and the file is named."""
    for record in Manifest.load(manifest).records:
        (tmp_path / "set" / record.label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / record.label / record.path.name).write_bytes(record.path.read_bytes())
    (tmp_path / "set" / "spiral" / "broken.png").write_bytes(b"\x89PNG and no more")
    small_config(tmp_path / "set", tmp_path / "run", training__epochs=1).save(tmp_path / "run.yaml")
    code, out, err = run_cli(capsys, "--config", tmp_path / "run.yaml")
    assert code == 0, err
    assert "broken.png" in out
    kept = Manifest.load(tmp_path / "run" / "manifest.csv")
    assert {record.split for record in kept.records} == {"train", "valid", "test"}
    assert all(record.patient for record in kept.records)


def test_one_patient_only(manifest, tmp_path):
    given = Manifest.load(manifest)
    one = given.with_columns(patient=["p"] * len(given), split=[""] * len(given), study=[""] * len(given))
    one.save(tmp_path / "one.csv")
    with pytest.raises(InputError, match="patient") as error:
        prepare_run(small_config(tmp_path / "one.csv", tmp_path / "run"))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_damaged_files_of_a_run(manifest, tmp_path, capsys):
    """In a manifest with splits, a file that was damaged later is named and left out."""
    given = Manifest.load(manifest)
    bad = tmp_path / "bad.png"
    bad.write_bytes(given.records[0].path.read_bytes()[:99])
    Manifest((*given.records[1:], replace(given.records[0], path=bad))).save(tmp_path / "set.csv")
    config = small_config(tmp_path / "set.csv", tmp_path / "run", training__epochs=1)
    config.save(tmp_path / "run.yaml")
    code, out, err = run_cli(capsys, "--config", tmp_path / "run.yaml")
    assert code == 0, err
    assert f"left out: {bad}: " in out
    table = (tmp_path / "run" / "damaged.csv").read_text().splitlines()
    assert len(table) == 2 and table[1].startswith(f"{bad},train,")
    facts = json.loads((tmp_path / "run" / "metrics.json").read_text())["training"]
    assert facts["damaged"] == 1 and facts["images"]["train"] == 23


# ---- parts of a run
def test_rate_rises_and_falls():
    rates = [rate(i, 100, 0.1, 0.01) for i in range(100)]
    assert rates[0] == 1 / 11 and rates[10] == 1 and max(rates) == 1
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rate(55, 100, 0.1, 0.01) == pytest.approx((1 + 0.01) / 2)
    assert rate(100, 100, 0.1, 0.01) == pytest.approx(0.01) and rate(0, 1, 0.0, 0.0) == 1


def test_no_decay_of_norms_and_biases(manifest, tmp_path):
    run = prepare_run(small_config(manifest, tmp_path / "run"))
    module = FractureModule(
        run.model, run.config.training, run.sources.preprocessing, run.sources.counts("train"), 0, {}
    )
    module.trainer = type("T", (), {"estimated_stepping_batches": 10, "optimizers": []})()
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    names = {id(p): name for name, p in run.model.named_parameters()}
    assert all(
        ".bias" in names[id(p)] or "bn" in names[id(p)] or "downsample.1" in names[id(p)] for p in groups[1]["params"]
    )
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_checkpoint_of_three_channels(tmp_path):
    options = SETTINGS["model.options"]
    torch.manual_seed(3)
    given = se_fused.create_model("seresnet18", num_classes=10, **options)
    torch.save(given.state_dict(), tmp_path / "given.pt")
    config = Config().with_values(
        {"model.name": "seresnet18", "model.options": options, "model.checkpoint": str(tmp_path / "given.pt")}
    )
    model, loaded = build_model(config.model, 4)
    torch.testing.assert_close(model.conv1.weight, given.conv1.weight.sum(1, keepdim=True))
    assert model.num_classes == 4 and "tensors loaded" in loaded
    for wrong in ("none.pt", "broken.pt"):
        (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
        bad = config.with_values({"model.checkpoint": str(tmp_path / wrong)})
        with pytest.raises(InputError, match=f"model.checkpoint: .*{wrong}"):
            build_model(bad.model, 4)


def test_what_a_checkpoint_leaves_open_is_answered_in_the_configuration(tmp_path):
    options = SETTINGS["model.options"]
    first, second = (se_fused.create_model("seresnet18", num_classes=4, in_chans=1, **options) for _ in range(2))
    torch.save({"state_dict": first.state_dict(), "state_dict_ema": second.state_dict()}, tmp_path / "given.pt")
    settings = {"model.name": "seresnet18", "model.options": options, "model.checkpoint": str(tmp_path / "given.pt")}
    config = Config().with_values(settings)
    with pytest.raises(
        InputError, match=r"entry='state_dict_ema'; set it with model.checkpoint_options: {entry: \.\.\.}$"
    ):
        build_model(config.model, 4)
    answered = config.with_values({"model.checkpoint_options": {"entry": "state_dict_ema"}}).check()
    model, _ = build_model(answered.model, 4)
    assert torch.equal(model.conv1.weight, second.conv1.weight)
    with pytest.raises(InputError, match=r"model.checkpoint_options may have source, style, entry, prefix; got entri"):
        config.with_values({"model.checkpoint_options": {"entri": "state_dict"}}).check()


# ---- refusals
def test_bad_model_option_is_said_before_decoding(manifest, tmp_path):
    config = small_config(manifest, tmp_path / "run", model__options={"chanels": [8]})
    with pytest.raises(InputError, match=r"model.options: .*chanels"):
        prepare_run(config, progress=lambda *_: pytest.fail("decoding began"))
    assert not (tmp_path / "run").exists()


def test_folders_of_other_things(manifest, tmp_path):
    config = small_config(manifest, tmp_path / "run", training__epochs=1)
    train(config)
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    with pytest.raises(InputError, match="contains a finished run; give another --output"):
        prepare_run(config)
    with pytest.raises(InputError, match=r"began with a different training\.epochs"):
        prepare_run(config.with_values({"training.epochs": 2}), resume=True)
    assert prepare_run(config, resume=True) is None
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="contains files, but no run"):
        prepare_run(small_config(manifest, tmp_path / "other"))
    with pytest.raises(InputError, match="is a file"):
        prepare_run(small_config(manifest, tmp_path / "other" / "thesis.tex"))


def test_loss_that_is_no_number(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr("se_fused.apps.fracture.training.module.make_loss", lambda *a: a[4].sum() * float("nan"))
    with pytest.raises(InputError, match=r"training loss of epoch 1 is nan; set a smaller"):
        train(small_config(manifest, tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


def test_average_needs_a_lightning_that_has_it(monkeypatch):
    monkeypatch.delattr("lightning.pytorch.callbacks.WeightAveraging")
    with pytest.raises(InputError, match=r"lightning 2.6 or newer.*training.ema=0"):
        callbacks.averaging(0.9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training.device": "cuda:9"}, "torch sees"),
        ({"training.nodes": 2}, "torchrun --nnodes 2"),
        ({"training.device": "cpu", "training.precision": "fp16"}, "requires a GPU"),
    ],
)
def test_places_that_are_not_there(values, message):
    with pytest.raises(InputError, match=message):
        find_place(Config().with_values(values).training)


# ---- the command


def test_command(manifest, tmp_path, capsys):
    small_config(manifest, tmp_path / "run").save(tmp_path / "run.yaml")
    code, out, err = run_cli(capsys, "--config", tmp_path / "run.yaml", "--epochs", 1, "--plain", "--set", "seed=5")
    assert code == 0, err
    for text in ("48 images, 6 classes", "plain PyTorch", "seed 5", "on CPU", "best epoch 1 of 1", "waiting for data"):
        assert text in out, text
    assert "epoch   1/1" in err and "Warning" not in err
    assert Config.load(tmp_path / "run" / "config.yaml").model.fused is False
    told = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert told["command"] == this_command() and told["versions"]["torch"] and not naming_folders(told)


def test_dry_run_leaves_nothing(manifest, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    small_config(manifest, tmp_path / "run", data__cache="disk").save(tmp_path / "run.yaml")
    code, out, err = run_cli(capsys, "--config", tmp_path / "run.yaml", "--dry-run")
    assert code == 0, err
    assert "the dry run succeeded" in out
    assert not (tmp_path / "run").exists() and not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data"),
        (["--data", "nowhere.csv"], "nowhere.csv: no such file or folder"),
        (["--data", "x", "--model", "resnet49"], "did you mean resnet"),
        (["--data", "x", "--epochs", "0"], "training.epochs must be from 1"),
        (["--data", "x", "--set", "training.lr=3"], "there is no key training.lr"),
    ],
)
def test_wrong_commands_are_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_cli(capsys, *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err
    assert not list(tmp_path.iterdir())


def test_interrupted_command(manifest, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(FractureModule, "training_step", interrupt)
    small_config(manifest, tmp_path / "run").save(tmp_path / "run.yaml")
    assert run_cli(capsys, "--config", tmp_path / "run.yaml")[0] == 130


# ---- several processes
@pytest.mark.nightly
def test_two_processes(manifest, tmp_path):
    """torchrun and Lightning's own launcher give the same run, written once."""
    launchers = {"torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node", "2"), "lightning": ()}
    for name, launcher in launchers.items():
        config = small_config(manifest, tmp_path / name, training__devices=2, training__batch=4, data__cache="disk")
        config.save(tmp_path / f"{name}.yaml")
        code, out, err = finish(start("train", "--config", tmp_path / f"{name}.yaml", module=launcher))
        assert code == 0, err
        assert "2 processes" in out and out.count("best epoch") == 1 and err.count("epoch   2/2") == 1
        assert files(tmp_path / name) >= FILES | {"report.md", "MODEL_CARD.md"}
        assert not [file for file in files(tmp_path / name) if ".part" in file]
    one, two = (rows(tmp_path / name) for name in launchers)
    timed = ("images_per_second", "data_wait", "seconds")
    assert [{k: v for k, v in row.items() if k not in timed} for row in one] == [
        {k: v for k, v in row.items() if k not in timed} for row in two
    ]
    tables = [(tmp_path / name / "predictions" / "test.csv").read_text() for name in launchers]
    assert tables[0] == tables[1]
    # Both processes together validated the whole split, each image once.
    table = Predictions.load(tmp_path / "torchrun" / "predictions" / "valid.csv")
    facts = json.loads((tmp_path / "torchrun" / "metrics.json").read_text())["training"]
    assert facts["best"]["valid/accuracy"] == pytest.approx((table.predicted == table.labels).mean(), abs=1e-6)
    loss = -sum(math.log(p[k]) for p, k in zip(table.probabilities, table.labels, strict=True)) / len(table)
    assert facts["best"]["valid/loss"] == pytest.approx(loss, rel=1e-4)
