"""The main operator: y = out_act(d * SE(BN(x)) + residual), with batch norm and squeeze-excite optional.

Two operators, ``se_fused::batch_norm_squeeze_excite_forward`` and ``se_fused::batch_norm_squeeze_excite_backward``, are
the boundary for ``torch.compile`` and export; the backend is chosen inside them. A backend with the whole operator runs
it in one call. For a backend with only the passes it is composed here, with the arithmetic of
:mod:`se_fused.ops.excitation` between the passes.

The operators mutate nothing: they return the batch's statistics, and :func:`batch_norm_squeeze_excite` updates the
running ones. In inference, eager mode may write y over x if the caller permits it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..activations import ACT_CODES, GATE_CODES, OUT_ACT_CODES, keeps_mask, recomputed, writes_dr
from .dispatch import through_dispatcher
from .double_backward import no_second_derivative
from .excitation import BatchNorm, ExcitationLayers, batch_norm, excitation, excitation_backward
from .layout import dense_like, mask_numel, positions
from .moments import accumulation_dtype
from .running import move, moved_by_kernels

__all__ = ["batch_norm_squeeze_excite", "compose_backward", "compose_forward"]

_FORWARD = """batch_norm_squeeze_excite_forward(Tensor x, Tensor? residual, Tensor? running_mean, Tensor? running_var,
    Tensor? bn_weight, Tensor? bn_bias, Tensor? fc1_weight, Tensor? fc1_bias, Tensor? fc2_weight, Tensor? fc2_bias,
    Tensor? drop_path_scale, bool batch_stats, float eps, str act, str gate, str out_act, bool save)
    -> (Tensor y, Tensor mask, Tensor mean, Tensor factor, Tensor hidden, Tensor stats)"""
_BACKWARD = """batch_norm_squeeze_excite_backward(Tensor dy, Tensor x, Tensor? residual, Tensor mask, Tensor mean,
    Tensor factor, Tensor hidden, Tensor stats, Tensor? bn_weight, Tensor? bn_bias, Tensor? fc1_weight,
    Tensor? fc2_weight, Tensor? drop_path_scale, bool batch_stats, float eps, str act, str gate, str out_act,
    bool want_dr)
    -> (Tensor dx, Tensor dr, Tensor dbn_weight, Tensor dbn_bias, Tensor dfc1_weight, Tensor dfc1_bias,
    Tensor dfc2_weight, Tensor dfc2_bias)"""

_library = torch.library.Library("se_fused", "DEF")  # the operators live as long as this object
_library.define(" ".join(_FORWARD.split()))
_library.define(" ".join(_BACKWARD.split()))


def _some(tensor: Tensor) -> Tensor | None:
    """None for the empty tensor that stands for "absent" in an operator's results."""
    return tensor if tensor.numel() else None


