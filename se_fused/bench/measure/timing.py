"""Time measurements: device time or wall-clock time of one call, for single functions and for candidates in turn.

Candidates of a comparison are measured in turn (A, B, C, B, C, A, ...). A machine that becomes hot or busy then affects
all of them equally, and the quotient of two measurements of one round is more reliable than that of two medians.
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
"""Minimum duration of one measurement on a GPU. The resolution of events is about half a microsecond
(cudaEventElapsedTime in the reference of the CUDA runtime), and the first launch starts some microseconds after the
first event: together less than one percent of this duration."""
_MOST_REPLAYS = 10_000


def first_line(error: BaseException) -> str:
    """Type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def synchronizer(device: str | torch.device) -> Callable[[], None]:
    """Function that waits until the device has finished its work; for a CPU it does nothing."""
    device = torch.device(device)
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


@dataclass(frozen=True)
class Timing:
    """Median and quartiles of ``n`` measurements: seconds of one call, or quotients (:func:`ratio`)."""

    median: float
    q1: float
    q3: float
    n: int

    @classmethod
    def of(cls, seconds: Iterable[float]) -> "Timing":
        """Compute them from one or more measurements."""
        values = sorted(seconds)
        if not values:
            raise ValueError("seconds must hold at least one measurement, got none")
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3, len(values))

    def as_dict(self) -> dict[str, float]:
        """All values as a dict for JSON."""
        return asdict(self)


def wall_clock(fn: Callable[[], Any], synchronize: Callable[[], None]) -> Callable[[], float]:
    """Function that calls fn once and returns the seconds until the device has finished.

    Args:
        fn: the function to time. Its result is deleted after the measured time and before the next call.
        synchronize: function that waits for the device, called before and after fn; see :func:`synchronizer`.
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
    """Wall-clock times of several functions, called in turn, with the device synchronised around each call.

    On a GPU, the times include the launch of the kernels; :func:`sampler` excludes it.

    Args:
        fns: functions to time, by name. A result is deleted before the next call.
        repeats: number of measured rounds, >= 1.
        warmup: number of unmeasured rounds before them, >= 0.
        synchronize: function that waits for the device; see :func:`synchronizer`.
        tick: function called after each round, including unmeasured ones, for a progress bar.

    Raises:
        ValueError: ``repeats`` or ``warmup`` is too small.
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
    """Wall-clock time of one function; arguments and errors as for :func:`timed_together`."""
    return timed_together({"": fn}, repeats, warmup, synchronize)[""]


@dataclass(frozen=True)
class Sampler:
    """A timer for one function or rotation: calling it makes one measurement and returns the seconds per call."""

    once: Callable[[], float]
    how: str
    """Method: "wall clock"; "graph replay", GPU time without the host; "events", GPU time including waits for the host.
    """
    why: str = ""
    """First line of the error, if a CUDA graph could not be captured on a GPU."""
    replays: int = 1
    """Number of times that one measurement on a GPU runs the whole rotation; on a CPU a measurement is one call."""

    def __call__(self) -> float:
        return self.once()


