"""A residual block, or a part of one, as one autograd node: y = out_act(d * SE(branch(x)) + residual), for eager mode.

The residual is x, shortcut(x), another map or absent. The branch and the shortcut are convolutions with batch norms
(:class:`.ResidualBlockParams`). PyTorch computes the convolutions, a backend all else. One node instead of one per
operation saves the host's time for checks, calls of modules and autograd. It also adds the gradients of branch and
shortcut without a pass of its own: where the branch starts with a 1x1 convolution of stride 1, the product that
computes that gradient accumulates.

A backend may have the whole block as one operation; otherwise it is composed (:mod:`.compose_residual_block`).
Graphs do not use this node: torch.compile gets a block as its operators.
"""

from typing import Any

import torch
from torch import Tensor

from .. import backends
from .._params import ConvParams, ResidualBlockParams
from .compose_residual_block import (
    LEFT_TO_PRODUCT,
    WANTS_RESIDUAL,
    WANTS_X,
    compose_backward,
    compose_forward,
)
from .input_gradient import add_input_gradient, product_is_as_precise
from .layout import dense_like, is_channels_last
from .operators import refuse_second_derivatives

__all__ = ["residual_block"]


# ---- the gradient of x
def adds_by_product(conv: ConvParams, t: Tensor) -> bool:
    """Whether the gradient of the first convolution's input is added to ``t``, of x's shape, by the product that
    computes it (:mod:`.input_gradient`): for a 1x1 convolution of stride 1 in channels_last memory."""
    return conv.is_product and is_channels_last(t) and product_is_as_precise(t.device.type, t.dtype)


def _sum(base: Tensor | None, of_layer: Tensor, dy: Tensor, x: Tensor, conv: ConvParams | None) -> Tensor:
    """The gradient of x from the first two results of a block's backward pass; with ``conv`` the second is to be
    multiplied by its weight."""
    if conv is None:
        return of_layer.add_(dy if base is None else base)
    if base is None:  # dy belongs to the caller
        base = torch.empty_like(x).copy_(dy)
    else:
        base = dense_like(base, x)
    add_input_gradient(base, of_layer, conv.weight)
    return base


# ---- a backend's block
def _forward(backend: backends.Backend, x: Tensor, block: ResidualBlockParams, save: bool) -> list[Tensor]:
    if backend.residual_block_forward is None:
        return compose_forward(backend, x, block, save)
    try:
        results: list[Tensor] = backend.residual_block_forward(x, block, save)
    except RuntimeError:
        # The stable ABI hides PyTorch's message and its class, such as OutOfMemoryError. The same steps one by one
        # raise that error; they do not update the running statistics.
        compose_forward(backend, x, block.without_running(), save)
        raise
    if running := block.running():
        torch.autograd.graph.increment_version(running)
    return results


def _backward(
    backend: backends.Backend, dy: Tensor, x: Tensor, block: ResidualBlockParams, kept: list[Tensor], wanted: int
) -> list[Tensor | None]:
    if backend.residual_block_backward is None:
        return compose_backward(backend, dy, x, block, kept, wanted)
    gradients: list[Tensor | None] = backend.residual_block_backward(dy, x, block, kept, wanted)
    return gradients


# ---- autograd
def _cast(block: ResidualBlockParams, dtype: torch.dtype) -> ResidualBlockParams:
    """The block with its convolutions in x's dtype, which autocast has chosen."""
    tensors = block.tensors
    for i in range(0, len(tensors) - 4, 6):
        for j in (i, i + 1):
            t = tensors[j]
            if t is not None and t.dtype != dtype:
                if tensors is block.tensors:
                    tensors = list(tensors)
                tensors[j] = t.to(dtype)
    if tensors is block.tensors:
        return block
    return ResidualBlockParams(block.settings, tensors, block.residual, block.drop_path_scale)


def _wanted(needed: tuple[bool, ...]) -> int:
    """The bits of the gradients that x, the residual and six tensors of each layer need, without LEFT_TO_PRODUCT."""
    want_x, want_residual, *flags = needed
    wanted, bit = WANTS_X * want_x | WANTS_RESIDUAL * want_residual, 2 * WANTS_RESIDUAL
    for i in range(0, len(flags) - 4, 6):
        for flag in (flags[i], flags[i + 1], flags[i + 4], flags[i + 5]):
            wanted |= bit * flag
            bit *= 2
    return wanted


class _ResidualBlock(torch.autograd.Function):
    # setup_context is needed only for torch.func, and costs an inspect.signature per call.
    @staticmethod
    def forward(
        ctx: Any,
        backend: backends.Backend,
        block: ResidualBlockParams,
        x: Tensor,
        residual: Tensor | None,
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        block = _cast(block, x.dtype)
        y, *kept = _forward(backend, x, block, True)
        ctx.backend, ctx.settings = backend, block.settings
        ctx.save_for_backward(x, block.drop_path_scale, *block.without_running().tensors, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        x, drop, *saved = ctx.saved_tensors
        settings, needed = ctx.settings, ctx.needs_input_grad[2:]
        count = len(needed) - 2
        block = ResidualBlockParams(settings, saved[:count], None, drop)
        wanted = _wanted(needed)
        with torch.no_grad():
            adds_to_x = settings.residual in ("x", "shortcut")
            first = block.conv(0) if wanted & WANTS_X and adds_to_x else None
            if first is not None and adds_by_product(first, x):
                wanted |= LEFT_TO_PRODUCT
            base, of_layer, *found = _backward(ctx.backend, dy, x, block, saved[count:], wanted)
            dx, dresidual = of_layer, None
            if wanted & WANTS_RESIDUAL:
                dresidual = dy if base is None else base
            if of_layer is not None and adds_to_x:
                dx = _sum(base, of_layer, dy, x, first if wanted & LEFT_TO_PRODUCT else None)
        gradients: list[Tensor | None] = [dx, dresidual]
        for i in range(len(settings.layers)):
            weight, bias, bn_weight, bn_bias = found[4 * i : 4 * i + 4]
            gradients += weight, bias, None, None, bn_weight, bn_bias
        gradients += found[-4:]
        if torch.is_grad_enabled():
            return None, None, *refuse_second_derivatives(*gradients)
        return None, None, *gradients


def _needs_gradient(x: Tensor, block: ResidualBlockParams) -> bool:
    for t in (x, block.residual, *block.tensors):
        if t is not None and t.requires_grad:
            return True
    return False


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
    if torch.is_grad_enabled() and _needs_gradient(x, block):
        y: Tensor = _ResidualBlock.apply(backend, block, x, block.residual, *block.tensors)
        return y
    return _forward(backend, x, _cast(block, x.dtype), False)[0]
