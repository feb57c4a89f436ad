"""The block from a backend's passes, with the arithmetic of :mod:`.excitation` between them, for a backend without the
whole operator. With the definitions in this package as passes it is the operator's definition."""

from typing import Any

import torch
from torch import Tensor

from .._params import (
    BatchNormParams,
    BlockOptions,
    ExcitationParams,
    Gradients,
    Results,
    SavedTensors,
)
from ..activations import OUT_ACT_CODES, keeps_mask, recomputed, writes_dr
from .excitation import batch_norm, excitation, excitation_backward
from .layout import positions

__all__ = ["compose_backward", "compose_forward"]


def _or_empty(tensor: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if tensor is None else tensor.contiguous()


def compose_forward(
    passes: Any, x: Tensor, bn: BatchNormParams, fc: ExcitationParams, options: BlockOptions, save: bool
) -> Results:
    """The forward pass from ``passes.moments``, :mod:`.excitation` and ``passes.scale_shift_act``. Running statistics
    are not updated."""
    m, v = passes.moments(x)
    norm = batch_norm(bn, m.dtype, positions(x), m, v) if bn.present else None
    scale, shift, factor, hidden = excitation(m, norm, fc, options.drop_path_scale)
    code = OUT_ACT_CODES[options.out_act]
    y, mask = passes.scale_shift_act(
        x, options.residual, scale.contiguous(), shift.contiguous(), code, save and keeps_mask(code)
    )
    nothing = m.new_empty(0)
    stats = nothing if norm is None or not (save or bn.batch_stats) else torch.stack([norm.mean, norm.var])
    if not save:
        return Results(y, nothing, nothing, nothing, nothing, stats)
    return Results(y, mask, m, _or_empty(factor, m), _or_empty(hidden, m), stats)


def compose_backward(
    passes: Any,
    dy: Tensor,
    saved: SavedTensors,
    bn: BatchNormParams,
    fc: ExcitationParams,
    options: BlockOptions,
    want_dr: bool,
) -> Gradients:
    """The backward pass from ``passes.moments_backward``, :mod:`.excitation` and
    ``passes.scale_shift_act_backward``."""
    x, mean, drop = saved.x, saved.mean, options.drop_path_scale
    code = OUT_ACT_CODES[options.out_act]
    norm = None
    if saved.stats.numel():
        norm = batch_norm(bn.with_statistics(saved.stats), mean.dtype, positions(x))
    scale = shift = mean
    if recomputed(code):
        scale = torch.ones_like(mean) if fc.fc1_weight is None else saved.factor
        if drop is not None:
            scale = scale * drop.to(mean.dtype)[:, None]
        scale, shift = (scale, torch.zeros_like(mean)) if norm is None else (scale * norm.a, scale * norm.b)
    write_dr = writes_dr(code, want_dr)
    dr, p, q = passes.moments_backward(
        dy, x, options.residual, saved.mask, mean, scale.contiguous(), shift.contiguous(), code, write_dr
    )
    g = excitation_backward(p, q, saved, norm, fc, drop, bn.batch_stats)
    dx = passes.scale_shift_act_backward(
        dr if write_dr else dy, x if bn.batch_stats else None,
        saved.mask if keeps_mask(code) and not write_dr else mean.new_empty(0), mean,
        g.k1.contiguous(), g.k2.contiguous(), g.k3.contiguous(),
    )  # fmt: skip
    parameters = (g.bn_weight, g.bn_bias, g.fc1_weight, g.fc1_bias, g.fc2_weight, g.fc2_bias)
    return Gradients(dx, dr, *(_or_empty(t, mean) for t in parameters))
