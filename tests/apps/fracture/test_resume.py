"""Tests of interrupted runs: killed, with a full disk, a damaged checkpoint. A resumed run ends like a whole one."""

import csv
import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from support.training import finish, no_evaluation, small_config, start, write_phantoms  # noqa: F401

from se_fused._errors import InputError
from se_fused.apps.fracture.training import checkpoints
from se_fused.apps.fracture.training.run import prepare_run, train

TIMES = ("images_per_second", "data_wait", "seconds")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms"))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)["state_dict"]


def assert_same_run(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    last = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (one, other)]
    for name, value in last[0]["current_model_state"].items():
        assert torch.equal(value, last[1]["current_model_state"][name]), name
    for split in ("valid", "test"):
        assert (one / "predictions" / f"{split}.csv").read_text() == (
            other / "predictions" / f"{split}.csv"
        ).read_text()


@pytest.mark.nightly
def test_killed_run_ends_as_an_unbroken_one(manifest, tmp_path):
    """A run killed by SIGKILL and resumed ends like an uninterrupted one, with all kinds of state.

    The killed and the resumed run are processes, with EMA, dropout, workers and balanced sampling.
    """
    values = {"training__epochs": 5, "model__options__drop_rate": 0.2, "data__sampling": "balanced",
              "training__patience": 4, "training__accumulate": 2, "data__workers": 1}  # fmt: skip
    whole = train(small_config(manifest, tmp_path / "whole", **values))
    small_config(manifest, tmp_path / "broken", **values).save(tmp_path / "broken.yaml")
    command = ("train", "--config", tmp_path / "broken.yaml")

    broken = start(*command)
    history = tmp_path / "broken" / "logs" / "metrics.csv"
    while not history.exists() or len(history.read_text().splitlines()) < 3:  # until two epochs are over
        assert broken.poll() is None, broken.communicate()
        time.sleep(0.002)
    broken.send_signal(signal.SIGKILL)
    assert broken.wait() == -signal.SIGKILL
    broken.communicate()
    assert not (tmp_path / "broken" / "metrics.json").exists()
    with pytest.raises(InputError, match="contains an unfinished run; continue with --resume"):
        prepare_run(small_config(manifest, tmp_path / "broken", **values))

    code, out, err = finish(start(*command, "--resume"))
    assert code == 0, err
    assert "resumed" in out and "epoch   1/5" not in err, "the run was resumed, not started anew"
    assert_same_run(whole, tmp_path / "broken")


def interrupted(config, monkeypatch, epoch: int) -> None:
    """Train until `epoch` ends, and stop right after its checkpoint, as in a power failure."""

    class Pulled(Exception):
        pass

    save = checkpoints.WholeFiles.save_checkpoint

    def save_and_stop(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path, storage_options)
        if Path(path).name == "last.ckpt" and checkpoint["epoch"] == epoch:
            raise Pulled

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.WholeFiles, "save_checkpoint", save_and_stop)
        with pytest.raises(Pulled):
            train(config)


@pytest.mark.parametrize("epoch", [0, 2])
def test_resumed_after_any_epoch(manifest, tmp_path, monkeypatch, epoch):
    """A run can be resumed after any epoch, also after the last one, when only the results are missing."""
    kept = train(small_config(manifest, tmp_path / "whole", training__epochs=3))
    config = small_config(manifest, tmp_path / "broken", training__epochs=3)
    interrupted(config, monkeypatch, epoch)
    assert train(config, resume=True) == tmp_path / "broken"
    assert_same_run(kept, tmp_path / "broken")
    assert json.loads((tmp_path / "broken" / "metrics.json").read_text())["training"]["epochs"] == 3
    assert train(config, resume=True) == tmp_path / "broken", "nothing is left to do"


def test_early_stop_is_remembered(manifest, tmp_path, monkeypatch):
    """A run that was killed between its early stop and its results does not continue training."""
    values = {"training__epochs": 9, "training__patience": 1, "training__learning_rate": 1e-9, "training__ema": 0.0}
    kept = train(small_config(manifest, tmp_path / "whole", **values))
    stopped = len(rows(kept))
    assert stopped < 9
    config = small_config(manifest, tmp_path / "broken", **values)
    interrupted(config, monkeypatch, stopped - 1)
    train(config, resume=True)
    assert rows(tmp_path / "broken") == rows(kept)


def test_resume_refuses_another_run(manifest, tmp_path, monkeypatch):
    config = small_config(manifest, tmp_path / "run", training__epochs=3)
    interrupted(config, monkeypatch, 0)
    with pytest.raises(InputError, match=r"began with a different training.learning_rate.*--output"):
        prepare_run(config.with_values({"training.learning_rate": 1e-4}), resume=True)
    assert prepare_run(config.with_values({"data.workers": 0, "data.cache": "none"}), resume=True) is not None
    image = sorted(manifest.parent.glob("*.png"))[0]
    content = image.read_bytes()
    try:  # another training image with the same name
        image.write_bytes(sorted(manifest.parent.glob("*.png"))[-1].read_bytes())
        with pytest.raises(InputError, match=r"last.ckpt: the run's images have changed since it began"):
            train(config, resume=True)
    finally:
        image.write_bytes(content)


@pytest.mark.parametrize("damage", ["cut", "garbage", "other"])
def test_corrupt_checkpoint_is_named(manifest, tmp_path, monkeypatch, damage):
    """A damaged checkpoint is an error that names the file, and the run is not started anew."""
    config = small_config(manifest, tmp_path / "run", training__epochs=2)
    interrupted(config, monkeypatch, 0)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    if damage == "cut":
        last.write_bytes(last.read_bytes()[:-2000])
    elif damage == "garbage":
        last.write_bytes(b"nothing of this kind")
    else:
        torch.save({"a": 1}, last)
    with pytest.raises(InputError, match=r"last\.ckpt: .*(damaged|not a checkpoint).*(--output|best\.ckpt)") as error:
        train(config, resume=True)
    assert "\n" not in str(error.value)
    assert len(rows(tmp_path / "run")) == 1


def test_full_disk_leaves_the_last_checkpoint(manifest, tmp_path, monkeypatch):
    config = small_config(manifest, tmp_path / "run", training__epochs=3)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    real, calls = os.fsync, []

    def fsync(file: int) -> None:
        calls.append(file)
        if len(calls) > 2:  # best and last of the first epoch
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(InputError, match=r"\.ckpt: the disk is full; free .* MB and continue with --resume"):
            train(config)
    assert checkpoints.read_checkpoint(last)["epoch"] == 0
    assert {f.name for f in last.parent.iterdir()} == {"best.ckpt", "last.ckpt"}, "nothing half-written is left"
    assert_same_run(train(small_config(manifest, tmp_path / "whole", training__epochs=3)), train(config, resume=True))
