"""Channel gate with any function of the channel means: y = out_act(s * x + residual) with s = gate(mean(x)).

Forward and backward read the map twice each. The caller's gate runs in PyTorch on (N, C) tensors, so the operator is
two differentiable functions around it. As independent functions, each would return a gradient of x, and adding the two
would cost three more passes over the map. Instead the first function returns x together with a carrier (N, C) whose
value is not used. In the backward pass the second function returns dr through x and the factor s through the carrier,
and the first writes dx = s * dr + dz / S at once. The values returned through x and carrier are not their gradients; no
other code may use these tensors.

Symbols as in :mod:`se_fused.ops.moments`; s, mean: (N, C).
"""

from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from .._params import BlockOptions
from ..activations import OUT_ACT_CODES, keeps_mask, recomputed, writes_dr
from .layout import dense_like, mask_numel
from .moments import accumulation_dtype
from .operators import define, no_second_derivative, register_autograd, through_dispatcher

__all__ = ["Squeezed", "rescale", "squeeze"]


# ---- the operators' arguments and results
class SqueezeArguments(NamedTuple):
    x: Tensor


class SqueezeBackwardArguments(NamedTuple):
    dr: Tensor
    factor: Tensor
    shift: Tensor


class RescaleArguments(NamedTuple):
    x: Tensor
    residual: Tensor | None
    factor: Tensor
    out_act: str
    save: bool


class Rescaled(NamedTuple):
    y: Tensor
    mask: Tensor


class RescaleBackwardArguments(NamedTuple):
    dy: Tensor
    x: Tensor
    residual: Tensor | None
    mask: Tensor
    mean: Tensor
    factor: Tensor
    out_act: str


class RescaleGradients(NamedTuple):
    dr: Tensor  # empty without an activation, where it equals dy
    p: Tensor
    q: Tensor


# ---- on a backend's passes
def _squeeze(backend: Any, x: Tensor) -> Tensor:
    mean: Tensor = backend.moments(x)[0]
    return mean


