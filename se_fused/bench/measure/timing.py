"""Time of one call, on a device alone or by the wall clock, and of several candidates in turn.

Candidates that are to be compared are measured in turn (A, B, C, B, C, A, ...): a machine that grows warm or busy then
hits all of them alike, and the quotient of two measurements of one round says more than that of two medians.
"""

import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

__all__ = [
    "Sampler",
    "Timing",
    "device_seconds",
    "first_line",
    "in_turn",
    "primed",
    "ratio",
    "rounds_for",
    "sampler",
    "synchronizer",
    "timed",
    "timed_together",
    "wall_clock",
]

_LEAST_SECONDS = 2e-3
"""How long one measurement on a GPU lasts at least. An event's clock ticks about every half microsecond
(cudaEventElapsedTime in the CUDA runtime's reference), and the launch after the first event comes some microseconds
late: together less than a percent of this."""
_MOST_REPLAYS = 10_000


def first_line(error: BaseException) -> str:
    """The error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def synchronizer(device: str | torch.device) -> Callable[[], None]:
    """Returns a function that waits until the device has finished its work; on a CPU there is nothing to wait for."""
    device = torch.device(device)
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


@dataclass(frozen=True)
class Timing:
    """Median, lower and upper quartile of ``n`` measurements: seconds of one call, or quotients (:func:`ratio`)."""

    median: float
    q1: float
    q3: float
    n: int

    @classmethod
    def of(cls, seconds: Iterable[float]) -> "Timing":
        """From single measurements, one or more."""
        values = sorted(seconds)
        if not values:
            raise ValueError("seconds must hold at least one measurement, got none")
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3, len(values))

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def wall_clock(fn: Callable[[], Any], synchronize: Callable[[], None]) -> Callable[[], float]:
    """Returns a function that calls fn once and returns the seconds until the device has finished.

    Args:
        fn: what to call. Its result is dropped outside the measured time, and before the next call needs the memory.
        synchronize: waits for the device, before and after; see :func:`synchronizer`.
    """

    def once() -> float:
        synchronize()
        start = time.perf_counter()
        result = fn()
        synchronize()
        took = time.perf_counter() - start
        del result
        return took

    return once


def timed_together(
    fns: Mapping[str, Callable[[], Any]],
    repeats: int = 10,
    warmup: int = 2,
    synchronize: Callable[[], None] | None = None,
    tick: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Time several functions in the same run, in turn, by the wall clock with the device synchronised around each call.

    So on a GPU a time holds the launch too; :func:`sampler` leaves it out.

    Args:
        fns: what to call, by name. A result is dropped before the next call.
        repeats: measured rounds, >= 1.
        warmup: rounds before them that are not measured, >= 0.
        synchronize: waits for the device; see :func:`synchronizer`.
        tick: called after each round, the unmeasured ones too: for a progress bar.

    Raises:
        ValueError: repeats or warmup is too small.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats must be at least 1 and warmup at least 0, got {repeats} and {warmup}")
    clocks = {name: wall_clock(fn, synchronize or (lambda: None)) for name, fn in fns.items()}
    seconds: dict[str, list[float]] = {name: [] for name in fns}
    for turn in range(warmup + repeats):
        for name, clock in clocks.items():
            took = clock()
            if turn >= warmup:
                seconds[name].append(took)
        if tick is not None:
            tick()
    return {name: Timing.of(values) for name, values in seconds.items()}


def timed(
    fn: Callable[[], Any], repeats: int = 10, warmup: int = 2, synchronize: Callable[[], None] | None = None
) -> Timing:
    """Time one function; arguments and errors as in :func:`timed_together`."""
    return timed_together({"": fn}, repeats, warmup, synchronize)[""]


@dataclass(frozen=True)
class Sampler:
    """Measures each time that it is called: returns the seconds of one call of what it measures."""

    once: Callable[[], float]
    how: str
    """One of: "wall clock"; "graph replay", a GPU without the host's part; "events", a GPU with whatever waits for the
    host."""
    why: str = ""
    """On a GPU, what kept a graph from being captured: the error's first line."""
    replays: int = 1
    """How often one measurement goes through the whole rotation on a GPU; on a CPU each is one call."""

    def __call__(self) -> float:
        return self.once()


def sampler(
    fns: Callable[[], Any] | Sequence[Callable[[], Any]],
    device: str | torch.device,
    *,
    replays: int | None = None,
    turn: Iterator[int] | None = None,
) -> Sampler:
    """Returns what measures one call of fns each time that it is called.

    On a CPU a measurement is the wall clock around one call of the rotation's next member. On a GPU one CUDA graph
    holds all of the rotation, each member once, and a measurement is ``replays`` replays of it between two events, over
    replays * len(fns). Where that cannot be captured (torch.compile's own CUDA graphs, code on the host that reads
    results) it is plain calls between events; the attribute ``how`` says which.

    Results are dropped outside the measured time. Those of a rotation live until their member's next turn, so that
    they rotate through memory as the inputs do; on a GPU the graph keeps the memory as long as the sampler lives.

    Args:
        fns: what to call, without arguments; or several that do the same work on different buffers, which are called
            in rotation. On a GPU each must work on the same memory every time; it is called three times to warm up.
        device: where it runs.
        replays: GPU: as above, >= 1; None: as many as make a measurement last 2 ms. Not used on a CPU.
        turn: CPU: its numbers, modulo len(fns), choose the member; None: 0, 1, 2, ... Samplers that are measured in
            turn on the same buffers share one ``itertools.count()``: else each finds in the caches what the one before
            it has just read.

    Raises:
        ValueError: fns is empty, or replays is too small.
    """
    calls = (fns,) if callable(fns) else tuple(fns)
    if not calls:
        raise ValueError("fns must hold at least one function, got none")
    if replays is not None and replays < 1:
        raise ValueError(f"replays must be at least 1 or None, got {replays}")
    device = torch.device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            return _on_gpu(calls, device, replays)
    turns = itertools.count() if turn is None else turn
    kept: list[Any] = [None] * len(calls)

    def once() -> float:
        member = next(turns) % len(calls)
        kept[member] = None
        start = time.perf_counter()
        result = calls[member]()
        took = time.perf_counter() - start
        if len(calls) > 1:
            kept[member] = result
        return took

    return Sampler(once, "wall clock")


