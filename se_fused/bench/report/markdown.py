"""Markdown report of a run: cost of SE, speed of se_fused, and distance from the limits of the machine."""

import statistics
from collections.abc import Iterable, Sequence

from ..providers.modules import LIBRARIES
from ..providers.registry import BASELINES, OURS
from .format import (
    NOTHING,
    bandwidth,
    layout_name,
    megabytes,
    milliseconds,
    number,
    percent,
    shape,
    table,
    times,
)
from .machine import machine, skipped
from .pairs import Comparison, Study, Versus, by, comparisons, studies, titled, verdict
from .records import Measurement, Run

__all__ = ["markdown"]

_READING = """Times are medians ± half the distance of the quartiles. A ratio such as 1.50× is the time of the baseline
over the time of se_fused; below 1, se_fused is slower. It is the median of quotients of calls made in turn, if there
are such calls. "Behind" means that the ratio's quartiles are both below 1, "even" that 1 is between them."""


_JUDGED = ("block", "network", "convert")


def markdown(run: Run) -> str:
    """The report as GitHub's Markdown, without sections that have no data."""
    parts = [
        _section("se_fused: measurements", [*_answers(run), "", *_READING.splitlines(), *_notes(run)], 1),
        _section("Machine", machine(run)),
        _section("Blocks", _blocks(run)),
        _section("Networks", _networks(run)),
        _section("Converted models", _converted(run)),
        _section("Scaling", _scaling(studies(run))),
        _section("Convolution after the gate", _conv1x1(run)),
        _section("Passes", _passes(run)),
        _section("Memory", _memory(run)),
        _section("Skipped", skipped(run)),
    ]
    return "\n".join(filter(None, parts))


def _section(heading: str, lines: Sequence[str], level: int = 2) -> str:
    """A heading and its lines; empty if there are no lines."""
    return f"{'#' * level} {heading}\n\n" + "\n".join(lines).strip("\n") + "\n" if any(lines) else ""


def _notes(run: Run) -> list[str]:
    return ["", *(f"- Note: {note}." for note in run.notes)] if run.notes else []


def _input(m: Measurement) -> list[str]:
    """Map, dtype and layout."""
    return [shape(m.shape), m.dtype, layout_name(m.layout)]


# ---- summary
def _answers(run: Run) -> list[str]:
    lines = []
    for title, group in titled(comparisons(run, "block")).items():
        told = [
            f"{_range(found)} {name}{'' if len(found) == len(group) else f' ({len(found)} of them)'}"
            for name, found in _all_versus(group)
            if found
        ]
        if told:
            lines.append(f"- {title}, median and range of {len(group)} workloads: se_fused is {', '.join(told)}.")
    for title, group in by(comparisons(run, "network"), lambda m: f"{m.network}, {_mode(m)}, {m.device}").items():
        texts = []
        for name in dict.fromkeys([OURS, *(name for w in group for name in w.names)]):
            costs = [c.share for c in (w.cost(name) for w in group) if c is not None]
            if costs:
                texts.append(f"{_percents(costs)} with {_baseline_name(name, group[0])}")
        if texts:
            lines.append(f"- SE costs {title}: {', '.join(texts)}.")
    slow = [f"{' '.join([m.title, *_input(m)])} ({', '.join(of)})" for m, of in _behind(run)]
    shown = "; ".join(slow[:8]) + (f"; and {len(slow) - 8} more" if len(slow) > 8 else "")
    if any(comparisons(run, kind) for kind in _JUDGED):
        lines.append(f"- Behind the best baseline of a kind (blocks, networks, converted models): {shown or 'none'}.")
    return lines


def _percents(shares: Sequence[float]) -> str:
    low, high = round(100 * min(shares)), round(100 * max(shares))
    return f"{low} %" if low == high else f"{low} to {high} %"


def _baseline_name(name: str, w: Comparison) -> str:
    said = next((m.baseline for m in w.measurements if m.baseline), "") if name == "eager" else ""
    return f"{name} ({said})" if said else name


def _kinds(group: Iterable[Comparison]) -> list[tuple[str, tuple[str, ...]]]:
    """The kinds of baselines that were measured, as columns: (title, names)."""
    present = {name for w in group for name in w.names}
    others = sorted(present - {*BASELINES, *LIBRARIES})
    kinds = [("eager", ("eager",)), ("a module", LIBRARIES), ("compile", ("compile",)), *((o, (o,)) for o in others)]
    return [(title, names) for title, names in kinds if present & set(names)]


