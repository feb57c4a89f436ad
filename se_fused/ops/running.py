"""Update of batch norm's running statistics, inside an operator's forward pass.

Code after the forward pass may never run: non-reentrant gradient checkpointing ends recomputation by an exception from
the hook on saved tensors, and PyTorch calls the hooks of an ``autograd.Function`` when its ``forward`` has returned.
"""

import torch
from torch import Tensor

from ..backends import Backend, Running

__all__ = ["move", "moved_by_kernels", "running_statistics"]


def running_statistics(mean: Tensor | None, var: Tensor | None, count: int, momentum: float) -> Running | None:
    """The running statistics to update, or None if there are none. As in PyTorch, the running variance takes the
    unbiased variance of ``count`` values."""
    return None if mean is None or var is None else Running(mean, var, float(momentum), count / (count - 1))


def moved_by_kernels(backend: Backend, running: Running | None) -> Running | None:
    """``running`` if the backend's kernels can update it, else None."""
    if running is None or not backend.moves_running:
        return None
    return running if running.mean.is_contiguous() and running.var.is_contiguous() else None


def move(running: Running, stats: Tensor) -> None:
    """Update the running statistics. stats: (2, C), the batch's mean and biased variance."""
    with torch.no_grad():
        mean, var = stats.unbind(0)
        running.mean.lerp_(mean.to(running.mean.dtype), running.momentum)
        running.var.lerp_((var * running.unbias).to(running.var.dtype), running.momentum)
