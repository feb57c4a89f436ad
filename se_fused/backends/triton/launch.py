"""Launching and recording of Triton kernels. All launches use :func:`launch`, so that they can be counted, listed,
compiled for other GPUs, and traced for plan.py."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Allocation", "Launch", "Trace", "current_trace", "is_recording", "launch", "recording", "tracing"]


@dataclass(frozen=True)
class Launch:
    """One launch: the parts of the call ``kernel[grid](**arguments, **options)``."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # tensors, numbers, None and groups of them (arguments.py); constants in capital letters
    options: dict[str, int]  # num_warps, num_stages

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.fn.__name__)


_recorders: list[tuple[list[Launch], bool]] = []


@contextmanager
def recording(dry: bool = False) -> Iterator[list[Launch]]:
    """Records all launches of this process until the end of the block.

    Args:
        dry: record without launching; results are then uninitialised memory. With tensors on the ``meta`` device, this
            lists what a call would launch on a GPU, without one.
    """
    launches: list[Launch] = []
    _recorders.append((launches, dry))
    try:
        yield launches
    finally:
        _recorders.pop()


def is_recording() -> bool:
    """Whether launches are recorded."""
    return bool(_recorders)


# ---- traces
@dataclass(frozen=True)
class Allocation:
    """Memory that a traced call allocated."""

    tensor: Tensor
    zeroed: bool
    kept: bool = False
    """Whether it is of ``memory.kept_counters``."""


@dataclass
class Trace:
    """What a call allocated and launched, in order."""

    allocations: list[Allocation] = field(default_factory=list)
    launches: list[tuple[Launch, Any]] = field(default_factory=list)  # with what Triton compiled for them


class _Current(threading.local):
    trace: Trace | None = None


_current = _Current()  # of this thread: autograd's threads launch at the same time


def current_trace() -> Trace | None:
    """The trace of this thread, if there is one."""
    return _current.trace


@contextmanager
def tracing(trace: Trace | None) -> Iterator[None]:
    """Collects what this thread allocates and launches until the end of the block; None interrupts that."""
    before, _current.trace = _current.trace, trace
    try:
        yield
    finally:
        _current.trace = before


def launch(kernel: Any, grid: int, device: torch.device, options: dict[str, int], **arguments: Any) -> None:
    """Launch ``grid`` programs on the current stream of ``device``."""
    dry = False
    for launches, without in _recorders:
        launches.append(Launch(kernel, (grid,), arguments, options))
        dry |= without
    if dry:
        return
    other = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if other else nullcontext():
        compiled = kernel[(grid,)](**arguments, **options)
    if _current.trace is not None:
        _current.trace.launches.append((Launch(kernel, (grid,), arguments, options), compiled))
