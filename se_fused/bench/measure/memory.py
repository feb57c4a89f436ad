"""Honest measuring: time and its spread, peak memory, bytes saved for backward, counted bytes to hold time against.

Time is in ``timing``, the limits of a device in ``bandwidth``, its state in ``telemetry``; their names can be had here
too.
"""

import ctypes
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .device_limits import (
    cache_bytes,
    copier,
    copy_bandwidth,
    copy_limits,
    larger_than_cache,
    limits,
    matmul_flops,
    rotation,
)
from .device_state import snapshot, theoretical_bandwidth
from .timing import (
    Sampler,
    Timing,
    device_seconds,
    in_turn,
    primed,
    ratio,
    rounds_for,
    sampler,
    synchronizer,
    timed,
    timed_together,
)

__all__ = [
    "Counted",
    "Sampler",
    "Timing",
    "cache_bytes",
    "copier",
    "copy_bandwidth",
    "copy_limits",
    "counted_bytes",
    "counted_passes",
    "device_seconds",
    "in_turn",
    "keep_freed_memory",
    "larger_than_cache",
    "limits",
    "matmul_flops",
    "peak_memory",
    "primed",
    "ratio",
    "rotation",
    "rounds_for",
    "sampler",
    "saved_bytes",
    "snapshot",
    "synchronizer",
    "theoretical_bandwidth",
    "timed",
    "timed_together",
]


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


# ---- memory
def peak_memory(fn: Callable[[], Any], device: str | torch.device) -> int:
    """Bytes that PyTorch's allocator hands out during one call of fn, at the highest point, above the level before it.

    On a GPU from ``torch.cuda.max_memory_allocated``: bytes of tensors (in the allocator's steps of 512), not those
    that it reserves from the driver. On a CPU the allocator keeps no peak; its events are recorded by
    ``torch.profiler`` and added up in order. Memory that libraries get from elsewhere (oneDNN's scratch pads, a BLAS's
    buffers, another library's allocator) is in neither figure.

    Args:
        fn: called once; what it returns counts until it is dropped. What it allocates at its first call only, such as
            cuBLAS's workspace, counts unless it was called before.
        device: where it works.
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

    They are those that ``torch.autograd.graph.saved_tensors_hooks`` shows: saved by PyTorch's own functions and through
    ``ctx.save_for_backward``, on any device; what a function keeps as a plain attribute of ctx does not show.
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

    def forward_only(self) -> "Counted":
        """The forward pass alone: in training, 4 passes of DESIGN's 4 + 6, and the mask that it writes."""
        return Counted(forward=self.forward, backward=0, forward_masks=self.forward_masks)


def counted_passes(*, training: bool, batch_norm: bool = True, residual: bool = True, relu: bool = True) -> Counted:
    """The passes of DESIGN's budget: 4 + mask forward and 6 + mask backward in training, 3 in inference.

    Args:
        training: forward and backward with the batch's statistics (:meth:`Counted.forward_only` for its forward pass);
            False: forward alone in inference, where x is read from memory once (a sample's second reading finds it in
            the cache, or on the chip).
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
