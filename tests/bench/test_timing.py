"""Tests of se_fused.bench.measure.timing with a fake clock and a fake GPU."""

import itertools
import time
import warnings
import weakref

import pytest
import torch

from se_fused.bench.measure.timing import Timing, device_seconds, in_turn, primed, ratio, rounds_for, sampler


class Clock:
    """A clock that sleep and the functions of ``taking`` advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "sleep", lambda seconds: self.taking(f"sleep {seconds}", seconds)())

    def taking(self, name: str, *seconds: float):
        following = itertools.cycle(seconds)

        def fn() -> float:
            self.calls.append(name)
            took = next(following)
            self.now += took
            return took

        return fn


class Result:
    """An object that supports weak references."""


# ---- alternating measurements
def test_each_round_starts_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    ticks = []
    samplers = {name: clock.taking(name, *seconds) for name, *seconds in (("a", 9, 1, 2, 3), ("b", 9, 4), ("c", 5))}
    seconds = in_turn(samplers, rounds=3, warmup=1, tick=lambda: ticks.append(len(clock.calls)))
    assert "".join(clock.calls) == "abc" + "bca" + "cab" + "abc"
    assert seconds == {"a": [1, 2, 3], "b": [4, 9, 4], "c": [5, 5, 5]}  # without the warm-up round
    assert ticks == [3, 6, 9, 12]


def test_pause_before_each_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    in_turn({"a": clock.taking("a", 1), "b": clock.taking("b", 1)}, rounds=1, warmup=0, pause=0.25)
    assert clock.calls == ["sleep 0.25", "a", "sleep 0.25", "b"]
    clock.calls.clear()
    in_turn({"a": clock.taking("a", 1)}, rounds=1, warmup=0)
    assert clock.calls == ["a"]


@pytest.mark.parametrize(("rounds", "warmup", "pause"), [(0, 1, 0.0), (1, -1, 0.0), (1, 1, -0.1)])
def test_in_turn_refuses(rounds: int, warmup: int, pause: float) -> None:
    with pytest.raises(ValueError, match=f"got {rounds}, {warmup} and {pause}"):
        in_turn({"a": lambda: 1.0}, rounds, warmup, pause)


def test_primed_measures_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert primed(Clock(monkeypatch).taking("a", 5, 3))() == 3


def test_ratio_of_the_same_rounds() -> None:
    """Ratios are taken within a round, so a tenfold slowdown does not change them; the medians' ratio would be 10."""
    assert ratio([2, 20, 200], [1, 10, 100]) == Timing(2, 2, 2, 3)
    assert ratio([1, 2, 6], [1, 1, 2]) == Timing(median=2, q1=1.5, q3=2.5, n=3)
    with pytest.raises(ValueError, match="same rounds, got 2 and 1"):
        ratio([1, 2], [1])


def test_rounds_for() -> None:
    assert rounds_for(2.0, 0.1) == 20
    assert rounds_for(2.0, 10.0) == 5 and rounds_for(2.0, 10.0, least=3) == 3
    assert rounds_for(2.0, 1e-6) == 200 and rounds_for(2.0, 0.0, most=50) == 50


# ---- CPU
def test_sampler_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = sampler(Clock(monkeypatch).taking("a", 3, 4), "cpu")
    assert (sample.how, sample.why, sample.replays) == ("wall clock", "", 1)
    assert [sample(), sample()] == [3, 4]


def test_a_rotation_takes_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    sample = sampler([clock.taking(name, seconds) for name, seconds in (("a", 1), ("b", 2), ("c", 3))], "cpu")
    assert [sample() for _ in range(4)] == [1, 2, 3, 1]
    assert "".join(clock.calls) == "abca"


