"""Detection of changes between two runs on one machine that are larger than noise.

Times on a shared machine change by tens of percent from run to run. The baselines serve as controls, because their code
did not change: their common change is the drift of the machine, and the spread of their changes is the noise.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .format import table
from .noise import FEWEST, LEVEL, Noise, median_error
from .records import Measurement, Run

__all__ = ["Change", "Changes", "changes"]

Verdict = Literal["slower", "faster", "within noise", "cannot tell"]


@dataclass(frozen=True)
class Change:
    """One benchmark of se_fused in both runs.

    Attributes:
        before, after: median seconds.
        quotient: after over before, divided by the drift: the estimated effect of the change of the code.
        drift: after over before of the controls.
        of_group: whether the drift is from the controls of the same group, rather than from all.
        threshold: the quotient or its reciprocal must exceed this to count as a change; None if it is unknown.
    """

    fullname: str
    before: float
    after: float
    quotient: float
    drift: float
    of_group: bool
    threshold: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Changes:
    """Comparison of two runs.

    Attributes:
        judged: benchmarks of se_fused in both runs.
        lost, new: names of all benchmarks that are only in the first, or only in the second run.
        controls: number of baselines in both runs.
        flagged_controls: number of controls that the same rule reports as changed, although their code is the same.
        drift: median of after over before of the controls; None without controls.
        notes: limitations of the comparison.
    """

    judged: tuple[Change, ...]
    lost: tuple[str, ...]
    new: tuple[str, ...]
    controls: int
    flagged_controls: int
    drift: float | None
    notes: tuple[str, ...]

    def having(self, verdict: Verdict) -> list[Change]:
        """Benchmarks with this verdict, the largest change first."""
        return sorted((change for change in self.judged if change.verdict == verdict), key=_size)

    @property
    def ok(self) -> bool:
        """Whether no benchmark of se_fused is slower."""
        return not self.having("slower")

    def as_dict(self) -> dict[str, Any]:
        """All values as a dict for JSON."""
        return {"ok": self.ok, **asdict(self)}

    def text(self) -> str:
        """Report in Markdown: slower and faster benchmarks, number of the others, drift and thresholds."""
        return _text(self)


@dataclass(frozen=True)
class _Pair:
    before: Measurement
    after: Measurement

    @property
    def log(self) -> float:
        return math.log(self.after.seconds.median / self.before.seconds.median)

    @property
    def within(self) -> float | None:
        """Standard error of the logarithm from the calls within both runs; None if a run has a single call."""
        errors = median_error(self.before.seconds), median_error(self.after.seconds)
        return None if errors[0] is None or errors[1] is None else math.hypot(errors[0], errors[1])


@dataclass(frozen=True)
class _Drift:
    """Logarithms of the controls' changes: by name, by group and name, and their median."""

    logs: Mapping[str, float]
    groups: Mapping[str, Mapping[str, float]]
    whole: float

    @classmethod
    def of(cls, controls: Mapping[str, _Pair]) -> "_Drift":
        groups: dict[str, dict[str, float]] = {}
        for name, pair in controls.items():
            groups.setdefault(pair.before.group, {})[name] = pair.log
        logs = {name: pair.log for name, pair in controls.items()}
        return cls(logs, groups, statistics.median(logs.values()) if logs else 0.0)

    def at(self, group: str, without: str = "") -> tuple[float, bool]:
        """The drift in a group without one control, and whether it is of the group rather than of all controls.

        A group with a single control uses the drift of all, because one control cannot separate drift and noise.
        """
        found = [log for name, log in self.groups.get(group, {}).items() if name != without]
        return (statistics.median(found), True) if len(found) >= 2 else (self.whole, False)


def changes(before: Run, after: Run) -> Changes:
    """Compare two runs, benchmark by benchmark.

    The drift of the controls is subtracted from the change of each benchmark; the drift of its own group, if the group
    has at least two controls. The noise is the spread of the controls after the drift of the *other* controls is
    subtracted, separately for both kinds of drift. A benchmark has changed if its remaining change exceeds both this
    noise and the error of its own medians. Both thresholds are chosen so that the probability of any false alarm in the
    whole run is 5 %, if the noise is normal (see :mod:`.noise`).

    Args:
        before, after: runs on one machine. Benchmarks in both runs are compared.

    Raises:
        ValueError: the runs are from different machines, or have no benchmark of se_fused in common.
    """
    if before.machine != after.machine:
        raise ValueError(
            f"{before.files[0]} is from {before.where}, {after.files[0]} from {after.where}: times of "
            "different machines cannot be compared"
        )
    old, new = ({m.fullname: m for m in run.measurements} for run in (before, after))
    pairs = {name: _Pair(m, new[name]) for name, m in old.items() if name in new}
    ours = {name: pair for name, pair in pairs.items() if pair.before.ours}
    controls = {name: pair for name, pair in pairs.items() if not pair.before.ours}
    if not ours:
        raise ValueError(f"{before.files[0]} and {after.files[0]} have no benchmark of se_fused in common")
    drift = _Drift.of(controls)
    residuals: dict[bool, dict[str, float]] = {True: {}, False: {}}
    for name, pair in controls.items():
        taken, own = drift.at(pair.before.group, without=name)
        if own:
            residuals[True][name] = pair.log - taken
        residuals[False][name] = pair.log - drift.whole
    noises = {own: Noise(list(found.values()), len(ours)) for own, found in residuals.items()}
    factor = statistics.NormalDist().inv_cdf(1 - LEVEL / (2 * len(ours)))

    judged = []
    for name, pair in ours.items():
        taken, own = drift.at(pair.before.group)
        if own and not noises[True].enough:
            taken, own = drift.whole, False
        if not own and not noises[False].enough:
            taken = 0.0
        judged.append(_judge(name, pair, taken, own, noises[own], factor))
    flagged = 0
    for name, pair in controls.items():
        own = name in residuals[True] and noises[True].enough
        taken, _ = drift.at(pair.before.group, without=name) if own else (drift.whole, False)
        if noises[own].enough:
            flagged += _judge(name, pair, taken, own, noises[own], factor).verdict in ("slower", "faster")
    return Changes(
        judged=tuple(judged), lost=tuple(sorted(set(old) - set(new))), new=tuple(sorted(set(new) - set(old))),
        controls=len(controls), flagged_controls=flagged, drift=math.exp(drift.whole) if controls else None,
        notes=tuple(_notes(before, after, noises[False].enough, len(controls))),
    )  # fmt: skip


