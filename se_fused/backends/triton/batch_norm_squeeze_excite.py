"""The whole operator in Triton, host code: three launches each for forward and backward, two without squeeze-excite; in
inference one to three.

Argument order and results are those of the operators in se_fused/ops/batch_norm_squeeze_excite.py. Each operator is
remembered (plan.py): the function that it runs takes its tensors, its settings and the momentum, does nothing but
allocate and launch, and runs once per kind of call.
"""

from typing import Any

import torch
from torch import Tensor

from ..._params import BatchNormParams, BlockOptions, ExcitationParams, Gradients, Results, SavedTensors
from ...activations import ACT_CODES, GATE_CODES, OUT_ACT_CODES, keeps_mask, writes_dr
from .arguments import (
    NO_RUNNING,
    BatchGradients,
    Coefficients,
    DxCoefficients,
    ExcitationResults,
    Layers,
    MomentsBackward,
    Norm,
    ParameterGradients,
    Parts,
    Running,
    Saved,
    Scratch,
    Sums,
)
from .excitation import excitation_kernel
from .excitation_backward import excitation_backward_kernel
from .l2_grouped import l2_grouped_kernel
from .launch import launch
from .launch_configs import L2GroupedConfig, cdiv, device_of, excitation_config, l2_grouped_config
from .memory import empty, empty_like, floats, zeros
from .passes import (
    COUNTERS,
    groups_of,
    launch_batch_statistics,
    launch_moments,
    launch_moments_backward,
    launch_scale_shift_act,
    launch_scale_shift_act_backward,
    map_of,
    mask_like,
    precision,
)
from .plan import Remembered

__all__ = [
    "batch_norm_squeeze_excite_backward",
    "batch_norm_squeeze_excite_forward",
    "batch_norm_squeeze_excite_inference",
]


def contiguous(t: Tensor | None) -> Tensor | None:
    """A parameter as the kernels need it; None stays None."""
    return t if t is None else t.contiguous()


def _norm(bn: BatchNormParams) -> Norm:
    """Batch norm by its running statistics."""
    return Norm(
        contiguous(bn.running_mean), contiguous(bn.running_var), contiguous(bn.weight), contiguous(bn.bias), bn.eps
    )


def _norm_without_statistics(bn: BatchNormParams) -> Norm:
    """Batch norm by statistics that the kernel fills in."""
    return Norm(None, None, contiguous(bn.weight), contiguous(bn.bias), bn.eps)


def _layers(fc: ExcitationParams) -> Layers:
    return Layers(
        contiguous(fc.fc1_weight), contiguous(fc.fc1_bias), contiguous(fc.fc2_weight), contiguous(fc.fc2_bias)
    )


def _programs(device: torch.device, *phases: int) -> int:
    """Number of programs for a launch whose phases have these numbers of tiles: at most one per multiprocessor."""
    return max(min(device_of(device).multiprocessors, max(phases)), 1)


def coefficients(
    x: Tensor,
    bn: BatchNormParams,
    fc: ExcitationParams,
    drop: Tensor | None,
    save: bool,
    out_bias: Tensor | None = None,
) -> ExcitationResults:
    """Pass 1 and excitation in two launches. With batch statistics, running statistics are updated.

    scale and shift have the channels of fc2_weight, which differ from x's if x is the input of a convolution, whose
    bias is ``out_bias`` (conv1x1_squeeze_excite.py).
    """
    assert fc.fc2_weight is not None
    m, r = map_of(x), fc.squeezed
    counters = empty(x, (COUNTERS,), torch.int32)
    parts, squares, config = launch_moments(x, m, bn.batch_stats, counters)
    mean = parts[0] if len(parts) == 1 else floats(x, m.n, m.c)
    stats = floats(x, 2, m.c) if bn.present and (save or bn.batch_stats) else None
    out_c = fc.fc2_weight.shape[0]
    scale, shift = floats(x, m.n, out_c), floats(x, m.n, out_c)
    factor = floats(x, m.n, out_c) if save else None
    results = ExcitationResults(scale, shift, mean, stats, factor, floats(x, m.n, r))
    count = m.n * m.s
    running_mean, running_var = (bn.running_mean, bn.running_var) if bn.batch_stats else (None, None)
    g = excitation_config(m.n, m.c, r, "forward")
    n_tiles, c_tiles = cdiv(m.n, g.n), cdiv(m.c, g.c)
    launch(
        excitation_kernel, _programs(x.device, c_tiles, n_tiles * cdiv(out_c, g.c)), x.device,
        g.options(device_of(x.device)), counters=counters, parts=Parts(parts, squares),
        norm=_norm_without_statistics(bn) if bn.batch_stats else _norm(bn),
        running=Running(running_mean, running_var, bn.momentum, count / max(count - 1, 1)), layers=_layers(fc),
        out_bias=out_bias, drop=contiguous(drop), results=results, samples=m.n, channels=m.c, out_channels=out_c,
        squeezed=r, splits=len(parts), span=config.span, position_count=m.s, ACT=ACT_CODES[fc.act],
        GATE=GATE_CODES[fc.gate], PRECISION=precision(x.device), **g.blocks(),
    )  # fmt: skip
    return results


