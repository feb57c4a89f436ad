"""Predictions and tiny data sets for the tests of evaluation; nothing here is trained."""

import numpy as np
import torch

from se_fused import create_model
from se_fused.apps.fracture.classifier import Classifier
from se_fused.apps.fracture.manifest import Manifest, Record
from se_fused.apps.fracture.predictions import Predictions
from se_fused.apps.fracture.preprocessing import Preprocessing

NAMES = ("none", "oblique", "spiral", "transverse", "comminuted", "greenstick")
NARROW = {
    "resnet50": {"channels": (4, 4, 8, 8), "stem_channels": 8},
    "seresnet50": {"channels": (4, 4, 8, 8), "stem_channels": 8},
    "unet": {"width": 2},
    "densenet121": {"growth_rate": 2, "num_init_features": 4},
}
SIZE = 32


def table(labels, probabilities, patients=None, views=None, classes=None, paths=None):
    """Predictions from plain lists; without patients, all are unknown."""
    labels, probabilities = np.asarray(labels, np.int64), np.asarray(probabilities, np.float64)
    n, k = probabilities.shape
    return Predictions(
        tuple(classes or NAMES[:k]),
        tuple(paths or (f"/data/image{i:04d}.png" for i in range(n))),
        tuple(patients or [""] * n),
        ("",) * n,
        tuple(views or [""] * n),
        labels,
        probabilities,
    )


def drawn_table(n=120, k=3, skill=0.5, seed=0, images=2, ties=False, **options):
    """Random predictions of n images, `images` for each patient, all of one class; `skill` makes them better."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.random.default_rng(99).integers(0, k, -(-n // images)), images)[:n]
    scores = rng.dirichlet(np.ones(k), n)
    scores[np.arange(n), labels] += skill * rng.random(n)
    if ties:
        scores = scores.round(1) + 1e-3
    scores /= scores.sum(1, keepdims=True)
    patients = [f"patient-{i // images}" for i in range(n)]
    return table(labels, scores, patients, [("AP", "lateral")[i % 2] for i in range(n)], **options)


def tables_from(said, labels, k=3, **options):
    """Predictions with probability 1 for the classes in `said`."""
    return table(labels, np.eye(k)[said], **options)


def write_images(folder, patients=12, classes=3, size=(24, 32), damaged=()):
    """Write two views of each patient as PNG files, where a band's place is the class; return the saved manifest."""
    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    records = []
    for patient in range(patients):
        label = patient % classes
        for view in ("AP", "lateral"):
            pixels = rng.normal(60, 5, size)
            pixels[4 + 6 * label : 8 + 6 * label, 8:24] += 120
            path = folder / "images" / f"p{patient:02d}_{view}.png"
            if path.name in damaged:
                path.write_bytes(b"\x89PNG\r\n\x1a\n damaged")
            else:
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
            split = ("train", "train", "valid", "test")[patient // classes % 4]
            records.append(Record(path.resolve(), NAMES[label], f"patient-{patient}", "1", view, split, "drawn"))
    manifest = Manifest(tuple(records))
    manifest.save(folder / "manifest.csv")
    return manifest


def narrow(name="seresnet50", classes=3, seed=0, **about):
    """An untrained classifier with few channels; its batch norms have seen noise, so that no output is constant."""
    torch.manual_seed(seed)
    model = create_model(name, num_classes=classes, in_chans=1, **NARROW[name])
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 1, SIZE, SIZE))
    about = {"run": f"{name}-seed{seed}", "seed": seed, "epoch": 0, "model": name, "source": "drawn", **about}
    return Classifier(model.eval(), NAMES[:classes], Preprocessing(SIZE, 0.3, 0.2), name, NARROW[name], about)
