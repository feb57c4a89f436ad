"""The operator of batch norm, activation and the mean of the activated map: ``se_fused::batch_norm_act_squeeze``.

    y = out_act(a x + b),   squeezed = mean of y over the positions,   a and b: the coefficients of batch norm

A backend with the whole operator runs it in one call. For a backend with only the passes it is composed of them, with
the arithmetic of :mod:`.excitation` between them. Two of the operators mutate nothing: they return the batch's
statistics, and :func:`squeeze` updates the running ones. ``se_fused::batch_norm_act_squeeze_train`` updates them itself
(:mod:`.updating`).
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
from .running import update, with_update
from .updating import define_updating, in_training_graph, with_momentum

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


def compose_squeeze_backward(
    passes: Any,
    dy: Tensor,
    dsqueezed: Tensor,
    x: Tensor,
    mean: Tensor,
    stats: Tensor,
    bn: BatchNormParams,
    out_act: str,
) -> Gradients:
    """``batch_norm_act_squeeze_backward`` from ``passes.scale_shift_act_mean_backward`` and
    ``passes.scale_shift_act_backward``, for dy in the memory order of x and contiguous dsqueezed."""
    norm = batch_norm(bn.with_statistics(stats), mean.dtype, positions(x))
    added = dsqueezed.to(mean.dtype) / positions(x)
    dr, p, q = passes.scale_shift_act_mean_backward(dy, added, x, mean, *_map(norm, x.shape[0]), OUT_ACT_CODES[out_act])
    nothing = mean.new_empty(0)
    saved = SavedTensors(x, nothing, mean, nothing, nothing, stats)
    g = excitation_backward(p, q, saved, norm, NO_EXCITATION, None, bn.batch_stats)
    assert g.bn_weight is not None and g.bn_bias is not None
    dx: Tensor = passes.scale_shift_act_backward(
        dr, x if bn.batch_stats else None, nothing, mean, g.k1.contiguous(), g.k2.contiguous(), g.k3.contiguous()
    )
    return Gradients(dx, g.bn_weight, g.bn_bias)


# ---- a backend's kernels. Tuples have the fields of Squeezed and Gradients: each NamedTuple takes 3,400 instructions
def _kernels_forward(
    backend: backends.Backend, x: Tensor, bn: BatchNormParams, out_act: str, save: bool
) -> tuple[Tensor, ...]:
    """Without ``save`` the mean may be absent, and without ``batch_stats`` the statistics too."""
    if backend.batch_norm_act_squeeze is None:
        return compose_squeeze(backend, x, bn, out_act)
    results: tuple[Tensor, ...] = backend.batch_norm_act_squeeze(x, bn, out_act, save)
    return results


def _call_forward(
    backend: backends.Backend, x: Tensor, bn: BatchNormParams, out_act: str, save: bool
) -> tuple[Tensor, ...]:
    """The results by a backend's kernels. Running statistics are updated before they are returned."""
    return with_update(
        backend.batch_norm_act_squeeze, bn, x, lambda norm: _kernels_forward(backend, x, norm, out_act, save)
    )


def _call_backward(
    backend: backends.Backend,
    dy: Tensor,
    dsqueezed: Tensor,
    x: Tensor,
    mean: Tensor,
    stats: Tensor,
    bn: BatchNormParams,
    out_act: str,
) -> tuple[Tensor, ...]:
    # A gradient may have any strides: expanded by a sum, transposed by a loss.
    dy, dsqueezed = dense_like(dy, x), dsqueezed.contiguous()
    if backend.batch_norm_act_squeeze_backward is None:
        return compose_squeeze_backward(backend, dy, dsqueezed, x, mean, stats, bn, out_act)
    gradients: tuple[Tensor, ...] = backend.batch_norm_act_squeeze_backward(dy, dsqueezed, x, mean, stats, bn, out_act)
    return gradients


# ---- the operators
def _params(a: ForwardArguments) -> BatchNormParams:
    # Kernels update running statistics that they get with batch_stats, and the operator mutates nothing.
    running = (None, None) if a.batch_stats else (a.running_mean, a.running_var)
    return BatchNormParams(*running, a.bn_weight, a.bn_bias, a.batch_stats, 0.0, a.eps)


def _operator_forward(a: ForwardArguments) -> Squeezed:
    return Squeezed(*_kernels_forward(backends.select(a.x.device.type, a.x.dtype), a.x, _params(a), a.out_act, True))


def _operator_train(a: Any) -> Squeezed:
    bn = BatchNormParams(a.running_mean, a.running_var, a.bn_weight, a.bn_bias, True, a.momentum, a.eps)
    return Squeezed(*_call_forward(backends.select(a.x.device.type, a.x.dtype), a.x, bn, a.out_act, True))


def _operator_backward(a: BackwardArguments) -> Gradients:
    bn = BatchNormParams(None, None, a.bn_weight, a.bn_bias, a.batch_stats, 0.0, a.eps)
    backend = backends.select(a.dy.device.type, a.dy.dtype)
    return Gradients(*_call_backward(backend, a.dy, a.dsqueezed, a.x, a.mean, a.stats, bn, a.out_act))


def _fake_forward(a: ForwardArguments) -> Squeezed:
    n, c = a.x.shape[:2]

    def floats(*shape: int) -> Tensor:
        return a.x.new_empty(shape, dtype=accumulation_dtype(a.x.dtype))

    return Squeezed(torch.empty_like(a.x), floats(n, c), floats(n, c), floats(2, c))


def _fake_backward(a: BackwardArguments) -> Gradients:
    c = a.x.shape[1]
    return Gradients(torch.empty_like(a.x), a.mean.new_empty(c), a.mean.new_empty(c))


