"""Allocation of results and scratch memory. All of it is here, so that a trace knows it (launch.py)."""

import threading

import torch
from torch import Tensor

from .launch import Allocation, current_trace

__all__ = ["counters", "empty", "empty_like", "floats", "kept_counters", "zeros"]


_kept: dict[tuple[torch.device, int], Tensor] = {}


def _traced(t: Tensor, zeroed: bool = False, kept: bool = False) -> Tensor:
    if (trace := current_trace()) is not None:
        trace.allocations.append(Allocation(t, zeroed, kept))
    return t


def empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the device of ``like``."""
    return _traced(torch.empty(shape, dtype=dtype, device=like.device))


def empty_like(t: Tensor) -> Tensor:
    """An uninitialised tensor of t's shape, dtype and memory order."""
    return _traced(torch.empty_like(t))


def floats(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised float32 tensor on the device of ``like``."""
    return empty(like, shape, torch.float32)


def zeros(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros on the device of ``like``."""
    return _traced(torch.zeros(shape, dtype=dtype, device=like.device), True)


def kept_counters(device: torch.device, count: int) -> Tensor:
    """int32 counters that are zero and that the launch which gets them leaves at zero.

    They are kept for later launches on the same stream, which run one after another; zeroing them would be one more
    launch. A CUDA graph gets its own, zeroed in the graph, because it may run beside the stream on which it was
    captured. Without a GPU they are a thread's.
    """
    if device.type != "cuda":
        if device.type == "meta":
            return torch.empty(count, dtype=torch.int32, device=device)
        stream = threading.get_ident()
    elif torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    else:
        stream = torch.cuda.current_stream(device).cuda_stream
    found = _kept.get((device, stream))
    if found is None or found.numel() < count:
        with torch.inference_mode(False):
            found = torch.zeros(max(2 * count, 4096), dtype=torch.int32, device=device)
        _kept[device, stream] = found
    return found


def counters(like: Tensor, count: int) -> Tensor:
    """``kept_counters`` on the device of ``like``."""
    return _traced(kept_counters(like.device, count), kept=True)
