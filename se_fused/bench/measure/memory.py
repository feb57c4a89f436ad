"""Memory: the peak of a call, the bytes saved for the backward pass, and an allocator that keeps what is freed."""

import ctypes
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["keep_freed_memory", "peak_memory", "saved_bytes"]


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
