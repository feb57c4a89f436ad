"""The main operator: y = out_act(d * SE(BN(x)) + residual), with batch norm and squeeze-excite optional.

Two operators, ``se_fused::batch_norm_squeeze_excite_forward`` and ``se_fused::batch_norm_squeeze_excite_backward``, are
the boundary for ``torch.compile`` and export; the backend is chosen inside them. A backend with the whole operator runs
it in one call. For a backend with only the passes it is composed (:mod:`.compose`).

These operators mutate nothing: they return the batch's statistics, and :func:`batch_norm_squeeze_excite` updates the
running ones. A third one, ``se_fused::batch_norm_squeeze_excite_train``, updates them itself: torch.compile's graphs
have it (:mod:`.updating`). In inference, eager mode may write y over x if the caller permits it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from .._params import BatchNormParams, BlockOptions, ExcitationParams, Gradients, Results, SavedTensors
from ..activations import OUT_ACT_CODES, keeps_mask, writes_dr
from .block_gradients import gradients, keep
from .compose import compose_backward, compose_forward
from .layout import dense_like, mask_numel
from .moments import accumulation_dtype
from .operators import define, no_second_derivative, register_autograd, through_dispatcher
from .running import update, with_update
from .updating import define_updating, in_training_graph, with_momentum

__all__ = [
    "BackwardArguments",
    "ForwardArguments",
    "TrainArguments",
    "batch_norm_squeeze_excite",
    "call_backward",
    "call_forward",
]


# ---- the operators' arguments
class ForwardArguments(NamedTuple):
    """Arguments of ``batch_norm_squeeze_excite_forward``. Programs that were exported contain them in this order."""

    x: Tensor
    residual: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    bn_weight: Tensor | None
    bn_bias: Tensor | None
    fc1_weight: Tensor | None
    fc1_bias: Tensor | None
    fc2_weight: Tensor | None
    fc2_bias: Tensor | None
    drop_path_scale: Tensor | None
    batch_stats: bool
    eps: float
    act: str
    gate: str
    out_act: str
    save: bool


TrainArguments = with_momentum(ForwardArguments)
"""Arguments of ``batch_norm_squeeze_excite_train``."""


class BackwardArguments(NamedTuple):
    """Arguments of ``batch_norm_squeeze_excite_backward``; ``residual`` only if the backward pass needs it."""

    dy: Tensor
    x: Tensor
    residual: Tensor | None
    mask: Tensor
    mean: Tensor
    factor: Tensor
    hidden: Tensor
    stats: Tensor
    bn_weight: Tensor | None
    bn_bias: Tensor | None
    fc1_weight: Tensor | None
    fc2_weight: Tensor | None
    drop_path_scale: Tensor | None
    batch_stats: bool
    eps: float
    act: str
    gate: str
    out_act: str
    want_dr: bool


def _forward_records(a: ForwardArguments) -> tuple[BatchNormParams, ExcitationParams, BlockOptions]:
    # Kernels update running statistics that they get with batch_stats, and the operator mutates nothing.
    running = (None, None) if a.batch_stats else (a.running_mean, a.running_var)
    return (
        BatchNormParams(*running, a.bn_weight, a.bn_bias, a.batch_stats, 0.0, a.eps),
        ExcitationParams(a.fc1_weight, a.fc1_bias, a.fc2_weight, a.fc2_bias, a.act, a.gate),
        BlockOptions(a.residual, a.drop_path_scale, a.out_act),
    )


def _backward_records(
    a: BackwardArguments,
) -> tuple[SavedTensors, BatchNormParams, ExcitationParams, BlockOptions]:
    return (
        SavedTensors(a.x, a.mask, a.mean, a.factor, a.hidden, a.stats),
        BatchNormParams(None, None, a.bn_weight, a.bn_bias, a.batch_stats, 0.0, a.eps),
        ExcitationParams(a.fc1_weight, None, a.fc2_weight, None, a.act, a.gate),
        BlockOptions(a.residual, a.drop_path_scale, a.out_act),
    )


# ---- a backend's kernels
def _kernels_forward(
    backend: backends.Backend, x: Tensor, bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions, save: bool
) -> Results:
    if backend.batch_norm_squeeze_excite_forward is None:
        return compose_forward(backend, x, bn, fc, options, save)
    results: Results = backend.batch_norm_squeeze_excite_forward(x, bn, fc, options, save)
    return results


def call_forward(
    backend: backends.Backend, x: Tensor, bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions, save: bool
) -> Results:
    """The results of the forward pass by a backend's kernels. Running statistics are updated before they are
    returned."""
    return with_update(
        backend.batch_norm_squeeze_excite_forward, bn, x,
        lambda norm: _kernels_forward(backend, x, norm, fc, options, save),
    )  # fmt: skip


def call_backward(
    backend: backends.Backend,
    dy: Tensor,
    saved: SavedTensors,
    bn: BatchNormParams,
    fc: ExcitationParams,
    options: BlockOptions,
    want_dr: bool,
) -> Gradients:
    """The results of the backward pass by a backend's kernels."""
    dy = dense_like(dy, saved.x)  # a gradient may have any strides: expanded by a sum, transposed by a loss
    if backend.batch_norm_squeeze_excite_backward is None:
        return compose_backward(backend, dy, saved, bn, fc, options, want_dr)
    gradients: Gradients = backend.batch_norm_squeeze_excite_backward(dy, saved, bn, fc, options, want_dr)
    return gradients


