"""Batch norm's running statistics, which move inside an operator's forward pass.

Whatever comes after that may never run: non-reentrant gradient checkpointing ends recomputation by an exception out of
the hook on saved tensors, and PyTorch calls the hooks of an ``autograd.Function`` when its ``forward`` has returned.
"""

import torch
from torch import Tensor

from ..backends import Backend, Running

__all__ = ["move", "moved_by_kernels", "running_statistics"]


def running_statistics(mean: Tensor | None, var: Tensor | None, count: int, momentum: float) -> Running | None:
    """What is to be moved, with the unbiased variance of ``count`` values, as in PyTorch; None: there is nothing."""
    return None if mean is None or var is None else Running(mean, var, float(momentum), count / (count - 1))


def moved_by_kernels(backend: Backend, running: Running | None) -> Running | None:
    """``running`` where the backend's own kernels can move it, else None."""
    if running is None or not backend.moves_running:
        return None
    return running if running.mean.is_contiguous() and running.var.is_contiguous() else None


def move(running: Running, stats: Tensor) -> None:
    """stats: (2, C), the batch's mean and biased variance."""
    with torch.no_grad():
        mean, var = stats.unbind(0)
        running.mean.lerp_(mean.to(running.mean.dtype), running.momentum)
        running.var.lerp_((var * running.unbias).to(running.var.dtype), running.momentum)