def sampler(
    fns: Callable[[], Any] | Sequence[Callable[[], Any]],
    device: str | torch.device,
    *,
    replays: int | None = None,
    turn: Iterator[int] | None = None,
) -> Sampler:
    """Timer for one function, or for several functions in rotation.

    On a CPU, a measurement is the wall-clock time of one call of the next function in the rotation. On a GPU, one CUDA
    graph contains each function of the rotation once. A measurement is the time between two events around ``replays``
    replays of the graph, divided by replays * len(fns). If the graph cannot be captured (torch.compile with its own
    CUDA graphs, host code that reads results), a measurement is plain calls between two events. The attribute ``how``
    names the method.

    Results are deleted outside the measured time. In a rotation, a result is kept until the next turn of its function,
    so that results rotate through memory like the inputs. On a GPU, the graph keeps the memory while the timer exists.

    Args:
        fns: a function without arguments; or several that do the same work on different buffers and are called in
            rotation. On a GPU, each function must use the same memory in every call; it is called three times before
            the capture.
        device: the device on which the functions run.
        replays: on a GPU, as above, >= 1; None: as many as make a measurement last 2 ms. Not used on a CPU.
        turn: on a CPU, an iterator whose numbers, modulo len(fns), choose the function; None: 0, 1, 2, ... Timers that
            are measured in turn on the same buffers must share one ``itertools.count()``. Otherwise each finds in the
            caches the data that the previous one has just read.

    Raises:
        ValueError: ``fns`` is empty, or ``replays`` is too small.
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
        for _ in range(3):  # compilation and autotuning in the first calls cannot be captured
            for call in calls:
                call()
    current.wait_stream(side)
    kept: list[Any] = [None] * len(calls)

    def plain() -> None:
        for i, call in enumerate(calls):
            kept[i] = None
            kept[i] = call()

    # If the capture succeeds, kept is freed when this function returns: the graph owns the memory.
    graph, how, why = torch.cuda.CUDAGraph(), "graph replay", ""
    run = graph.replay
    try:
        # If the end of the capture raises an error, torch.cuda.graph leaves its own stream as the current one;
        # stream(current) restores it. "thread_local" lets threads of other libraries make calls that a capture forbids.
        with (
            warnings.catch_warnings(),
            torch.cuda.stream(current),
            torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"),
        ):
            # Functions that use another stream give an empty graph, whose replay would take no time.
            warnings.filterwarnings("error", "The CUDA Graph is empty")
            plain()
    except Exception as error:  # the functions ran three times before, so the capture causes the error
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
            # Add a quarter, because the next measurement may be faster than this one.
            wanted = math.ceil(1.25 * replays * _LEAST_SECONDS / max(took, 1e-9))
            replays = min(max(wanted, 2 * replays), _MOST_REPLAYS)
    times = replays
    return Sampler(lambda: seconds(times) / (times * len(calls)), how, why, times)


def primed(sample: Callable[[], float]) -> Callable[[], float]:
    """Timer that measures twice and returns the second time, so that its data is in the caches."""

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
    """Single measurements of several candidates, taken in turn; the i-th values belong to the same round.

    The first candidate of a round changes (A, B, C, then B, C, A), so that none always runs after the same other one.

    Args:
        samplers: timers by name, from :func:`sampler`, or other functions that return seconds.
        rounds: number of measured rounds, >= 1.
        warmup: number of unmeasured rounds before them, >= 0.
        pause: seconds of sleep before each measurement, because threads of other libraries keep spinning for a while.
        tick: function called after each round, including unmeasured ones, for a progress bar.

    Raises:
        ValueError: ``rounds``, ``warmup`` or ``pause`` is too small.
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
    """Median and quartiles of of[i] / to[i] for measurements of the same rounds; 2 if ``of`` takes twice as long.

    Args:
        of, to: seconds from :func:`in_turn`, with equal numbers of values, at least one.

    Raises:
        ValueError: the numbers of values differ or are zero.
    """
    if len(of) != len(to):
        raise ValueError(f"of and to must be measurements of the same rounds, got {len(of)} and {len(to)}")
    return Timing.of(mine / other for mine, other in zip(of, to, strict=True))


def rounds_for(seconds_budget: float, once: float, least: int = 5, most: int = 200) -> int:
    """Number of rounds of ``once`` seconds that fit into the budget, at least ``least`` and at most ``most``."""
    return int(min(max(seconds_budget / max(once, 1e-9), least), most))


def device_seconds(
    fn: Callable[[], Any], device: str | torch.device, repeats: int = 10, replays: int | None = None
) -> float:
    """Seconds of one call on the device: the median of a :class:`Sampler`, after two unmeasured rounds.

    On a GPU, time of the host is excluded, unless the call cannot be captured in a CUDA graph. On a CPU, it is
    wall-clock time.

    Args:
        fn: the function to time; on a GPU it must use the same memory in every call.
        device: the device on which it runs.
        repeats: number of measurements, of which the median is returned.
        replays: as for :func:`sampler`.
    """
    sample = sampler(fn, device, replays=replays)
    return statistics.median(in_turn({"": sample}, repeats, warmup=2)[""])
