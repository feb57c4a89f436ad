"""What the main operator keeps for its backward pass, and the gradients from it: for autograd's nodes in eager mode and
for the operators in graphs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._params import BatchNormParams, BlockOptions, ExcitationParams, Gradients, Results, SavedTensors
from ..activations import OUT_ACT_CODES, recomputed, writes_dr

__all__ = ["gradients", "keep"]


def keep(
    ctx: Any, x: Tensor, bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions, results: Results
) -> None:
    """Saves tensors and options for the backward pass: x, and all results but y."""
    ctx.set_materialize_grads(False)
    # Only activations that the backward pass recomputes need the residual.
    residual = options.residual
    if residual is not None and not recomputed(OUT_ACT_CODES[options.out_act]):
        residual = None
    ctx.save_for_backward(
        x, results.mask, results.mean, results.factor, results.hidden, results.stats, residual, bn.weight, bn.bias,
        fc.fc1_weight, fc.fc2_weight, options.drop_path_scale,
    )  # fmt: skip
    ctx.settings = (bn.batch_stats, bn.momentum, bn.eps, fc.act, fc.gate, options.out_act)
    # The layers' biases are not needed, but their shapes are.
    ctx.fc1_bias = None if fc.fc1_bias is None else fc.fc1_bias.shape
    ctx.fc2_bias = None if fc.fc2_bias is None else fc.fc2_bias.shape


def _shaped(gradient: Tensor, shape: torch.Size | None) -> Tensor | None:
    """The gradient of a parameter of this shape. The kernels return matrices (R, C) and vectors; parameters may be
    those of a 1x1 convolution."""
    if shape is None:
        return None
    return gradient if gradient.shape == shape else gradient.reshape(shape)


def _shaped_like(gradient: Tensor, parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else _shaped(gradient, parameter.shape)


def gradients(ctx: Any, dy: Tensor | None, run: Callable[..., Gradients]) -> tuple[Tensor | None, ...]:
    """The gradients of x, residual, and the parameters of batch norm and of the two layers, computed by ``run``. They
    may be float32 for parameters of another dtype; autograd converts them."""
    if dy is None:
        return (None,) * 8
    (x, mask, mean, factor, hidden, stats, residual, bn_weight, bn_bias, fc1_weight, fc2_weight,
     drop_path_scale) = ctx.saved_tensors  # fmt: skip
    batch_stats, momentum, eps, act, gate, out_act = ctx.settings
    want_dr = ctx.needs_input_grad[1]
    g = run(
        dy,
        SavedTensors(x, mask, mean, factor, hidden, stats),
        BatchNormParams(None, None, bn_weight, bn_bias, batch_stats, momentum, eps),
        ExcitationParams(fc1_weight, None, fc2_weight, None, act, gate),
        BlockOptions(residual, drop_path_scale, out_act),
        want_dr,
    )
    dr = None
    if want_dr:  # without an activation the residual's gradient is dy
        dr = g.dr if writes_dr(OUT_ACT_CODES[out_act], True) else dy
    return (
        g.dx, dr, _shaped_like(g.dbn_weight, bn_weight), _shaped_like(g.dbn_bias, bn_bias),
        _shaped_like(g.dfc1_weight, fc1_weight), _shaped(g.dfc1_bias, ctx.fc1_bias),
        _shaped_like(g.dfc2_weight, fc2_weight), _shaped(g.dfc2_bias, ctx.fc2_bias),
    )  # fmt: skip
