"""Tests of memory, counted traffic and alternating times, against known quantities."""

import itertools
import time

import pytest
import torch

from se_fused import functional, reference
from se_fused.bench.measure.device_limits import copier, copy_bandwidth, larger_than_cache
from se_fused.bench.measure.memory import peak_memory, saved_bytes
from se_fused.bench.measure.timing import Timing, timed, timed_together
from se_fused.bench.measure.traffic import counted_bytes, counted_passes

MIB = 2**20


class Clock:
    """A clock that is advanced by functions only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def taking(self, name: str, *seconds: float):
        following = itertools.cycle(seconds)

        def fn() -> None:
            self.calls.append(name)
            self.now += next(following)

        return fn


def test_candidates_are_timed_in_turn_and_warm(monkeypatch):
    clock = Clock(monkeypatch)
    ticks = []
    fns = {"a": clock.taking("a", 100, 100, 1, 2, 3, 4, 5), "b": clock.taking("b", 7)}
    times = timed_together(fns, repeats=5, warmup=2, tick=lambda: ticks.append(clock.now))
    assert "".join(clock.calls) == "ab" * 7
    assert len(ticks) == 7
    assert times["a"] == Timing(median=3, q1=2, q3=4, n=5)  # the two hundreds are warm-up
    assert times["b"] == Timing(7, 7, 7, 5)


def test_time_holds_the_wait_for_the_device(monkeypatch):
    """Work that the call leaves running counts as its time; work that was already running does not."""
    clock = Clock(monkeypatch)
    pending = [50.0]

    def launch() -> None:
        pending.append(2.0)

    def synchronize() -> None:
        clock.now += sum(pending)
        pending.clear()

    assert timed(launch, repeats=1, warmup=0, synchronize=synchronize).median == 2.0


@pytest.mark.parametrize(("repeats", "warmup"), [(0, 1), (1, -1)])
def test_too_few_rounds(repeats: int, warmup: int):
    with pytest.raises(ValueError, match="repeats must be at least 1 and warmup at least 0"):
        timed(lambda: None, repeats, warmup)


def test_no_measurement():
    with pytest.raises(ValueError, match="at least one"):
        Timing.of([])


def known_allocations(device: str) -> torch.Tensor:
    """Allocate at most 4 MiB at a time: 1 + 3, then 3 + 1."""
    a = torch.empty(MIB, dtype=torch.uint8, device=device)
    b = torch.empty(3 * MIB, dtype=torch.uint8, device=device)
    del a
    c = torch.empty(MIB, dtype=torch.uint8, device=device)
    return torch.stack((b[0], c[0]))


def test_peak_memory():
    before = torch.empty(8 * MIB, dtype=torch.uint8)  # already allocated, so not counted
    for _ in range(2):
        assert 4 * MIB <= peak_memory(lambda: known_allocations("cpu"), "cpu") <= 4 * MIB + 256
    assert peak_memory(lambda: before.max(), "cpu") < 256


def test_peak_memory_is_silent(capfd):
    peak_memory(lambda: torch.ones(10), "cpu")
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


@pytest.mark.gpu
def test_peak_memory_on_gpu():
    assert 4 * MIB <= peak_memory(lambda: known_allocations("cuda"), "cuda") <= 4 * MIB + 4096


def test_saved_bytes():
    x = torch.randn(1000, requires_grad=True)
    weight = torch.randn(1000, requires_grad=True)
    assert saved_bytes(lambda: x.exp()) == 4000  # the result of exp
    assert saved_bytes(lambda: x * weight) == 8000
    assert saved_bytes(lambda: x * weight, without=[weight]) == 4000
    # Two views of one storage count once, with the whole storage.
    assert saved_bytes(lambda: (x[:10] * weight[:10], x[500:] * weight[500:]), without=[weight]) == 4000
    assert saved_bytes(lambda: x + 1) == 0


def test_saved_bytes_of_a_block():
    """A block saves x, the mask and (N, C) vectors: less than half of what eager saves."""
    n, c, h, w = 2, 16, 12, 12
    x, residual = (torch.randn(n, c, h, w, requires_grad=True) for _ in range(2))
    norm = [torch.zeros(c), torch.ones(c), *(torch.ones(c, requires_grad=True) for _ in range(2))]
    layers = [torch.randn(s, requires_grad=True) for s in ((8, c), (8,), (c, 8), (c,))]

    def bytes_of(module):
        return saved_bytes(
            lambda: module.batch_norm_squeeze_excite(x, *norm, *layers, residual, training=True, out_act="relu"),
            without=[*norm, *layers],
        )

    vectors = 4 * (2 * n * c + n * 8 + 2 * c)  # mean, factor; hidden; statistics
    assert bytes_of(functional) == x.nbytes + x.numel() // 8 + vectors
    assert bytes_of(reference) > 2 * bytes_of(functional)


def test_passes_are_the_budget():
    """The numbers of passes are those of the table of DESIGN section 4."""
    training = counted_passes(training=True)
    assert (training.forward, training.forward_masks) == (4, 1)
    assert (training.backward, training.backward_masks) == (6, 1)
    assert (training.passes, training.masks) == (10, 2)
    forward = training.forward_only()  # x for the moments; x and residual in, y and mask out
    assert (forward.passes, forward.masks) == (4, 1)
    assert counted_bytes((1, 8), torch.float32, forward) == 4 * 32 + 1
    inference = counted_passes(training=False)
    assert (inference.passes, inference.masks) == (3, 0)


def test_passes_of_other_blocks():
    alone = counted_passes(training=True, residual=False)  # x x y | dy x, dy x dx, and the mask with each dy
    assert (alone.forward, alone.backward, alone.forward_masks, alone.backward_masks) == (3, 5, 1, 2)
    linear = counted_passes(training=True, relu=False)  # dr is dy, so it is not written
    assert (linear.forward, linear.backward, linear.masks) == (4, 5, 0)
    gate = counted_passes(training=True, batch_norm=False)  # no x in the second backward pass
    assert (gate.forward, gate.backward) == (4, 5)
    assert counted_passes(training=False, residual=False).passes == 2


def test_counted_bytes():
    shape = (8, 256, 56, 56)
    elements = 8 * 256 * 56 * 56
    assert counted_bytes(shape, torch.float32, counted_passes(training=True)) == 40 * elements + 2 * elements // 8
    assert counted_bytes(shape, torch.bfloat16, counted_passes(training=False)) == 6 * elements


def test_copy():
    assert 1e7 < copy_bandwidth("cpu", 4 * MIB, repeats=2) < 1e13
    source_and_target = peak_memory(lambda: copier("cpu", 4 * MIB), "cpu")
    assert 4 * MIB <= source_and_target <= 4 * MIB + 256
    assert 256 * MIB <= larger_than_cache("cpu") <= 2048 * MIB
