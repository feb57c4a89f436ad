"""A whole residual block in one call, from the modules that hold its parameters.

A block's forward calls :func:`whole_block` first. Its result is None if the modules must be called: one of them has
hooks or was replaced, a graph is traced, or no kernel exists for the call.
"""

from collections.abc import Sequence
from math import prod
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module

from .._checks import autocasts
from .._params import LayerSettings, ResidualBlockParams
from ..backends.base import SUPPORTED
from ..functional.dispatch import backend_for
from ..ops.layout import is_channels_last
from ..ops.operators import through_dispatcher
from ..ops.residual_block import residual_block
from .block_plan import ModulesOf, Plan, plan_of
from .residual_block import path_scale

__all__ = ["whole_block"]

_dtype, _device = attrgetter("dtype"), attrgetter("device")
_MAX_CHECKED = 64  # kinds of calls that a block remembers, mostly shapes of x


def _sizes(x: Tensor, layers: Sequence[LayerSettings], weights: list[Tensor]) -> tuple[int, ...] | None:
    """Shape of the result without N: (D, *spatial). None if a convolution does not take its input."""
    channels, *sizes = x.shape[1:]
    for layer, weight in zip(layers, weights, strict=True):
        if weight.dim() != x.dim() or weight.shape[1] * layer.groups != channels:
            return None
        kernel = weight.shape[2:]
        sizes = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(sizes, kernel, layer.stride, layer.padding, layer.dilation, strict=True)
        ]
        channels = weight.shape[0]
    return (channels, *sizes) if min(sizes) > 0 else None


def _has_kernels(plan: Plan, x: Tensor, residual: Tensor | None, tensors: list[Tensor | None], autocast: bool) -> bool:
    """Whether the kernels take the block's tensors as they are. If not, the modules convert them or raise an error, or
    choose plain PyTorch for the excitation of maps with one position (:attr:`.Backend.plain_from`)."""
    present = [t for t in (residual, *tensors) if t is not None]
    if residual is not None and residual.dtype != x.dtype:
        return False
    if not all(type(t) in (Tensor, nn.Parameter) and t.device == x.device for t in present):
        return False
    layers = plan.settings.layers
    of_layers = [tensors[6 * i : 6 * i + 6] for i in range(len(layers))]
    for weight, bias, *norm in of_layers:
        if weight is None or any(t is not None and t.shape != weight.shape[:1] for t in (bias, *norm)):
            return False
        converted = autocast and weight.dtype in SUPPORTED
        if any(t is not None and not (converted or t.dtype == x.dtype) for t in (weight, bias)):
            return False
        if any(t is not None and not (t.dtype in SUPPORTED and t.is_contiguous()) for t in norm):
            return False
    fc = [t for t in tensors[-4:] if t is not None]
    if any(t.dtype not in SUPPORTED or not t.is_contiguous() for t in fc):
        return False
    weights: list[Any] = [layer[0] for layer in of_layers]
    count = plan.settings.last + 1
    y = _sizes(x, layers[:count], weights[:count])
    shortcut = _sizes(x, layers[count:], weights[count:])
    if y is None or x.shape[0] * prod(y[1:]) < 2:
        return False
    if plan.settings.residual in ("x", "shortcut") and y != shortcut:
        return False
    if residual is not None and (residual.shape[1:] != y or residual.shape[0] != x.shape[0]):
        return False
    fc1_weight, fc1_bias, fc2_weight, fc2_bias = tensors[-4:]
    if fc1_weight is None:
        return True
    if prod(y[1:]) == 1:
        return False
    assert fc2_weight is not None
    c, r = y[0], fc1_weight.shape[0]
    shapes = ((fc1_weight, r * c), (fc2_weight, r * c), (fc1_bias, r), (fc2_bias, c))
    return fc1_weight.dtype == fc2_weight.dtype and all(t is None or t.numel() == size for t, size in shapes)


def whole_block(block: nn.Module, x: Tensor, modules: ModulesOf, residual: Tensor | None = None) -> Tensor | None:
    """The block's result in one call, or None if its modules must be called.

    Args:
        block: the residual block.
        x: (N, C, *spatial), its input.
        modules: returns the modules of the block, or of a part of it; None if no call has its order of operations. One
            function, not a new one in each call.
        residual: the tensor to add at the end, for modules whose residual is given.

    Returns:
        (N, D, *spatial), x's dtype. Running statistics and ``num_batches_tracked`` are updated as the batch norms
        update them.
    """
    if through_dispatcher() or type(x) is not Tensor or _module._has_any_global_hook():
        return None
    if torch._C._len_torch_function_stack():
        return None
    plan = plan_of(block, modules)
    if not plan.suitable or x.dim() != plan.dim or not (x.is_contiguous() or is_channels_last(x)):
        return None
    backend = backend_for(x, False)
    if backend is None:
        return None
    tensors: list[Any] = [values[name] for values, name in plan.tensors]
    present = [t for t in (residual, *tensors) if t is not None]
    autocast = autocasts(x)
    if autocast and torch.get_autocast_dtype(x.device.type) != x.dtype:
        return None
    kinds = *map(type, present), *map(_dtype, present), *map(_device, present)
    key = x.shape, None if residual is None else residual.shape, x.dtype, x.device, autocast, kinds
    supported = plan.checked.get(key)
    if supported is None:
        supported = _has_kernels(plan, x, residual, tensors, autocast)
        if len(plan.checked) >= _MAX_CHECKED:
            plan.checked.clear()
        plan.checked[key] = supported
    if not supported:
        return None
    scale = None
    if plan.drop is not None:
        scale, drop = path_scale(plan.drop, x)
        if drop is not None:
            return None
    if plan.counters:
        torch._foreach_add_([values[name] for values, name in plan.counters], 1)
    return residual_block(backend, x, ResidualBlockParams(plan.settings, tensors, residual, scale))
