"""Results of a run: model.pt, predictions, training curves, evaluation, model card and, written last, metrics.json."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...._atomic_write import write_text
from ....bench.report.style import new_figure, save
from ....models import create_model
from ..classifier import Classifier
from ..data import RadiographData
from ..predictions import Predictions
from .checkpoints import read_checkpoint
from .config import Config
from .sources import Progress, Sources

__all__ = ["draw_curves", "finish", "predict", "write_outcome"]


def finish(folder: Path, device: torch.device, training: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Evaluate a run whose model and predictions are written, and write its model card.

    Args:
        folder: folder of the run.
        device: device for the heat maps.
        training: the entry "training" of metrics.json, for the model card.
        progress: as in :func:`write_outcome`.

    Returns:
        The evaluation part of metrics.json: the result of
        :func:`se_fused.apps.fracture.evaluation.write_evaluation`.
    """
    # Imported here, because both modules import this package. They read only the files in the folder.
    from ..deploy.card import write_card
    from ..evaluation import write_evaluation

    found = write_evaluation(folder, device, progress=progress)
    write_card(folder, {"training": training, **found})
    return found


def predict(classifier: Classifier, data: RadiographData, split: str) -> Predictions:
    """Predictions of the classifier for each image of a split, in the order of the manifest."""
    dataset = data.sets[split]
    found = [classifier.probabilities(images) for images, _, _ in data.ordered(split)]
    probabilities = torch.cat(found).numpy().astype(np.float64)
    probabilities /= probabilities.sum(1, keepdims=True)
    records = dataset.manifest.records
    return Predictions(
        classifier.classes,
        tuple(str(r.path) for r in records), tuple(r.patient for r in records), tuple(r.study for r in records),
        tuple(r.view for r in records), np.array(dataset.labels, np.int64), probabilities,
    )  # fmt: skip


def draw_curves(history: list[dict[str, float]], heading: str, path: Path) -> None:
    """Plot loss, accuracy, learning rate and waiting time of each epoch as one figure."""
    figure = new_figure(10, 6.4)
    figure.suptitle(heading, fontsize=11)
    epochs = [row["epoch"] + 1 for row in history]
    panels: list[tuple[str, dict[str, tuple[str, str, float]]]] = [
        ("loss", {"train": ("train/loss", "#3b6ea8", 1), "valid": ("valid/loss", "#d9822b", 1)}),
        ("accuracy and macro F1", {
            "train accuracy": ("train/accuracy", "#3b6ea8", 1), "valid accuracy": ("valid/accuracy", "#d9822b", 1),
            "valid macro F1": ("valid/macro_f1", "#1b1b1b", 1),
        }),
        ("learning rate at the start of the epoch", {"": ("learning_rate", "#1b1b1b", 1)}),
        ("% of the training time spent waiting for data", {"": ("data_wait", "#1b1b1b", 100)}),
    ]  # fmt: skip
    for axes, (title, lines) in zip(figure.subplots(2, 2).ravel(), panels, strict=True):
        for label, (key, colour, factor) in lines.items():
            values = [factor * row[key] for row in history]
            axes.plot(
                epochs, values, color=colour, label=label or None, marker="o" if len(epochs) < 15 else "", markersize=3
            )
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("epoch", fontsize=9)
        axes.set_ylim(0, 1.08 * max([max(line.get_ydata()) for line in axes.lines] + [1e-12]))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#dddddd", linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=9)
    save(figure, path)


def _read_history(path: Path) -> list[dict[str, float]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def write_outcome(
    folder: Path,
    config: Config,
    sources: Sources,
    device: torch.device,
    facts: dict[str, Any],
    dry: bool,
    progress: Progress,
) -> None:
    """Write model.pt of the best epoch, predictions of valid and test, plots/curves.png, and metrics.json.

    Args:
        folder: folder of the run, with its checkpoints and logs.
        config, sources: configuration and data of the run.
        device: device of the predictions.
        facts: values for the entry "training" of metrics.json.
        dry: whether to skip the evaluation, for which a dry run has too few images.
        progress: called with a description of the current step and the completed share, 0 to 1.
    """
    best = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    history = _read_history(folder / "logs" / "metrics.csv")
    model = create_model(config.model.name, num_classes=len(sources.classes), in_chans=1, **config.model.options)
    prefix = "model."
    model.load_state_dict({k.removeprefix(prefix): v for k, v in best["state_dict"].items() if k.startswith(prefix)})
    model = model.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    epoch = int(best["epoch"])
    about = {
        "run": folder.name,
        "seed": config.seed,
        "epoch": epoch,
        "model": config.model.name,
        "manifest": sources.manifest.digest(),
        "source": ", ".join(sorted({r.source for r in sources.manifest.records if r.source})),
        "parameters": facts["parameters"],
    }
    classifier = Classifier(
        model, sources.classes, sources.preprocessing, config.model.name, config.model.options, about
    )
    classifier.save(folder / "model.pt")
    data = RadiographData(
        sources.sets["train"], sources.sets["valid"], sources.sets["test"], batch=config.training.batch
    )
    (folder / "predictions").mkdir(exist_ok=True)
    for i, split in enumerate(("valid", "test")):
        if len(sources.sets[split]):
            progress(f"predicting {split}", i / 2)
            predict(classifier, data, split).save(folder / "predictions" / f"{split}.csv")
    (folder / "plots").mkdir(exist_ok=True)
    draw_curves(history, f"{config.model.name}, seed {config.seed}: {folder.name}", folder / "plots" / "curves.png")
    speeds = sorted(row["images_per_second"] for row in history)
    waits = sorted(row["data_wait"] for row in history)
    training = {
        **facts,
        "epochs": len(history),
        "best_epoch": epoch + 1,
        "best": {key: history[epoch][key] for key in ("valid/loss", "valid/accuracy", "valid/macro_f1")},
        "images_per_second": speeds[len(speeds) // 2],
        "data_wait": waits[len(waits) // 2],
        "gpu_memory_bytes": int(max(row["gpu_memory_bytes"] for row in history)),
        "images": {split: len(data) for split, data in sources.sets.items()},
        "damaged": len(sources.damaged),
        "classes": list(sources.classes),
    }
    more = {} if dry else finish(folder, device, training, progress)
    write_text(folder / "metrics.json", json.dumps({"training": training, **more}, indent=1) + "\n")
