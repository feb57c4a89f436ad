"""The whole operator in Triton, host code: three launches each for forward and backward; in inference one to three.

Argument order and results are those of the operators in se_fused/ops/batch_norm_squeeze_excite.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..._params import (
    NO_BATCH_NORM,
    BatchNormParams,
    BlockOptions,
    ExcitationParams,
    Gradients,
    Results,
    SavedTensors,
)
from ...activations import ACT_CODES, GATE_CODES, OUT_ACT_CODES, keeps_mask, writes_dr
from .excitation import excitation_kernel
from .excitation_backward import excitation_backward_kernel
from .l2_grouped import l2_grouped_kernel
from .launch import launch
from .launch_configs import L2GroupedConfig, cdiv, device_of, excitation_config, l2_grouped_config
from .passes import (
    COUNTERS,
    MomentsBackward,
    floats,
    launch_moments,
    launch_moments_backward,
    launch_scale_shift_act,
    launch_scale_shift_act_backward,
    map_of,
    mask_like,
    precision,
)

__all__ = [
    "batch_norm_squeeze_excite_backward",
    "batch_norm_squeeze_excite_forward",
    "batch_norm_squeeze_excite_inference",
]


def contiguous(t: Tensor | None) -> Tensor | None:
    """A parameter as the kernels need it; None stays None."""
    return t if t is None else t.contiguous()


def _norm(bn: BatchNormParams) -> BatchNormParams:
    """Batch norm with contiguous tensors. Running statistics that are to be updated are contiguous already."""
    return BatchNormParams(
        contiguous(bn.running_mean), contiguous(bn.running_var), contiguous(bn.weight), contiguous(bn.bias),
        bn.batch_stats, bn.momentum, bn.eps,
    )  # fmt: skip


def _layers(fc: ExcitationParams) -> ExcitationParams:
    """The excitation with contiguous tensors."""
    return ExcitationParams(
        contiguous(fc.fc1_weight), contiguous(fc.fc1_bias), contiguous(fc.fc2_weight), contiguous(fc.fc2_bias), fc.act,
        fc.gate,
    )  # fmt: skip


def _programs(device: torch.device, *phases: int) -> int:
    """Number of programs for a launch whose phases have these numbers of tiles: at most one per multiprocessor."""
    return max(min(device_of(device).multiprocessors, max(phases)), 1)


@dataclass
class Coefficients:
    """Results of the first two launches; stats, factor and hidden may be None."""

    scale: Tensor  # (N, C)
    shift: Tensor  # (N, C)
    mean: Tensor  # (N, C)
    stats: Tensor | None  # (2, C)
    factor: Tensor | None  # (N, C)
    hidden: Tensor | None  # (N, R)


def coefficients(
    x: Tensor,
    bn: BatchNormParams,
    fc: ExcitationParams,
    drop: Tensor | None,
    save: bool,
    out_bias: Tensor | None = None,
) -> Coefficients:
    """Pass 1 and excitation in two launches. With batch statistics, running statistics are updated.

    With squeeze-excite, scale and shift have the channels of fc2_weight, which differ from x's if x is the input of a
    convolution, whose bias is ``out_bias`` (conv1x1_squeeze_excite.py).
    """
    m, bn, fc = map_of(x), _norm(bn), _layers(fc)
    count = m.n * m.s
    counters = torch.empty(COUNTERS, dtype=torch.int32, device=x.device)
    parts, squares, config = launch_moments(x, m, bn.batch_stats, counters)
    mean = parts[0] if len(parts) == 1 else floats(x, m.n, m.c)
    stats = floats(x, 2, m.c) if bn.present and (save or bn.batch_stats) else None
    r = fc.squeezed
    out_c = m.c if fc.fc2_weight is None else fc.fc2_weight.shape[0]
    scale, shift = floats(x, m.n, out_c), floats(x, m.n, out_c)
    hidden = floats(x, m.n, r) if r else None
    factor = floats(x, m.n, out_c) if r and save else None
    g = excitation_config(m.n, m.c, r, "forward")
    n_tiles, c_tiles = cdiv(m.n, g.n), cdiv(m.c, g.c)
    given, updated = (NO_BATCH_NORM, bn) if bn.batch_stats else (bn, NO_BATCH_NORM)
    launch(
        excitation_kernel, _programs(x.device, c_tiles, n_tiles * cdiv(out_c, g.c) if r else 0), x.device,
        g.options(device_of(x.device)), counters=counters, mean_parts=parts, m2_parts=squares, mean=mean, stats=stats,
        moved_mean=updated.running_mean, moved_var=updated.running_var, momentum=bn.momentum,
        unbias=count / max(count - 1, 1), hidden=hidden, factor=factor, scale=scale, shift=shift,
        running_mean=given.running_mean,
        running_var=given.running_var, bn_weight=bn.weight, bn_bias=bn.bias, fc1_weight=fc.fc1_weight,
        fc1_bias=fc.fc1_bias, fc2_weight=fc.fc2_weight, fc2_bias=fc.fc2_bias, out_bias=out_bias, drop=contiguous(drop),
        samples=m.n, channels=m.c, out_channels=out_c, squeezed=r, splits=len(parts), span=config.span,
        position_count=m.s, eps=bn.eps, ACT=ACT_CODES[fc.act], GATE=GATE_CODES[fc.gate], PRECISION=precision(x.device),
        **g.blocks(),
    )  # fmt: skip
    return Coefficients(scale, shift, mean, stats, factor, hidden)


def batch_norm_squeeze_excite_forward(
    x: Tensor, bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions, save: bool
) -> Results:
    """The forward pass in three launches: pass 1, excitation (which also updates running statistics), pass 2."""
    m, out_act = map_of(x), OUT_ACT_CODES[options.out_act]
    found = coefficients(x, bn, fc, options.drop_path_scale, save)
    y = torch.empty_like(x)
    mask = mask_like(x, m) if save and keeps_mask(out_act) else None
    launch_scale_shift_act(x, options.residual, y, mask, out_act, m, scale=found.scale, shift=found.shift)
    nothing = found.scale.new_empty(0)

    def saved(t: Tensor | None, wanted: bool = save) -> Tensor:
        return t if wanted and t is not None else nothing

    return Results(
        y, saved(mask), saved(found.mean), saved(found.factor), saved(found.hidden), saved(found.stats, True)
    )


def _l2_grouped(
    x: Tensor, bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions, y: Tensor, plan: L2GroupedConfig
) -> None:
    m, bn, fc, r = map_of(x), _norm(bn), _layers(fc), fc.squeezed
    g = excitation_config(m.n, m.c, r, "l2_grouped")
    splits = plan.passes.splits(m)
    blocks = cdiv(m.c, plan.passes.channels)
    counters = torch.zeros(1 + 3 * cdiv(m.n, plan.group) + m.n * blocks, dtype=torch.int32, device=x.device)
    mean_parts = floats(x, splits, m.n, m.c)
    launch(
        l2_grouped_kernel, plan.programs, x.device, g.options(device_of(x.device)), counters=counters, x=x,
        residual=options.residual, y=y, mean_parts=mean_parts,
        mean=mean_parts[0] if splits == 1 else floats(x, m.n, m.c), hidden=floats(x, m.n, r),
        scale=floats(x, m.n, m.c), shift=floats(x, m.n, m.c), running_mean=bn.running_mean,
        running_var=bn.running_var, bn_weight=bn.weight, bn_bias=bn.bias, fc1_weight=fc.fc1_weight,
        fc1_bias=fc.fc1_bias, fc2_weight=fc.fc2_weight, fc2_bias=fc.fc2_bias, drop=contiguous(options.drop_path_scale),
        samples=m.n, squeezed=r, SPLITS=splits, span=plan.passes.span, group=plan.group, eps=bn.eps,
        OUT_ACT=OUT_ACT_CODES[options.out_act], ACT=ACT_CODES[fc.act], GATE=GATE_CODES[fc.gate],
        PRECISION=precision(x.device), **m.arguments(per_sample=True), **plan.passes.blocks(), **g.blocks(),
    )  # fmt: skip


def batch_norm_squeeze_excite_inference(
    x: Tensor, bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions, y: Tensor
) -> None:
    """Inference, written into y, which may be x.

    One launch without squeeze-excite, else three. If l2_grouped.py applies, because x does not stay in L2, two
    launches: one zeroes the counters, the other does everything else.
    """
    m, out_act, drop = map_of(x), OUT_ACT_CODES[options.out_act], options.drop_path_scale
    if fc.fc1_weight is None:
        bn = _norm(bn)
        launch_scale_shift_act(
            x, options.residual, y, None, out_act, m, drop=contiguous(drop), eps=bn.eps, running_mean=bn.running_mean,
            running_var=bn.running_var, bn_weight=bn.weight, bn_bias=bn.bias,
        )  # fmt: skip
        return
    plan = l2_grouped_config(m, device_of(x.device))
    if plan is not None:
        _l2_grouped(x, bn, fc, options, y, plan)
        return
    found = coefficients(x, bn, fc, drop, False)
    launch_scale_shift_act(x, options.residual, y, None, out_act, m, scale=found.scale, shift=found.shift)


def batch_norm_squeeze_excite_backward(
    dy: Tensor,
    saved: SavedTensors,
    bn: BatchNormParams,
    fc: ExcitationParams,
    options: BlockOptions,
    want_dr: bool,
) -> Gradients:
    """The backward pass in three launches: pass 1, excitation, pass 2."""
    x, mask, mean, factor, hidden, stats = saved
    m, out_act, batch_stats = map_of(x), OUT_ACT_CODES[options.out_act], bn.batch_stats
    bn_weight, bn_bias, drop = contiguous(bn.weight), contiguous(bn.bias), contiguous(options.drop_path_scale)
    fc1_weight, fc2_weight, r = contiguous(fc.fc1_weight), contiguous(fc.fc2_weight), fc.squeezed
    has_bn = stats.numel() > 0
    counters = torch.empty(COUNTERS, dtype=torch.int32, device=x.device)
    dr, p_parts, q_parts = launch_moments_backward(
        MomentsBackward(dy, x, options.residual, mask, mean), out_act, writes_dr(out_act, want_dr), counters,
        factor=factor if r else None, stats=stats if has_bn else None, bn_weight=bn_weight, bn_bias=bn_bias, drop=drop,
        eps=bn.eps,
    )  # fmt: skip
    splits = len(p_parts)
    p, q = (p_parts[0], q_parts[0]) if splits == 1 else (floats(x, m.n, m.c), floats(x, m.n, m.c))
    k1, k3 = floats(x, m.n, m.c), floats(x, m.n, m.c)
    k2 = floats(x, m.n, m.c) if batch_stats else None
    # Gradients are allocated in the parameters' dtypes, because each cast would be one more launch.
    dbn = [floats(x, m.c if has_bn else 0) if t is None else torch.empty_like(t) for t in (bn_weight, bn_bias)]
    fc_dtype = torch.float32 if fc1_weight is None else fc1_weight.dtype
    shapes = ((r, m.c), (r,), (m.c, r), (m.c,)) if r else ((0,),) * 4
    weights = [torch.empty(shape, dtype=fc_dtype, device=x.device) for shape in shapes]
    g = excitation_config(m.n, m.c, r, "backward")
    n_tiles, c_tiles, r_tiles = cdiv(m.n, g.n), cdiv(m.c, g.c), cdiv(r, g.r)
    launch(
        excitation_backward_kernel, _programs(x.device, n_tiles * c_tiles, c_tiles * (1 + r_tiles)), x.device,
        g.options(device_of(x.device)), counters=counters, p_parts=p_parts, q_parts=q_parts, p=p, q=q, mean=mean,
        factor=factor if r else None, hidden=hidden if r else None, stats=stats if has_bn else None,
        bn_weight=bn_weight, bn_bias=bn_bias, fc1_weight=fc1_weight, fc2_weight=fc2_weight, drop=drop,
        dq=floats(x, m.n, m.c) if r else None, dhidden=floats(x, m.n, r) if r else None, k1=k1, k2=k2, k3=k3,
        dbn_weight=dbn[0], dbn_bias=dbn[1], dfc1_weight=weights[0], dfc1_bias=weights[1], dfc2_weight=weights[2],
        dfc2_bias=weights[3], samples=m.n, channels=m.c, squeezed=r, splits=splits, position_count=m.s, eps=bn.eps,
        ACT=ACT_CODES[fc.act], GATE=GATE_CODES[fc.gate],
        BATCH_STATS=batch_stats, PRECISION=precision(x.device), **g.blocks(),
    )  # fmt: skip
    dx = launch_scale_shift_act_backward(
        dy if dr is None else dr, x if batch_stats else None, mask if keeps_mask(out_act) and dr is None else None,
        mean, k1, k2, k3, m,
    )  # fmt: skip
    return Gradients(dx, mean.new_empty(0) if dr is None else dr, *dbn, *weights)
