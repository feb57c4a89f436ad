"""The operator of batch norm, activation and the mean of the activated map: ``se_fused::batch_norm_act_squeeze``.

    y = out_act(a x + b),   squeezed = mean of y over the positions,   a and b: the coefficients of batch norm

It is composed of a backend's passes, with the arithmetic of :mod:`.excitation` between them, like the composed operator
in :mod:`.batch_norm_squeeze_excite`. The operators mutate nothing: they return the batch's statistics, and
:func:`squeeze` updates the running ones.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from .._params import NO_EXCITATION, BatchNormParams, SavedTensors
from ..activations import OUT_ACT_CODES
from .excitation import BatchNorm, batch_norm, excitation_backward
from .layout import dense_like, positions
from .moments import accumulation_dtype
from .operators import define, no_second_derivative, register_autograd, through_dispatcher
from .running import update

__all__ = ["BackwardArguments", "ForwardArguments", "compose_squeeze", "compose_squeeze_backward", "squeeze"]


# ---- the operators' arguments and results
class ForwardArguments(NamedTuple):
    """Arguments of ``batch_norm_act_squeeze``."""

    x: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    bn_weight: Tensor | None
    bn_bias: Tensor | None
    batch_stats: bool
    eps: float
    out_act: str


class Squeezed(NamedTuple):
    """Results of ``batch_norm_act_squeeze``: y, its means, and what the backward pass needs."""

    y: Tensor
    squeezed: Tensor  # (N, C)
    mean: Tensor  # (N, C), the centre of the backward pass's sums
    stats: Tensor  # (2, C) the mean and biased variance that normalised


class BackwardArguments(NamedTuple):
    """Arguments of ``batch_norm_act_squeeze_backward``."""

    dy: Tensor
    dsqueezed: Tensor
    x: Tensor
    mean: Tensor
    stats: Tensor
    bn_weight: Tensor | None
    bn_bias: Tensor | None
    batch_stats: bool
    eps: float
    out_act: str


class Gradients(NamedTuple):
    """Results of ``batch_norm_act_squeeze_backward``."""

    dx: Tensor
    dbn_weight: Tensor
    dbn_bias: Tensor


def _map(norm: BatchNorm, n: int) -> tuple[Tensor, Tensor]:
    """Batch norm's coefficients as scale and shift (N, C)."""
    return norm.a.expand(n, -1).contiguous(), norm.b.expand(n, -1).contiguous()


def compose_squeeze(passes: Any, x: Tensor, bn: BatchNormParams, out_act: str) -> Squeezed:
    """``batch_norm_act_squeeze`` from ``passes.moments`` and ``passes.scale_shift_act_mean``."""
    wide = accumulation_dtype(x.dtype)
    if bn.batch_stats:
        m, v = passes.moments(x)
        norm = batch_norm(bn, wide, positions(x), m, v)
    else:
        norm = batch_norm(bn, wide, positions(x))
        # Any centre is right for the backward pass, which converts the sums around it to the norm's mean.
        m = norm.mean.repeat(x.shape[0], 1)
    y, squeezed = passes.scale_shift_act_mean(x, *_map(norm, x.shape[0]), OUT_ACT_CODES[out_act])
    return Squeezed(y, squeezed, m, torch.stack([norm.mean, norm.var]))


def compose_squeeze_backward(passes: Any, a: BackwardArguments) -> Gradients:
    """``batch_norm_act_squeeze_backward`` from the backend's ``scale_shift_act_mean_backward`` and
    ``scale_shift_act_backward``."""
    x, mean = a.x, a.mean
    bn = BatchNormParams(None, None, a.bn_weight, a.bn_bias, a.batch_stats, 0.0, a.eps)
    norm = batch_norm(bn.with_statistics(a.stats), mean.dtype, positions(x))
    added = (a.dsqueezed.to(mean.dtype) / positions(x)).contiguous()
    dr, p, q = passes.scale_shift_act_mean_backward(
        dense_like(a.dy, x), added, x, mean, *_map(norm, x.shape[0]), OUT_ACT_CODES[a.out_act]
    )
    nothing = mean.new_empty(0)
    saved = SavedTensors(x, nothing, mean, nothing, nothing, a.stats)
    g = excitation_backward(p, q, saved, norm, NO_EXCITATION, None, a.batch_stats)
    assert g.bn_weight is not None and g.bn_bias is not None
    dx: Tensor = passes.scale_shift_act_backward(
        dr, x if a.batch_stats else None, nothing, mean, g.k1.contiguous(), g.k2.contiguous(), g.k3.contiguous()
    )
    return Gradients(dx, g.bn_weight, g.bn_bias)


# ---- the operators
def _params(a: ForwardArguments) -> BatchNormParams:
    return BatchNormParams(a.running_mean, a.running_var, a.bn_weight, a.bn_bias, a.batch_stats, 0.0, a.eps)


def _operator_forward(a: ForwardArguments) -> Squeezed:
    return compose_squeeze(backends.select(a.x.device.type, a.x.dtype), a.x, _params(a), a.out_act)