def _on_gpu(calls: Sequence[Callable[[], Any]], device: torch.device, replays: int | None) -> Sampler:
    current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(3):  # what is compiled or measured at a first call cannot be captured
            for call in calls:
                call()
    current.wait_stream(side)
    kept: list[Any] = [None] * len(calls)

    def plain() -> None:
        for i, call in enumerate(calls):
            kept[i] = None
            kept[i] = call()

    # With a graph, kept goes with this function's end: the memory is the graph's.
    graph, how, why = torch.cuda.CUDAGraph(), "graph replay", ""
    run = graph.replay
    try:
        # torch.cuda.graph leaves its own stream current where the end of the capture raises; stream(current) takes it
        # back. "thread_local": other libraries' threads may go on with what a capture forbids to this one.
        with (
            warnings.catch_warnings(),
            torch.cuda.stream(current),
            torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"),
        ):
            # Work on a stream of its own is no part of the graph, whose replay would then take no time at all.
            warnings.filterwarnings("error", "The CUDA Graph is empty")
            plain()
    except Exception as error:  # it has just run three times: whatever it is, the capture brought it about
        how, run = "events", plain
        why = first_line(error)

    def seconds(times: int) -> float:
        with torch.cuda.device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(times):
                run()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1000

    seconds(1)
    if replays is None:
        replays = 1
        while (took := seconds(replays)) < _LEAST_SECONDS and replays < _MOST_REPLAYS:
            # A quarter more than it seems to take: the next measurement may be the faster one.
            wanted = math.ceil(1.25 * replays * _LEAST_SECONDS / max(took, 1e-9))
            replays = min(max(wanted, 2 * replays), _MOST_REPLAYS)
    times = replays
    return Sampler(lambda: seconds(times) / (times * len(calls)), how, why, times)


def primed(sample: Callable[[], float]) -> Callable[[], float]:
    """Measures twice and returns the second time: its data is in the caches then, whatever ran before it."""

    def second() -> float:
        sample()
        return sample()

    return second


def in_turn(
    samplers: Mapping[str, Callable[[], float]],
    rounds: int,
    warmup: int = 1,
    pause: float = 0.0,
    tick: Callable[[], None] | None = None,
) -> dict[str, list[float]]:
    """Single measurements of several candidates, taken in turn; the i-th of each belong to the same round.

    Each round starts one candidate later than the one before (A, B, C, then B, C, A): none always follows the same.

    Args:
        samplers: by name, from :func:`sampler` or anything that returns seconds.
        rounds: measured rounds, >= 1.
        warmup: rounds before them that are not kept, >= 0.
        pause: seconds of sleep before each measurement: other libraries' threads spin on for a while after a call.
        tick: called after each round, the unmeasured ones too: for a progress bar.

    Raises:
        ValueError: rounds, warmup or pause is too small.
    """
    if rounds < 1 or warmup < 0 or pause < 0:
        raise ValueError(f"rounds must be at least 1, warmup and pause at least 0, got {rounds}, {warmup} and {pause}")
    names = list(samplers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        first = turn % max(len(names), 1)
        for name in names[first:] + names[:first]:
            if pause:
                time.sleep(pause)
            took = samplers[name]()
            if turn >= warmup:
                seconds[name].append(took)
        if tick is not None:
            tick()
    return seconds


def ratio(of: Sequence[float], to: Sequence[float]) -> Timing:
    """Median and quartiles of of[i] / to[i], measurements of the same rounds: 2 where ``of`` takes twice as long.

    Args:
        of, to: seconds, from :func:`in_turn`; equally many, at least one.

    Raises:
        ValueError: their numbers differ, or there are none.
    """
    if len(of) != len(to):
        raise ValueError(f"of and to must be measurements of the same rounds, got {len(of)} and {len(to)}")
    return Timing.of(mine / other for mine, other in zip(of, to, strict=True))


def rounds_for(seconds_budget: float, once: float, least: int = 5, most: int = 200) -> int:
    """How many rounds that take ``once`` seconds each fit into the budget: at least ``least``, at most ``most``."""
    return int(min(max(seconds_budget / max(once, 1e-9), least), most))


def device_seconds(
    fn: Callable[[], Any], device: str | torch.device, repeats: int = 10, replays: int | None = None
) -> float:
    """Seconds that the device needs for one call: the median of a :class:`Sampler`, after two measurements.

    On a GPU without the host's part, unless a CUDA graph cannot hold it; on a CPU the wall clock's.

    Args:
        fn: what to time; on a GPU it must work on the same memory every time.
        device: where it runs.
        repeats: measurements of which the median counts.
        replays: as in :func:`sampler`.
    """
    sample = sampler(fn, device, replays=replays)
    return statistics.median(in_turn({"": sample}, repeats, warmup=2)[""])