def _judge(name: str, pair: _Pair, drift: float, own: bool, noise: Noise, factor: float) -> Change:
    rest, within = pair.log - drift, pair.within
    threshold: float | None
    if noise.enough:
        threshold = max(noise.threshold, factor * (within or 0.0))
    else:
        threshold = None if within is None else factor * within
    verdict: Verdict = "within noise"
    if threshold is None:
        verdict = "cannot tell"
    elif abs(rest) > threshold:
        verdict = "slower" if rest > 0 else "faster"
    return Change(
        fullname=name, before=pair.before.seconds.median, after=pair.after.seconds.median, quotient=math.exp(rest),
        drift=math.exp(drift), of_group=own, threshold=None if threshold is None else math.exp(threshold),
        verdict=verdict,
    )  # fmt: skip


def _notes(before: Run, after: Run, enough: bool, controls: int) -> list[str]:
    notes = []
    if not enough:
        notes.append(
            f"Too few controls to estimate the noise: {controls} baselines in both runs, {FEWEST} are needed. The "
            "verdicts use only the spread within each run and do not subtract a drift. The machine often changes by "
            "more than that between two runs, so a change shown here may come from the machine."
        )
    if before.commit == after.commit:
        notes.append("Both runs are from the same commit" + (", with uncommitted changes." if after.dirty else "."))
    if differing := _differences(_setting(before), _setting(after)):
        notes.append(f"The runs differ in {', '.join(differing)}: the code of the baselines may have changed too.")
    return [*notes, *before.notes, *after.notes]


def _setting(run: Run) -> dict[str, Any]:
    """Settings that the times of the baselines depend on: number of threads and versions."""
    return {"threads": (run.info.get("cpu") or {}).get("threads"), **(run.info.get("versions") or {})}


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    names = {**one, **other}
    return [f"{k} ({one.get(k)} before, {other.get(k)} after)" for k in names if one.get(k) != other.get(k)]


# ---- Markdown
def _size(change: Change) -> float:
    """Sort key that puts the largest change first."""
    return -abs(math.log(change.quotient))


def _short(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def _percent(quotient: float) -> str:
    return f"{100 * (quotient - 1):+.1f} %"


def _rows(found: Sequence[Change]) -> list[str]:
    return table(("benchmark",), ("before, ms", "after, ms", "drift", "change without drift", "noise"),
                 ([c.fullname.rpartition("::")[2], _short(c.before), _short(c.after), _percent(c.drift),
                   _percent(c.quotient), "–" if c.threshold is None else f"±{100 * (c.threshold - 1):.1f} %"]
                  for c in found))  # fmt: skip


def _text(found: Changes) -> str:
    verdicts = Counter(change.verdict for change in found.judged)
    shown = {"slower": 0, "faster": 0, "within noise": 0, **verdicts}
    lines = [
        f"{len(found.judged)} benchmarks of se_fused in both runs: "
        + ", ".join(f"{count} {verdict}" for verdict, count in shown.items())
        + "."
    ]
    if found.drift is not None:
        lines.append(
            f"{found.controls} controls (baselines with the same code in both runs): the machine drifted by "
            f"{_percent(found.drift)}; the same rule reports {found.flagged_controls} of them as changed."
        )
    quotients = statistics.median(change.quotient for change in found.judged)
    lines.append(f"The median change of se_fused is {_percent(quotients)}, without the drift.")
    if thresholds := sorted(100 * (c.threshold - 1) for c in found.judged if c.threshold is not None):
        low, middle, high = thresholds[0], statistics.median(thresholds), thresholds[-1]
        lines.append(f"A change must exceed ±{middle:.1f} % to be reported (median; {low:.1f} to {high:.1f} %).")
    lines += [f"Note: {note}" for note in found.notes]
    ordered = sorted(found.judged, key=_size)
    for verdict in ("slower", "faster"):
        if some := [change for change in ordered if change.verdict == verdict]:
            lines += ["", f"## {verdict.capitalize()}", "", *_rows(some)]
    for heading, names in (("Only before", found.lost), ("Only after", found.new)):
        if names:
            some_names = names[:10] + ((f"... and {len(names) - 10} more",) if len(names) > 10 else ())
            lines += ["", f"## {heading}: {len(names)}", "", *(f"- {name}" for name in some_names)]
    return "\n".join(lines) + "\n"
