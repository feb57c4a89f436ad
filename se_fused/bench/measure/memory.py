"""Memory measurements: peak of a call, bytes saved for the backward pass; and a setting of the C allocator."""

import ctypes
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["keep_freed_memory", "peak_memory", "saved_bytes"]


def keep_freed_memory() -> bool:
    """Set glibc's allocator to keep freed memory in this process; return whether it accepted the setting.

    By default, the allocator returns large blocks to the system at once, and the next tensor of that size causes a page
    fault per 4 KB. This costs as much as a whole pass over memory, and happens irregularly. PyTorch's CPU tuning guide
    recommends jemalloc or tcmalloc for the same reason. The setting applies to all candidates; benchmarks/NOTES.md has
    the figures without it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    # glibc rejects an mmap threshold above half a heap; the trim threshold alone keeps memory from the heap.
    return bool(mallopt(mmap_threshold, 2**30)) & bool(mallopt(trim_threshold, 2**31 - 1))


def peak_memory(fn: Callable[[], Any], device: str | torch.device) -> int:
    """Peak of the bytes that PyTorch's allocator provides during one call of fn, above the level before the call.

    On a GPU, the value comes from ``torch.cuda.max_memory_allocated``: bytes of tensors, rounded up to 512 each, not
    the memory reserved from the driver. The CPU allocator records no peak, so ``torch.profiler`` records its events,
    which are added up in order. Memory from other sources (oneDNN's scratch pads, buffers of a BLAS, the allocator of
    another library) is not included.

    Args:
        fn: function that is called once. Its result counts until it is deleted. Memory that it allocates only in its
            first call, such as cuBLAS's workspace, counts unless it was called before.
        device: the device on which fn runs.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        fn()
        torch.cuda.synchronize(device)
        return max(torch.cuda.max_memory_allocated(device) - before, 0)
    # Suppress the profiler library's messages about missing GPUs on stderr; it reads the variable at its first use.
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
    """Bytes that autograd saves for the backward pass of fn.

    ``torch.autograd.graph.saved_tensors_hooks`` finds the tensors that PyTorch's functions save, and those in
    ``ctx.save_for_backward``, on any device. Tensors that a function stores as plain attributes of ctx are not found.
    Each storage counts once with its full size, even if several views of it are saved.

    Args:
        fn: the forward pass, called once.
        without: tensors that exist anyway, such as parameters; their storages do not count.
    """
    storages: dict[int, Any] = {}  # references keep the storages alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor.detach()  # a saved output would refer to its own graph, which then would never be freed

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack), torch.enable_grad():
        result = fn()
    del result
    for tensor in without:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in storages.values())