define("batch_norm_act_squeeze", ForwardArguments, Squeezed, _operator_forward, _fake_forward, True)
define("batch_norm_act_squeeze_backward", BackwardArguments, Gradients, _operator_backward, _fake_backward, True)


# ---- the operators from eager mode and from a graph
def _through_operator_forward(x: Tensor, bn: BatchNormParams, out_act: str) -> tuple[Tensor, ...]:
    """The results of the operator: of the one that updates the running statistics, if there are any to update."""
    given = ForwardArguments(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.batch_stats, bn.eps, out_act)
    results: tuple[Tensor, ...]
    if bn.updates:
        results = torch.ops.se_fused.batch_norm_act_squeeze_train(*given, bn.momentum)
    else:
        results = torch.ops.se_fused.batch_norm_act_squeeze(*given)
    return results


def _through_operator_backward(
    dy: Tensor, dsqueezed: Tensor, x: Tensor, mean: Tensor, stats: Tensor, bn: BatchNormParams, out_act: str
) -> tuple[Tensor, ...]:
    given = BackwardArguments(dy, dsqueezed, x, mean, stats, bn.weight, bn.bias, bn.batch_stats, bn.eps, out_act)
    gradients: tuple[Tensor, ...] = torch.ops.se_fused.batch_norm_act_squeeze_backward(*given)
    return gradients


def _forward(backend: backends.Backend, x: Tensor, bn: BatchNormParams, out_act: str, save: bool) -> tuple[Tensor, ...]:
    """The results of the forward pass. Running statistics are updated before they are returned."""
    if not through_dispatcher():
        return _call_forward(backend, x, bn, out_act, save)
    if not bn.updates or in_training_graph():
        return _through_operator_forward(x, bn, out_act)
    results = _through_operator_forward(x, bn.without_running(), out_act)
    update(bn, results[3], x)
    return results


def _backward(backend: backends.Backend, *given: Any) -> tuple[Tensor, ...]:
    return _through_operator_backward(*given) if through_dispatcher() else _call_backward(backend, *given)


# ---- autograd, used by the operator's registration and by the Function for eager mode
def _keep(ctx: Any, x: Tensor, mean: Tensor, stats: Tensor, bn: BatchNormParams, out_act: str) -> None:
    ctx.save_for_backward(x, mean, stats, bn.weight, bn.bias)
    ctx.options = (bn.batch_stats, bn.eps, out_act)


def _gradients(
    ctx: Any, dy: Tensor, dsqueezed: Tensor, run: Callable[..., tuple[Tensor, ...]]
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight and bias; autograd converts them to the parameters' dtypes."""
    x, mean, stats, weight, bias = ctx.saved_tensors
    batch_stats, eps, out_act = ctx.options
    bn = BatchNormParams(None, None, weight, bias, batch_stats, 0.0, eps)
    dx, dweight, dbias = run(dy, dsqueezed, x, mean, stats, bn, out_act)
    return (
        dx,
        None if weight is None else dweight.reshape(weight.shape),
        None if bias is None else dbias.reshape(bias.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given, results = ForwardArguments(*inputs), Squeezed(*output)
    _keep(ctx, given.x, results.mean, results.stats, _params(given), given.out_act)
    ctx.mark_non_differentiable(results.mean, results.stats)


def _operator_gradients(ctx: Any, dy: Tensor, dsqueezed: Tensor, *_: Any) -> tuple[Any, ...]:
    dx, dweight, dbias = _gradients(ctx, dy, dsqueezed, _through_operator_backward)
    statistics = options = None
    return dx, statistics, statistics, dweight, dbias, options, options, options


register_autograd("batch_norm_act_squeeze", _operator_gradients, _setup_context)
register_autograd("batch_norm_act_squeeze_backward", no_second_derivative)
define_updating(
    "batch_norm_act_squeeze_train",
    with_momentum(ForwardArguments),
    Squeezed,
    _operator_train,
    _fake_forward,
    _setup_context,
    _operator_gradients,
)


class _Squeeze(torch.autograd.Function):
    """The operator for eager mode, as in :mod:`.batch_norm_squeeze_excite`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        backend: backends.Backend,
        bn: BatchNormParams,
        out_act: str,
    ) -> tuple[Tensor, Tensor]:
        ctx.backend = backend
        y, squeezed, mean, stats = _forward(backend, x, bn, out_act, True)
        _keep(ctx, x, mean, stats, bn, out_act)
        return y, squeezed

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dsqueezed: Tensor) -> tuple[Tensor | None, ...]:
        # With create_graph=True use the operator, whose autograd formula raises an error for second derivatives.
        run = _through_operator_backward if torch.is_grad_enabled() else partial(_backward, ctx.backend)
        return *_gradients(ctx, dy, dsqueezed, run), None, None, None


def _wants_grad(x: Tensor, bn: BatchNormParams) -> bool:
    weight, bias = bn.weight, bn.bias
    return x.requires_grad or (weight is not None and weight.requires_grad) or (bias is not None and bias.requires_grad)


def squeeze(backend: backends.Backend, x: Tensor, bn: BatchNormParams, out_act: str) -> tuple[Tensor, Tensor]:
    """y and squeezed of ``batch_norm_act_squeeze``, differentiable. Updates running statistics with ``batch_stats``."""
    wants_grad = torch.is_grad_enabled() and _wants_grad(x, bn)
    if wants_grad and not torch.compiler.is_compiling():
        y, squeezed = _Squeeze.apply(x, bn.weight, bn.bias, backend, bn, out_act)
    else:
        y, squeezed, _, _ = _forward(backend, x, bn, out_act, wants_grad)
    return y, squeezed
