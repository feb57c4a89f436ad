"""Arguments of the kernels from batch norm modules of PyTorch, timm (with an activation inside) and torchvision.

A frozen batch norm (torchvision's ``FrozenBatchNorm2d``, timm's ``FrozenBatchNormAct2d``) computes batch norm in eval
mode, whatever its training flag is: its tensors are buffers, which have no gradient and are never updated.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .known import is_nothing, is_of, is_plain, out_activation, untouched

__all__ = [
    "PLAIN",
    "BatchNorm",
    "brought_activation",
    "is_batch_norm",
    "is_batch_norm_act",
    "is_fusable",
    "normalisation",
    "promoted",
    "take",
]

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def is_batch_norm_act(bn: object) -> bool:
    """Whether the module is one of timm's batch norms with an activation inside. Ignores hooks."""
    return is_of(bn, "timm.layers.norm_act", "BatchNormAct2d") or _is_frozen_act(bn)


def _is_frozen(bn: object) -> bool:
    return is_of(bn, "torchvision.ops.misc", "FrozenBatchNorm2d")


def _is_frozen_act(bn: object) -> bool:
    return is_of(bn, "timm.layers.norm_act", "FrozenBatchNormAct2d")


def is_batch_norm(bn: object) -> bool:
    """Whether the module is a batch norm without an activation. Ignores hooks."""
    return type(bn) in (*PLAIN, nn.SyncBatchNorm) or _is_frozen(bn)


def brought_activation(bn: nn.Module) -> str | None:
    """Name of the activation inside a batch norm of timm; None for any other module, and if it must be called."""
    if not (is_batch_norm_act(bn) and untouched(bn)):
        return None
    act, drop = bn._modules.get("act"), bn._modules.get("drop")
    return out_activation(act) if act is not None and drop is not None and is_nothing(drop) else None


def _synchronises(bn: nn.SyncBatchNorm) -> bool:
    """Whether calling bn would gather statistics from other processes."""
    if not (bn.training and dist.is_available() and dist.is_initialized()):
        return False
    return dist.get_world_size(bn.process_group or dist.group.WORLD) > 1


def is_fusable(bn: nn.Module, x: Tensor) -> bool:
    """Whether a kernel can compute bn(x), and bn has no activation inside."""
    if x.dim() < 3:  # BatchNorm1d on (N, C): no spatial dimensions
        return False
    if is_plain(bn, *PLAIN):
        return True
    if _is_frozen(bn):
        return x.dim() == 4 and untouched(bn)
    return is_plain(bn, nn.SyncBatchNorm) and not _synchronises(bn)


def normalisation(bn: nn.Module, x: Tensor) -> str | None:
    """Name of the activation inside the batch norm, mostly "none"; None if the module must be called."""
    if is_fusable(bn, x):
        return "none"
    return brought_activation(bn) if x.dim() == 4 else None


class BatchNorm(NamedTuple):
    """A batch norm's arguments for :mod:`se_fused.functional`.

    ``tensors``: running mean, running variance, weight and bias, each (C,) or None. ``settings``: the keyword
    arguments training, momentum and eps.
    """

    tensors: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
    settings: dict[str, Any]


def promoted(bn: nn.Module, x: Tensor, own: bool = False) -> tuple[Tensor, bool]:
    """x in the dtype of bn(x), and whether that tensor may be overwritten: ``own``, or True for a converted copy.

    A PyTorch batch norm returns x's dtype. A frozen one multiplies by its buffers, so that a 16-bit map becomes float32
    under autocast.
    """
    if isinstance(bn, _BatchNorm):
        return x, own
    dtype = x.dtype
    for buffer in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
        dtype = torch.promote_types(dtype, buffer.dtype)  # type: ignore[arg-type]
    return (x, own) if dtype == x.dtype else (x.to(dtype), True)


def take(bn: nn.Module, x: Tensor) -> BatchNorm:
    """Do what ``bn.forward`` does before its arithmetic: check x, count the batch and resolve the settings."""
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
                # The cumulative average needs the count on the host, a synchronisation that nn.BatchNorm2d has too.
                momentum = 1.0 / float(bn.num_batches_tracked)
    tensors = (mean, var, bn.weight, bn.bias)
    return BatchNorm(tensors, dict(training=training, momentum=momentum, eps=bn.eps))  # type: ignore[arg-type]
