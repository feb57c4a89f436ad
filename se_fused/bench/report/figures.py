"""Pictures of a run: roofline, speed-ups, scaling, cost of SE and memory."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..providers.modules import LIBRARIES
from ..providers.registry import BASELINES, OURS
from .format import number, times
from .pairs import Comparison, comparisons, titled
from .records import Run
from .roofline import draw_roofline
from .scaling import draw_rates, draw_scaling
from .style import Bar, Panel, bar_pages, check_matplotlib, heading, label_of, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw", "memory_panels", "overhead_panels", "speedup_panels"]

_COLUMNS = {"eager": ("eager",), "module": LIBRARIES, "compile": ("compile",)}
_MEMORY = (OURS, *BASELINES)


def draw(run: Run, folder: str | os.PathLike[str]) -> list[Path]:
    """Write the pictures for which the run has data.

    Args:
        run: the run to draw.
        folder: an existing folder. Files with the same names are replaced atomically.

    Returns:
        The written files: roofline, scaling, images_per_second, speedups, overhead and memory, as .png. Further pages
        of bars are in ``speedups-2.png`` and so on.

    Raises:
        ImportError: matplotlib is not installed.
    """
    check_matplotlib()
    written = []
    for name, figures in _figures(run, heading(run)):
        for page, figure in enumerate(figures, start=1):
            path = Path(folder) / (f"{name}.png" if page == 1 else f"{name}-{page}.png")
            save(figure, path)
            written.append(path)
    return written


def _figures(run: Run, title: str) -> Iterable[tuple[str, list["Figure"]]]:
    """Names and pages of the pictures, generated one by one, so that only one picture is in memory."""
    single = {"roofline": draw_roofline, "scaling": draw_scaling, "images_per_second": draw_rates}
    for name, make in single.items():
        figure = make(run, title)
        yield name, [] if figure is None else [figure]
    faster, cost = "time of the baseline over time of se_fused", "time with SE over time without it, minus 1, in %"
    yield "speedups", bar_pages(speedup_panels(run), f"Blocks: {title}", times, faster, line=1)
    yield (
        "overhead",
        bar_pages(overhead_panels(run), f"Cost of SE: {title}", lambda value: f"{round(value)} %", cost),
    )
    yield "memory", bar_pages(memory_panels(run), f"Memory: {title}", number, "MB (10^6 bytes)")


def speedup_panels(run: Run) -> list[Panel]:
    """A panel per title and dtype: speed-up over eager, the best module and compile, with quartiles."""
    panels = []
    for title, group in titled(comparisons(run, "block")).items():
        rows: dict[str, list[tuple[str, dict[str, Bar]]]] = {}
        for w in group:
            found = {name: w.versus(*names) for name, names in _COLUMNS.items()}
            bars = {name: Bar(v.ratio.median, v.ratio.q1, v.ratio.q3) for name, v in found.items() if v is not None}
            if bars:
                rows.setdefault(w.ours.dtype, []).append((label_of(w.ours), bars))
        panels += [Panel(f"{title}, {dtype}", found) for dtype, found in rows.items()]
    return panels


def overhead_panels(run: Run) -> list[Panel]:
    """A panel per network and mode: cost of SE in percent for each candidate that was also measured without SE."""
    panels = []
    for title, group in titled(comparisons(run, "network")).items():
        rows = []
        for w in group:
            costs = {name: w.cost(name) for name in (OURS, *w.names)}
            bars = {name: Bar(100 * c.share, 100 * c.low, 100 * c.high) for name, c in costs.items() if c is not None}
            if bars:
                rows.append((f"batch {w.ours.shape[0]}, {w.ours.dtype}", bars))
        if rows:
            panels.append(Panel(title, rows))
    return panels


def memory_panels(run: Run) -> list[Panel]:
    """Panels per title: MB at the peak, and MB saved for backward. Layouts with equal values share a row."""
    panels = []
    for kind in ("block", "network"):
        for title, group in titled(comparisons(run, kind)).items():
            for what, name in (("peak", "peak_bytes"), ("saved for backward", "saved_bytes")):
                if rows := _memory_rows(group, kind, lambda w, baseline, name=name: _bytes(w, baseline, name)):  # type: ignore[misc]
                    panels.append(Panel(f"{title}: {what}", rows))
    return panels


def _bytes(w: Comparison, baseline: str, name: str) -> int | None:
    best = w.best(baseline)
    found: int | None = None if best is None else getattr(best, name)
    return found


def _memory_rows(
    group: Iterable[Comparison], kind: str, get: Callable[[Comparison, str], int | None]
) -> list[tuple[str, dict[str, Bar]]]:
    rows: dict[tuple[object, ...], tuple[list[str], dict[str, Bar]]] = {}
    for w in group:
        m = w.ours
        bars = {baseline: Bar.exact(size / 1e6) for baseline in _MEMORY if (size := get(w, baseline)) is not None}
        if bars:
            about, _, layout = (f"batch {m.shape[0]}", "", "") if kind == "network" else label_of(m).rpartition(" ")
            names, _ = rows.setdefault((about, m.dtype, *bars.items()), ([], bars))
            names.append(layout)
    return [
        (f"{about}, {dtype}{'' if len(names) > 1 or not names[0] else f', {names[0]}'}", bars)
        for (about, dtype, *_), (names, bars) in rows.items()
    ]
