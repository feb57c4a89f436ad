"""The functions of :mod:`se_fused.functional` in plain PyTorch, with the same signatures, which are documented there.

This module serves three purposes: the fallback if no kernel can run (float64, devices without kernels, second
derivatives), the reference of the tests (in float64), and the baseline of the benchmarks, because a model without this
library computes the same. ``inplace`` has no effect here.

>>> y = act(gate(W2 · act(W1 · mean(bn(x)))) · bn(x) · drop_path_scale + residual)
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import activations
from ._params import NO_BATCH_NORM, NO_EXCITATION, BatchNormParams, BlockOptions, ExcitationParams

__all__ = [
    "ACTIVATIONS",
    "GATES",
    "OUT_ACTIVATIONS",
    "batch_norm_act",
    "batch_norm_act_squeeze",
    "batch_norm_squeeze_excite",
    "block",
    "channel_gate",
    "conv1x1",
    "conv1x1_squeeze_excite",
    "gated_conv1x1",
    "keep_order",
    "squeeze_excite",
]


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    name: row.forward for name, row in activations.ACTIVATIONS.items()
}
"""The activations between the two fully connected layers, by name."""

GATES: dict[str, Callable[[Tensor], Tensor]] = {name: row.forward for name, row in activations.GATES.items()}
"""The gates, which turn the output of the second layer into a factor, by name."""

OUT_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    name: row.forward for name, row in activations.OUT_ACTIVATIONS.items()
}
"""The activations at the end of a block, by name (``out_act=None`` means ``"none"``)."""


def _per_channel(vector: Tensor, x: Tensor) -> Tensor:
    """(N, C) or (N,) -> broadcastable against x: (N, C, *spatial)."""
    return vector.reshape(vector.shape + (1,) * (x.dim() - vector.dim()))


def _close(u: Tensor, residual: Tensor | None, out_act: str | None, drop_path_scale: Tensor | None) -> Tensor:
    if drop_path_scale is not None:
        u = u * _per_channel(drop_path_scale.to(u.dtype), u)
    if residual is not None:
        u = u + residual
    return OUT_ACTIVATIONS[out_act or "none"](u)


def block(x: Tensor, bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions) -> Tensor:
    """out_act(drop_path_scale * SE(BN(x)) + residual): all functions of this module that the records describe.

    x: (N, C, *spatial), or (N, C) for batch norm alone; the records' fields as in :mod:`se_fused._params`.
    """
    u = x
    if bn.present:
        u = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.batch_stats, bn.momentum, bn.eps)
    if fc.fc1_weight is not None and fc.fc2_weight is not None:
        squeezed = u.flatten(2).mean(2) if u.dim() > 2 else u  # (N, C)
        # If the weights have another dtype than x (float32 with bfloat16), the excitation is computed in the weights'
        # dtype.
        squeezed = squeezed.to(fc.fc1_weight.dtype)
        hidden = ACTIVATIONS[fc.act](F.linear(squeezed, fc.fc1_weight.flatten(1), fc.fc1_bias))  # (N, R)
        factor = GATES[fc.gate](F.linear(hidden, fc.fc2_weight.flatten(1), fc.fc2_bias))  # (N, C)
        u = u * _per_channel(factor, u).to(u.dtype)
    return _close(u, options.residual, options.out_act, options.drop_path_scale)


def squeeze_excite(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    act: str = "relu",
    gate: str = "sigmoid",
    out_act: str | None = None,
    drop_path_scale: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """:func:`se_fused.functional.squeeze_excite` in plain PyTorch."""
    fc = ExcitationParams(fc1_weight, fc1_bias, fc2_weight, fc2_bias, act, gate)
    return block(x, NO_BATCH_NORM, fc, BlockOptions(residual, drop_path_scale, out_act or "none"))


def batch_norm_squeeze_excite(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: str = "relu",
    gate: str = "sigmoid",
    out_act: str | None = None,
    drop_path_scale: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """:func:`se_fused.functional.batch_norm_squeeze_excite` in plain PyTorch."""
    u = F.batch_norm(x, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
    fc = ExcitationParams(fc1_weight, fc1_bias, fc2_weight, fc2_bias, act, gate)
    return block(u, NO_BATCH_NORM, fc, BlockOptions(residual, drop_path_scale, out_act or "none"))


def batch_norm_act(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    out_act: str | None = "relu",
    drop_path_scale: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """:func:`se_fused.functional.batch_norm_act` in plain PyTorch."""
    u = F.batch_norm(x, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
    return block(u, NO_BATCH_NORM, NO_EXCITATION, BlockOptions(residual, drop_path_scale, out_act or "none"))


def batch_norm_act_squeeze(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    out_act: str | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`se_fused.functional.batch_norm_act_squeeze` in plain PyTorch; the mean is of y rounded to x's dtype."""
    u = F.batch_norm(x, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
    y = _close(u, None, out_act, None)
    return y, y.flatten(2).mean(2, dtype=torch.float64 if y.dtype == torch.float64 else torch.float32)


def channel_gate(
    x: Tensor,
    gate: Callable[[Tensor], Tensor],
    residual: Tensor | None = None,
    *,
    out_act: str | None = None,
    drop_path_scale: Tensor | None = None,
) -> Tensor:
    """:func:`se_fused.functional.channel_gate` in plain PyTorch."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    factor = gate(x.flatten(2).mean(2, dtype=wide))
    return _close(x * _per_channel(factor.to(x.dtype), x), residual, out_act, drop_path_scale)


def keep_order(y: Tensor, x: Tensor) -> Tensor:
    """y (N, D, *spatial) in the memory order of x (N, C, *spatial). y itself if it already has that order, or if x is
    not dense.

    Convolutions do not always keep the order. oneDNN has no convolution of volumes in float16, and none in bfloat16
    without AVX-512. PyTorch's own convolution then runs and returns the contiguous order, as every 1-D convolution
    does.
    """
    contiguous = x.is_contiguous()
    if contiguous and y.is_contiguous():
        return y  # y itself and not a view, because a trace would record the view
    last = _is_channels_last(x)
    if last and _is_channels_last(y):
        return y
    if contiguous:
        return y.contiguous()
    return y.movedim(1, -1).contiguous().movedim(-1, 1) if last else y


def _is_channels_last(t: Tensor) -> bool:
    """Whether t (N, C, *spatial) is dense and adjacent elements are channels. Tensors inside vmap raise if they are
    tested with a memory_format."""
    sizes, strides = t.shape, t.stride()
    if sizes[1] != 1 and strides[1] != 1:
        return False
    expected, d = sizes[1], len(sizes) - 1
    while d > 1:
        if sizes[d] != 1 and strides[d] != expected:
            return False
        expected *= sizes[d]
        d -= 1
    return sizes[0] == 1 or bool(strides[0] == expected)


_CONV = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def conv1x1(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution of (N, K, *spatial) with weight (C, K) or (C, K, 1, ...): (N, C, *spatial), in h's order."""
    dims = h.dim()
    conv = _CONV[dims]
    # A weight of another shape becomes a matrix first, and so does one in channels_last: with its strides the result
    # would be channels_last for any h.
    if weight.dim() != dims or not weight.is_contiguous():
        matrix = weight if weight.dim() == 2 else weight.flatten(1)
        weight = matrix.reshape(matrix.shape + (1,) * (dims - 2))
    return keep_order(conv(h, weight, bias), h)


def conv1x1_squeeze_excite(
    h: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    act: str = "relu",
    gate: str = "sigmoid",
    out_act: str | None = None,
    folded: tuple[Tensor, Tensor] | None = None,
    packed: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """:func:`se_fused.functional.conv1x1_squeeze_excite` in plain PyTorch; the last three arguments are not used."""
    u = conv1x1(h, conv_weight, conv_bias)
    return squeeze_excite(u, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual, act=act, gate=gate, out_act=out_act)


def gated_conv1x1(y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`se_fused.functional.gated_conv1x1` in plain PyTorch."""
    return conv1x1(y * _per_channel(gate.flatten(1), y).to(y.dtype), weight, bias)
