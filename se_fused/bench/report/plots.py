"""Pictures of ``se-fused compare`` and of the demo; matplotlib is required."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from ..compare import Row
from ..providers.registry import BASELINES, OURS
from .format import layout_name, shape
from .style import legend, new_figure, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_training", "speedup_bars", "speedup_figure"]


def _label(row: Row) -> str:
    about = row.workload
    if about["layout"] == "both":
        return str(about["title"])
    return f"{shape(about['shape'])} {layout_name(about['layout'])}"


def speedup_bars(axes: "Axes", rows: Sequence[Row], labels: Sequence[str], title: str) -> None:
    """Draw horizontal bars of the speed-up over each baseline, one group per row, from top to bottom."""
    speedups = [row.speedups for row in rows]
    thick = 0.8 / max([len(s) for s in speedups] + [1])
    longest = max((value for s in speedups for value in s.values()), default=1.0)
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # hides the line at 1 behind numbers
    for baseline in BASELINES:
        label, colour, _ = style(baseline)
        # center the bars of each row, whatever their number
        shifts = [(list(s).index(baseline) - (len(s) - 1) / 2) * thick if baseline in s else 0.0 for s in speedups]
        bars = [(i + shifts[i], s[baseline]) for i, s in enumerate(speedups) if baseline in s]
        if bars:
            places, values = zip(*bars, strict=True)
            axes.barh(places, values, height=0.92 * thick, color=colour, label=label, zorder=2)
        for place, value in bars:
            axes.text(value + 0.01 * longest, place, f"{value:.2f}×", va="center", fontsize=8, bbox=ground)
    for i, row in enumerate(rows):
        if not speedups[i]:
            why = "no baseline" if row.ok else "differs: not timed"
            axes.text(0.01 * longest, i, why, va="center", fontsize=8, color="#a00000")
    axes.axvline(1, color="#666666", linewidth=1, linestyle="--", zorder=1)
    axes.set_xlim(0, max(longest, 1) * 1.14)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), labels=list(labels), fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("time of the baseline over time of se_fused", fontsize=9)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def speedup_figure(rows: Sequence[Row], heading: str, path: str | os.PathLike[str]) -> None:
    """Write a picture of the speed-ups, with a panel for each kind of workload and dtype.

    Raises:
        ImportError: matplotlib is not installed.
    """
    panels: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        about = row.workload
        key: tuple[str, ...] = (about["dtype"],) if about["layout"] == "both" else (about["title"], about["dtype"])
        panels.setdefault(key, []).append(row)
    columns = 2 if len(panels) > 1 else 1
    lines = -(-len(panels) // columns)
    tallest = max(len(group) for group in panels.values())
    figure = new_figure(7.0 * columns, lines * (1.2 + 0.45 * tallest) + 0.9)
    grid = list(figure.subplots(lines, columns, squeeze=False).ravel())
    for axes, (key, group) in zip(grid, panels.items(), strict=False):
        speedup_bars(axes, group, [_label(row) for row in group], ", ".join(key))
    for axes in grid[len(panels) :]:
        axes.axis("off")
    legend(figure, columns=2)
    figure.suptitle(heading, fontsize=11)
    save(figure, path)


def draw_training(
    images: torch.Tensor,
    titles: Sequence[str],
    losses: Mapping[str, Sequence[float]],
    rows: Sequence[Row],
    heading: str,
    path: str | os.PathLike[str],
) -> None:
    """Write the demo's picture: images at the top, below them the losses of all runs and the speed-ups.

    Args:
        images: (N, 1, S, S) in [0, 1]; the first eight are drawn.
        titles: N titles of the images.
        losses: loss of each training step by name; the first is drawn as dots, the others as lines.
        rows: compared workloads.
        heading: title of the picture.
        path: a .png, .pdf or .svg file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    shown = min(len(images), 8)
    figure = new_figure(12, 6.4)
    figure.suptitle(heading, fontsize=11)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.9)).ravel()
    for k, axes in enumerate(top.subplots(1, shown, squeeze=False).ravel()):
        axes.imshow(images[k, 0].numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(titles[k], fontsize=9)
        axes.axis("off")
    left, right = bottom.subplots(1, 2)
    ours, *others = losses
    colours = [style(name)[1] for name in BASELINES]
    for k, name in enumerate(others):
        steps = range(1, len(losses[name]) + 1)
        left.plot(steps, losses[name], color=colours[k % 2], linewidth=4 if k == 0 else 1.5, alpha=0.6, label=name,
                  linestyle="-" if k == 0 else "--")  # fmt: skip
    left.plot(range(1, len(losses[ours]) + 1), losses[ours], "o", color=style(OURS)[1], markersize=5, label=ours)
    left.set_xlabel("training step", fontsize=9)
    left.set_ylabel("loss (cross-entropy)", fontsize=9)
    left.set_xticks(range(1, len(losses[ours]) + 1))
    left.set_title("loss of each training step, from the same weights", fontsize=10, loc="left")
    left.grid(color="#dddddd", linewidth=0.6)
    left.legend(frameon=False, fontsize=9)
    for side in ("top", "right"):
        left.spines[side].set_visible(False)
    speedup_bars(right, rows, [row.workload["title"].partition(" ")[2] for row in rows], "speed")
    if any(row.speedups for row in rows):
        right.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    save(figure, path)
