"""Pairs our measurements with baselines: the fastest candidate of each family, ratios, and the cost of SE."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..providers.registry import OURS
from .format import layout_name
from .records import Measurement, Run, Spread

__all__ = [
    "Comparison",
    "Cost",
    "Study",
    "Versus",
    "by",
    "comparisons",
    "family",
    "quotient",
    "studies",
    "titled",
    "verdict",
]


def family(candidate: str) -> str:
    """Family of a candidate: "compile" for ``compile max-autotune``, "se_fused" for ``se_fused optimized``."""
    for name in (OURS, "compile"):
        if candidate.startswith(name):
            return name
    return candidate


def quotient(baseline: Measurement, ours: Measurement, cold: bool = False) -> Spread | None:
    """Time of the baseline over our time: from calls made in turn if possible, else the quotient of the medians."""
    a, b = (baseline.cold_ratio, ours.cold_ratio) if cold else (baseline.ratio, ours.ratio)
    if a is not None and b is None and a.to == ours.candidate:
        return a
    if b is not None and a is None and b.to == baseline.candidate:
        return b.inverse()
    if a is not None and b is not None and a.to == b.to:
        return a.over(b)
    times, mine = (baseline.cold, ours.cold) if cold else (baseline.seconds, ours.seconds)
    return None if times is None or mine is None else times.over(mine)


def verdict(ratio: Spread) -> str:
    """``behind`` or ``ahead`` if both quartiles are on one side of 1, else ``even``."""
    return "behind" if ratio.q3 < 1 else "ahead" if ratio.q1 > 1 else "even"


@dataclass(frozen=True)
class Versus:
    """A baseline and the ratio of its time to ours."""

    baseline: Measurement
    ratio: Spread

    @property
    def mode(self) -> str:
        """The part of the baseline's name after its family, such as ``max-autotune``."""
        return self.baseline.candidate.removeprefix(family(self.baseline.candidate)).strip()


@dataclass(frozen=True)
class Cost:
    """Time with SE over time without it, minus 1, of one candidate in one layout."""

    of: Measurement
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """All measurements of one workload on the same input."""

    measurements: tuple[Measurement, ...]
    ours: Measurement
    """Our fastest candidate; the fastest of all if none of ours was measured."""

    @property
    def names(self) -> list[str]:
        """Families of the baselines in the order of measurement."""
        return list(dict.fromkeys(family(m.candidate) for m in self._with_se if not m.ours))

    @property
    def _with_se(self) -> list[Measurement]:
        return [m for m in self.measurements if not m.plain]

    def best(self, *names: str) -> Measurement | None:
        """The fastest candidate of these families in any layout."""
        return _fastest([m for m in self._with_se if family(m.candidate) in names])

    def versus(self, *names: str, cold: bool = False) -> Versus | None:
        """Our fastest candidate against the fastest of these families; None if one of them was not measured."""
        if not self.ours.ours:
            return None
        baseline = self.best(*names)
        ratio = None if baseline is None else quotient(baseline, self.ours, cold)
        return None if baseline is None or ratio is None else Versus(baseline, ratio)

    def cost(self, name: str) -> Cost | None:
        """Cost of SE for a family: its fastest candidate that was also measured without SE in the same layout."""
        pairs = {}
        for plain in self.measurements:
            if plain.plain and family(plain.candidate) == name:
                for m in self._with_se:
                    if (m.candidate, m.layout) == (plain.candidate, plain.layout):
                        pairs[m.fullname] = m, plain
        best = _fastest([m for m, _ in pairs.values()])
        if best is None:
            return None
        plain = pairs[best.fullname][1]
        told = plain.ratio is not None and plain.ratio.to == best.candidate
        times = plain.ratio.inverse() if told and plain.ratio is not None else best.seconds.over(plain.seconds)
        return Cost(best, times.median - 1, times.q1 - 1, times.q3 - 1)


