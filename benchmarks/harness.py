"""Procedure of every benchmark: check the output, time in turn with a reference, record bytes, memory and device state.

A benchmark compares one candidate with a *reference* that is called before each of its rounds. The reference is
se_fused for the baselines, a copy of as many bytes for se_fused, and the network with SE for the one without. Machines
become hot, and others use them too; this does not affect the quotient of two consecutive rounds. pytest-benchmark's own
figures are wall-clock times of the candidate.
"""

import gc
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from se_fused.bench.accuracy import AccuracyCheck, Result
from se_fused.bench.measure.device_limits import copier, larger_than_cache, rotation
from se_fused.bench.measure.device_state import snapshot
from se_fused.bench.measure.memory import keep_freed_memory, peak_memory, saved_bytes
from se_fused.bench.measure.timing import Timing, in_turn, primed, ratio, rounds_for, sampler, synchronizer, wall_clock
from se_fused.bench.providers.registry import PROVIDERS, allowance, compiles, why_not
from se_fused.bench.providers.torch_compile import fresh_compiler
from se_fused.bench.workloads.base import Candidate, Workload

__all__ = ["Bench", "Contender", "Settings", "WorkloadCache", "WorkloadSpec"]

PAUSE = 0.05  # seconds of sleep: threads of the SPINNING engines keep spinning for a while after a call (NOTES.md)
SPINNING = ("openvino", "onnxruntime")
COPIED = 2**26  # bytes of the copy that is the reference of workloads without counted bytes
MOST_SETS = 256  # maps that would need more sets are so small that they are in a cache in any network

Run = Callable[[], Any]
Seconds = list[float]


@dataclass(frozen=True)
class Settings:
    """Settings of a session, from the command line options."""

    preset: str
    device: str
    seconds: float | None  # seconds per candidate; None: by workload

    def budget(self, workload: Workload) -> float:
        """Seconds of measurement for one candidate."""
        if self.preset == "smoke":
            return 0.01
        return min(workload.seconds, 5.0) / 2 if self.seconds is None else self.seconds


@dataclass(frozen=True)
class WorkloadSpec:
    """A workload that is built later: its name, and the function that builds it."""

    key: str
    build: Callable[[], Workload]


@dataclass(frozen=True)
class Contender:
    """A candidate of a workload, in a layout."""

    spec: WorkloadSpec
    name: str
    layout: str


@dataclass
class WorkloadCache:
    """Workloads and checked candidates of the current group of benchmarks."""

    group: str = ""
    checks: dict[str, AccuracyCheck] = field(default_factory=dict)
    candidates: dict[tuple[str, str, str], tuple[Candidate, Result]] = field(default_factory=dict)

    def start_group(self, group: str) -> None:
        """Clear the cache if the group changes."""
        if group == self.group:
            return
        self.group = group
        self.checks.clear()
        self.candidates.clear()
        fresh_compiler()
        gc.collect()

    def check(self, spec: WorkloadSpec) -> AccuracyCheck:
        """The accuracy check of a workload; the workload is built in the first call."""
        if spec.key not in self.checks:
            self.checks[spec.key] = AccuracyCheck(spec.build())
        return self.checks[spec.key]

    def checked(self, contender: Contender) -> tuple[Candidate, Result]:
        """A candidate whose results agree with float64; skips the test if it cannot run here, fails if it differs."""
        spec, name, layout = contender.spec, contender.name, contender.layout
        workload = self.check(spec).workload
        reason = why_not(name, workload.device, workload.dtype, workload.mode) if name in PROVIDERS else None
        if reason is not None:
            pytest.skip(reason)
        key = spec.key, name, layout
        if key not in self.candidates:
            candidate, result = workload.candidate(name, layout), Result(name, layout)
            self.check(spec).check(candidate, result, allowance(name, workload.dtype, workload.device))
            self.candidates[key] = candidate, result
        candidate, result = self.candidates[key]
        if result.status == "failed" and compiles(name):
            pytest.skip(f"torch.compile does not run here: {result.note}")
        if result.status != "ok":
            pytest.fail(f"{name} {layout}: {result.note}", pytrace=False)
        return candidate, result


def timed(
    benchmark: Any, mine: Run, reference: Run, device: str, budget: float, *, prime: bool, pause: float
) -> Seconds | None:
    """Let pytest-benchmark time ``mine``, and time the reference before each round; return the reference's seconds.

    Args:
        benchmark: pytest-benchmark's fixture.
        mine, reference: functions to time.
        device: the device on which they run.
        budget: seconds for both.
        prime: call each function once before it is timed, so that its data is in the caches.
        pause: seconds of sleep before each measurement.

    Returns:
        Seconds of the reference in each round; None if benchmarks are disabled.
    """
    wait = synchronizer(device)
    held: list[Any] = []
    theirs: list[float] = []
    clock = wall_clock(reference, wait)

    def once() -> None:
        held.append(mine())
        wait()

    def before() -> None:
        held.clear()  # outside the measured time
        time.sleep(pause)
        if prime:
            reference()
        theirs.append(clock())
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