# ---- forward
def _given(x: Tensor, bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions) -> tuple[Any, ...]:
    return (
        x, options.residual, bn.running_mean, bn.running_var, bn.weight, bn.bias, fc.fc1_weight, fc.fc1_bias,
        fc.fc2_weight, fc.fc2_bias, options.drop_path_scale,
    )  # fmt: skip


def _settings(bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions) -> tuple[Any, ...]:
    return bn.batch_stats, float(bn.eps), fc.squeezed, fc.act, fc.gate, options.out_act


def _records(
    given: tuple[Any, ...], settings: tuple[Any, ...], momentum: float
) -> tuple[BatchNormParams, ExcitationParams, BlockOptions]:
    (residual, running_mean, running_var, bn_weight, bn_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias,
     drop_path_scale) = given  # fmt: skip
    batch_stats, eps, _squeezed, act, gate, out_act = settings
    return (
        BatchNormParams(running_mean, running_var, bn_weight, bn_bias, batch_stats, momentum, eps),
        ExcitationParams(fc1_weight, fc1_bias, fc2_weight, fc2_bias, act, gate),
        BlockOptions(residual, drop_path_scale, out_act),
    )


def _forward(given: tuple[Any, ...], settings: tuple[Any, ...], momentum: float) -> Results:
    x, save = given[0], settings[-1]
    bn, fc, options = _records(given[1:], settings[:-1], momentum)
    m, out_act = map_of(x), OUT_ACT_CODES[options.out_act]
    if fc.fc1_weight is None:
        return _norm_forward(x, bn, options, save)
    found = coefficients(x, bn, fc, options.drop_path_scale, save)
    y = empty_like(x)
    mask = mask_like(x, m) if save and keeps_mask(out_act) else None
    launch_scale_shift_act(x, options.residual, y, mask, out_act, m, Coefficients(found.scale, found.shift))
    nothing = found.scale.new_empty(0)

    def saved(t: Tensor | None, wanted: bool = save) -> Tensor:
        return t if wanted and t is not None else nothing

    return Results(
        y, saved(mask), saved(found.mean), saved(found.factor), saved(found.hidden), saved(found.stats, True)
    )


def _norm_forward(x: Tensor, bn: BatchNormParams, options: BlockOptions, save: bool) -> Results:
    """The forward pass without squeeze-excite: pass 1 with the statistics, pass 2."""
    m, out_act, count = map_of(x), OUT_ACT_CODES[options.out_act], x.numel() // x.shape[1]
    norm, running = _norm(bn), NO_RUNNING
    if bn.batch_stats:
        norm = _norm_without_statistics(bn)
        running = Running(bn.running_mean, bn.running_var, bn.momentum, count / max(count - 1, 1))
    mean, stats = launch_batch_statistics(x, m, bn.batch_stats, norm, running)
    y = empty_like(x)
    mask = mask_like(x, m) if save and keeps_mask(out_act) else None
    given = Coefficients(drop=contiguous(options.drop_path_scale))
    launch_scale_shift_act(x, options.residual, y, mask, out_act, m, given, _norm_without_statistics(bn), stats)
    nothing = stats.new_empty(0)
    return Results(y, nothing if mask is None else mask, mean if save else nothing, nothing, nothing, stats)


_remembered_forward = Remembered(_forward)


def batch_norm_squeeze_excite_forward(
    x: Tensor, bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions, save: bool
) -> Results:
    """The forward pass in three launches: pass 1, excitation (which also updates running statistics), pass 2. Without
    squeeze-excite pass 1 also does excitation's part."""
    results: Results = _remembered_forward(_given(x, bn, fc, options), (*_settings(bn, fc, options), save), bn.momentum)
    return results


