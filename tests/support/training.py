"""A small set of phantom images, a training run small enough for two cores, and the command line in child processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="images need Pillow")
pytest.importorskip("lightning", reason="training needs lightning")
pytest.importorskip("torchmetrics", reason="training needs torchmetrics")
pytest.importorskip("torchvision", reason="training needs torchvision")
pytest.importorskip("matplotlib", reason="training plots curves with Matplotlib")
pytest.importorskip("yaml", reason="configurations need PyYAML")

from PIL import Image

import se_fused
from se_fused.apps.fracture.manifest import Manifest, Record
from se_fused.apps.fracture.synth import CLASSES, phantoms
from se_fused.apps.fracture.training import Config, outcome

SETTINGS = {
    "model.name": "seresnet18",
    "model.options": {"channels": [8, 8, 16, 16], "stem_channels": 8},
    "data.size": 32,
    "data.cache": "memory",
    "training.batch": 8,
    "training.epochs": 2,
    "training.device": "cpu",
    "training.tensorboard": False,
}


evaluate = outcome.finish


@pytest.fixture(autouse=True)
def no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the evaluation, which takes longer than these runs and is tested elsewhere; processes of `start` run it."""
    monkeypatch.setattr(outcome, "finish", lambda *_: {})


def write_phantoms(folder: Path, patients: int = 24, size: int = 32, seed: int = 0) -> Path:
    """Write two images of each patient, with alternating classes, and return the path of manifest.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = phantoms(2 * patients, size, seed)
    records = []
    for i in range(2 * patients):
        path = folder / f"image{i:03d}.png"
        Image.fromarray((images[i, 0].numpy() * 255).round().astype(np.uint8)).save(path)
        patient, view = divmod(i, 2)
        split = ("train", "train", "valid", "test")[patient // 3 % 4]
        name = CLASSES[int(labels[i])]
        records.append(Record(path, name, f"p{patient}", f"p{patient}", ("AP", "lateral")[view], split, "phantoms"))
    Manifest(tuple(records)).save(folder / "manifest.csv")
    return folder / "manifest.csv"


def small_config(manifest: Path, output: Path, **values: object) -> Config:
    """A small configuration; names in `values` have "__" for the dots of keys."""
    named = {name.replace("__", "."): value for name, value in values.items()}
    return Config().with_values({**SETTINGS, "data.path": str(manifest), "output": str(output), **named})


def start(*arguments: object, module: tuple[str, ...] = (), **environment: str) -> "subprocess.Popen[str]":
    """Start ``se-fused fracture ...`` as a process; `module` starts it, if given, with its arguments."""
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(se_fused.__file__).parent.parent),
        **environment,
    }
    command = [
        sys.executable,
        "-m",
        *module,
        *(("-m",) if module else ()),
        "se_fused",
        "fracture",
        *map(str, arguments),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err
