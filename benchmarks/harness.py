"""What every benchmark does: check the output, time in turn with a yardstick, note bytes, memory, the machine's state.

A benchmark compares one candidate with a *yardstick* that is called before each of its rounds: ours for the peers, a
copy of as many bytes for ours, the network with SE for the one without. Machines grow warm and neighbours busy; the
quotient of two neighbouring rounds does not care. pytest-benchmark's own figures are the candidate's wall-clock times.
"""

import gc
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from se_fused.bandwidth import copier, larger_than_cache, rotation
from se_fused.compare import Judge, Result
from se_fused.measure import keep_freed_memory, peak_memory, saved_bytes
from se_fused.peers import PEERS, allowance, why_not
from se_fused.telemetry import snapshot
from se_fused.timing import Timing, in_turn, primed, ratio, rounds_for, sampler, synchronizer
from se_fused.workloads import Candidate, Workload, fresh_compiler

__all__ = ["Settings", "Shelf", "Subject", "run"]

PAUSE = 0.05  # seconds; threads of these engines spin on for a while after a call (NOTES.md)
SPINNING = ("openvino", "onnxruntime")
MOST_SETS = 256  # maps so small that more of them would be needed are in a cache in any network


@dataclass(frozen=True)
class Settings:
    """How long to measure."""

    preset: str
    device: str
    seconds: float | None  # of one candidate; None: the workload's own

    def budget(self, workload: Workload) -> float:
        """Seconds of measuring one candidate."""
        if self.preset == "smoke":
            return 0.01
        return min(workload.seconds, 5.0) / 2 if self.seconds is None else self.seconds


@dataclass(frozen=True)
class Subject:
    """A workload by name, and how to build it."""

    key: str
    build: Callable[[], Workload]


@dataclass
class Shelf:
    """The workloads and checked candidates of the group of benchmarks that is running; another group clears it."""

    group: str = ""
    judges: dict[str, Judge] = field(default_factory=dict)
    candidates: dict[tuple[str, str, str], tuple[Candidate, Result]] = field(default_factory=dict)

    def turn_to(self, group: str) -> None:
        """Drop what belongs to another group."""
        if group == self.group:
            return
        self.group = group
        self.judges.clear()
        self.candidates.clear()
        fresh_compiler()
        gc.collect()

    def judge(self, subject: Subject) -> Judge:
        """The judge of a workload, which is built when it is first asked for."""
        if subject.key not in self.judges:
            self.judges[subject.key] = Judge(subject.build())
        return self.judges[subject.key]

    def checked(self, subject: Subject, name: str, layout: str) -> tuple[Candidate, Result]:
        """A candidate whose results agree with float64. Skips where it cannot run here, fails where it disagrees."""
        workload = self.judge(subject).workload
        reason = why_not(name, workload.device, workload.dtype, workload.mode) if name in PEERS else None
        if reason is not None:
            pytest.skip(reason)
        key = subject.key, name, layout
        if key not in self.candidates:
            candidate, result = workload.candidate(name, layout), Result(name, layout)
            self.judge(subject).check(candidate, result, allowance(name, workload.dtype, workload.device))
            self.candidates[key] = candidate, result
        candidate, result = self.candidates[key]
        if result.status == "failed" and name.startswith("compile"):
            pytest.skip(f"torch.compile does not run here: {result.note}")
        if result.status != "ok":
            pytest.fail(f"{name} {layout}: {result.note}", pytrace=False)
        return candidate, result


def timing(seconds: Iterable[float]) -> dict[str, float]:
    return Timing.of(seconds).as_dict()


def timed(
    benchmark: Any, mine: Callable[[], Any], yardstick: Callable[[], Any], device: str, budget: float, *,
    prime: bool, pause: float,
) -> list[float] | None:  # fmt: skip
    """Let pytest-benchmark time ``mine``, with a call of the yardstick before each round, whose seconds are returned.

    Args:
        budget: seconds of both.
        prime: call each once before it is timed, so that it finds its own data in the caches.
        pause: seconds of sleep before each.
    """
    wait = synchronizer(device)
    held: list[Any] = []
    theirs: list[float] = []

    def once() -> None:
        held.append(mine())
        wait()

    def primed_once() -> float:
        if prime:
            yardstick()
        start = time.perf_counter()
        result = yardstick()
        wait()
        took = time.perf_counter() - start
        del result
        return took

    def before() -> None:
        held.clear()  # outside the measured time
        time.sleep(pause)
        theirs.append(primed_once())
        time.sleep(pause)
        if prime:
            once()
            held.clear()

    if benchmark.disabled:
        once()
        return None
    start = time.perf_counter()
    for _ in range(2):
        before()
        once()
    rounds = rounds_for(budget, (time.perf_counter() - start) / 2)
    theirs.clear()
    benchmark.pedantic(once, setup=before, rounds=rounds)
    return theirs