def test_samplers_that_share_buffers_share_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samplers with shared buffers also share the rotation, so that none finds in the caches what another just read."""
    clock = Clock(monkeypatch)
    turn = itertools.count()
    samplers = {name: sampler([clock.taking(f"{name}{i}", 1) for i in range(3)], "cpu", turn=turn) for name in "xy"}
    in_turn(samplers, rounds=3, warmup=0)
    assert clock.calls == ["x0", "y1", "y2", "x0", "x1", "y2"]


def test_results_are_dropped_outside_the_measured_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are dropped outside the measured time: a single function's at once, a rotation's before its next turn.

    So the results of a rotation are in different memory, like its inputs.
    """
    clock = Clock(monkeypatch)
    alive: list[weakref.ref] = []
    others: list[int] = []

    def fn() -> Result:
        others.append(sum(ref() is not None for ref in alive))
        result = Result()
        weakref.finalize(result, clock.taking("dropped", 50))
        alive.append(weakref.ref(result))
        clock.now += 1
        return result

    sample = sampler(fn, "cpu")
    assert [sample(), sample()] == [1, 1] and not any(ref() for ref in alive)
    alive.clear()
    others.clear()
    sample = sampler([fn, fn], "cpu")
    assert [sample() for _ in range(5)] == [1] * 5
    assert [ref() is not None for ref in alive] == [False, False, False, True, True]
    assert others == [0, 1, 1, 1, 1]  # its previous result has been dropped


def test_sampler_refuses() -> None:
    with pytest.raises(ValueError, match="at least one function"):
        sampler([], "cpu")
    with pytest.raises(ValueError, match="replays must be at least 1 or None, got 0"):
        sampler(lambda: None, "cpu", replays=0)


def test_device_seconds_is_a_median(monkeypatch: pytest.MonkeyPatch) -> None:
    """The median excludes the first two measurements, which are warm-up."""
    assert device_seconds(Clock(monkeypatch).taking("a", 100, 100, 1, 7, 3), "cpu", repeats=3) == 3