def _all_versus(group: Sequence[Comparison]) -> list[tuple[str, list[Versus]]]:
    found = []
    for title, names in _kinds(group):
        each = [w.versus(*names) for w in group]
        found.append(("the best other module" if names == LIBRARIES else title, [v for v in each if v is not None]))
    return found


def _range(found: Sequence[Versus]) -> str:
    values = [v.ratio.median for v in found]
    middle = times(statistics.median(values))
    inner = f" ({times(min(values))} to {times(max(values))})" if len(values) > 1 else ""
    return f"{middle}{inner} as fast as"


def _behind(run: Run) -> list[tuple[Measurement, list[str]]]:
    found = []
    for kind in _JUDGED:
        for w in comparisons(run, kind):
            each = [w.versus(*names) for _, names in _kinds([w])]
            slower = [f"{v.baseline.candidate} {times(v.ratio)}" for v in each if v and verdict(v.ratio) == "behind"]
            if slower:
                found.append((w.ours, slower))
    return found


def _mode(m: Measurement) -> str:
    return {"infer": "inference", "train": "forward and backward"}.get(m.mode, m.mode)


# ---- blocks
def _cell(versus: Versus | None, named: bool = False) -> str:
    """The ratio, with the baseline's name if ``named``, or with its mode if that is not the default."""
    if versus is None:
        return NOTHING
    name = versus.baseline.candidate if named else versus.mode
    return times(versus.ratio) + (f" {name}" if name else "")


def _blocks(run: Run) -> list[str]:
    lines = []
    for title, group in titled(comparisons(run, "block")).items():
        kinds = _kinds(group)
        rows = []
        for w in group:
            m = w.ours
            baselines = [_cell(w.versus(*names), named=names == LIBRARIES) for _, names in kinds]
            rows.append([*_input(m), milliseconds(m.seconds) if m.ours else NOTHING, *baselines,
                         percent(m.copy_share), percent(m.cold_copy_share),
                         _cell(w.versus("eager", cold=True))])  # fmt: skip
        heads = ["se_fused ms", *(f"vs {kind}" for kind, _ in kinds), "of a copy", "of a cold copy", "vs eager, cold"]
        lines += [f"### {title}", "", *table(("map", "dtype", "layout"), heads, rows), ""]
    if lines:
        lines += [
            "vs a module: against the fastest of timm, torchvision and monai. vs compile: against its fastest mode, "
            "which is named if it is not the default. Of a copy: the counted bytes (the least that the op must read "
            "and write) per second, as a share of the speed of copy_ on as many bytes; cold: with inputs that are in "
            "no cache.",
        ]
    return lines


# ---- networks
def _networks(run: Run) -> list[str]:
    lines = []
    for device, group in by(comparisons(run, "network"), lambda m: m.device).items():
        names = list(dict.fromkeys(name for w in group for name in w.names))
        left = ("network", "dtype", "mode", "batch", "fastest se_fused")
        rows, costs = [], []
        for w in group:
            m = w.ours
            about = [m.network, m.dtype, _mode(m), _batch(m)]
            if m.ours:
                rows.append([*about, f"{m.candidate}, {layout_name(m.layout)}", milliseconds(m.seconds), number(m.rate),
                             *(_cell(w.versus(name)) for name in names)])  # fmt: skip
            costs.append([*about, *(_cost(w, name) for name in (OURS, *names))])
        heads = ("ms", "img/s", *(f"vs {name}" for name in names))
        lines += [f"On {device}, each baseline in its faster layout:", "", *table(left, heads, rows), ""]
        costs = [row for row in costs if any(cell != NOTHING for cell in row[4:])]
        if costs:
            lines += ["Cost of SE: time with SE over time without it, minus 1, in the same layout.", "",
                      *table(left[:4], (OURS, *names), costs), ""]  # fmt: skip
        baselines = sorted({m.baseline for w in group for m in w.measurements if m.baseline})
        lines += [f"eager and compiled: {', '.join(baselines)}.", ""] if baselines else []
    return lines


def _batch(m: Measurement) -> str:
    image = shape(m.shape[2:])
    return f"{m.shape[0]} of {image}" if image else str(m.shape[0])