# ---- inference


def _l2_grouped(
    x: Tensor, bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions, y: Tensor, plan: L2GroupedConfig
) -> None:
    m, r = map_of(x), fc.squeezed
    g = excitation_config(m.n, m.c, r, "l2_grouped")
    splits = plan.passes.splits(m)
    blocks = cdiv(m.c, plan.passes.channels)
    counters = zeros(x, (1 + 3 * cdiv(m.n, plan.group) + m.n * blocks,), torch.int32)
    mean_parts = floats(x, splits, m.n, m.c)
    mean = mean_parts[0] if splits == 1 else floats(x, m.n, m.c)
    results = ExcitationResults(floats(x, m.n, m.c), floats(x, m.n, m.c), mean, None, None, floats(x, m.n, r))
    launch(
        l2_grouped_kernel, plan.programs, x.device, g.options(device_of(x.device)), counters=counters, x=x,
        residual=options.residual, y=y, norm=_norm(bn), layers=_layers(fc), drop=contiguous(options.drop_path_scale),
        mean_parts=mean_parts, results=results, samples=m.n, squeezed=r, SPLITS=splits, span=plan.passes.span,
        group=plan.group, OUT_ACT=OUT_ACT_CODES[options.out_act], ACT=ACT_CODES[fc.act], GATE=GATE_CODES[fc.gate],
        PRECISION=precision(x.device), CHUNK=plan.passes.chunk(m), **m.arguments(per_sample=True),
        **plan.passes.blocks(), **g.blocks(),
    )  # fmt: skip


def _inference(given: tuple[Any, ...], settings: tuple[Any, ...], _momentum: float) -> None:
    x, y = given[0], given[-1]
    bn, fc, options = _records(given[1:-1], settings, 0.0)
    m, out_act, drop = map_of(x), OUT_ACT_CODES[options.out_act], options.drop_path_scale
    if fc.fc1_weight is None:
        launch_scale_shift_act(x, options.residual, y, None, out_act, m, Coefficients(drop=contiguous(drop)), _norm(bn))
        return
    plan = l2_grouped_config(m, device_of(x.device))
    if plan is not None:
        _l2_grouped(x, bn, fc, options, y, plan)
        return
    found = coefficients(x, bn, fc, drop, False)
    launch_scale_shift_act(x, options.residual, y, None, out_act, m, Coefficients(found.scale, found.shift))


_remembered_inference = Remembered(_inference)


def batch_norm_squeeze_excite_inference(
    x: Tensor, bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions, y: Tensor
) -> None:
    """Inference, written into y, which may be x.

    One launch without squeeze-excite, else three. If l2_grouped.py applies, because x does not stay in L2, two
    launches: one zeroes the counters, the other does everything else.
    """
    _remembered_inference((*_given(x, bn, fc, options), y), _settings(bn, fc, options))