# ---- the operators
def _distinct(results: Iterable[Tensor]) -> Iterator[Tensor]:
    """Absent results may share one empty tensor, but an operator's results must be distinct tensors."""
    return (t if t.numel() else t.new_empty(0) for t in results)


def _operator_forward(a: ForwardArguments) -> Results:
    results = _kernels_forward(backends.select(a.x.device.type, a.x.dtype), a.x, *_forward_records(a), a.save)
    return Results(*_distinct(results))


def _operator_train(a: Any) -> Results:
    _, fc, options = _forward_records(a)
    bn = BatchNormParams(a.running_mean, a.running_var, a.bn_weight, a.bn_bias, True, a.momentum, a.eps)
    return Results(*_distinct(call_forward(backends.select(a.x.device.type, a.x.dtype), a.x, bn, fc, options, a.save)))


def _operator_backward(a: BackwardArguments) -> Gradients:
    found = call_backward(backends.select(a.x.device.type, a.x.dtype), a.dy, *_backward_records(a), a.want_dr)
    wide = a.mean.dtype  # a backend may return a parameter's gradient in the parameter's dtype
    dx, dr, *parameters = _distinct(found)
    return Gradients(dx, dr, *(t.to(wide) for t in parameters))


def _fake_forward(a: ForwardArguments) -> Results:
    n, c = a.x.shape[:2]
    bn, fc, _ = _forward_records(a)

    def new(wanted: bool, *shape: Any) -> Tensor:
        return a.x.new_empty(shape if wanted else 0, dtype=accumulation_dtype(a.x.dtype))

    excites = a.save and fc.fc1_weight is not None
    has_mask = a.save and keeps_mask(OUT_ACT_CODES[a.out_act])
    return Results(
        y=torch.empty_like(a.x),
        mask=a.x.new_empty(mask_numel(a.x), dtype=torch.uint8) if has_mask else new(False),
        mean=new(a.save, n, c),
        factor=new(excites, n, c),
        hidden=new(excites, n, fc.squeezed),
        stats=new(bn.present and (a.save or a.batch_stats), 2, c),
    )


