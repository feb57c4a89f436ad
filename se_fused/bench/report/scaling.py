"""Pictures of the scaling studies: speed-ups and images per second over the size."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..providers.registry import OURS
from .pairs import Study, studies
from .records import Run, Spread
from .style import SMALL, finish, legend, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_rates", "draw_scaling", "rates"]

_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 1, 1.2, 1.5, 2, 3, 5, 7, 10, 20, 30, 50, 100, 200, 500, 1000)
_AXES = {"positions": "positions (height × width)", "batch": "batch size", "image": "image size (height = width)",
         "samples": "samples of one position"}  # fmt: skip


def rates(study: Study) -> dict[str, list[tuple[int, Spread]]]:
    """Images per second by family, each with its fastest candidate; empty for blocks.

    The rate of a baseline is our rate over the ratio that was measured in turn. Rates of two benchmarks cannot be
    compared, because they are measured minutes apart on a machine that is shared with others.
    """
    found: dict[str, list[tuple[int, Spread]]] = {}
    for value, comparison in study.points:
        if comparison.ours.kind != "network":
            continue
        seconds, images = comparison.ours.seconds, comparison.ours.shape[0]
        rate = images / seconds.median
        if comparison.ours.ours:
            spread = Spread(rate, images / seconds.q3, images / seconds.q1, seconds.n)
            found.setdefault(OURS, []).append((value, spread))
        for name in comparison.names:
            versus = comparison.versus(name)
            if versus is not None:
                ratio = versus.ratio
                spread = Spread(rate / ratio.median, rate / ratio.q3, rate / ratio.q1, ratio.n)
                found.setdefault(name, []).append((value, spread))
    return found


def _curve(axes: "Axes", name: str, points: Sequence[tuple[int, Spread]]) -> None:
    label, colour, marker = style(name)
    x, y = [value for value, _ in points], [spread.median for _, spread in points]
    errors = [[s.median - s.q1 for _, s in points], [s.q3 - s.median for _, s in points]]
    axes.errorbar(x, y, yerr=errors, color=colour, marker=marker, markersize=5, linewidth=1.4, elinewidth=1, capsize=2,
                  label=label, zorder=3)  # fmt: skip


def _plain_ticks(axes: "Axes", study: Study) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    values = [value for value, _ in study.points]
    axes.set_xscale("log")
    axes.set_xlim(values[0] / 1.25, values[-1] * 1.25)
    # A label needs about a tenth of the width of the logarithmic axis. The ends always have labels.
    far = (values[-1] / values[0]) ** 0.1 if values[0] else 1.0
    shown: list[int] = []
    for value in reversed(values):
        if not shown or (shown[-1] >= value * far and (value == values[0] or value >= values[0] * far)):
            shown.append(value)
    axes.set_xticks(shown, labels=[str(value) for value in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _grid(found: Sequence[Study], title: str) -> tuple["Figure", list["Axes"]]:
    columns = min(len(found), 3)
    lines = -(-len(found) // columns)
    figure = new_figure(4.6 * max(columns, 2), 3.3 * lines + 0.9)
    grid = list(figure.subplots(lines, columns, squeeze=False).ravel())
    for axes in grid[len(found) :]:
        axes.remove()
    figure.suptitle(title, fontsize=11)
    return figure, grid[: len(found)]


def _title(study: Study) -> str:
    return f"{study.title}\n{study.where}"


def draw_scaling(run: Run, title: str) -> "Figure | None":
    """A panel per study: speed-up over each baseline. Below the line at 1, se_fused is slower."""
    found = [study for study in studies(run) if any(study.ratios(name) for name in study.names)]
    if not found:
        return None
    from matplotlib.ticker import NullLocator

    figure, grid = _grid(found, f"Speed-up of se_fused by size: {title}")
    for axes, study in zip(grid, found, strict=True):
        curves = {name: points for name in study.names if (points := study.ratios(name))}
        for name, points in curves.items():
            _curve(axes, name, points)
        ends = [end for points in curves.values() for _, s in points for end in (s.q1, s.q3)]
        low, high = min(0.75, min(ends) / 1.15), max(1.4, max(ends) * 1.15)
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        # Labels of ticks closer than this would overlap.
        ticks: list[float] = []
        for tick in sorted((t for t in _TICKS if low <= t <= high), key=lambda t: abs(t - 1)):
            if all(max(tick, t) / min(tick, t) > (high / low) ** 0.075 for t in ticks):
                ticks.append(tick)
        axes.set_yticks(ticks, labels=[f"{tick:g}×" for tick in ticks])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.axhspan(low, 1, color="#a00000", alpha=0.08, linewidth=0, zorder=0)
        axes.axhline(1, color="#666666", linewidth=1, linestyle="--", zorder=1)
        # Place the text outside the axes, because a curve may be anywhere inside.
        axes.text(1.015, low**0.5, "behind", color="#a00000", fontsize=SMALL, rotation=90, va="center",
                  transform=axes.get_yaxis_transform())  # fmt: skip
        _plain_ticks(axes, study)
        axes.grid(color="#dddddd", linewidth=0.6)
        finish(axes, _title(study), _AXES.get(study.axis, study.axis), "times as fast as the baseline")
    legend(figure)
    return figure


def draw_rates(run: Run, title: str) -> "Figure | None":
    """A panel per study of a network: images per second of each family's fastest candidate."""
    found = [study for study in studies(run) if rates(study)]
    if not found:
        return None
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure, grid = _grid(found, f"Images per second: {title}")
    for axes, study in zip(grid, found, strict=True):
        curves = rates(study)
        for name, points in curves.items():
            _curve(axes, name, points)
        axes.set_ylim(0, 1.08 * max(s.q3 for points in curves.values() for _, s in points))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        _plain_ticks(axes, study)
        axes.grid(color="#dddddd", linewidth=0.6)
        finish(axes, _title(study), _AXES.get(study.axis, study.axis), "images per second (baselines: ours over ratio)")
    legend(figure)
    return figure