# ---- backward
def _backward(given: tuple[Any, ...], settings: tuple[Any, ...], _momentum: float) -> Gradients:
    (x, dy, mask, mean, factor, hidden, stats, residual, bn_weight, bn_bias, fc1_weight, fc2_weight,
     drop_path_scale) = given  # fmt: skip
    batch_stats, eps, r, act, gate, out_act_name, want_dr = settings
    m, out_act = map_of(x), OUT_ACT_CODES[out_act_name]
    norm, drop = Norm(None, None, contiguous(bn_weight), contiguous(bn_bias), eps), contiguous(drop_path_scale)
    has_bn = stats is not None
    layers = Layers(contiguous(fc1_weight), None, contiguous(fc2_weight), None)
    kept = Saved(mean, factor, hidden, stats)
    if not r:
        return _norm_backward(given, settings)
    counters = empty(x, (COUNTERS,), torch.int32)
    dr, parts, _ = launch_moments_backward(
        MomentsBackward(dy, x, residual, mask, mean), out_act, writes_dr(out_act, want_dr), counters,
        Coefficients(factor=factor, drop=drop), norm, stats,
    )  # fmt: skip
    splits = len(parts.p)
    sums = Sums(parts.p[0], parts.q[0]) if splits == 1 else Sums(floats(x, m.n, m.c), floats(x, m.n, m.c))
    to_dx = DxCoefficients(floats(x, m.n, m.c), floats(x, m.n, m.c) if batch_stats else None, floats(x, m.n, m.c))
    # Gradients are allocated in the parameters' dtypes, because each cast would be one more launch.
    dbn = [floats(x, m.c if has_bn else 0) if t is None else empty_like(t) for t in (norm.weight, norm.bias)]
    weights = [empty(x, shape, fc1_weight.dtype) for shape in ((r, m.c), (r,), (m.c, r), (m.c,))]
    g = excitation_config(m.n, m.c, r, "backward")
    n_tiles, c_tiles, r_tiles = cdiv(m.n, g.n), cdiv(m.c, g.c), cdiv(r, g.r)
    launch(
        excitation_backward_kernel, _programs(x.device, n_tiles * c_tiles, c_tiles * (1 + r_tiles)), x.device,
        g.options(device_of(x.device)), counters=counters, parts=parts, sums=sums, saved=kept, norm=norm, layers=layers,
        drop=drop, scratch=Scratch(floats(x, m.n, m.c), floats(x, m.n, r)), to_dx=to_dx,
        gradients=ParameterGradients(*dbn, *weights), samples=m.n, channels=m.c, squeezed=r, splits=splits,
        position_count=m.s, ACT=ACT_CODES[act], GATE=GATE_CODES[gate], BATCH_STATS=batch_stats,
        PRECISION=precision(x.device), **g.blocks(),
    )  # fmt: skip
    dx = launch_scale_shift_act_backward(
        dy if dr is None else dr, x if batch_stats else None, mask if keeps_mask(out_act) and dr is None else None,
        mean, to_dx, m,
    )  # fmt: skip
    return Gradients(dx, mean.new_empty(0) if dr is None else dr, *dbn, *weights)


def _norm_backward(given: tuple[Any, ...], settings: tuple[Any, ...]) -> Gradients:
    """The backward pass without squeeze-excite: pass 1 with the gradients of batch norm, pass 2."""
    x, dy, mask, mean, _factor, _hidden, stats, residual, bn_weight, bn_bias, _fc1, _fc2, drop_path_scale = given
    batch_stats, eps, _r, _act, _gate, out_act_name, want_dr = settings
    m, out_act = map_of(x), OUT_ACT_CODES[out_act_name]
    norm, drop = Norm(None, None, contiguous(bn_weight), contiguous(bn_bias), eps), contiguous(drop_path_scale)

    def finish() -> BatchGradients:
        # Gradients are allocated in the parameters' dtypes, because each cast would be one more launch.
        dgamma, dbeta = [floats(x, m.c) if t is None else empty_like(t) for t in (norm.weight, norm.bias)]
        groups, k2 = floats(x, 2, groups_of(m.n), m.c), floats(x, m.c) if batch_stats else None
        return BatchGradients(groups, dgamma, dbeta, floats(x, m.c), k2, floats(x, m.c))

    dr, _, found = launch_moments_backward(
        MomentsBackward(dy, x, residual, mask, mean), out_act, writes_dr(out_act, want_dr), None,
        Coefficients(drop=drop), norm, stats, None, finish,
    )  # fmt: skip
    assert found.k1 is not None and found.k3 is not None
    assert found.dbn_weight is not None and found.dbn_bias is not None
    dx = launch_scale_shift_act_backward(
        dy if dr is None else dr, x if batch_stats else None, mask if keeps_mask(out_act) and dr is None else None,
        stats, DxCoefficients(found.k1, found.k2, found.k3), m, drop, True,
    )  # fmt: skip
    nothing = mean.new_empty(0)
    return Gradients(dx, nothing if dr is None else dr, found.dbn_weight, found.dbn_bias, *[nothing] * 4)


_remembered_backward = Remembered(_backward)


def batch_norm_squeeze_excite_backward(
    dy: Tensor,
    saved: SavedTensors,
    bn: BatchNormParams,
    fc: ExcitationParams,
    options: BlockOptions,
    want_dr: bool,
) -> Gradients:
    """The backward pass in three launches: pass 1, excitation, pass 2; without squeeze-excite in two."""
    x, mask, mean, factor, hidden, stats = saved
    excites = fc.fc1_weight is not None
    gradients: Gradients = _remembered_backward(
        (
            x, dy, mask, mean, factor if excites else None, hidden if excites else None,
            stats if stats.numel() else None, options.residual, bn.weight, bn.bias, fc.fc1_weight, fc.fc2_weight,
            options.drop_path_scale,
        ),
        (*_settings(bn, fc, options), want_dr),
    )  # fmt: skip
    return gradients
