"""Figures of predictions: confusion matrix, ROC, precision-recall, reliability diagram, and metrics of each class.

The colours are those of Okabe and Ito, which colour-blind readers can distinguish; lines also differ in their dashes.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_precision_recall_curve, binary_roc

from ....bench.report.style import new_figure, save
from ..predictions import Predictions
from .metrics import BINS, labelled, metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "class_bars", "confusion_matrix", "precision_recall", "reliability", "roc"]

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#7a6a00", "#000000")
"""Colours of Okabe and Ito 2008, with a darker yellow, because the original is hard to see on white."""
_DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (2, 1)), (0, (6, 1.5, 1.5, 1.5)))
_GREY = "#666666"

Path = str | os.PathLike[str]


def _curve(
    curve: Callable[..., Any], true: NDArray[Any], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The two rates of a curve of torchmetrics at every threshold."""
    first, second, _ = curve(torch.from_numpy(scores), torch.from_numpy(np.asarray(true, np.int64)))
    return first.double().numpy(), second.double().numpy()


def tidy(axes: "Axes", title: str) -> None:
    """Apply the common style of all axes."""
    axes.set_title(title, fontsize=11, loc="left", pad=10)
    axes.tick_params(labelsize=9)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _square(axes: "Axes", title: str, across: str, up: str) -> None:
    tidy(axes, title)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_xlabel(across, fontsize=10)
    axes.set_ylabel(up, fontsize=10)


def _stroke(k: int) -> dict[str, Any]:
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": _DASHES[k % len(_DASHES)], "linewidth": 1.7}


