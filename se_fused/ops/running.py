"""Update of batch norm's running statistics, inside an operator's forward pass.

Code after the forward pass may never run: non-reentrant gradient checkpointing ends recomputation by an exception from
the hook on saved tensors, and PyTorch calls the hooks of an ``autograd.Function`` when its ``forward`` has returned.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._params import BatchNormParams
from .layout import positions

__all__ = ["kernels_update", "mark_updated", "update", "with_update"]


def kernels_update(operation: Any, bn: BatchNormParams) -> bool:
    """Whether a backend's operation, None if it has none, can update the running statistics of ``bn``."""
    if operation is None:
        return False
    assert bn.running_mean is not None and bn.running_var is not None
    return all(t.is_contiguous() and t.dtype != torch.float64 for t in (bn.running_mean, bn.running_var))


def mark_updated(bn: BatchNormParams) -> None:
    """Tell autograd that kernels have written to the running statistics of ``bn``."""
    assert bn.running_mean is not None and bn.running_var is not None
    torch.autograd.graph.increment_version((bn.running_mean, bn.running_var))


Run = TypeVar("Run", bound=tuple[Tensor, ...])


def with_update(operation: Any, bn: BatchNormParams, x: Tensor, run: Callable[[BatchNormParams], Run]) -> Run:
    """``run(bn)``, the results of a backend's kernels, after which the running statistics of ``bn`` are updated: by the
    kernels if they can, else by PyTorch.

    Args:
        operation: the backend's operation, None if it has none.
        run: computes the results, of which the last are the batch's statistics; for a ``bn`` without running statistics
            it updates none.
    """
    if not bn.updates:
        return run(bn)
    if kernels_update(operation, bn):
        results = run(bn)
        mark_updated(bn)
        return results
    results = run(bn.without_running())
    update(bn, results[-1], x)
    return results


def update(bn: BatchNormParams, stats: Tensor, x: Tensor) -> None:
    """Update the running statistics of ``bn``: new = old + momentum (batch - old). As in PyTorch, the running variance
    takes the unbiased variance.

    Args:
        stats: (2, C), the batch's mean and biased variance.
        x: the batch; only its shape is used.
    """
    mean, var = bn.running_mean, bn.running_var
    assert mean is not None and var is not None
    count = x.shape[0] * positions(x)
    with torch.no_grad():
        mean.lerp_(stats[0].to(mean.dtype).reshape(mean.shape), bn.momentum)
        var.lerp_((stats[1] * (count / (count - 1))).to(var.dtype).reshape(var.shape), bn.momentum)
