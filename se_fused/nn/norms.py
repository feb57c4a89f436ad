"""Batch norms as the kernels take them: PyTorch's, timm's with an activation inside, and the frozen ones of both.

A frozen batch norm (torchvision's ``FrozenBatchNorm2d``, timm's ``FrozenBatchNormAct2d``) is batch norm in eval mode,
whatever its own mode is: what it has are buffers, which take no gradient and never move.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .known import is_nothing, is_of, is_plain, out_activation, untouched

__all__ = [
    "BatchNorm",
    "brought_activation",
    "is_batch_norm",
    "is_batch_norm_act",
    "is_fusable",
    "normalisation",
    "promoted",
    "take",
]

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def is_batch_norm_act(bn: object) -> bool:
    """Whether the class is a batch norm of timm with an activation inside."""
    return is_of(bn, "timm.layers.norm_act", "BatchNormAct2d") or _is_frozen_act(bn)


def _is_frozen(bn: object) -> bool:
    return is_of(bn, "torchvision.ops.misc", "FrozenBatchNorm2d")


def _is_frozen_act(bn: object) -> bool:
    return is_of(bn, "timm.layers.norm_act", "FrozenBatchNormAct2d")


def is_batch_norm(bn: object) -> bool:
    """Whether the class is a batch norm without an activation; hooks are not asked about."""
    return type(bn) in (*_PLAIN, nn.SyncBatchNorm) or _is_frozen(bn)


def brought_activation(bn: nn.Module) -> str | None:
    """The activation inside timm's batch norms; None for any other module, and where it has to be called."""
    if not (is_batch_norm_act(bn) and untouched(bn)):
        return None
    act, drop = bn._modules.get("act"), bn._modules.get("drop")
    return out_activation(act) if act is not None and drop is not None and is_nothing(drop) else None


def _synchronises(bn: nn.SyncBatchNorm) -> bool:
    """Whether calling bn would gather the statistics of other processes."""
    if not (bn.training and dist.is_available() and dist.is_initialized()):
        return False
    return dist.get_world_size(bn.process_group or dist.group.WORLD) > 1


def is_fusable(bn: nn.Module, x: Tensor) -> bool:
    """Whether bn(x) is a batch norm that a kernel computes, and nothing behind it."""
    if x.dim() < 3:  # BatchNorm1d on (N, C): there are no positions
        return False
    if is_plain(bn, *_PLAIN):
        return True
    if _is_frozen(bn):
        return x.dim() == 4 and untouched(bn)
    return is_plain(bn, nn.SyncBatchNorm) and not _synchronises(bn)


def normalisation(bn: nn.Module, x: Tensor) -> str | None:
    """The activation that the batch norm applies itself, mostly "none"; None where it has to be called."""
    if is_fusable(bn, x):
        return "none"
    return brought_activation(bn) if x.dim() == 4 else None


class BatchNorm(NamedTuple):
    """A batch norm's part of a call of :mod:`se_fused.functional`: its tensors in their order, (C,) or None, and its
    settings by name."""

    tensors: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
    settings: dict[str, Any]


def promoted(bn: nn.Module, x: Tensor, own: bool = False) -> tuple[Tensor, bool]:
    """x in the dtype of bn(x), and whether it is the caller's alone, which a copy always is.

    A batch norm gives x's dtype. A frozen one multiplies by its buffers: under autocast, a map of 16 bits becomes
    float32 there.
    """
    if isinstance(bn, _BatchNorm):
        return x, own
    dtype = x.dtype
    for buffer in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
        dtype = torch.promote_types(dtype, buffer.dtype)  # type: ignore[arg-type]
    return (x, own) if dtype == x.dtype else (x.to(dtype), True)


def take(bn: nn.Module, x: Tensor) -> BatchNorm:
    """What ``bn.forward`` does before its arithmetic: checks x, counts the batch, resolves its settings."""
    training, momentum = False, 0.0
    mean: Any = bn.running_mean
    var: Any = bn.running_var
    if isinstance(bn, _BatchNorm):
        bn._check_input_dim(x)
        momentum = 0.0 if bn.momentum is None else bn.momentum
        training = bn.training or (mean is None and var is None)
        if bn.training and not bn.track_running_stats:
            mean = var = None
        elif bn.training and bn.num_batches_tracked is not None:
            bn.num_batches_tracked.add_(1)
            if bn.momentum is None:
                # The cumulative average needs the count as a number: a synchronisation, as in nn.BatchNorm2d itself.
                momentum = 1.0 / float(bn.num_batches_tracked)
    tensors = (mean, var, bn.weight, bn.bias)
    return BatchNorm(tensors, dict(training=training, momentum=momentum, eps=bn.eps))  # type: ignore[arg-type]