def on_device(mine: Run, reference: Run, device: str, budget: float, prime: bool) -> tuple[Seconds, Seconds, str]:
    """Device times of both functions on a GPU, which exclude the time of the host, and the method of measurement."""
    samples = {"mine": sampler(mine, device), "theirs": sampler(reference, device)}
    start = time.perf_counter()
    for sample in samples.values():
        sample()
    rounds = rounds_for(budget, 2 * (time.perf_counter() - start))
    measured = in_turn({key: primed(sample) if prime else sample for key, sample in samples.items()}, rounds)
    return measured["mine"], measured["theirs"], samples["mine"].how


def cold_sets(nbytes: int, settings: Settings) -> int:
    """Number of copies of a working set so that each is in no cache at its turn; 1 if the memory is too small."""
    sets = rotation(nbytes, settings.device)
    if settings.preset == "smoke":
        return min(sets, 2)
    return sets if sets <= MOST_SETS and (sets - 1) * nbytes >= larger_than_cache(settings.device) else 1


def cold_times(mine: Sequence[Run], reference: Sequence[Run], device: str, budget: float) -> tuple[Seconds, Seconds]:
    """Times of both functions with rotating buffers."""
    turn = itertools.count()  # shared by both; otherwise each would find in the caches the data of the other
    samples = {"mine": sampler(mine, device, turn=turn), "theirs": sampler(reference, device, turn=turn)}
    once = sum(sample() for sample in samples.values())
    measured = in_turn(samples, rounds_for(budget, once), warmup=1)
    return measured["mine"], measured["theirs"]


@dataclass(frozen=True)
class Bench:
    """What a benchmark needs from the session: the fixture ``bench``."""

    benchmark: Any  # pytest-benchmark's fixture
    workloads: WorkloadCache
    settings: Settings

    def run(self, mine: Contender, to: Contender, *, kind: str, group: str, info: dict[str, Any] | None = None) -> None:
        """Run one benchmark.

        Args:
            mine: the candidate.
            to: the reference, another checked candidate. If it is the candidate itself, the reference is a copy of as
                many bytes.
            kind: "pass", "block", "conv1x1", "network" or "convert".
            group: group in the report; candidates of one group are compared with each other.
            info: additional entries of ``extra_info``.
        """
        keep_freed_memory()
        benchmark, workloads, settings = self.benchmark, self.workloads, self.settings
        device = settings.device
        candidate, result = workloads.checked(mine)
        workload = workloads.check(mine.spec).workload
        counted, working_set = workload.counted() or (None, COPIED)
        to_itself = (to.spec.key, to.name, to.layout) == (mine.spec.key, mine.name, mine.layout)
        other = None if to_itself else workloads.checked(to)[0]
        reference = copier(device, working_set) if other is None else other.run
        benchmark.group = group
        about = workload.describe() | {
            "layout": mine.layout,
            "kind": kind,
            "candidate": mine.name,
            "errors": result.errors,
        }
        benchmark.extra_info.update(about, **(info or {}))
        before = snapshot(device)
        budget = settings.budget(workload)
        pause = PAUSE if mine.name in SPINNING or to.name in SPINNING else 0.0
        prime = candidate.rotate is not None  # not for networks, which replace the content of the caches in each call
        theirs = timed(benchmark, candidate.run, reference, device, budget, prime=prime, pause=pause)
        if theirs is None:  # --benchmark-disable
            return
        seconds = list(benchmark.stats.stats.data)
        extra: dict[str, Any] = {}
        if device != "cpu":
            seconds, theirs, extra["timed_by"] = on_device(candidate.run, reference, device, budget, prime)
        warm = Timing.of(seconds)
        extra["seconds"] = warm.as_dict()
        compared = {"ratio": (seconds, theirs)}
        sets = 1 if candidate.rotate is None else cold_sets(working_set, settings)
        if candidate.rotate is not None and sets > 1:
            if other is None or other.rotate is None:
                others: Sequence[Run] = [copier(device, working_set) for _ in range(sets)]
            else:
                others = other.rotate(sets)
            compared["cold_ratio"] = cold_times(candidate.rotate(sets), others, device, budget / 2)
            extra["cold"] = Timing.of(compared["cold_ratio"][0]).as_dict()
            del others
        if counted is not None:
            extra |= {"counted_bytes": counted, "working_set_bytes": working_set, "flops": workload.flops(),
                      "gb_per_second": counted / warm.median / 1e9}  # fmt: skip
        quotients = {key: ratio(*both) for key, both in compared.items()}
        if other is not None:
            extra |= {key: {"to": to.name, **quotient.as_dict()} for key, quotient in quotients.items()}
        elif counted is not None:  # the reference is a copy of the working set: compare the speeds
            names = {"ratio": "warm", "cold_ratio": "cold"}
            extra["share_of_copy"] = {names[key]: counted / working_set / q.median for key, q in quotients.items()}
        candidate.reset()  # otherwise gradients of earlier runs would be freed during the measurement
        extra["peak_bytes"] = peak_memory(candidate.run, workload.device)
        candidate.reset()
        if workload.mode != "infer":
            extra["saved_bytes"] = saved_bytes(candidate.forward, candidate.kept)
        benchmark.extra_info.update(extra, telemetry={"before": before, "after": snapshot(device)})
