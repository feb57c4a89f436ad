"""Squeeze-excite between an activation and a 1x1 projection, ``projection(se(act(bn(x))))``, from the modules that hold
its parameters: the middle of the blocks of EfficientNet, MobileNetV3 and RegNetY.

Like :mod:`.tail`: where the modules are what the kernels know, two calls of :mod:`se_fused.functional` around the gate;
where not, they are called as modules and the result is the same. No state moves.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ... import functional as F_se
from ..._checks import autocasts
from ...backends import find, forced
from ...reference import ACTIVATIONS, GATES
from .._checks import is_plain
from ..known import out_activation, untouched
from ..norms import brought_activation, is_fusable, promoted, take
from ..squeeze_excite import SqueezeExcite

__all__ = ["fused_gate_projection"]

# Squeeze-excite modules of other libraries: (module, class) -> their layers, in the order in which they are called on
# the mean (N, C, 1, 1). They are known by name, because the libraries may not be installed.
_LAYERS: dict[tuple[str, str], tuple[str, ...]] = {
    ("timm.models._efficientnet_blocks", "SqueezeExcite"): ("conv_reduce", "act1", "conv_expand", "gate"),
    ("timm.layers.squeeze_excite", "SEModule"): ("fc1", "bn", "act", "fc2", "gate"),
    ("torchvision.ops.misc", "SqueezeExcitation"): ("fc1", "activation", "fc2", "scale_activation"),
}


def _name(module: nn.Module) -> tuple[str, str]:
    cls = getattr(type(module), "original", type(module))  # of a converted module: the class that it had
    return cls.__module__, cls.__qualname__


def _activation_behind(bn: nn.Module, act: nn.Module | None, x: Tensor) -> str | None:
    """The activation's name, of ``act`` or of what bn has inside; None where one of the modules must be called."""
    if not is_fusable(bn, x):
        return brought_activation(bn) if act is None else None
    return out_activation(act)


def _gate_of(se: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """From the mean (N, C, 1, 1) to the gate of the same shape, by se's layers as modules, so that their hooks see it;
    None where se itself must be called."""
    if is_plain(se, SqueezeExcite):
        return lambda mean: GATES[se.gate](se.fc2(ACTIVATIONS[se.act](se.fc1(mean))))
    names = _LAYERS.get(_name(se))
    if names is None or not untouched(se) or getattr(se, "add_maxpool", False):
        return None
    pool = getattr(se, "avgpool", None)
    if pool is not None and not (is_plain(pool, nn.AdaptiveAvgPool2d) and pool.output_size in (1, (1, 1))):
        return None
    layers = [getattr(se, name) for name in names]

    def gate(mean: Tensor) -> Tensor:
        for layer in layers:
            mean = layer(mean)
        return mean

    return gate


def _is_projection(conv: nn.Module) -> bool:
    """Whether a 1x1 product may stand in for ``conv``."""
    return (
        is_plain(conv, nn.Conv2d)
        and conv.kernel_size == (1, 1)
        and conv.stride == (1, 1)
        and conv.padding in ((0, 0), "same", "valid")
        and conv.groups == 1
    )


def _modules_are_faster(x: Tensor) -> bool:
    """Whether ``auto`` had better call the modules one after the other: see :attr:`Backend.projection_from`."""
    if torch.compiler.is_compiling() or forced() != "auto" or x.dtype != torch.float32:
        return False
    backend, _ = find(x.device.type, x.dtype)
    if backend is None:
        return False
    return x.numel() < backend.projection_from.get((torch.is_grad_enabled(), not x.is_contiguous()), 0)


def fused_gate_projection(
    bn: nn.Module, act: nn.Module | None, se: nn.Module, projection: nn.Module, x: Tensor
) -> Tensor:
    """``projection(se(act(bn(x))))``, fused where the modules allow.

    Fused: :func:`se_fused.functional.batch_norm_act_squeeze`, the gate's layers on (N, C), and
    :func:`se_fused.functional.gated_conv1x1`. That needs ``bn`` to be exactly an ``nn.BatchNorm2d`` (or an
    ``nn.SyncBatchNorm`` with nothing to synchronise), timm's ``BatchNormAct2d``, or a frozen one of torchvision or
    timm; the activation one of
    ``se_fused.reference.OUT_ACTIVATIONS``; and ``se`` a :class:`SqueezeExcite`, timm's ``SEModule`` or EfficientNet's
    ``SqueezeExcite``, or torchvision's ``SqueezeExcitation``, all without hooks. Where ``se`` is another module or has
    hooks, batch norm and activation are one call, and ``se`` is called; otherwise, and for small maps where that was
    measured to be faster, the modules are called one after the other. A ``projection`` with hooks, or that is no plain
    1x1 convolution, is called on the scaled map.

    Running statistics and ``num_batches_tracked`` are updated as ``bn`` itself would. The gate's layers are called with
    the mean in x's dtype, which their own module gives them.

    Args:
        bn: the normalisation, perhaps with its activation inside.
        act: the activation after it; None: there is none, or it is inside.
        se: what rescales the channels.
        projection: the convolution after it.
        x: (N, C, H, W), what the convolution before gave.

    Returns:
        What ``projection`` returns: (N, D, H, W) of a 1x1 convolution.
    """
    name, gate = _activation_behind(bn, act, x) if x.dim() == 4 else None, _gate_of(se)
    if name is None or _modules_are_faster(x):
        y = bn(x) if act is None else act(bn(x))
        out: Tensor = projection(se(y))
        return out
    x, own = promoted(bn, x)
    tensors, settings = take(bn, x)
    if gate is None:
        out = projection(se(F_se.batch_norm_act(x, *tensors, **settings, out_act=name, inplace=own)))
        return out
    y, squeezed = F_se.batch_norm_act_squeeze(x, *tensors, **settings, out_act=name)
    factor = gate(squeezed.to(y.dtype)[:, :, None, None])
    if isinstance(projection, nn.Conv2d) and _is_projection(projection):
        if autocasts(y) or projection.weight.dtype == y.dtype:
            return F_se.gated_conv1x1(y, factor, projection.weight, projection.bias)
    scaled: Tensor = projection(y * factor)
    return scaled
