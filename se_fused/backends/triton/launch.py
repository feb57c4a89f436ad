"""Launching and recording of Triton kernels. All launches use :func:`launch`, so that they can be counted, listed and
compiled for other GPUs."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Launch", "launch", "recording"]


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
        kernel[(grid,)](**arguments, **options)
