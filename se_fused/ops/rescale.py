"""x times a factor per sample and channel, differentiable in both, built from existing passes.

Passes over the map: forward 2 (``scale_shift_act``); backward 2 for the factor's gradient (the sum Q of
``moments_backward`` with mean 0) and 2 for x's (``scale_shift_act``). ``x * factor`` in PyTorch has 2 and 6, because it
stores the product dy * x before it sums it for the factor's gradient.
"""

from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..activations import OUT_ACT_CODES
from .layout import dense_like
from .moments import per_channel
from .operators import through_dispatcher

__all__ = ["rescale"]


def _scaled(backend: backends.Backend, x: Tensor, factor: Tensor) -> Tensor:
    y: Tensor = backend.scale_shift_act(x, None, factor, None, OUT_ACT_CODES["none"], False)[0]
    return y


class _Rescale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, backend: backends.Backend) -> Tensor:
        ctx.backend = backend
        ctx.save_for_backward(x, factor)
        return _scaled(backend, x, factor)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, factor = ctx.saved_tensors
        wants_dx, wants_dfactor, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # second derivatives: use PyTorch's operations, which support them
            dx = dy * per_channel(factor, x).to(x.dtype) if wants_dx else None
            return dx, (dy.to(factor.dtype) * x).flatten(2).sum(2) if wants_dfactor else None, None
        dy = dense_like(dy, x)
        dfactor = None
        if wants_dfactor:
            nothing, zero, none = factor.new_empty(0), torch.zeros_like(factor), OUT_ACT_CODES["none"]
            # scale and shift are not read, because the derivative is 1
            _, _, dfactor = ctx.backend.moments_backward(dy, x, None, nothing, zero, factor, factor, none, False)
        return _scaled(ctx.backend, dy, factor) if wants_dx else None, dfactor, None


def rescale(backend: backends.Backend | None, x: Tensor, factor: Tensor) -> Tensor:
    """x * factor. x: (N, C, *spatial), dense; factor: (N, C).

    Runs plain PyTorch without a backend; in a graph, whose compiler fuses the product with its sum; and under a
    dispatch mode, because no operator is registered for it.
    """
    if backend is None or through_dispatcher():
        return x * per_channel(factor, x).to(x.dtype)
    y: Tensor = _Rescale.apply(x, factor.float().contiguous(), backend)
    return y
