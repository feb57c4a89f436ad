"""The operator of a 1x1 convolution of a gated map: ``se_fused::gated_conv1x1``, for inference.

    out = W (s * y) + b,   s: one factor per sample and channel of y

A backend's ``gated_conv1x1`` multiplies the loaded values by the gate, so the scaled map is never stored. Otherwise the
gate is multiplied into W or into y; see :func:`scales_weight`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..activations import OUT_ACT_CODES
from ..reference import conv1x1
from .layout import is_channels_last, positions
from .operators import define, through_dispatcher

__all__ = ["Arguments", "compose_gated_conv1x1", "gated_conv1x1", "scales_weight"]


class Arguments(NamedTuple):
    """Arguments of the operator."""

    y: Tensor
    gate: Tensor
    weight: Tensor
    bias: Tensor | None


def _order(y: Tensor) -> str | None:
    """Memory order of y (N, C, *spatial) and of the convolution's result. None if both orders are the same memory,
    where the convolution decides which one it returns, and for a 3-D y that is not contiguous."""
    sizes = y.shape
    if sizes[1] == 1 or y.numel() == sizes[0] * sizes[1]:
        return None
    if y.is_contiguous():
        return "contiguous"
    return "channels_last" if y.dim() > 3 and is_channels_last(y) else None


def scales_weight(c: int, d: int, s: int, with_bias: bool) -> bool:
    """Whether scaling W for each sample moves less memory than scaling y. Counts are elements per sample.

    Scaled weights cost one more write and read of W than the product alone: 2 D C. A batched product has no bias
    argument, so the bias is first written to the result and read again: 2 D S. A scaled map costs a read and a write of
    y: 2 C S. Without a bias scaling W is cheaper if D < S, which holds in all but the last stages of an EfficientNet.

    Args:
        c, d: channels before and after the convolution.
        s: positions.
    """
    return d * (c + (s if with_bias else 0)) < c * s


def compose_gated_conv1x1(
    backend: backends.Backend, y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """``gated_conv1x1`` from a batched matrix product, or from ``backend.scale_shift_act`` and a convolution."""
    n, c, *spatial = y.shape
    d, s = weight.shape[0], positions(y)
    order = _order(y)
    if order is None or not scales_weight(c, d, s, bias is not None):
        scaled = backend.scale_shift_act(y, None, gate, None, OUT_ACT_CODES["none"], False)[0]
        return conv1x1(scaled, weight, bias)
    weights = y.new_empty(n, d, c)
    torch.mul(weight.reshape(1, d, c), gate[:, None, :], out=weights)  # in float32, rounded once
    if order == "contiguous":
        out = y.new_empty(n, d, *spatial)
        factors, into = (weights, y.view(n, c, s)), out.view(n, d, s)
        added = None if bias is None else bias.reshape(1, d, 1)
    else:
        out = y.new_empty(n, *spatial, d).movedim(-1, 1)
        factors, into = (y.movedim(1, -1).view(n, s, c), weights.mT), out.movedim(1, -1).view(n, s, d)
        added = None if bias is None else bias.reshape(1, 1, d)
    if added is None:
        torch.bmm(*factors, out=into)
    else:
        torch.baddbmm(added, *factors, out=into)
    return out


def _run(backend: backends.Backend, y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if backend.gated_conv1x1 is not None and _order(y) == "channels_last":
        out: Tensor = backend.gated_conv1x1(
            y, gate, weight, bias, lambda: compose_gated_conv1x1(backend, y, gate, weight, bias)
        )
        return out
    return compose_gated_conv1x1(backend, y, gate, weight, bias)


def _operator(a: Arguments) -> Tensor:
    return _run(backends.select(a.y.device.type, a.y.dtype), a.y, a.gate, a.weight, a.bias)


def _fake(a: Arguments) -> Tensor:
    order = _order(a.y)
    if order is None:
        return conv1x1(a.y, a.weight, a.bias)
    if order == "contiguous":
        return a.y.new_empty(a.y.shape[0], a.weight.shape[0], *a.y.shape[2:])
    return a.y.new_empty(a.y.shape[0], *a.y.shape[2:], a.weight.shape[0]).movedim(-1, 1)


define("gated_conv1x1", Arguments, Tensor, _operator, _fake)


def gated_conv1x1(backend: backends.Backend, y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The operator: through the dispatcher in graphs and under dispatch modes, else directly on ``backend``. Not
    differentiable.

    y: (N, C, *spatial), dense; gate: (N, C), float32, contiguous; weight: (D, C[, 1, ...]), bias: (D,), y's dtype.
    """
    if through_dispatcher():
        out: Tensor = torch.ops.se_fused.gated_conv1x1(y, gate, weight, bias)
        return out
    if not torch.is_grad_enabled():  # no_grad takes 10,000 instructions
        return _run(backend, y, gate, weight, bias)
    with torch.no_grad():
        return _run(backend, y, gate, weight, bias)
