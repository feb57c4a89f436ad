"""The whole operator in Triton, host code: three launches each for forward and backward; in inference one to three.

Argument order and results are those of the operators in se_fused/ops/batch_norm_squeeze_excite.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...activations import keeps_mask, writes_dr
from ..base import Running
from .excitation import excitation_kernel
from .excitation_backward import excitation_backward_kernel
from .l2_grouped import l2_grouped_kernel
from .launch import launch
from .launch_configs import L2GroupedConfig, Map, cdiv, device_of, excitation_config, l2_grouped_config
from .passes import (
    COUNTERS,
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


def parameters_of(*tensors: Tensor | None) -> list[Tensor | None]:
    """The parameters made contiguous, as the kernels need them; None stays None."""
    return [t if t is None else t.contiguous() for t in tensors]


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
    m: Map,
    parameters: list[Tensor | None],
    batch_stats: bool,
    eps: float,
    act: int,
    gate: int,
    save: bool,
    out_bias: Tensor | None = None,
    running: Running | None = None,
) -> Coefficients:
    """Pass 1 and excitation in two launches.

    With squeeze-excite, scale and shift have the channels of fc2_weight, which differ from x's if x is the input of a
    convolution (conv1x1_squeeze_excite.py).
    """
    running_mean, running_var, bn_weight, bn_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, drop = parameters
    counters = torch.empty(COUNTERS, dtype=torch.int32, device=x.device)
    parts, squares, config = launch_moments(x, m, batch_stats, counters)
    mean = parts[0] if len(parts) == 1 else floats(x, m.n, m.c)
    has_bn = batch_stats or running_mean is not None
    stats = floats(x, 2, m.c) if has_bn and (save or batch_stats) else None
    r = 0 if fc1_weight is None else fc1_weight.shape[0]
    out_c = m.c if fc2_weight is None else fc2_weight.shape[0]
    scale, shift = floats(x, m.n, out_c), floats(x, m.n, out_c)
    hidden = floats(x, m.n, r) if r else None
    factor = floats(x, m.n, out_c) if r and save else None
    g = excitation_config(m.n, m.c, r, "forward")
    n_tiles, c_tiles = cdiv(m.n, g.n), cdiv(m.c, g.c)
    launch(
        excitation_kernel, _programs(x.device, c_tiles, n_tiles * cdiv(out_c, g.c) if r else 0), x.device,
        g.options(device_of(x.device)), counters=counters, mean_parts=parts, m2_parts=squares, mean=mean, stats=stats,
        moved_mean=running and running.mean, moved_var=running and running.var,
        momentum=running.momentum if running else 0.0, unbias=running.unbias if running else 1.0, hidden=hidden,
        factor=factor, scale=scale, shift=shift, running_mean=running_mean, running_var=running_var,
        bn_weight=bn_weight, bn_bias=bn_bias, fc1_weight=fc1_weight, fc1_bias=fc1_bias, fc2_weight=fc2_weight,
        fc2_bias=fc2_bias, out_bias=out_bias, drop=drop, samples=m.n, channels=m.c, out_channels=out_c, squeezed=r,
        splits=len(parts), span=config.span, position_count=m.s, eps=eps, ACT=act, GATE=gate,
        PRECISION=precision(x.device), **g.blocks(),
    )  # fmt: skip
    return Coefficients(scale, shift, mean, stats, factor, hidden)


def batch_norm_squeeze_excite_forward(
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
    act: int,
    gate: int,
    out_act: int,
    save: bool,
    running: Running | None = None,
) -> tuple[Tensor, ...]:
    """The forward pass in three launches: pass 1, excitation (which also updates ``running``), pass 2."""
    m = map_of(x)
    parameters = parameters_of(
        running_mean, running_var, bn_weight, bn_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, drop_path_scale
    )
    found = coefficients(x, m, parameters, batch_stats, eps, act, gate, save, None, running)
    y = torch.empty_like(x)
    mask = mask_like(x, m) if save and keeps_mask(out_act) else None
    launch_scale_shift_act(x, residual, y, mask, out_act, m, scale=found.scale, shift=found.shift)
    saved = (mask, found.mean, found.factor, found.hidden) if save else (None,) * 4
    nothing = found.scale.new_empty(0)
    return y, *(nothing if t is None else t for t in (*saved, found.stats))


def _l2_grouped(
    x: Tensor,
    residual: Tensor | None,
    y: Tensor,
    m: Map,
    plan: L2GroupedConfig,
    parameters: list[Tensor | None],
    eps: float,
    act: int,
    gate: int,
    out_act: int,
) -> None:
    running_mean, running_var, bn_weight, bn_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, drop = parameters
    assert fc1_weight is not None
    r = fc1_weight.shape[0]
    g = excitation_config(m.n, m.c, r, "l2_grouped")
    splits = plan.passes.splits(m)
    blocks = cdiv(m.c, plan.passes.channels)
    counters = torch.zeros(1 + 3 * cdiv(m.n, plan.group) + m.n * blocks, dtype=torch.int32, device=x.device)
    mean_parts = floats(x, splits, m.n, m.c)
    launch(
        l2_grouped_kernel, plan.programs, x.device, g.options(device_of(x.device)), counters=counters, x=x,
        residual=residual, y=y, mean_parts=mean_parts, mean=mean_parts[0] if splits == 1 else floats(x, m.n, m.c),
        hidden=floats(x, m.n, r), scale=floats(x, m.n, m.c), shift=floats(x, m.n, m.c), running_mean=running_mean,
        running_var=running_var, bn_weight=bn_weight, bn_bias=bn_bias, fc1_weight=fc1_weight, fc1_bias=fc1_bias,
        fc2_weight=fc2_weight, fc2_bias=fc2_bias, drop=drop, samples=m.n, squeezed=r, SPLITS=splits,
        span=plan.passes.span, group=plan.group, eps=eps, OUT_ACT=out_act, ACT=act, GATE=gate,
        PRECISION=precision(x.device), **m.arguments(per_sample=True), **plan.passes.blocks(), **g.blocks(),
    )  # fmt: skip


def batch_norm_squeeze_excite_inference(
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
    eps: float,
    act: int,
    gate: int,
    out_act: int,
    y: Tensor,
) -> None:
    """Inference, written into y, which may be x.

    One launch without squeeze-excite, else three. If l2_grouped.py applies, because x does not stay in L2, two
    launches: one zeroes the counters, the other does everything else.
    """
    m = map_of(x)
    parameters = parameters_of(
        running_mean, running_var, bn_weight, bn_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, drop_path_scale
    )
    plan = None if fc1_weight is None else l2_grouped_config(m, device_of(x.device))
    if plan is not None:
        _l2_grouped(x, residual, y, m, plan, parameters, eps, act, gate, out_act)
        return
    if fc1_weight is None:
        names = ("running_mean", "running_var", "bn_weight", "bn_bias")
        vectors = dict(zip(names, parameters, strict=False))
        launch_scale_shift_act(x, residual, y, None, out_act, m, drop=parameters[-1], eps=eps, **vectors)
        return
    found = coefficients(x, m, parameters, False, eps, act, gate, False)
    launch_scale_shift_act(x, residual, y, None, out_act, m, scale=found.scale, shift=found.shift)


def batch_norm_squeeze_excite_backward(
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
    act: int,
    gate: int,
    out_act: int,
    want_dr: bool,
) -> tuple[Tensor, ...]:
    """The backward pass in three launches: pass 1, excitation, pass 2."""
    m = map_of(x)
    bn_weight, bn_bias, fc1_weight, fc2_weight, drop = parameters_of(
        bn_weight, bn_bias, fc1_weight, fc2_weight, drop_path_scale
    )
    has_bn, has_excitation = stats.numel() > 0, fc1_weight is not None
    counters = torch.empty(COUNTERS, dtype=torch.int32, device=x.device)
    dr, p_parts, q_parts = launch_moments_backward(
        dy, x, residual, mask, mean, out_act, writes_dr(out_act, want_dr), m, counters,
        factor=factor if has_excitation else None, stats=stats if has_bn else None, bn_weight=bn_weight,
        bn_bias=bn_bias, drop=drop, eps=eps,
    )  # fmt: skip
    splits = len(p_parts)
    p, q = (p_parts[0], q_parts[0]) if splits == 1 else (floats(x, m.n, m.c), floats(x, m.n, m.c))
    k1, k3 = floats(x, m.n, m.c), floats(x, m.n, m.c)
    k2 = floats(x, m.n, m.c) if batch_stats else None
    r = fc1_weight.shape[0] if fc1_weight is not None else 0
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
        dfc2_bias=weights[3], samples=m.n, channels=m.c, squeezed=r, splits=splits, position_count=m.s, eps=eps,
        ACT=act, GATE=gate,
        BATCH_STATS=batch_stats, PRECISION=precision(x.device), **g.blocks(),
    )  # fmt: skip
    dx = launch_scale_shift_act_backward(
        dy if dr is None else dr, x if batch_stats else None, mask if keeps_mask(out_act) and dr is None else None,
        mean, k1, k2, k3, m,
    )  # fmt: skip
    return dx, mean.new_empty(0) if dr is None else dr, *dbn, *weights
