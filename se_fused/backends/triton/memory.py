"""Allocation of results and scratch memory. All of it is here, so that a trace knows it (launch.py)."""

import torch
from torch import Tensor

from .launch import Allocation, current_trace

__all__ = ["empty", "empty_like", "floats", "zeros"]


def _traced(t: Tensor, zeroed: bool = False) -> Tensor:
    if (trace := current_trace()) is not None:
        trace.allocations.append(Allocation(t, zeroed))
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
