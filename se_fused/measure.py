"""Honest measuring: time and its spread, peak memory, bytes saved for backward, counted bytes to hold time against.

Every time is wall-clock, taken with the device synchronised before and after the call, so on a GPU it holds the launch
too. Candidates that are to be compared are called in turn (A, B, C, A, B, C, ...): a machine that grows warm or busy
then hits all of them alike.
"""

import ctypes
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Counted",
    "Timing",
    "copy_bandwidth",
    "counted_bytes",
    "counted_passes",
    "device_seconds",
    "keep_freed_memory",
    "larger_than_cache",
    "peak_memory",
    "saved_bytes",
    "synchronizer",
    "timed",
    "timed_together",
]

MIB = 2**20


def keep_freed_memory() -> bool:
    """Ask glibc's allocator to keep what is freed, in this process; returns whether it agreed.

    By default it gives large blocks back at once, and the next tensor of that size pays a page fault per 4 KB: as much
    as a whole pass over memory, at the allocator's whim. PyTorch's CPU tuning guide advises jemalloc or tcmalloc for
    the same reason. It holds for all candidates alike; benchmarks/NOTES.md has the figures without it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    # glibc takes at most half a heap for the second; the first alone keeps what has come from the heap.
    return bool(mallopt(mmap_threshold, 2**30)) & bool(mallopt(trim_threshold, 2**31 - 1))


def synchronizer(device: str | torch.device) -> Callable[[], None]:
    """What waits until the device has done all that it was given: nothing to do on a CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, lower and upper quartile of ``n`` calls."""

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


def timed_together(
    fns: Mapping[str, Callable[[], Any]],
    repeats: int = 10,
    warmup: int = 2,
    synchronize: Callable[[], None] | None = None,
    tick: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Time several functions in the same run, in turn.

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
    wait = synchronize or (lambda: None)
    seconds: dict[str, list[float]] = {name: [] for name in fns}
    for turn in range(warmup + repeats):
        for name, fn in fns.items():
            wait()
            start = time.perf_counter()
            result = fn()
            wait()
            took = time.perf_counter() - start
            del result  # outside the measured time, and before the next candidate needs the memory
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


def device_seconds(fn: Callable[[], Any], device: str | torch.device, repeats: int = 10, replays: int = 20) -> float:
    """Seconds that the device needs for one call, without the host's part: the median of graph replays between events.

    On a CPU, and for what a CUDA graph cannot hold, the wall clock's median.

    Args:
        fn: what to time; it must work on the same memory every time.
        device: where it runs.
        repeats: measurements of which the median counts.
        replays: calls of one measurement.
    """
    if torch.device(device).type != "cuda":
        return timed(fn, repeats).median
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):  # what is compiled or measured at a first call cannot be captured
            fn()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            kept = fn()
    except RuntimeError:
        return timed(fn, repeats, synchronize=synchronizer(device)).median
    seconds = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000 / replays)
    del kept
    return statistics.median(seconds)


# ---- copy: the yardstick
def _cache_bytes(device: torch.device) -> int:
    """Size of the last-level cache, 32 MiB where nobody says."""
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 * MIB))
    sizes = [32 * MIB]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = file.read_text().strip()
            sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[text[-1]])
        except (OSError, ValueError, KeyError):
            continue
    return max(sizes)


def larger_than_cache(device: str | torch.device) -> int:
    """Bytes of a working set that no cache of the device holds: four times the last level, 256 MiB to 2 GiB."""
    return min(max(4 * _cache_bytes(torch.device(device)), 256 * MIB), 2048 * MIB)


def copier(device: str | torch.device, working_set: int) -> Callable[[], Tensor]:
    """A call of ``torch.Tensor.copy_`` that reads working_set / 2 bytes and writes as many."""
    source = torch.ones(max(working_set // 8, 1), dtype=torch.float32, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def copy_bandwidth(device: str | torch.device, working_set: int | None = None, repeats: int = 7) -> float:
    """Bytes per second of ``copy_``, read and written bytes together: what streaming kernels are held against.

    Args:
        device: where.
        working_set: bytes of source and target together; None for one far larger than the caches. A small one measures
            the cache that it fits into.
        repeats: calls of which the median counts.
    """
    size = larger_than_cache(device) if working_set is None else working_set
    return size / device_seconds(copier(device, size), device, repeats)


# ---- memory
def peak_memory(fn: Callable[[], Any], device: str | torch.device) -> int:
    """Bytes that PyTorch's allocator hands out during one call of fn, at the highest point, above the level before it.

    On a CPU the allocator keeps no peak; its events are recorded by the profiler and added up in order. Memory that
    libraries get from elsewhere (oneDNN's scratch pads, a BLAS's buffers) is in neither figure.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        fn()
        torch.cuda.synchronize(device)
        return max(torch.cuda.max_memory_allocated(device) - before, 0)
    # The profiler's library writes on stderr of GPUs that it cannot find; it reads this when it is first used.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        result = fn()
        del result
    events = recorded.profiler.kineto_results.events()
    level = peak = 0
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        level += change
        peak = max(peak, level)
    return peak