def _fake_backward(a: BackwardArguments) -> Gradients:
    c = a.x.shape[1]
    has_bn, excites = a.stats.numel() > 0, a.fc1_weight is not None
    r = 0 if a.fc1_weight is None else a.fc1_weight.shape[0]

    def new(wanted: bool, *shape: Any) -> Tensor:
        return a.mean.new_empty(shape if wanted else 0)

    return Gradients(
        dx=torch.empty_like(a.x),
        dr=torch.empty_like(a.x) if writes_dr(OUT_ACT_CODES[a.out_act], a.want_dr) else new(False),
        dbn_weight=new(has_bn, c),
        dbn_bias=new(has_bn, c),
        dfc1_weight=new(excites, r, c),
        dfc1_bias=new(excites, r),
        dfc2_weight=new(excites, c, r),
        dfc2_bias=new(excites, c),
    )


define("batch_norm_squeeze_excite_forward", ForwardArguments, Results, _operator_forward, _fake_forward, True)
define("batch_norm_squeeze_excite_backward", BackwardArguments, Gradients, _operator_backward, _fake_backward, True)


def _through_operator_forward(
    x: Tensor, bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions, save: bool
) -> Results:
    """The results of the operator: of the one that updates the running statistics, if there are any to update."""
    given = ForwardArguments(
        x, options.residual, bn.running_mean, bn.running_var, bn.weight, bn.bias, fc.fc1_weight, fc.fc1_bias,
        fc.fc2_weight, fc.fc2_bias, options.drop_path_scale, bn.batch_stats, bn.eps, fc.act, fc.gate, options.out_act,
        save,
    )  # fmt: skip
    if bn.updates:
        return Results(*torch.ops.se_fused.batch_norm_squeeze_excite_train(*given, bn.momentum))
    return Results(*torch.ops.se_fused.batch_norm_squeeze_excite_forward(*given))


def _through_operator_backward(
    dy: Tensor, saved: SavedTensors, bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions, want_dr: bool
) -> Gradients:
    given = BackwardArguments(
        dy, saved.x, options.residual, saved.mask, saved.mean, saved.factor, saved.hidden, saved.stats, bn.weight,
        bn.bias, fc.fc1_weight, fc.fc2_weight, options.drop_path_scale, bn.batch_stats, bn.eps, fc.act, fc.gate,
        options.out_act, want_dr,
    )  # fmt: skip
    return Gradients(*torch.ops.se_fused.batch_norm_squeeze_excite_backward(*given))


# ---- the operators from eager mode and from a graph
def _forward(
    backend: backends.Backend,
    x: Tensor,
    bn: BatchNormParams,
    fc: ExcitationParams,
    options: BlockOptions,
    save: bool,
    through: bool,
) -> Results:
    """The results of the forward pass. Running statistics are updated before they are returned."""
    if not through:
        return call_forward(backend, x, bn, fc, options, save)
    if not bn.updates or in_training_graph():
        return _through_operator_forward(x, bn, fc, options, save)
    results = _through_operator_forward(x, bn.without_running(), fc, options, save)
    update(bn, results.stats, x)
    return results


def _backward(
    backend: backends.Backend,
    dy: Tensor,
    saved: SavedTensors,
    bn: BatchNormParams,
    fc: ExcitationParams,
    options: BlockOptions,
    want_dr: bool,
) -> Gradients:
    if through_dispatcher():
        return _through_operator_backward(dy, saved, bn, fc, options, want_dr)
    return call_backward(backend, dy, saved, bn, fc, options, want_dr)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given, results = ForwardArguments(*inputs), Results(*output)
    if not given.save:
        raise RuntimeError(
            "se_fused::batch_norm_squeeze_excite_forward was called with save=False on inputs that require a gradient: "
            "a program exported under torch.no_grad() must also run under torch.no_grad()"
        )
    keep(ctx, given.x, *_forward_records(given), results)
    ctx.mark_non_differentiable(results.mask, results.mean, results.factor, results.hidden, results.stats)