def _operator_backward(a: BackwardArguments) -> Gradients:
    return compose_squeeze_backward(backends.select(a.dy.device.type, a.dy.dtype), a)


def _fake_forward(a: ForwardArguments) -> Squeezed:
    n, c = a.x.shape[:2]

    def floats(*shape: int) -> Tensor:
        return a.x.new_empty(shape, dtype=accumulation_dtype(a.x.dtype))

    return Squeezed(torch.empty_like(a.x), floats(n, c), floats(n, c), floats(2, c))


def _fake_backward(a: BackwardArguments) -> Gradients:
    c = a.x.shape[1]
    return Gradients(torch.empty_like(a.x), a.mean.new_empty(c), a.mean.new_empty(c))


define("batch_norm_act_squeeze", ForwardArguments, Squeezed, _operator_forward, _fake_forward)
define("batch_norm_act_squeeze_backward", BackwardArguments, Gradients, _operator_backward, _fake_backward)


# ---- the operators from eager mode and from a graph
def _forward(backend: backends.Backend, x: Tensor, bn: BatchNormParams, out_act: str) -> Squeezed:
    """The operator's results. Running statistics are updated before they are returned."""
    if through_dispatcher():
        given = bn.without_running() if bn.batch_stats else bn
        results = Squeezed(
            *torch.ops.se_fused.batch_norm_act_squeeze(
                x, given.running_mean, given.running_var, given.weight, given.bias, given.batch_stats, given.eps,
                out_act,
            )
        )  # fmt: skip
    else:
        results = compose_squeeze(backend, x, bn, out_act)
    if bn.updates:
        update(bn, results.stats, x)
    return results


def _through_operator_backward(a: BackwardArguments) -> Gradients:
    return Gradients(*torch.ops.se_fused.batch_norm_act_squeeze_backward(*a))


def _backward(backend: backends.Backend, a: BackwardArguments) -> Gradients:
    return _through_operator_backward(a) if through_dispatcher() else compose_squeeze_backward(backend, a)


# ---- autograd, used by the operator's registration and by the Function for eager mode
def _keep(ctx: Any, x: Tensor, bn: BatchNormParams, out_act: str, results: Squeezed) -> None:
    ctx.save_for_backward(x, results.mean, results.stats, bn.weight, bn.bias)
    ctx.options = (bn.batch_stats, bn.eps, out_act)


def _gradients(
    ctx: Any, dy: Tensor, dsqueezed: Tensor, run: Callable[[BackwardArguments], Gradients]
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight and bias; autograd converts them to the parameters' dtypes."""
    x, mean, stats, weight, bias = ctx.saved_tensors
    found = run(BackwardArguments(dy, dsqueezed, x, mean, stats, weight, bias, *ctx.options))
    return (
        found.dx,
        None if weight is None else found.dbn_weight.reshape(weight.shape),
        None if bias is None else found.dbn_bias.reshape(bias.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given, results = ForwardArguments(*inputs), Squeezed(*output)
    _keep(ctx, given.x, _params(given), given.out_act, results)
    ctx.mark_non_differentiable(results.mean, results.stats)


def _operator_gradients(ctx: Any, dy: Tensor, dsqueezed: Tensor, *_: Any) -> tuple[Any, ...]:
    dx, dweight, dbias = _gradients(ctx, dy, dsqueezed, _through_operator_backward)
    statistics = options = None
    return dx, statistics, statistics, dweight, dbias, options, options, options


register_autograd("batch_norm_act_squeeze", _operator_gradients, _setup_context)
register_autograd("batch_norm_act_squeeze_backward", no_second_derivative)


class _Call(NamedTuple):
    """What the Function below needs beside the tensors that have a gradient."""

    backend: backends.Backend
    bn: BatchNormParams
    out_act: str


class _Squeeze(torch.autograd.Function):
    """The operator for eager mode, as in :mod:`.batch_norm_squeeze_excite`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, call: _Call) -> tuple[Tensor, Tensor]:
        ctx.backend, bn, out_act = call
        results = _forward(ctx.backend, x, bn, out_act)
        _keep(ctx, x, bn, out_act, results)
        return results.y, results.squeezed

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dsqueezed: Tensor) -> tuple[Tensor | None, ...]:
        # With create_graph=True use the operator, whose autograd formula raises an error for second derivatives.
        run = _through_operator_backward if torch.is_grad_enabled() else partial(_backward, ctx.backend)
        return *_gradients(ctx, dy, dsqueezed, run), None


def squeeze(backend: backends.Backend, x: Tensor, bn: BatchNormParams, out_act: str) -> tuple[Tensor, Tensor]:
    """y and squeezed of ``batch_norm_act_squeeze``, differentiable. Updates running statistics with ``batch_stats``."""
    wants_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, bn.weight, bn.bias))
    if wants_grad and not torch.compiler.is_compiling():
        y, squeezed = _Squeeze.apply(x, bn.weight, bn.bias, _Call(backend, bn, out_act))
        return y, squeezed
    results = _forward(backend, x, bn, out_act)
    return results.y, results.squeezed