def confusion_matrix(predictions: Predictions, path: Path, title: str = "Confusion matrix") -> None:
    """Draw the confusion matrix: counts, and below them and as colour the share of the true class.

    The row labels give the number of images of each class.
    """
    found = metrics(predictions)
    matrix, names = np.array(found["confusion"]), found["classes"]
    size, total = len(names), matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    figure = new_figure(1.0 * size + 3.2, 0.85 * size + 2.0)
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    small = 10 if size <= 8 else 7
    for row in range(size):
        for column in range(size):
            colour = "white" if shares[row, column] > 0.55 else "#1b1b1b"
            share = f"{100 * shares[row, column]:.1f} %" if total[row, 0] else "–"
            axes.text(
                column, row, f"{matrix[row, column]}\n{share}", ha="center", va="center", color=colour, fontsize=small,
                fontweight="bold" if row == column else "normal", linespacing=1.3,
            )  # fmt: skip
    axes.set_xticks(range(size), labels=names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), labels=[f"{name} ({count})" for name, count in zip(names, total[:, 0], strict=True)])
    tidy(axes, title)
    axes.set_xlabel("predicted", fontsize=10)
    axes.set_ylabel("true (images)", fontsize=10)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(picture, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label("share of the true class", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    save(figure, path)


def _each(predictions: Predictions, found: Mapping[str, Any]) -> list[tuple[str, NDArray[np.bool_], Any, float]]:
    """(name, whether true, scores, AUROC) of each class with positive and negative images."""
    return [
        (name, predictions.labels == k, predictions.probabilities[:, k], row["auroc"])
        for k, (name, row) in enumerate(found["per_class"].items())
        if row["auroc"] is not None
    ]


def roc(predictions: Predictions, path: Path) -> None:
    """Draw the ROC curve of each class with images, and their macro mean over the true positive rates."""
    predictions, found = labelled(predictions), metrics(predictions)
    figure = new_figure(6.6, 5.4)
    axes = figure.subplots()
    grid = np.linspace(0, 1, 501)
    curves = []
    for k, (name, true, scores, area) in enumerate(_each(predictions, found)):
        false_rate, true_rate = _curve(binary_roc, true, scores)
        curves.append(np.interp(grid, false_rate, true_rate))
        axes.plot(false_rate, true_rate, label=f"{name}  {area:.3f}", **_stroke(k))
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":", label="chance  0.500")
    if curves:
        mean = np.concatenate([[0], np.mean(curves, 0)])
        macro = f"macro  {found['auroc_macro']:.3f}"
        axes.plot(np.concatenate([[0], grid]), mean, color="#000000", linewidth=3, alpha=0.75, label=macro)
    _square(
        axes,
        "ROC, one-vs-rest",
        "false positive rate (1 − specificity)",
        "true positive rate (sensitivity)",
    )
    axes.legend(frameon=False, fontsize=9, loc="lower right", title="AUROC", title_fontsize=9)
    save(figure, path)


def precision_recall(predictions: Predictions, path: Path) -> None:
    """Draw the precision-recall curve of each class with images.

    The short line at the right is the share of the class, which is the precision of random predictions.
    """
    predictions, found = labelled(predictions), metrics(predictions)
    figure = new_figure(6.6, 5.4)
    axes = figure.subplots()
    for k, (name, true, scores, _) in enumerate(_each(predictions, found)):
        precision, recall = _curve(binary_precision_recall_curve, true, scores)
        label = f"{name}  {found['per_class'][name]['average_precision']:.3f}"
        # Steps, because linear interpolation between two thresholds is not valid (Davis and Goadrich 2006).
        axes.step(recall, precision, where="post", label=label, **_stroke(k))
        axes.plot([0.97, 1.01], [true.mean()] * 2, color=COLOURS[k % len(COLOURS)], linewidth=2.5, alpha=0.6)
    _square(axes, "Precision and recall", "recall (sensitivity)", "precision")
    axes.legend(frameon=False, fontsize=9, loc="lower left", title="average precision", title_fontsize=9)
    save(figure, path)


def reliability(predictions: Predictions, path: Path, title: str = "Reliability") -> None:
    """Draw the reliability diagram: accuracy by probability of the predicted class, and below it the image counts."""
    predictions, found = labelled(predictions), metrics(predictions)
    right, sure = predictions.predicted == predictions.labels, predictions.probabilities.max(1)
    edges = np.linspace(0, 1, BINS + 1)
    places = np.clip(np.searchsorted(edges, sure, side="right") - 1, 0, BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    used = counts > 0
    accuracy = np.bincount(places, right, BINS)[used] / counts[used]
    confidence = np.bincount(places, sure, BINS)[used] / counts[used]
    figure = new_figure(5.6, 6.4)
    top, bottom = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    left, wide = edges[:-1][used], 1 / BINS
    top.bar(left, accuracy, wide, align="edge", color=COLOURS[5], edgecolor="white")
    low, high = np.minimum(accuracy, confidence), np.maximum(accuracy, confidence)
    top.bar(
        left, high - low, wide, low, align="edge", fill=False, edgecolor=COLOURS[3], hatch="////", linewidth=1,
        label="gap between accuracy and probability",
    )  # fmt: skip
    top.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1)
    told = (
        f"expected calibration error {100 * found['calibration_error']:.2f} %,  accuracy "
        f"{100 * found['accuracy']:.2f} %,  mean probability {100 * sure.mean():.2f} %"
    )
    tidy(top, f"{title}\n")
    top.text(0, 1.03, told, transform=top.transAxes, fontsize=8.5, color=_GREY)
    top.legend(frameon=False, fontsize=9, loc="upper left")
    top.set_ylim(0, 1)
    top.set_ylabel("accuracy", fontsize=10)
    bottom.bar(left, counts[used], wide, align="edge", color=_GREY, edgecolor="white")
    tidy(bottom, "")
    bottom.set_xlim(0, 1)
    bottom.set_ylabel("images", fontsize=10)
    bottom.set_xlabel("probability of the predicted class", fontsize=10)
    save(figure, path)


def class_bars(
    predictions: Predictions,
    path: Path,
    intervals: Mapping[str, Mapping[str, Sequence[float] | None]] | None = None,
) -> None:
    """Draw bars of precision, recall and F1 of each class, with confidence intervals if given.

    Args:
        predictions: predictions; rows without a label are ignored.
        path: a .png, .pdf or .svg.
        intervals: {class: {metric: [low, high]}}, "per_class" of :func:`se_fused.apps.fracture.evaluation.intervals`.
    """
    rows = metrics(predictions)["per_class"]
    keys = (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))
    figure = new_figure(1.25 * len(rows) + 2.6, 4.4)
    axes = figure.subplots()
    for k, (key, label) in enumerate(keys):
        places = np.arange(len(rows)) + (k - 1) * 0.27
        heights = np.array([row[key] or 0.0 for row in rows.values()])
        axes.bar(places, heights, 0.25, color=COLOURS[k], label=label)
        for place, height, name in zip(places, heights, rows, strict=True):
            if intervals is not None and (limits := intervals[name][key]) is not None:
                spread = [[max(height - limits[0], 0)], [max(limits[1] - height, 0)]]
                axes.errorbar(place, height, spread, color="#1b1b1b", capsize=2.5, linewidth=1)
    axes.set_xticks(range(len(rows)), labels=[f"{n}\n{row['images']} images" for n, row in rows.items()])
    axes.tick_params(axis="x", length=0)
    tidy(axes, "Precision, recall and F1 of each class")
    axes.set_ylim(0, 1.04)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    if intervals is not None:
        axes.set_xlabel("lines: 95 % bootstrap intervals over patients", fontsize=9, color=_GREY)
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    save(figure, path)
