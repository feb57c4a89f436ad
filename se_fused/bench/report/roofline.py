"""Roofline plot: the limits of the machine and the measurements.

Williams, Waterman & Patterson 2009, "Roofline: An Insightful Visual Performance Model for Multicore Architectures",
Communications of the ACM 52: the limit is the minimum of the arithmetic peak and of bandwidth times FLOP per byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..providers.registry import BASELINES, OURS
from .pairs import family
from .records import CopySpeed, Limits, Run
from .style import finish, legend, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Point", "Roof", "draw_roofline", "points", "roofs"]

_SHOWN = (OURS, *BASELINES)
_KINDS = {"pass": "passes", "block": "blocks", "network": "networks"}
# All blocks have the same intensity, so the points of the baselines are shifted horizontally by these factors.
_ASIDE = {"se_fused": 1.0, "eager": 0.88, "compile": 1.14}
_DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Point:
    """A measurement with counted bytes, and counted operations if known."""

    kind: str
    name: str
    counted_bytes: int
    bytes_per_second: float
    flops: int | None

    @property
    def intensity(self) -> float | None:
        """FLOP per counted byte."""
        return self.flops / self.counted_bytes if self.flops else None

    @property
    def flops_per_second(self) -> float | None:
        """Counted operations per second."""
        return self.intensity * self.bytes_per_second if self.intensity else None


@dataclass(frozen=True)
class Roof:
    """A line of the roofline: a bandwidth in bytes per second, with its label and dash pattern."""

    label: str
    bytes_per_second: float
    dash: str


def points(run: Run, device: str) -> list[Point]:
    """Measurements with counted bytes on a device: se_fused, eager and compiled, and only networks with SE."""
    found = []
    for m in run.measurements:
        speed, name = m.speed(), family(m.candidate)
        if m.device == device and m.kind in _KINDS and name in _SHOWN and not m.plain and speed and m.counted_bytes:
            found.append(Point(m.kind, name, m.counted_bytes, speed, m.flops))
    return found


def roofs(limits: Limits) -> list[Roof]:
    """Bandwidth lines: theoretical, fastest copy_ with warm caches, copy_ of the largest set with cold caches."""
    warm = [c.warm for c in limits.copy if c.warm]
    cold = [c.cold for c in limits.copy if c.cold]
    found = [Roof("theoretical bandwidth of memory", limits.theoretical, "--")] if limits.theoretical else []
    found += [Roof("copy_, warm, fastest", max(warm), "-.")] if warm else []
    found += [Roof("copy_, cold, largest set", cold[-1], "-")] if cold else []
    return found


def draw_roofline(run: Run, title: str) -> "Figure | None":
    """Two panels per device: the roofline, and counted bytes per second over counted bytes, with curves of copy_.

    All blocks have about one FLOP per byte, so they can be distinguished only in the second panel.
    """
    devices = [d for d in dict.fromkeys(m.device for m in run.measurements) if points(run, d)]
    if not devices:
        return None
    figure = new_figure(13, 4.9 * len(devices) + 1.2)
    grid = figure.subplots(len(devices), 2, squeeze=False)
    for (left, right), device in zip(grid, devices, strict=True):
        limits, found = run.limits.get(device, Limits()), points(run, device)
        _roofline(left, limits, found, device)
        _speeds(right, limits.copy, found, device)
    legend(figure, columns=4)
    figure.suptitle(f"Roofline: {title}", fontsize=11)
    return figure


def _scatter(axes: "Axes", found: Sequence[tuple[Point, float, float]]) -> None:
    """Draw points: se_fused filled, baselines hollow; the marker shows the kind of workload."""
    markers = {"pass": "x", "block": "o", "network": "s"}
    # Draw se_fused last, so that its points are on top.
    for kind, text in _KINDS.items():
        for name in reversed(_SHOWN):
            some = [(x, y) for point, x, y in found if (point.kind, point.name) == (kind, name)]
            if not some:
                continue
            label, colour, _ = style(name)
            face = colour if name == OURS or kind == "pass" else "none"
            axes.scatter([x for x, _ in some], [y for _, y in some], marker=markers[kind], s=30, facecolors=face,
                         edgecolors=None if kind == "pass" else colour, linewidths=1.1, alpha=0.8,
                         label=f"{label}, {text}", zorder=4 if name == OURS else 3)  # fmt: skip


def _roofline(axes: "Axes", limits: Limits, found: Sequence[Point], device: str) -> None:
    placed = [(p, x * _ASIDE[p.name], y / 1e9) for p in found if (x := p.intensity) and (y := p.flops_per_second)]
    slants, peaks = roofs(limits), limits.matmul
    axes.set_xscale("log")
    axes.set_yscale("log")
    if placed:
        low, high = min(x for _, x, _ in placed) / 4, max(x for _, x, _ in placed) * 4
        top = max(peaks.values(), default=0)
        if top and slants:  # extend the axis to show where bandwidth and arithmetic limits meet
            high = max(high, 3 * top / min(roof.bytes_per_second for roof in slants))
        for roof in slants:
            end = min(high, top / roof.bytes_per_second) if top else high
            ends = (low, max(end, low))
            axes.plot(ends, [x * roof.bytes_per_second / 1e9 for x in ends], color="#444444", linestyle=roof.dash,
                      linewidth=1.2, label=f"{roof.label}", zorder=2)  # fmt: skip
        for dash, (dtype, peak) in zip(_DASHES, peaks.items(), strict=False):
            start = min(max(low, peak / max((r.bytes_per_second for r in slants), default=peak / low)), high)
            axes.plot((start, high), (peak / 1e9, peak / 1e9), color="#8c510a", linestyle=dash, linewidth=1.2,
                      label=f"matrix product, {dtype}", zorder=2)  # fmt: skip
        axes.set_xlim(low, high)
        _scatter(axes, placed)
    else:
        axes.text(0.5, 0.5, "no counted operations in this run", ha="center", fontsize=9, transform=axes.transAxes)
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    beside = "FLOP per counted byte (shifted for clarity: eager to the left, compile to the right)"
    finish(axes, f"roofline, {device}", beside, "GFLOP/s")


def _speeds(axes: "Axes", copy: Sequence[CopySpeed], found: Sequence[Point], device: str) -> None:
    for which, dash in (("warm", "-."), ("cold", "-")):
        curve = [(c.working_set_bytes, speed / 1e9) for c in copy if (speed := getattr(c, which))]
        if curve:
            axes.plot([x for x, _ in curve], [y for _, y in curve], color="#444444", linestyle=dash, linewidth=1.2,
                      marker=".", label=f"copy_, {which}, of that size", zorder=2)  # fmt: skip
    _scatter(axes, [(p, float(p.counted_bytes), p.bytes_per_second / 1e9) for p in found if p.kind != "network"])
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    finish(axes, f"counted bytes per second, {device}", "counted bytes (copy_: working set)", "GB/s")
