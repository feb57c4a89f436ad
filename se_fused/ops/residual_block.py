"""A residual block as one autograd node: y = out_act(d * SE(branch(x)) + shortcut(x)), for eager mode.

The branch and the shortcut are convolutions with batch norms (:class:`.ResidualBlockParams`). PyTorch computes the
convolutions, a backend all else. One node instead of one per operation saves the host's time for checks, calls of
modules and autograd. It also adds the gradients of branch and shortcut without a pass of its own: where the branch
starts with a 1x1 convolution of stride 1, the product that computes that gradient accumulates.

A backend may have the whole block as one operation; otherwise it is composed (:mod:`.compose_residual_block`).
Graphs do not use this node: torch.compile gets a block as its operators.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._params import ConvNormParams, ExcitationParams, ResidualBlockParams
from .compose_residual_block import Wanted, compose_block_backward, compose_block_forward
from .operators import refuse_second_derivatives

__all__ = ["residual_block"]

Parameters = list[Tensor | None]


def _parameters(block: ResidualBlockParams) -> Parameters:
    """The tensors that may have a gradient: four of each layer, four of the excitation."""
    tensors: Parameters = []
    for layer in block.layers:
        tensors += layer.conv.weight, layer.conv.bias, layer.bn.weight, layer.bn.bias
    fc = block.fc
    return [*tensors, fc.fc1_weight, fc.fc1_bias, fc.fc2_weight, fc.fc2_bias]


def _cast(block: ResidualBlockParams, dtype: torch.dtype) -> ResidualBlockParams:
    """The block with its convolutions in x's dtype, which autocast has chosen."""

    def cast(layer: ConvNormParams) -> ConvNormParams:
        conv = layer.conv
        if conv.weight.dtype == dtype:
            return layer
        bias = None if conv.bias is None else conv.bias.to(dtype)
        return replace(layer, conv=replace(conv, weight=conv.weight.to(dtype), bias=bias))

    shortcut = None if block.shortcut is None else cast(block.shortcut)
    return replace(block, branch=tuple(map(cast, block.branch)), shortcut=shortcut)


@dataclass(slots=True, eq=False)
class _Call:
    """What the node needs beside the tensors that have a gradient."""

    backend: backends.Backend
    block: ResidualBlockParams


class _ResidualBlock(torch.autograd.Function):
    # setup_context is needed only for torch.func, and costs an inspect.signature per call.
    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, *parameters: Tensor | None) -> Tensor:
        ctx.set_materialize_grads(False)
        block = _cast(call.block, x.dtype)
        y, kept = compose_block_forward(call.backend, x, block, True)
        ctx.backend = call.backend
        # The record keeps no tensors: autograd must see all of them, for its hooks and its checks of versions.
        ctx.save_for_backward(x, block.drop_path_scale, *_parameters(block), *kept)
        ctx.block = _without_tensors(block)
        ctx.shapes = [None if p is None else p.shape for p in parameters]
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        _, want_x, *flags = ctx.needs_input_grad
        x, drop, *saved = ctx.saved_tensors
        count = len(ctx.shapes)
        block = _with_tensors(ctx.block, saved[:count], drop)
        wanted = Wanted(
            want_x, tuple(tuple(flags[4 * i : 4 * i + 4]) for i in range(len(block.layers))), any(flags[-4:])
        )
        with torch.no_grad():
            found = compose_block_backward(ctx.backend, dy, x, block, saved[count:], wanted)
        gradients = [g for layer in found.layers for g in layer]
        gradients += found.fc if block.fc.fc1_weight is not None else (None,) * 4
        shaped = [
            None if g is None or shape is None else g if g.shape == shape else g.reshape(shape)
            for g, shape in zip(gradients, ctx.shapes, strict=True)
        ]
        if torch.is_grad_enabled():
            return None, *refuse_second_derivatives(found.dx, *shaped)
        return None, found.dx, *shaped


def _with_tensors(block: ResidualBlockParams, tensors: Parameters, drop: Tensor | None) -> ResidualBlockParams:
    """The block with other parameters, in the order of :func:`_parameters`."""

    def put(layer: ConvNormParams, i: int) -> ConvNormParams:
        weight, bias, bn_weight, bn_bias = tensors[4 * i : 4 * i + 4]
        conv: Any = layer.conv
        bn: Any = layer.bn
        return ConvNormParams(
            type(conv)(weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups),
            type(bn)(None, None, bn_weight, bn_bias, bn.batch_stats, bn.momentum, bn.eps),
            layer.out_act,
        )

    branch = tuple(put(layer, i) for i, layer in enumerate(block.branch))
    shortcut = None if block.shortcut is None else put(block.shortcut, len(branch))
    fc1_weight, fc1_bias, fc2_weight, fc2_bias = tensors[-4:]
    fc = ExcitationParams(fc1_weight, fc1_bias, fc2_weight, fc2_bias, block.fc.act, block.fc.gate)
    return ResidualBlockParams(branch, shortcut, fc, drop)


def _without_tensors(block: ResidualBlockParams) -> ResidualBlockParams:
    return _with_tensors(block, [None] * (4 * len(block.layers) + 4), None)


def residual_block(backend: backends.Backend, x: Tensor, block: ResidualBlockParams) -> Tensor:
    """The block's result y, differentiable, in eager mode.

    Args:
        backend: the backend whose kernels run.
        x: (N, C, *spatial), dense, in the dtype in which the convolutions are computed.
        block: checked, in the form that the kernels need; the convolutions' weights may have another dtype under
            autocast.

    Returns:
        y (N, D, *spatial), in x's dtype. Running statistics are updated.
    """
    parameters = _parameters(block)
    if torch.is_grad_enabled() and (x.requires_grad or any(p is not None and p.requires_grad for p in parameters)):
        y: Tensor = _ResidualBlock.apply(_Call(backend, block), x, *parameters)
        return y
    y, _ = compose_block_forward(backend, x, _cast(block, x.dtype), False)
    return y