def _fastest(candidates: Sequence[Measurement]) -> Measurement | None:
    """The fastest candidate, by ratios to the common reference if all were measured in turn with it, else by times.

    The reference itself has no ratio and counts as 1.
    """
    if not candidates:
        return None
    in_turn = sum(m.ratio is None for m in candidates) <= 1 and any(m.ratio is not None for m in candidates)
    if in_turn:
        return min(candidates, key=lambda m: 1.0 if m.ratio is None else m.ratio.median)
    return min(candidates, key=lambda m: m.seconds.median)


def _layout_of(m: Measurement) -> str:
    """Layout that identifies a workload: empty for networks, whose candidates may use any layout."""
    return "" if m.kind in ("network", "convert") else m.layout


def _key(m: Measurement) -> tuple[object, ...]:
    layout = _layout_of(m)
    # Measurements without SE may have another title but belong to the same comparison.
    title = "" if m.kind == "network" else m.group if m.kind == "conv1x1" else m.title
    return m.kind, m.device, m.network, title, m.mode, m.shape, m.dtype, layout, m.axis, m.value


def comparisons(run: Run, kind: str, study: bool = False) -> list[Comparison]:
    """Comparisons of a kind of workload in the order of measurement: points of the scaling studies, or all others."""
    groups: dict[tuple[object, ...], list[Measurement]] = {}
    for m in run.measurements:
        if m.kind == kind and bool(m.axis) == study:
            groups.setdefault(_key(m), []).append(m)
    made = []
    for group in groups.values():
        with_se = [m for m in group if not m.plain]
        ours = _fastest([m for m in with_se if m.ours]) or _fastest(with_se)
        if ours is not None:
            made.append(Comparison(tuple(group), ours))
    return made


@dataclass(frozen=True)
class Study:
    """A scaling study: comparisons that differ in one size, the axis, in increasing order."""

    axis: str
    title: str
    where: str
    points: tuple[tuple[int, Comparison], ...]

    @property
    def names(self) -> list[str]:
        """Families of the baselines that were measured at any point."""
        return list(dict.fromkeys(name for _, comparison in self.points for name in comparison.names))

    def ratios(self, name: str) -> list[tuple[int, Spread]]:
        """Value of the axis and ratio to a family, for the points with both measurements."""
        found = ((value, comparison.versus(name)) for value, comparison in self.points)
        return [(value, versus.ratio) for value, versus in found if versus is not None]

    def behind(self, name: str) -> list[tuple[int, Spread]]:
        """The points at which se_fused is slower than the family."""
        return [(value, ratio) for value, ratio in self.ratios(name) if verdict(ratio) == "behind"]


def studies(run: Run) -> list[Study]:
    """All scaling studies of a run."""
    found: dict[tuple[object, ...], list[tuple[int, Comparison]]] = {}
    for kind in dict.fromkeys(m.kind for m in run.measurements if m.axis):
        for comparison in comparisons(run, kind, study=True):
            m = comparison.ours
            key = m.axis, _title(m), m.device, m.dtype, _layout_of(m)
            found.setdefault(key, []).append((m.value, comparison))
    return [
        Study(str(axis), str(title), _where(str(dtype), str(layout)), tuple(sorted(points, key=lambda p: p[0])))
        for (axis, title, _, dtype, layout), points in found.items()
    ]


def _title(m: Measurement) -> str:
    return m.title if m.device == "cpu" else f"{m.title} ({m.device})"


def _where(dtype: str, layout: str) -> str:
    return " ".join(filter(None, [dtype, layout_name(layout)]))


def by(items: Iterable[Comparison], key: Callable[[Measurement], str]) -> dict[str, list[Comparison]]:
    """Comparisons grouped by a key of our measurement, in the given order."""
    groups: dict[str, list[Comparison]] = {}
    for item in items:
        groups.setdefault(key(item.ours), []).append(item)
    return groups


def titled(items: Iterable[Comparison]) -> dict[str, list[Comparison]]:
    """Comparisons grouped by title and device."""
    return by(items, _title)