def _or_empty(tensor: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if tensor is None else tensor.contiguous()


# ---- composed of passes (a backend's, or the definitions in this package)
def compose_forward(
    passes: Any,
    x: Tensor,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    fc1_weight: Tensor | None,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor | None,
    fc2_bias: Tensor | None,
    drop_path_scale: Tensor | None,
    batch_stats: bool,
    eps: float,
    act: str,
    gate: str,
    out_act: str,
    save: bool,
) -> tuple[Tensor, ...]:
    """``batch_norm_squeeze_excite_forward`` from ``passes.moments``, :mod:`.excitation` and
    ``passes.scale_shift_act``."""
    m, v = passes.moments(x)
    given = None
    if not batch_stats and running_mean is not None and running_var is not None:
        given = (running_mean.to(m.dtype), running_var.to(m.dtype))
    bn = None
    if batch_stats or given is not None:
        bn = batch_norm(m, v, positions(x), given, bn_weight, bn_bias, eps)
    layers = None
    if fc1_weight is not None and fc2_weight is not None:
        layers = ExcitationLayers(fc1_weight, fc1_bias, fc2_weight, fc2_bias, act, gate)
    scale, shift, factor, hidden = excitation(m, bn, layers, drop_path_scale)
    code = OUT_ACT_CODES[out_act]
    y, mask = passes.scale_shift_act(
        x, residual, scale.contiguous(), shift.contiguous(), code, save and keeps_mask(code)
    )
    nothing = m.new_empty(0)
    stats = nothing if bn is None or not (save or batch_stats) else torch.stack([bn.mean, bn.var])
    if not save:
        return y, nothing, nothing, nothing, nothing, stats
    return y, mask, m, _or_empty(factor, m), _or_empty(hidden, m), stats


def compose_backward(
    passes: Any,
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    mask: Tensor,
    mean: Tensor,
    factor: Tensor,
    hidden: Tensor,
    stats: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    fc1_weight: Tensor | None,
    fc2_weight: Tensor | None,
    drop_path_scale: Tensor | None,
    batch_stats: bool,
    eps: float,
    act: str,
    gate: str,
    out_act: str,
    want_dr: bool,
) -> tuple[Tensor, ...]:
    """``batch_norm_squeeze_excite_backward`` from the backend's ``moments_backward``, :mod:`.excitation` and the
    backend's ``scale_shift_act_backward``."""
    code = OUT_ACT_CODES[out_act]
    bn: BatchNorm | None = None
    if stats.numel():
        bn = batch_norm(None, None, positions(x), (stats[0], stats[1]), bn_weight, bn_bias, eps)
    layers = None
    if fc1_weight is not None and fc2_weight is not None:
        layers = ExcitationLayers(fc1_weight, None, fc2_weight, None, act, gate)
    scale = shift = mean
    if recomputed(code):
        scale = torch.ones_like(mean) if layers is None else factor
        if drop_path_scale is not None:
            scale = scale * drop_path_scale.to(mean.dtype)[:, None]
        scale, shift = (scale, torch.zeros_like(mean)) if bn is None else (scale * bn.a, scale * bn.b)
    write_dr = writes_dr(code, want_dr)
    dr, p, q = passes.moments_backward(
        dy, x, residual, mask, mean, scale.contiguous(), shift.contiguous(), code, write_dr
    )
    g = excitation_backward(
        p, q, mean, _some(factor), _some(hidden), bn, layers, drop_path_scale, positions(x), batch_stats
    )
    dx = passes.scale_shift_act_backward(
        dr if write_dr else dy, x if batch_stats else None,
        mask if keeps_mask(code) and not write_dr else mean.new_empty(0), mean,
        g.k1.contiguous(), g.k2.contiguous(), g.k3.contiguous(),
    )  # fmt: skip
    return (dx, dr, *(_or_empty(t, mean) for t in g[3:]))


# ---- one call of a backend
def _codes(act: str, gate: str, out_act: str) -> tuple[int, int, int]:
    return ACT_CODES[act], GATE_CODES[gate], OUT_ACT_CODES[out_act]


def _call_forward(
    backend: backends.Backend, x: Tensor, *args: Any, running: backends.Running | None = None
) -> tuple[Tensor, ...]:
    if backend.batch_norm_squeeze_excite_forward is None:
        return compose_forward(backend, x, *args)
    *rest, act, gate, out_act, save = args
    more = () if running is None else (running,)
    output: tuple[Tensor, ...] = backend.batch_norm_squeeze_excite_forward(
        x, *rest, *_codes(act, gate, out_act), save, *more
    )
    return output


def _call_backward(backend: backends.Backend, dy: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    dy = dense_like(dy, x)  # a gradient may have any strides: expanded by a sum, transposed by a loss
    if backend.batch_norm_squeeze_excite_backward is None:
        return compose_backward(backend, dy, x, *args)
    *rest, act, gate, out_act, want_dr = args
    gradients: tuple[Tensor, ...] = backend.batch_norm_squeeze_excite_backward(
        dy, x, *rest, *_codes(act, gate, out_act), want_dr
    )
    return gradients


# ---- the operators' implementations
def _batch_norm_squeeze_excite_forward(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    y, *others = _call_forward(backends.select(x.device.type, x.dtype), x, *args)
    # Absent results may share one empty tensor, but an operator's results must be distinct tensors.
    return (y, *(t if t.numel() else t.new_empty(0) for t in others))


def _batch_norm_squeeze_excite_backward(dy: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    dx, dr, *others = _call_backward(backends.select(x.device.type, x.dtype), dy, x, *args)
    wide = args[2].dtype  # of mean; a backend may return a parameter's gradient in the parameter's dtype
    return (dx, dr, *(t.to(wide) for t in others))


_library.impl("batch_norm_squeeze_excite_forward", _batch_norm_squeeze_excite_forward, "CompositeExplicitAutograd")
_library.impl("batch_norm_squeeze_excite_backward", _batch_norm_squeeze_excite_backward, "CompositeExplicitAutograd")


@torch.library.register_fake("se_fused::batch_norm_squeeze_excite_forward", lib=_library)
def _batch_norm_squeeze_excite_forward_fake(
    x: Tensor,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    fc1_weight: Tensor | None,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor | None,
    fc2_bias: Tensor | None,
    drop_path_scale: Tensor | None,
    batch_stats: bool,
    eps: float,
    act: str,
    gate: str,
    out_act: str,
    save: bool,
) -> tuple[Tensor, ...]:
    n, c = x.shape[:2]
    wide = accumulation_dtype(x.dtype)

    def new(wanted: bool, *shape: Any) -> Tensor:
        return x.new_empty(shape if wanted else 0, dtype=wide)

    has_bn = batch_stats or running_mean is not None
    has_excitation = save and fc1_weight is not None
    mask = x.new_empty(mask_numel(x), dtype=torch.uint8) if save and keeps_mask(OUT_ACT_CODES[out_act]) else new(False)
    r = 0 if fc1_weight is None else fc1_weight.shape[0]
    stats = new(has_bn and (save or batch_stats), 2, c)
    return torch.empty_like(x), mask, new(save, n, c), new(has_excitation, n, c), new(has_excitation, n, r), stats


@torch.library.register_fake("se_fused::batch_norm_squeeze_excite_backward", lib=_library)
def _batch_norm_squeeze_excite_backward_fake(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    mask: Tensor,
    mean: Tensor,
    factor: Tensor,
    hidden: Tensor,
    stats: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    fc1_weight: Tensor | None,
    fc2_weight: Tensor | None,
    drop_path_scale: Tensor | None,
    batch_stats: bool,
    eps: float,
    act: str,
    gate: str,
    out_act: str,
    want_dr: bool,
) -> tuple[Tensor, ...]:
    c = x.shape[1]
    write_dr = writes_dr(OUT_ACT_CODES[out_act], want_dr)
    dr = torch.empty_like(x) if write_dr else mean.new_empty(0)
    bn = [mean.new_empty(c if stats.numel() else 0) for _ in range(2)]
    if fc1_weight is None:
        return (torch.empty_like(x), dr, *bn, *(mean.new_empty(0) for _ in range(4)))
    r = fc1_weight.shape[0]
    excitation_gradients = (mean.new_empty(r, c), mean.new_empty(r), mean.new_empty(c, r), mean.new_empty(c))
    return (torch.empty_like(x), dr, *bn, *excitation_gradients)


# ---- the operators from eager mode and from a graph
def _forward(backend: backends.Backend, *args: Any, running: backends.Running | None = None) -> tuple[Tensor, ...]:
    """The results of ``batch_norm_squeeze_excite_forward``. ``running`` is updated before they are returned."""
    by_kernels = None
    if through_dispatcher():
        output: tuple[Tensor, ...] = torch.ops.se_fused.batch_norm_squeeze_excite_forward(*args)
    else:
        by_kernels = moved_by_kernels(backend, running)
        output = _call_forward(backend, *args, running=by_kernels)
    if by_kernels is not None:
        torch.autograd.graph.increment_version((by_kernels.mean, by_kernels.var))
    elif running is not None:
        move(running, output[-1])
    return output


def _backward(backend: backends.Backend, *args: Any) -> tuple[Tensor, ...]:
    if through_dispatcher():
        output: tuple[Tensor, ...] = torch.ops.se_fused.batch_norm_squeeze_excite_backward(*args)
        return output
    return _call_backward(backend, *args)


# ---- autograd, used by the operator's registration and by the Function for eager mode
# Number of leading tensor arguments of the forward operator. All but the statistics and d have a gradient.
_TENSORS = 11


def _keep(ctx: Any, inputs: Sequence[Any], saved: Sequence[Tensor]) -> None:
    """Saves tensors and options for the backward pass: x, and all results but y."""
    (x, residual, _, _, bn_weight, bn_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, drop_path_scale,
     batch_stats, eps, act, gate, out_act) = inputs[: _TENSORS + 5]  # fmt: skip
    ctx.set_materialize_grads(False)
    # Only activations that the backward pass recomputes need the residual.
    saved_residual = residual if recomputed(OUT_ACT_CODES[out_act]) else None
    ctx.save_for_backward(x, saved_residual, *saved, bn_weight, bn_bias, fc1_weight, fc2_weight, drop_path_scale)
    ctx.options = (batch_stats, eps, act, gate, out_act)
    # Shapes and dtypes of the gradients: the kernels may return a matrix (R, C), and float32.
    ctx.like = [
        None if t is None else (t.shape, t.dtype)
        for t in (bn_weight, bn_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    ]


def _shaped(gradient: Tensor, like: tuple[torch.Size, torch.dtype] | None) -> Tensor | None:
    if like is None:
        return None
    shape, dtype = like
    if gradient.dtype != dtype:
        gradient = gradient.to(dtype)
    return gradient if gradient.shape == shape else gradient.reshape(shape)


def _gradients(ctx: Any, dy: Tensor | None, run: Callable[..., tuple[Tensor, ...]]) -> tuple[Tensor | None, ...]:
    """The gradients of all 17 arguments, computed by ``run``, an implementation of
    batch_norm_squeeze_excite_backward."""
    if dy is None:
        return (None,) * (_TENSORS + 6)
    x, residual, mask, mean, factor, hidden, stats, *parameters = ctx.saved_tensors
    want_dr = ctx.needs_input_grad[1]
    dx, dr, *others = run(dy, x, residual, mask, mean, factor, hidden, stats, *parameters, *ctx.options, want_dr)
    if ctx.options[-1] == "none":
        dr = dy  # without an activation the residual's gradient is dy
    return (dx, dr if want_dr else None, None, None, *map(_shaped, others, ctx.like), *(None,) * 7)


def _setup_context(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    if not inputs[-1]:
        raise RuntimeError(
            "se_fused::batch_norm_squeeze_excite_forward was called with save=False on inputs that require a gradient: "
            "a program exported under torch.no_grad() must also run under torch.no_grad()"
        )
    _keep(ctx, inputs, output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _operator_backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, dy, torch.ops.se_fused.batch_norm_squeeze_excite_backward)


torch.library.register_autograd(
    "se_fused::batch_norm_squeeze_excite_forward", _operator_backward, setup_context=_setup_context, lib=_library
)
torch.library.register_autograd("se_fused::batch_norm_squeeze_excite_backward", no_second_derivative, lib=_library)


class _BatchNormSqueezeExcite(torch.autograd.Function):
    """The operator for eager mode, without the dispatcher and without a second autograd node in the backward pass. It
    saves 60 us per call, and several times that in a network, whose convolutions evict Python's data from the
    caches."""

    # setup_context is needed only for torch.func, and costs an inspect.signature per call.
    @staticmethod
    def forward(ctx: Any, *args_and_backend: Any) -> Tensor:
        # (backend, running) takes the place of the operator's ``save``, so that both paths return the same gradients.
        *args, (ctx.backend, running) = args_and_backend
        y, *saved = _forward(ctx.backend, *args, True, running=running)
        _keep(ctx, args, saved)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        # With create_graph=True use the operator, whose autograd formula raises an error for second derivatives.
        run = (
            torch.ops.se_fused.batch_norm_squeeze_excite_backward
            if torch.is_grad_enabled()
            else partial(_backward, ctx.backend)
        )
        return _gradients(ctx, dy, run)


def batch_norm_squeeze_excite(
    backend: backends.Backend, inplace: bool, running: backends.Running | None, *args: Any
) -> Tensor:
    """y of ``batch_norm_squeeze_excite_forward``, differentiable. args: its arguments without ``save``, which is
    whether a gradient is recorded.

    Eager mode calls ``backend`` directly, without the operator's wrapper. Graphs and dispatch modes use the operator,
    which selects a backend itself. ``inplace`` permits y to share x's memory in inference. ``running`` is updated: by
    the kernels if they can, else by PyTorch, in a graph after the operator.
    """
    wants_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in args[:_TENSORS])
    if wants_grad and not torch.compiler.is_compiling():  # in a graph the operator has its own gradient
        y: Tensor = _BatchNormSqueezeExcite.apply(*args, (backend, running))
        return y
    x, *tensors, batch_stats, eps, act, gate, out_act = args
    if batch_stats or backend.batch_norm_squeeze_excite_inference is None or through_dispatcher():
        return _forward(backend, *args, wants_grad, running=running)[0]
    y = x if inplace else torch.empty_like(x)
    backend.batch_norm_squeeze_excite_inference(x, *tensors, eps, *_codes(act, gate, out_act), y)
    return y
