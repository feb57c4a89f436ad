"""Figures of a comparison: the paper's Figures 2 and 3 for the user's data, and the confusion matrices."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ....bench.report.style import new_figure, save
from .figures import COLOURS, tidy
from .localisation import NOTICE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["accuracy_bars", "confusion_grid", "metric_bars"]

Path = str | os.PathLike[str]
_GREY = "#666666"
_HATCHES = ("", "//", "..")


def _bars(axes: "Axes", place: float, row: Mapping[str, Any] | None, width: float, **style: Any) -> None:
    """Draw a bar of the mean with its confidence interval, a point for each training run, and the value above it."""
    if row is None:
        return
    mean, limits = 100 * row["mean"], row["interval"]
    axes.bar(place, mean, width, edgecolor="white", linewidth=0.5, **style)
    top = mean
    if limits is not None:
        low, high = (100 * x for x in limits)
        axes.errorbar(
            place, mean, [[max(mean - low, 0)], [max(high - mean, 0)]], color="#1b1b1b", capsize=3, linewidth=1
        )
        top = max(high, mean)
    if len(row["values"]) > 1:
        top = max(top, *(100 * v for v in row["values"]))
        places = place + width * 0.22 * np.linspace(-1, 1, len(row["values"]))
        axes.plot(
            places, [100 * v for v in row["values"]], "o", markersize=3.5, color="white", markeredgecolor="#1b1b1b",
            markeredgewidth=0.7,
        )  # fmt: skip
    axes.text(place, top + 1.2, f"{mean:.2f}", ha="center", va="bottom", fontsize=8, color="#1b1b1b")


def _finish(axes: "Axes", content: Mapping[str, Any], names: Sequence[str], title: str) -> None:
    axes.set_xticks(range(len(names)), labels=list(names))
    axes.tick_params(axis="x", length=0)
    tidy(axes, title)
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("%", fontsize=10)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    told = [
        f"{content['images']} test images. Lines: 95 % intervals over {content['clusters']['what']}; points: runs.",
        *([f"Data: {content['source']}."] if content["source"] else []),
        f"{NOTICE}.",
    ]
    axes.set_xlabel("\n".join(told), fontsize=8, color=_GREY, labelpad=8)


def metric_bars(content: Mapping[str, Any], path: Path) -> None:
    """Draw Figure 2: macro precision, recall and F1 of each model.

    Args:
        content: result of :func:`se_fused.apps.fracture.evaluation.comparison.compare`.
        path: a .png, .pdf or .svg.
    """
    models = content["models"]
    figure = new_figure(max(2.1 * len(models) + 1.2, 7.0), 4.6)
    axes = figure.subplots()
    keys = (("precision_macro", "Precision"), ("recall_macro", "Recall"), ("f1_macro", "F1-Score"))
    for k, (key, label) in enumerate(keys):
        for i, model in enumerate(models.values()):
            _bars(
                axes, i + (k - 1) * 0.27, model["figures"].get(key), 0.25, color=COLOURS[k], hatch=_HATCHES[k],
                label=label if i == 0 else None,
            )  # fmt: skip
    title = "Figure 2. Precision, recall and F1, means over classes"
    _finish(axes, content, [model["title"] for model in models.values()], title)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=3)
    save(figure, path)


def accuracy_bars(content: Mapping[str, Any], path: Path) -> None:
    """Draw Figure 3: multi-class accuracy of each model, with lines for the baselines.

    Args:
        content, path: as in :func:`metric_bars`.
    """
    models, baselines = content["models"], content["baselines"]
    figure = new_figure(max(1.5 * len(models) + 2.4, 6.4), 4.4)
    axes = figure.subplots()
    for i, model in enumerate(models.values()):
        _bars(axes, i, model["figures"]["accuracy"], 0.55, color=COLOURS[0])
    names = {"majority": ("most frequent class", ":"), "logistic": ("logistic regression on thumbnails", "--")}
    for name, (label, dashes) in names.items():
        if "why" not in baselines[name]:
            value = 100 * baselines[name]["accuracy"]
            axes.axhline(value, color=COLOURS[3], linestyle=dashes, linewidth=1.3, label=f"{label}, {value:.2f}")
    _finish(axes, content, [model["title"] for model in models.values()], "Figure 3. Accuracy, multi-class")
    if any("why" not in row for row in baselines.values()):
        figure.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=2)
    save(figure, path)


def confusion_grid(content: Mapping[str, Any], path: Path) -> None:
    """Draw the confusion matrix of each model, summed over its training runs, as shares of the true class.

    Args:
        content, path: as in :func:`metric_bars`.
    """
    models, classes = content["models"], content["classes"]
    columns = min(2, len(models))
    lines = -(-len(models) // columns)
    side = 0.5 * len(classes) + 1.9
    figure = new_figure(columns * side, lines * (side - 0.2))
    for k, axes in enumerate(figure.subplots(lines, columns, squeeze=False).ravel()):
        if k >= len(models):
            axes.axis("off")
            continue
        model = list(models.values())[k]
        matrix = np.array(model["confusion"], np.float64)
        total = matrix.sum(1, keepdims=True)
        shares = np.divide(matrix, total, out=np.zeros_like(matrix), where=total > 0)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), share in np.ndenumerate(shares):
            colour = "white" if share > 0.55 else "#1b1b1b"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(classes)), labels=classes, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(classes)), labels=classes)
        tidy(axes, model["title"])
        axes.tick_params(length=0, labelsize=8)
        axes.set_xlabel("predicted, % of the true class", fontsize=8)
    save(figure, path)