# ---- GPU: the logic, with a fake device
class FakeCuda:
    """A GPU with one in-order stream; the functions of ``taking`` advance its time, and replays repeat a capture."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0  # ms
        self.calls: list[str] = []
        self.capturing: list[tuple[str, float]] | None = None
        self.fails: Exception | None = None
        self.stream_now = "default"
        self.options: dict = {}
        self.captures = 0
        fake = self

        class Stream:
            def __init__(self, device: object = None, name: str = "side") -> None:
                self.name = name

            def wait_stream(self, other: "Stream") -> None:
                pass

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                assert fake.capturing is None
                self.at = fake.now

            def synchronize(self) -> None:
                self.known = True

            def elapsed_time(self, end: "Event") -> float:
                assert end.known, "an event's time is read before it has happened"
                return end.at - self.at

        class Graph:
            recorded: list[tuple[str, float]]

            def replay(self) -> None:
                for name, milliseconds in self.recorded:
                    fake.calls.append(name)
                    fake.now += milliseconds

        class Capture:
            """Like torch.cuda.graph: if the end of the capture raises an error, its stream stays current."""

            def __init__(self, graph: Graph, stream: Stream, **options: object) -> None:
                self.graph, self.stream, fake.options = graph, stream, options

            def __enter__(self) -> None:
                self.before, fake.stream_now, fake.capturing = fake.stream_now, self.stream.name, []

            def __exit__(self, *error: object) -> None:
                self.graph.recorded, fake.capturing = fake.capturing, None
                fake.captures += 1
                if error[0] is not None:
                    raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
                if not self.graph.recorded:
                    warnings.warn("The CUDA Graph is empty. This usually means ...", UserWarning, stacklevel=1)
                fake.stream_now = self.before

        class Streams:
            """Like torch.cuda.stream."""

            def __init__(self, which: Stream) -> None:
                self.which = which

            def __enter__(self) -> None:
                self.before, fake.stream_now = fake.stream_now, self.which.name

            def __exit__(self, *_: object) -> None:
                fake.stream_now = self.before

        class Device:
            def __init__(self, device: object) -> None:
                pass

            def __enter__(self) -> None:
                pass

            def __exit__(self, *_: object) -> None:
                pass

        fakes = {"Stream": Stream, "Event": Event, "CUDAGraph": Graph, "graph": Capture, "stream": Streams,
                 "device": Device, "current_stream": lambda device=None: Stream(name="default")}  # fmt: skip
        for name, value in fakes.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def taking(self, name: str, milliseconds: float):
        def fn() -> Result:
            if self.capturing is None:
                self.calls.append(name)
                self.now += milliseconds
            elif self.fails is not None:
                raise self.fails
            else:
                self.capturing.append((name, milliseconds))
            return Result()

        return fn


def test_a_graph_holds_the_rotation_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    sample = sampler([cuda.taking("a", 3), cuda.taking("b", 5)], "cuda", replays=2)
    assert "".join(cuda.calls) == "ababab" + "ab"  # three warm-up rounds and a first replay
    assert cuda.options == {"capture_error_mode": "thread_local"}
    cuda.calls.clear()
    assert sample() == pytest.approx(4e-3)  # per call: 16 ms for two replays of two calls
    assert "".join(cuda.calls) == "abab"
    assert (sample.how, sample.why, sample.replays, cuda.captures) == ("graph replay", "", 2, 1)
    assert cuda.stream_now == "default"


@pytest.mark.parametrize("milliseconds", [0.0003, 0.09, 1.5, 2.0, 40.0])
def test_replays_make_a_measurement_long_enough(monkeypatch: pytest.MonkeyPatch, milliseconds: float) -> None:
    cuda = FakeCuda(monkeypatch)
    sample = sampler(cuda.taking("a", milliseconds), "cuda")
    before = cuda.now
    assert sample() == pytest.approx(milliseconds * 1e-3)
    assert 2.0 * (1 - 1e-9) <= cuda.now - before <= max(2 * 2.0, milliseconds)


def test_replays_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sampler(FakeCuda(monkeypatch).taking("a", 0.0), "cuda").replays == 10_000


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: not permitted\nand more"), TypeError("no tensor")])
def test_what_cannot_be_captured_runs_between_events(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    cuda = FakeCuda(monkeypatch)
    cuda.fails = error
    sample = sampler([cuda.taking("a", 3), cuda.taking("b", 5)], "cuda", replays=2)
    assert sample.how == "events"
    assert sample.why == "RuntimeError: CUDA error: operation failed due to a previous error during capture"
    assert cuda.stream_now == "default"
    cuda.calls.clear()
    assert sample() == pytest.approx(4e-3)
    assert "".join(cuda.calls) == "abab"


def test_an_empty_graph_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty graph is not used: a library with its own stream is not captured, and a replay would take no time."""
    cuda = FakeCuda(monkeypatch)

    def elsewhere() -> None:
        if cuda.capturing is None:
            cuda.now += 7

    sample = sampler(elsewhere, "cuda", replays=1)
    assert sample.how == "events" and sample.why.startswith("UserWarning: The CUDA Graph is empty")
    assert sample() == pytest.approx(7e-3)


def test_a_capture_gives_each_result_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each result has its own memory until the capture ends; then it is dropped, and the graph holds the memory."""
    cuda = FakeCuda(monkeypatch)
    alive: list[weakref.ref] = []
    most = []

    def fn() -> Result:
        result = cuda.taking("a", 1)()
        alive.append(weakref.ref(result))
        if cuda.capturing is not None:
            most.append(sum(ref() is not None for ref in alive))
        return result

    sample = sampler([fn, fn, fn], "cuda", replays=1)
    assert sample.how == "graph replay" and sample() > 0
    assert most == [1, 2, 3]
    assert not any(ref() for ref in alive)


def test_device_seconds_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    assert device_seconds(cuda.taking("a", 3), "cuda", repeats=2, replays=4) == pytest.approx(3e-3)
    assert len(cuda.calls) == 3 + 1 + 4 * (2 + 2)


@pytest.mark.gpu
def test_sampler_on_gpu() -> None:
    x = torch.randn(1 << 20, device="cuda")
    sample = sampler([lambda: x * 2, lambda: x + 1], "cuda")
    assert sample.how == "graph replay" and 1e-7 < sample() < 1e-2
    reads = sampler(lambda: x.sum().item(), "cuda")
    assert reads.how == "events" and 1e-7 < reads() < 1e-1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert device_seconds(lambda: x * 2, "cuda") > 0
