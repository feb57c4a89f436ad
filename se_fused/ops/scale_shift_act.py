"""Pass 2: one multiply-add per element, with residual and activation. Definitions in plain PyTorch, which backends
replace with kernels.

Symbols as in :mod:`se_fused.ops.moments`; scale, shift, mean, k1, k2, k3: (N, C).
"""

import torch
from torch import Tensor

from ..activations import by_code
from .layout import pack_mask, unpack_mask
from .moments import per_channel

__all__ = ["scale_shift_act", "scale_shift_act_backward"]


def scale_shift_act(
    x: Tensor, residual: Tensor | None, scale: Tensor, shift: Tensor | None, out_act: int, save_mask: bool
) -> tuple[Tensor, Tensor]:
    """y = out_act(scale * x + shift + residual), rounded once, and the mask of ReLU's gradient. A shift of None is 0.

    The mask is set where the sum is positive or NaN, as in PyTorch's ReLU. It is empty unless ``save_mask``.
    """
    t = per_channel(scale, x) * x.to(scale.dtype)
    if shift is not None:
        t = t + per_channel(shift, x)
    if residual is not None:
        t = t + residual
    mask = x.new_empty(0, dtype=scale.dtype)
    if save_mask:
        mask = pack_mask(torch.empty_like(x, dtype=torch.bool).copy_(~(t <= 0)))
    return torch.empty_like(x).copy_(by_code(out_act).forward(t)), mask


def scale_shift_act_backward(
    dr: Tensor, x: Tensor | None, mask: Tensor, mean: Tensor, k1: Tensor, k2: Tensor, k3: Tensor
) -> Tensor:
    """dx = k1 * dr + k2 * (x - mean) + k3. x may be None if k2 is zero. A mask that is not empty is applied to dr
    first.

    x is centred, because k2 * x alone would cancel against k3 if the mean is large compared with the deviation.
    """
    g = dr.to(k1.dtype)
    if mask.numel():
        g = torch.where(unpack_mask(mask, dr), g, 0)
    dx = per_channel(k1, dr) * g + per_channel(k3, dr)
    if x is not None:
        dx = dx + per_channel(k2, dr) * (x - per_channel(mean, dr))
    return torch.empty_like(dr).copy_(dx)
