"""Every launch of a Triton kernel goes through here, so that launches can be counted, listed and compiled elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Launch", "launch", "recording"]


@dataclass(frozen=True)
class Launch:
    """One launch: what ``kernel[grid](**arguments, **options)`` takes."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # tensors, numbers, None; constants in capital letters
    options: dict[str, int]  # num_warps, num_stages

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.fn.__name__)


_recorders: list[tuple[list[Launch], bool]] = []


@contextmanager
def recording(dry: bool = False) -> Iterator[list[Launch]]:
    """Notes all launches of this process until the end of the block.

    Args:
        dry: leaves the launching out: results are then whatever memory was allocated for them. With tensors on the
            ``meta`` device this says, without a GPU, what a call would launch there.
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
