"""Pass 1: sums per sample and channel. Definitions in plain PyTorch, which backends replace with kernels.

Symbols: N batch, C channels, S positions; x, dy, residual, dr: (N, C, *spatial); everything else (N, C), in float32
(float64 for float64 inputs).
"""

import torch
from torch import Tensor

from ..activations import by_code, keeps_mask, recomputed
from .layout import unpack_mask

__all__ = ["accumulation_dtype", "moments", "moments_backward", "per_channel"]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float64 for float64, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def per_channel(vector: Tensor, x: Tensor) -> Tensor:
    """(N, C) -> broadcastable against x (N, C, *spatial)."""
    return vector.reshape(vector.shape + (1,) * (x.dim() - 2))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """mean (N, C) and m2 (N, C) = sum of (x - mean)^2 over the positions: never E[x^2] - E[x]^2, which cancels."""
    wide = x.to(accumulation_dtype(x.dtype)).flatten(2)
    mean = wide.mean(2)
    return mean, (wide - mean[:, :, None]).square().sum(2)


def moments_backward(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    mask: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    out_act: int,
    want_dr: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dr = dy * out_act'(t) with t = scale * x + shift + residual; P = sum dr; Q = sum dr * (x - mean).

    ReLU's derivative is the mask; SiLU's and hard-swish's are computed from t, which is recomputed. dr has x's dtype
    and is empty unless ``want_dr``: it is the residual's gradient, and pass 2 reads it.
    """
    wide = x.to(mean.dtype)
    g = dy.to(mean.dtype)
    if keeps_mask(out_act):
        g = torch.where(unpack_mask(mask, x), g, 0)
    elif recomputed(out_act):
        t = per_channel(scale, x) * wide + per_channel(shift, x)
        g = by_code(out_act).backward(g, t if residual is None else t + residual)
        g = g.to(x.dtype).to(mean.dtype)  # pass 2 reads the rounded dr, so the sums must be of the same numbers
    p = g.flatten(2).sum(2)
    q = (g * (wide - per_channel(mean, x))).flatten(2).sum(2)
    dr = torch.empty_like(x).copy_(g) if want_dr else x.new_empty(0, dtype=mean.dtype)
    return dr, p, q