def _squeeze_backward(backend: Any, dr: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    # Without x the pass reads neither means nor k2, so factor stands for both.
    dx: Tensor = backend.scale_shift_act_backward(dr, None, factor.new_empty(0), factor, factor, factor, shift)
    return dx


def _rescale(
    backend: Any, x: Tensor, residual: Tensor | None, factor: Tensor, out_act: str, save: bool
) -> tuple[Tensor, Tensor]:
    code = OUT_ACT_CODES[out_act]
    y, mask = backend.scale_shift_act(x, residual, factor, None, code, save and keeps_mask(code))
    return y, mask


def _rescale_backward(backend: Any, a: RescaleBackwardArguments) -> RescaleGradients:
    code = OUT_ACT_CODES[a.out_act]
    # Scale and shift are read only where the derivative is recomputed.
    shift = torch.zeros_like(a.factor) if recomputed(code) else a.factor
    return RescaleGradients(
        *backend.moments_backward(
            dense_like(a.dy, a.x), a.x, a.residual, a.mask, a.mean, a.factor, shift, code, writes_dr(code, True)
        )
    )


# ---- the operators
def _means(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=accumulation_dtype(x.dtype))


def _fake_rescale(a: RescaleArguments) -> Rescaled:
    if a.save and keeps_mask(OUT_ACT_CODES[a.out_act]):
        return Rescaled(torch.empty_like(a.x), a.x.new_empty(mask_numel(a.x), dtype=torch.uint8))
    return Rescaled(torch.empty_like(a.x), a.factor.new_empty(0))


def _fake_rescale_backward(a: RescaleBackwardArguments) -> RescaleGradients:
    writes = writes_dr(OUT_ACT_CODES[a.out_act], True)
    return RescaleGradients(torch.empty_like(a.x) if writes else a.factor.new_empty(0), _means(a.x), _means(a.x))


def _backend_of(x: Tensor) -> backends.Backend:
    return backends.select(x.device.type, x.dtype)


define("squeeze", SqueezeArguments, Tensor, lambda a: _squeeze(_backend_of(a.x), a.x), lambda a: _means(a.x))
define(
    "squeeze_backward",
    SqueezeBackwardArguments,
    Tensor,
    lambda a: _squeeze_backward(_backend_of(a.dr), a.dr, a.factor, a.shift),
    lambda a: torch.empty_like(a.dr),
)
define(
    "rescale",
    RescaleArguments,
    Rescaled,
    lambda a: Rescaled(*_rescale(_backend_of(a.x), a.x, a.residual, a.factor, a.out_act, a.save)),
    _fake_rescale,
)
define(
    "rescale_backward",
    RescaleBackwardArguments,
    RescaleGradients,
    lambda a: _rescale_backward(_backend_of(a.x), a),
    _fake_rescale_backward,
)
register_autograd("squeeze_backward", no_second_derivative)
register_autograd("rescale_backward", no_second_derivative)


# ---- the operators from eager mode and from a graph: through PyTorch's dispatcher in graphs and under dispatch modes,
# and in a backward pass with create_graph=True, where their autograd formula raises an error
def _run_squeeze_backward(backend: backends.Backend, dr: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    if through_dispatcher() or torch.is_grad_enabled():
        dx: Tensor = torch.ops.se_fused.squeeze_backward(dr, factor, shift)
        return dx
    return _squeeze_backward(backend, dr, factor, shift)


def _run_rescale_backward(backend: backends.Backend, a: RescaleBackwardArguments) -> RescaleGradients:
    if through_dispatcher() or torch.is_grad_enabled():
        return RescaleGradients(*torch.ops.se_fused.rescale_backward(*a))
    return _rescale_backward(backend, a)


class _Squeeze(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, backend: backends.Backend, through: bool) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.backend = backend
        ctx.shape, ctx.dtype = x.shape, x.dtype
        if through:
            mean = torch.ops.se_fused.squeeze(x)
            return mean, x, torch.empty_like(mean)
        mean, carrier = backend.moments(x)  # the second result is not needed, so its memory can be the carrier
        return mean, x, carrier

    @staticmethod
    def backward(
        ctx: Any, dz: Tensor | None, dr: Tensor | None, factor: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        if dr is None or factor is None:  # only the gate's value was used, not the rescaled map
            if dz is None:
                return None, None, None
            spread = (dz / prod(ctx.shape[2:])).to(ctx.dtype).reshape(*dz.shape, *(1,) * (len(ctx.shape) - 2))
            return spread.expand(ctx.shape), None, None
        shift = torch.zeros_like(factor) if dz is None else dz / prod(ctx.shape[2:])
        return _run_squeeze_backward(ctx.backend, dr, factor, shift.contiguous()), None, None


@dataclass(slots=True, eq=False)
class _Call:
    """What the Function below needs beside the tensors that have a gradient."""

    backend: backends.Backend
    mean: Tensor
    out_act: str
    through: bool


class _Rescale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, carrier: Tensor, factor: Tensor, residual: Tensor | None, call: _Call) -> Tensor:
        ctx.set_materialize_grads(False)
        out_act = ctx.out_act = call.out_act
        ctx.backend = call.backend
        if call.through:
            y, mask = torch.ops.se_fused.rescale(x, residual, factor, out_act, True)
        else:
            y, mask = _rescale(call.backend, x, residual, factor, out_act, True)
        # Only activations that the backward pass recomputes need the residual.
        kept = residual if recomputed(OUT_ACT_CODES[out_act]) else None
        ctx.save_for_backward(x, kept, mask, call.mean, factor)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 5
        x, residual, mask, mean, factor = ctx.saved_tensors
        given = RescaleBackwardArguments(dy, x, residual, mask, mean, factor, ctx.out_act)
        dr, p, q = _run_rescale_backward(ctx.backend, given)
        if not writes_dr(OUT_ACT_CODES[ctx.out_act], True):
            dr = dense_like(dy, x)
        return dr, factor, q + mean * p, dr if ctx.needs_input_grad[3] else None, None


@dataclass(slots=True, eq=False)
class Squeezed:
    """Result of :func:`squeeze`."""

    mean: Tensor  # (N, C), differentiable
    x: Tensor  # may only be passed to :func:`rescale`
    carrier: Tensor | None  # None if x needs no gradient
    through: bool  # whether the call goes through PyTorch's dispatcher


def squeeze(backend: backends.Backend, x: Tensor, through: bool) -> Squeezed:
    """The channel means of a dense x (N, C, *spatial), and the tensors that :func:`rescale` needs. ``through``:
    :func:`.through_dispatcher`, which the caller has tested."""
    if torch.is_grad_enabled() and x.requires_grad:
        mean, given, carrier = _Squeeze.apply(x, backend, through)
        return Squeezed(mean, given, carrier, through)
    return Squeezed(torch.ops.se_fused.squeeze(x) if through else _squeeze(backend, x), x, None, through)


def _wants_grad(x: Tensor, factor: Tensor, residual: Tensor | None) -> bool:
    return x.requires_grad or factor.requires_grad or (residual is not None and residual.requires_grad)


def rescale(backend: backends.Backend, squeezed: Squeezed, factor: Tensor, options: BlockOptions) -> Tensor:
    """out_act(factor * x + residual), after :func:`squeeze`; factor: (N, C), contiguous, of the mean's dtype."""
    x, residual, out_act = squeezed.x, options.residual, options.out_act
    y: Tensor
    if torch.is_grad_enabled() and _wants_grad(x, factor, residual):
        mean, carrier = squeezed.mean.detach(), squeezed.carrier
        call = _Call(backend, mean, out_act, squeezed.through)
        y = _Rescale.apply(x, mean if carrier is None else carrier, factor, residual, call)
        return y
    if squeezed.through:
        y, _ = torch.ops.se_fused.rescale(x, residual, factor, out_act, False)
        return y
    return _rescale(backend, x, residual, factor, out_act, False)[0]
