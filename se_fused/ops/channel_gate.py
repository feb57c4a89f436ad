"""Channel gate with any function of the channel means: y = out_act(s * x + residual) with s = gate(mean(x)).

Forward and backward read the map twice each. The caller's gate runs in PyTorch on (N, C) tensors, so the operator is
two differentiable functions around it. As independent functions, each would return a gradient of x, and adding the two
would cost three more passes over the map. Instead the first function returns x together with a carrier (N, C) whose
value is not used. In the backward pass the second function returns dr through x and the factor s through the carrier,
and the first writes dx = s * dr + dz / S at once. The values returned through x and carrier are not their gradients; no
other code may use these tensors.

Symbols as in :mod:`se_fused.ops.moments`; s, mean: (N, C).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..activations import OUT_ACT_CODES, keeps_mask, recomputed, writes_dr
from .dispatch import through_dispatcher
from .double_backward import no_second_derivative
from .layout import dense_like, mask_numel, positions
from .moments import accumulation_dtype

__all__ = ["rescale", "squeeze"]

_library = torch.library.Library("se_fused", "FRAGMENT")  # the operators live as long as this object
for _schema in (
    "squeeze(Tensor x) -> Tensor",
    "squeeze_backward(Tensor dr, Tensor factor, Tensor shift) -> Tensor",
    "rescale(Tensor x, Tensor? residual, Tensor factor, str out_act, bool save) -> (Tensor y, Tensor mask)",
    "rescale_backward(Tensor dy, Tensor x, Tensor? residual, Tensor mask, Tensor mean, Tensor factor, str out_act)"
    " -> (Tensor dr, Tensor p, Tensor q)",
):
    _library.define(_schema)


def _squeeze(backend: Any, x: Tensor) -> Tensor:
    mean: Tensor = backend.moments(x)[0]
    return mean


def _squeeze_backward(backend: Any, dr: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    nothing = factor.new_empty(0)
    dx: Tensor = backend.scale_shift_act_backward(dr, None, nothing, factor, factor, torch.zeros_like(factor), shift)
    return dx


def _rescale(
    backend: Any, x: Tensor, residual: Tensor | None, factor: Tensor, out_act: str, save: bool
) -> tuple[Tensor, Tensor]:
    code = OUT_ACT_CODES[out_act]
    y, mask = backend.scale_shift_act(x, residual, factor, torch.zeros_like(factor), code, save and keeps_mask(code))
    return y, mask


def _rescale_backward(
    backend: Any,
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    mask: Tensor,
    mean: Tensor,
    factor: Tensor,
    out_act: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """dr, P and Q. dr is empty without an activation, where it equals dy."""
    code = OUT_ACT_CODES[out_act]
    dr, p, q = backend.moments_backward(
        dense_like(dy, x), x, residual, mask, mean, factor, torch.zeros_like(factor), code, writes_dr(code, True)
    )
    return dr, p, q


_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "squeeze": _squeeze,
    "squeeze_backward": _squeeze_backward,
    "rescale": _rescale,
    "rescale_backward": _rescale_backward,
}


def _selected(name: str, x: Tensor, *args: Any) -> Any:
    return _IMPLEMENTATIONS[name](backends.select(x.device.type, x.dtype), x, *args)


for _name in _IMPLEMENTATIONS:
    _library.impl(_name, partial(_selected, _name), "CompositeExplicitAutograd")


def _means(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=accumulation_dtype(x.dtype))


@torch.library.register_fake("se_fused::squeeze", lib=_library)
def _squeeze_fake(x: Tensor) -> Tensor:
    return _means(x)


@torch.library.register_fake("se_fused::squeeze_backward", lib=_library)
def _squeeze_backward_fake(dr: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    return torch.empty_like(dr)


@torch.library.register_fake("se_fused::rescale", lib=_library)
def _rescale_fake(
    x: Tensor, residual: Tensor | None, factor: Tensor, out_act: str, save: bool
) -> tuple[Tensor, Tensor]:
    if save and keeps_mask(OUT_ACT_CODES[out_act]):
        return torch.empty_like(x), x.new_empty(mask_numel(x), dtype=torch.uint8)
    return torch.empty_like(x), factor.new_empty(0)


@torch.library.register_fake("se_fused::rescale_backward", lib=_library)
def _rescale_backward_fake(
    dy: Tensor, x: Tensor, residual: Tensor | None, mask: Tensor, mean: Tensor, factor: Tensor, out_act: str
) -> tuple[Tensor, Tensor, Tensor]:
    dr = torch.empty_like(x) if writes_dr(OUT_ACT_CODES[out_act], True) else factor.new_empty(0)
    return dr, _means(x), _means(x)


for _name in ("squeeze_backward", "rescale_backward"):
    torch.library.register_autograd(f"se_fused::{_name}", no_second_derivative, lib=_library)


def _runner(name: str, backend: backends.Backend) -> Callable[..., Any]:
    """The operator in graphs and under dispatch modes, and in a backward pass with create_graph=True, where its
    autograd formula raises an error; otherwise its implementation, without the dispatcher."""
    if through_dispatcher() or (name.endswith("backward") and torch.is_grad_enabled()):
        return getattr(torch.ops.se_fused, name)
    return partial(_IMPLEMENTATIONS[name], backend)


class _Squeeze(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, backend: backends.Backend) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.backend = backend
        ctx.shape, ctx.dtype, ctx.positions = x.shape, x.dtype, positions(x)
        mean = _runner("squeeze", backend)(x)
        return mean, x.view_as(x), torch.empty_like(mean)

    @staticmethod
    def backward(ctx: Any, dz: Tensor | None, dr: Tensor | None, factor: Tensor | None) -> tuple[Tensor | None, None]:
        if dr is None or factor is None:  # only the gate's value was used, not the rescaled map
            if dz is None:
                return None, None
            spread = (dz / ctx.positions).to(ctx.dtype).reshape(*dz.shape, *(1,) * (len(ctx.shape) - 2))
            return spread.expand(ctx.shape), None
        shift = torch.zeros_like(factor) if dz is None else dz / ctx.positions
        return _runner("squeeze_backward", ctx.backend)(dr, factor, shift.contiguous()), None


class _Rescale(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        carrier: Tensor,
        mean: Tensor,
        factor: Tensor,
        residual: Tensor | None,
        out_act: str,
        backend: backends.Backend,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.backend, ctx.out_act = backend, out_act
        y, mask = _runner("rescale", backend)(x, residual, factor, out_act, True)
        # Only activations that the backward pass recomputes need the residual.
        ctx.save_for_backward(x, residual if recomputed(OUT_ACT_CODES[out_act]) else None, mask, mean, factor)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 7
        x, residual, mask, mean, factor = ctx.saved_tensors
        dr, p, q = _runner("rescale_backward", ctx.backend)(dy, x, residual, mask, mean, factor, ctx.out_act)
        if not writes_dr(OUT_ACT_CODES[ctx.out_act], True):
            dr = dense_like(dy, x)
        return dr, factor, None, q + mean * p, dr if ctx.needs_input_grad[4] else None, None, None


def squeeze(backend: backends.Backend, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The channel means of a dense x (N, C, *spatial), and the tensors to pass to :func:`rescale`.

    Returns:
        mean (N, C), differentiable; x, which may only be passed to :func:`rescale`; the carrier, or None if x needs no
        gradient.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        mean, x, carrier = _Squeeze.apply(x, backend)
        return mean, x, carrier
    return _runner("squeeze", backend)(x), x, None


def rescale(
    backend: backends.Backend,
    x: Tensor,
    carrier: Tensor | None,
    mean: Tensor,
    factor: Tensor,
    residual: Tensor | None,
    out_act: str,
) -> Tensor:
    """out_act(factor * x + residual), after :func:`squeeze`; factor: (N, C), contiguous, of mean's dtype."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, factor, residual)):
        if carrier is None:
            carrier = mean.detach()
        y: Tensor = _Rescale.apply(x, carrier, mean.detach(), factor, residual, out_act, backend)
        return y
    y, _ = _runner("rescale", backend)(x, residual, factor, out_act, False)
    return y