def saved_bytes(fn: Callable[[], Any], without: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps for the backward pass of what fn computes.

    Each storage counts once and whole, however many views of it are kept.

    Args:
        fn: the forward pass, called once.
        without: tensors that are there anyway, such as parameters; their storages do not count.
    """
    storages: dict[int, Any] = {}  # held, so that no address is given out a second time while counting

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor.detach()  # a saved output would hold its own graph, and nothing would ever free it

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack), torch.enable_grad():
        result = fn()
    del result
    for tensor in without:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in storages.values())


# ---- counted traffic of the block tail
@dataclass(frozen=True)
class Counted:
    """Reads and writes of the big tensor (N, C, *spatial), in whole passes, and of the mask of one bit per element.

    Counted are x, residual, y, dy, dr, dx, read or written once per stream (DESIGN section 2), and the mask. Not
    counted: vectors of (N, C) and smaller, parameters, and whatever an implementation does beyond that. So the time
    that these bytes take is a floor of this design, not a model of an implementation.
    """

    forward: int
    backward: int
    forward_masks: int = 0
    backward_masks: int = 0

    @property
    def passes(self) -> int:
        """Passes of the big tensor, both directions."""
        return self.forward + self.backward

    @property
    def masks(self) -> int:
        """Passes of the mask, both directions."""
        return self.forward_masks + self.backward_masks


def counted_passes(*, training: bool, batch_norm: bool = True, residual: bool = True, relu: bool = True) -> Counted:
    """The passes of DESIGN's budget: 4 + mask forward and 6 + mask backward in training, 3 in inference.

    Args:
        training: forward and backward with the batch's statistics; False: forward alone, where x is read from memory
            once (a sample's second reading finds it in the cache, or on the chip).
        batch_norm: False in training: the gate alone, whose backward pass does not read x in its second stream.
        residual: whether a residual is added, read forward; its gradient dr is written and read backward.
        relu: whether a ReLU closes the block, which needs the mask.
    """
    if not training:
        return Counted(forward=3 if residual else 2, backward=0)
    # Forward: x for the moments; x and residual in, y out. Backward: dy and x in, then dr (or dy) and x in, dx out.
    writes_dr = residual and relu
    return Counted(
        forward=4 if residual else 3,
        backward=(6 if writes_dr else 5) - (0 if batch_norm else 1),
        forward_masks=int(relu),
        backward_masks=0 if not relu else (1 if writes_dr else 2),
    )


def counted_bytes(shape: tuple[int, ...], dtype: torch.dtype, passes: Counted) -> int:
    """Bytes of those passes over a tensor of that shape and dtype; the mask's rows are not padded here."""
    elements = 1
    for size in shape:
        elements *= size
    return passes.passes * elements * dtype.itemsize + passes.masks * ((elements + 7) // 8)