def _operator_gradients(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Any, ...]:
    found = gradients(ctx, dy, _through_operator_backward)
    dx, dr, dbn_weight, dbn_bias, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias = found
    statistics = options = None
    return (
        dx, dr, statistics, statistics, dbn_weight, dbn_bias, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias, options,
        options, options, options, options, options, options,
    )  # fmt: skip


register_autograd("batch_norm_squeeze_excite_forward", _operator_gradients, _setup_context)
register_autograd("batch_norm_squeeze_excite_backward", no_second_derivative)
define_updating(
    "batch_norm_squeeze_excite_train",
    TrainArguments,
    Results,
    _operator_train,
    _fake_forward,
    _setup_context,
    _operator_gradients,
)


@dataclass(slots=True, eq=False)
class _Call:
    """What the Function below needs beside the tensors that have a gradient."""

    backend: backends.Backend
    bn: BatchNormParams
    fc: ExcitationParams
    options: BlockOptions
    through: bool


class _BatchNormSqueezeExcite(torch.autograd.Function):
    """The operator for eager mode, without the dispatcher and without a second autograd node in the backward pass. It
    saves 60 us per call, and several times that in a network, whose convolutions evict Python's data from the
    caches."""

    # setup_context is needed only for torch.func, and costs an inspect.signature per call.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        bn_weight: Tensor | None,
        bn_bias: Tensor | None,
        fc1_weight: Tensor | None,
        fc1_bias: Tensor | None,
        fc2_weight: Tensor | None,
        fc2_bias: Tensor | None,
        call: _Call,
    ) -> Tensor:
        bn, fc, options = call.bn, call.fc, call.options
        ctx.backend = call.backend
        results = _forward(call.backend, x, bn, fc, options, True, call.through)
        keep(ctx, x, bn, fc, options, results)
        return results.y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        # With create_graph=True use the operator, whose autograd formula raises an error for second derivatives.
        run = _through_operator_backward if torch.is_grad_enabled() else partial(_backward, ctx.backend)
        return *gradients(ctx, dy, run), None


def _wants_grad(x: Tensor, bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions) -> bool:
    for t in (x, options.residual, bn.weight, bn.bias, fc.fc1_weight, fc.fc1_bias, fc.fc2_weight, fc.fc2_bias):
        if t is not None and t.requires_grad:
            return True
    return False


def batch_norm_squeeze_excite(
    backend: backends.Backend,
    x: Tensor,
    bn: BatchNormParams,
    fc: ExcitationParams,
    options: BlockOptions,
    inplace: bool,
    through: bool,
) -> Tensor:
    """The block's result y, differentiable.

    Eager mode calls ``backend`` directly, without the operator's wrapper. Graphs and dispatch modes use the operator,
    which selects a backend itself. Running statistics are updated with ``batch_stats``: by the kernels if they can,
    else by PyTorch; in exported programs and under dispatch modes by PyTorch after the operator.

    Args:
        backend: the backend whose kernels run.
        x: (N, C, *spatial), dense.
        bn, fc, options: checked, in the form that the kernels need.
        inplace: permits y to share x's memory in inference.
        through: :func:`.through_dispatcher`, which the caller has tested.
    """
    wants_grad = torch.is_grad_enabled() and _wants_grad(x, bn, fc, options)
    in_graph = through and torch.compiler.is_compiling()
    if wants_grad and not in_graph:  # in a graph the operator has its own gradient
        y: Tensor = _BatchNormSqueezeExcite.apply(
            x, options.residual, bn.weight, bn.bias, fc.fc1_weight, fc.fc1_bias, fc.fc2_weight, fc.fc2_bias,
            _Call(backend, bn, fc, options, through),
        )  # fmt: skip
        return y
    if bn.batch_stats or backend.batch_norm_squeeze_excite_inference is None or through:
        return _forward(backend, x, bn, fc, options, wants_grad, through).y
    y = x if inplace else torch.empty_like(x)
    backend.batch_norm_squeeze_excite_inference(x, bn, fc, options, y)
    return y
