"""The operator of batch norm, activation and the mean of the activated map: ``se_fused::batch_norm_act_squeeze``.

    y = out_act(a x + b),   squeezed = mean of y over the positions,   a and b: the coefficients of batch norm

It is composed of a backend's passes, with the arithmetic of :mod:`.excitation` between them, like the composed operator
in :mod:`.batch_norm_squeeze_excite`. The operators mutate nothing: they return the batch's statistics, and
:func:`squeeze` updates the running ones.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..activations import OUT_ACT_CODES
from .dispatch import through_dispatcher
from .double_backward import no_second_derivative
from .excitation import BatchNorm, batch_norm, excitation_backward
from .layout import dense_like, positions
from .moments import accumulation_dtype
from .running import move

__all__ = ["compose_squeeze", "compose_squeeze_backward", "squeeze"]

_library = torch.library.Library("se_fused", "FRAGMENT")  # the operators live as long as this object
_library.define(
    "batch_norm_act_squeeze(Tensor x, Tensor? running_mean, Tensor? running_var, Tensor? bn_weight, Tensor? bn_bias,"
    " bool batch_stats, float eps, str out_act) -> (Tensor y, Tensor squeezed, Tensor mean, Tensor stats)"
)
_library.define(
    "batch_norm_act_squeeze_backward(Tensor dy, Tensor dsqueezed, Tensor x, Tensor mean, Tensor stats,"
    " Tensor? bn_weight, Tensor? bn_bias, bool batch_stats, float eps, str out_act)"
    " -> (Tensor dx, Tensor dbn_weight, Tensor dbn_bias)"
)


def _map(bn: BatchNorm, n: int) -> tuple[Tensor, Tensor]:
    """Batch norm's coefficients as scale and shift (N, C)."""
    return bn.a.expand(n, -1).contiguous(), bn.b.expand(n, -1).contiguous()