def run(
    benchmark: Any,
    shelf: Shelf,
    settings: Settings,
    subject: Subject,
    name: str,
    layout: str,
    *,
    kind: str,
    group: str,
    to: tuple[Subject, str, str] | None = None,
    info: dict[str, Any] | None = None,
) -> None:
    """One benchmark.

    Args:
        benchmark: pytest-benchmark's fixture.
        shelf, settings: the session's.
        subject: what is computed.
        name, layout: the candidate.
        kind: "tail", "network", "convert".
        group: of the report; candidates of one group are compared with each other.
        to: the yardstick, a checked candidate too; None: a copy of as many bytes.
        info: more for ``extra_info``.
    """
    keep_freed_memory()
    device = settings.device
    candidate, result = shelf.checked(subject, name, layout)
    workload = shelf.judge(subject).workload
    counted = workload.counted()
    yardstick = (
        copier(device, counted[1] if counted is not None else 2**26) if to is None else shelf.checked(*to)[0].run
    )
    benchmark.group = group
    about = workload.describe() | {"layout": layout, "kind": kind, "candidate": name, "errors": result.errors}
    benchmark.extra_info.update(about, **(info or {}))
    before = snapshot(device)
    budget = settings.budget(workload)
    pause = PAUSE if name in SPINNING or (to is not None and to[1] in SPINNING) else 0.0
    prime = candidate.rotate is not None  # a network fills the caches anew anyway
    theirs = timed(benchmark, candidate.run, yardstick, device, budget, prime=prime, pause=pause)
    if theirs is None:  # --benchmark-disable
        return
    mine = list(benchmark.stats.stats.data)
    if device != "cpu":  # without the host's part, which a wall clock cannot leave out
        samples = {"mine": sampler(candidate.run, device), "theirs": sampler(yardstick, device)}
        start = time.perf_counter()
        for sample in samples.values():
            sample()
        rounds = rounds_for(budget, 2 * (time.perf_counter() - start))
        measured = in_turn({key: primed(sample) if prime else sample for key, sample in samples.items()}, rounds)
        mine, theirs = measured["mine"], measured["theirs"]
        benchmark.extra_info["timed_by"] = samples["mine"].how
    seconds = Timing.of(mine)
    extra: dict[str, Any] = {"seconds": seconds.as_dict()}
    if to is not None:
        extra["ratio"] = {"to": to[1], **ratio(mine, theirs).as_dict()}
    sets = 1 if counted is None or candidate.rotate is None else rotation(counted[1], device)
    if settings.preset == "smoke":
        sets = min(sets, 2)
    elif sets > MOST_SETS or (sets - 1) * (counted[1] if counted else 0) < larger_than_cache(device):
        sets = 1  # no room for as many
    if sets > 1:
        turn = itertools.count()  # one for both: the other's buffers are not the next ones
        cold = {
            "mine": sampler(candidate.rotate(sets), device, turn=turn),
            "theirs": sampler(
                [copier(device, counted[1]) for _ in range(sets)] if to is None else shelf.checked(*to)[0].rotate(sets),
                device,
                turn=turn,
            ),
        }
        once = sum(sample() for sample in cold.values())
        chill = in_turn(cold, rounds_for(budget / 2, once), warmup=1)
        extra["cold"] = timing(chill["mine"])
        if to is not None:
            extra["cold_ratio"] = {"to": to[1], **ratio(chill["mine"], chill["theirs"]).as_dict()}
    if counted is not None:
        extra |= {"counted_bytes": counted[0], "working_set_bytes": counted[1], "flops": workload.flops(),
                  "gb_per_second": counted[0] / seconds.median / 1e9}  # fmt: skip
        if to is None:  # the yardstick is a copy of the working set
            extra["share_of_copy"] = {"warm": share(counted, mine, theirs)}
            if "cold" in extra:
                extra["share_of_copy"]["cold"] = share(counted, chill["mine"], chill["theirs"])
    candidate.reset()  # gradients of earlier runs would be freed within this one
    extra["peak_bytes"] = peak_memory(candidate.run, workload.device)
    candidate.reset()
    if workload.mode != "infer":
        extra["saved_bytes"] = saved_bytes(candidate.forward, candidate.kept)
    benchmark.extra_info.update(extra, telemetry={"before": before, "after": snapshot(device)})


def share(counted: tuple[int, int], mine: list[float], copies: list[float]) -> float:
    """Speed of the counted bytes over that of a copy measured in turn."""
    return counted[0] / counted[1] / ratio(mine, copies).median