def _cost(w: Comparison, name: str) -> str:
    cost = w.cost(name)
    if cost is None:
        return NOTHING
    half = 100 * (cost.high - cost.low) / 2
    spread = f" ±{half:.0f}" if half >= 0.5 else " ±<1" if half > 0 else ""
    way = cost.of.candidate.removeprefix(name).strip()
    return f"{round(100 * cost.share)}{spread} %" + (f" {way}" if way else "")


def _converted(run: Run) -> list[str]:
    rows = []
    for w in comparisons(run, "convert"):
        m, original, versus = w.ours, w.best("original"), w.versus("original")
        if m.ours:
            rows.append([m.title, m.dtype, _batch(m), layout_name(m.layout), milliseconds(m.seconds),
                         milliseconds(None if original is None else original.seconds), _cell(versus)])  # fmt: skip
    heads = ("converted ms", "original ms", "faster")
    return table(("model", "dtype", "batch", "layout"), heads, rows) if rows else []


# ---- studies
def _scaling(found: Sequence[Study]) -> list[str]:
    lines = []
    for study in found:
        names = study.names
        rows = []
        for value, w in study.points:
            cells = []
            for name in names:
                versus = w.versus(name)
                mark = "" if versus is None else {"behind": " behind", "even": " even"}.get(verdict(versus.ratio), "")
                cells.append(_cell(versus) + mark)
            rows.append(
                [str(value), shape(w.ours.shape), milliseconds(w.ours.seconds) if w.ours.ours else NOTHING, *cells]
            )
        lines += [f"### {study.axis}: {study.title}, {study.where}", ""]
        lines += table((study.axis, "input"), ("se_fused ms", *(f"vs {name}" for name in names)), rows)
        lines += ["", *(_behind_line(study, name) for name in names), ""]
    return lines


def _behind_line(study: Study, name: str) -> str:
    points = ", ".join(f"{study.axis} {value} ({times(ratio)})" for value, ratio in study.behind(name))
    return f"- se_fused is behind {name} at{': ' + points if points else ' no measured point'}."


# ---- the rest
def _conv1x1(run: Run) -> list[str]:
    lines = []
    for title, group in titled(comparisons(run, "conv1x1")).items():
        names = list(dict.fromkeys(name for w in group for name in w.names))
        rows = []
        for w in group:
            m = w.ours
            if m.ours:
                baselines = [_cell(w.versus(name)) for name in names]
                rows.append([*_input(m), milliseconds(m.seconds), *baselines])
        lines += [f"### {title}", ""]
        lines += [*table(("map", "dtype", "layout"), ("se_fused ms", *(f"vs {n}" for n in names)), rows), ""]
    if any("convolution" in w.names for w in comparisons(run, "conv1x1")):
        lines.append("vs convolution: against the convolution alone, without SE; at 1×, SE would cost no time.")
    return lines


def _passes(run: Run) -> list[str]:
    rows = []
    for title, group in titled(comparisons(run, "pass")).items():
        for w in group:
            m = w.ours
            rows.append([title, *_input(m), bandwidth(m.speed()), percent(m.copy_share),
                         bandwidth(m.speed(cold=True)), percent(m.cold_copy_share)])  # fmt: skip
    heads = ("GB/s", "of a copy", "GB/s cold", "of a cold copy")
    return table(("pass", "map", "dtype", "layout"), heads, rows) if rows else []


def _memory(run: Run) -> list[str]:
    lines = []
    for kind, left in (("block", ("map", "dtype", "layout")), ("network", ("network", "dtype", "batch"))):
        for title, group in titled(comparisons(run, kind)).items():
            names = [OURS, *(n for n in BASELINES if any(n in w.names for w in group))]
            rows = []
            for w in group:
                m, best = w.ours, [w.best(name) for name in names]
                about = [m.network, m.dtype, _batch(m)] if kind == "network" else _input(m)
                peaks = [megabytes(None if b is None else b.peak_bytes) for b in best]
                rows.append([*about, *peaks, *(megabytes(None if b is None else b.saved_bytes) for b in best)])
            if any(cell != NOTHING for row in rows for cell in row[3:]):
                heads = [f"{what} {name}" for what in ("peak", "saved") for name in names]
                lines += [f"### {title}: MB", "", *table(left, heads, rows), ""]
    if lines:
        lines.append(
            "Peak: memory above the level before the call. Saved: memory saved for the backward pass. Each baseline "
            "in its fastest variant. MB are 10^6 bytes."
        )
    return lines
