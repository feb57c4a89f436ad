"""Pass 2 fused with the mean of its result. Definitions in plain PyTorch, which backends replace with kernels.

It serves blocks with an activation between batch norm and squeeze-excite, where the mean of the activated map does not
follow from the mean of x.

Symbols as in :mod:`se_fused.ops.moments`; scale, shift, mean, added: (N, C).
"""

import torch
from torch import Tensor

from ..activations import by_code
from .moments import accumulation_dtype, per_channel
from .scale_shift_act import scale_shift_act

__all__ = ["scale_shift_act_mean", "scale_shift_act_mean_backward"]


def scale_shift_act_mean(x: Tensor, scale: Tensor, shift: Tensor, out_act: int) -> tuple[Tensor, Tensor]:
    """y = out_act(scale * x + shift) in x's dtype, and the mean (N, C) of the same values before they are rounded.

    One read and one write. x must not be empty.
    """
    wide, _ = scale_shift_act(x.to(accumulation_dtype(x.dtype)), None, scale, shift, out_act, False)
    return torch.empty_like(x).copy_(wide), wide.flatten(2).mean(2)


def scale_shift_act_mean_backward(
    dy: Tensor, added: Tensor, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, out_act: int
) -> tuple[Tensor, Tensor, Tensor]:
    """dr = (dy + added) * out_act'(t) with t = scale * x + shift, in x's dtype; P = sum dr; Q = sum dr * (x - mean).

    ``added`` is the gradient of the means divided by S, which is added at each position. Two reads and one write. The
    derivative of every activation is computed from t, so no mask is saved.
    """
    wide = x.to(mean.dtype)
    t = per_channel(scale, x) * wide + per_channel(shift, x)
    g = by_code(out_act).backward(dy.to(mean.dtype) + per_channel(added, x), t)
    dr = torch.empty_like(x).copy_(g)
    g = dr.to(mean.dtype)  # pass 2 reads the rounded dr, so the sums must be of the same numbers
    return dr, g.flatten(2).sum(2), (g * (wide - per_channel(mean, x))).flatten(2).sum(2)
