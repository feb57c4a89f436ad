"""Whether two runs on one machine differ by more than noise.

Times on a shared machine move by tens of percent from run to run. The baselines tell by how much: their code did not
change, so what they moved by is the machine's drift, and how they differ in that is its noise.
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
    """One of our benchmarks, before and after.

    Attributes:
        before, after: seconds, medians.
        quotient: after over before with the drift taken off: what the change of the code is held to have done.
        drift: after over before of the controls.
        of_group: whether the drift is that of the controls of the same group, not of all.
        threshold: the quotient, or 1 over it, must exceed this to be a change; None: nothing tells.
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
    """What changed between two runs.

    Attributes:
        judged: all of ours that both runs have.
        lost, new: names of benchmarks, ours and baselines, that only one run has.
        controls: baselines that both runs have.
        flagged_controls: those of them that the same rule would call changed, though their code is the same.
        drift: median of the controls' after over before; None without controls.
        notes: what to know before believing it.
    """

    judged: tuple[Change, ...]
    lost: tuple[str, ...]
    new: tuple[str, ...]
    controls: int
    flagged_controls: int
    drift: float | None
    notes: tuple[str, ...]

    def having(self, verdict: Verdict) -> list[Change]:
        """Those of that verdict, the largest change first."""
        return sorted((change for change in self.judged if change.verdict == verdict), key=_size)

    @property
    def ok(self) -> bool:
        """Nothing of ours is slower."""
        return not self.having("slower")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ok": self.ok, **asdict(self)}

    def text(self) -> str:
        """Markdown: what is slower and faster, how many are neither, and what that rests on."""
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
        """Standard error of the logarithm, out of the calls of either run."""
        errors = median_error(self.before.seconds), median_error(self.after.seconds)
        return None if errors[0] is None or errors[1] is None else math.hypot(errors[0], errors[1])


@dataclass(frozen=True)
class _Drift:
    """Logarithms of the controls' changes: all, and by group with their names."""

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
        """The drift in a group, and whether it is the group's own.

        One control could not tell its own noise from the drift, so a group of one takes that of all.
        """
        found = [log for name, log in self.groups.get(group, {}).items() if name != without]
        return (statistics.median(found), True) if len(found) >= 2 else (self.whole, False)


def changes(before: Run, after: Run) -> Changes:
    """Compare two runs, benchmark by benchmark.

    Of each of ours the controls' drift is taken off, that of its own group where this has two controls or more. Noise
    is what remains of a control when the drift of the *others* is taken off it, for the two kinds of drift apart.
    Ours is changed if what remains of it exceeds both this noise and the error of its own medians, each at a level
    that leaves a chance of 5 % for any false alarm in the whole run, if noise is normal (see :mod:`.noise`).

    Args:
        before, after: runs of one machine. What both contain is compared.

    Raises:
        ValueError: they are of different machines, or have no benchmark of ours in common.
    """
    if before.machine != after.machine:
        raise ValueError(
            f"{before.files[0]} is of {before.where}, {after.files[0]} of {after.where}: times of "
            "different machines say nothing about the code"
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
            f"Too few controls to tell noise from change: {controls} baselines in both runs, {FEWEST} are needed. The "
            "verdicts rest on the spread within each run alone and take no drift off; between two runs a machine often "
            "moves by more than that, so a change shown here may be the machine's."
        )
    if before.commit == after.commit:
        notes.append("Both runs are of the same commit" + (", with uncommitted changes." if after.dirty else "."))
    if differing := _differences(_setting(before), _setting(after)):
        notes.append(f"The runs differ in {', '.join(differing)}: what the baselines run may have changed too.")
    return [*notes, *before.notes, *after.notes]


def _setting(run: Run) -> dict[str, Any]:
    """What the baselines' times depend on, besides the machine."""
    return {"threads": (run.info.get("cpu") or {}).get("threads"), **(run.info.get("versions") or {})}


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    names = {**one, **other}
    return [f"{k} ({one.get(k)} before, {other.get(k)} after)" for k in names if one.get(k) != other.get(k)]


# ---- Markdown
def _size(change: Change) -> float:
    """Sorts the largest change to the front."""
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
            f"{found.controls} controls (baselines, whose code is the same in both): the machine drifted by "
            f"{_percent(found.drift)}; the rule calls {found.flagged_controls} of them changed."
        )
    quotients = statistics.median(change.quotient for change in found.judged)
    lines.append(f"Ours changed by {_percent(quotients)} in the median, drift taken off.")
    if thresholds := sorted(100 * (c.threshold - 1) for c in found.judged if c.threshold is not None):
        low, middle, high = thresholds[0], statistics.median(thresholds), thresholds[-1]
        lines.append(f"To be seen a change must exceed ±{middle:.1f} % (median of all; {low:.1f} to {high:.1f} %).")
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