def compose_squeeze(
    passes: Any,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    batch_stats: bool,
    eps: float,
    out_act: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``batch_norm_act_squeeze`` from ``passes.moments`` and ``passes.scale_shift_act_mean``."""
    wide = accumulation_dtype(x.dtype)
    if batch_stats:
        m, v = passes.moments(x)
        bn = batch_norm(m, v, positions(x), None, bn_weight, bn_bias, eps)
    else:
        assert running_mean is not None and running_var is not None
        given = (running_mean.to(wide), running_var.to(wide))
        bn = batch_norm(None, None, positions(x), given, bn_weight, bn_bias, eps)
        # Any centre is right for the backward pass, which converts the sums around it to bn.mean.
        m = given[0].repeat(x.shape[0], 1)
    y, squeezed = passes.scale_shift_act_mean(x, *_map(bn, x.shape[0]), OUT_ACT_CODES[out_act])
    return y, squeezed, m, torch.stack([bn.mean, bn.var])


def compose_squeeze_backward(
    passes: Any,
    dy: Tensor,
    dsqueezed: Tensor,
    x: Tensor,
    mean: Tensor,
    stats: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    batch_stats: bool,
    eps: float,
    out_act: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """``batch_norm_act_squeeze_backward`` from the backend's ``scale_shift_act_mean_backward`` and
    ``scale_shift_act_backward``."""
    bn = batch_norm(None, None, positions(x), (stats[0], stats[1]), bn_weight, bn_bias, eps)
    added = (dsqueezed.to(mean.dtype) / positions(x)).contiguous()
    dr, p, q = passes.scale_shift_act_mean_backward(
        dense_like(dy, x), added, x, mean, *_map(bn, x.shape[0]), OUT_ACT_CODES[out_act]
    )
    g = excitation_backward(p, q, mean, None, None, bn, None, None, positions(x), batch_stats)
    assert g.bn_weight is not None and g.bn_bias is not None
    dx: Tensor = passes.scale_shift_act_backward(
        dr, x if batch_stats else None, mean.new_empty(0), mean, g.k1.contiguous(), g.k2.contiguous(), g.k3.contiguous()
    )
    return dx, g.bn_weight, g.bn_bias


# ---- the operators' implementations
def _selected(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return compose_squeeze(backends.select(x.device.type, x.dtype), x, *args)


def _selected_backward(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return compose_squeeze_backward(backends.select(dy.device.type, dy.dtype), dy, *args)


_library.impl("batch_norm_act_squeeze", _selected, "CompositeExplicitAutograd")
_library.impl("batch_norm_act_squeeze_backward", _selected_backward, "CompositeExplicitAutograd")


@torch.library.register_fake("se_fused::batch_norm_act_squeeze", lib=_library)
def _forward_fake(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    n, c = x.shape[:2]

    def floats(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=accumulation_dtype(x.dtype))

    return torch.empty_like(x), floats(n, c), floats(n, c), floats(2, c)


@torch.library.register_fake("se_fused::batch_norm_act_squeeze_backward", lib=_library)
def _backward_fake(dy: Tensor, dsqueezed: Tensor, x: Tensor, mean: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(x), mean.new_empty(x.shape[1]), mean.new_empty(x.shape[1])


# ---- the operators from eager mode and from a graph
def _forward(backend: backends.Backend, running: backends.Running | None, *args: Any) -> tuple[Tensor, ...]:
    """The operator's results. ``running`` is updated before they are returned."""
    if through_dispatcher():
        output: tuple[Tensor, ...] = torch.ops.se_fused.batch_norm_act_squeeze(*args)
    else:
        output = compose_squeeze(backend, *args)
    if running is not None:
        move(running, output[-1])
    return output


def _backward(backend: backends.Backend, *args: Any) -> tuple[Tensor, ...]:
    if through_dispatcher():
        output: tuple[Tensor, ...] = torch.ops.se_fused.batch_norm_act_squeeze_backward(*args)
        return output
    return compose_squeeze_backward(backend, *args)


# ---- autograd, used by the operator's registration and by the Function for eager mode
_TENSORS = 5  # leading tensor arguments of batch_norm_act_squeeze


def _keep(ctx: Any, inputs: Sequence[Any], mean: Tensor, stats: Tensor) -> None:
    x, _, _, bn_weight, bn_bias, *ctx.options = inputs[: _TENSORS + 3]
    ctx.save_for_backward(x, mean, stats, bn_weight, bn_bias)


def _gradients(ctx: Any, dy: Tensor, dsqueezed: Tensor, run: Callable[..., Any]) -> tuple[Tensor | None, ...]:
    x, mean, stats, *parameters = ctx.saved_tensors
    dx, *others = run(dy, dsqueezed, x, mean, stats, *parameters, *ctx.options)
    found = [None if t is None else d.to(t.dtype).reshape(t.shape) for d, t in zip(others, parameters, strict=True)]
    return (dx, None, None, *found, None, None, None)


def _setup_context(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    _keep(ctx, inputs, *output[2:])
    ctx.mark_non_differentiable(*output[2:])


def _operator_backward(ctx: Any, dy: Tensor, dsqueezed: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, dy, dsqueezed, torch.ops.se_fused.batch_norm_act_squeeze_backward)


torch.library.register_autograd(
    "se_fused::batch_norm_act_squeeze", _operator_backward, setup_context=_setup_context, lib=_library
)
torch.library.register_autograd("se_fused::batch_norm_act_squeeze_backward", no_second_derivative, lib=_library)


class _Squeeze(torch.autograd.Function):
    """The operator for eager mode, as in :mod:`.batch_norm_squeeze_excite`."""

    @staticmethod
    def forward(ctx: Any, *args_and_backend: Any) -> tuple[Tensor, ...]:
        *args, (ctx.backend, running) = args_and_backend
        y, squeezed, mean, stats = _forward(ctx.backend, running, *args)
        _keep(ctx, args, mean, stats)
        return y, squeezed

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dsqueezed: Tensor) -> tuple[Tensor | None, ...]:
        # With create_graph=True use the operator, whose autograd formula raises an error for second derivatives.
        eager = partial(_backward, ctx.backend)
        run = torch.ops.se_fused.batch_norm_act_squeeze_backward if torch.is_grad_enabled() else eager
        return (*_gradients(ctx, dy, dsqueezed, run), None)


def squeeze(backend: backends.Backend, running: backends.Running | None, *args: Any) -> tuple[Tensor, Tensor]:
    """y and squeezed of ``batch_norm_act_squeeze``, differentiable. Also updates ``running``."""
    wants_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in args[:_TENSORS])
    if wants_grad and not torch.compiler.is_compiling():
        y, squeezed = _Squeeze.apply(*args, (backend, running))
    else:
        y, squeezed, *_ = _forward(backend, running, *args)
    return y, squeezed
