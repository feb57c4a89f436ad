"""A small set of phantoms as files, and a configuration small enough for two cores."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="images need Pillow")

from PIL import Image

from se_fused.fracture.manifest import Manifest, Record
from se_fused.fracture.synth import CLASSES, phantoms

NARROW = {"channels": [8, 8, 16, 16], "stem_channels": 8}


def write_phantoms(folder: Path, patients: int = 12, size: int = 32, seed: int = 0) -> Path:
    """Two images of each patient, classes in turn, and the manifest.csv whose path is returned."""
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
