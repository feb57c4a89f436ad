"""Excitation, the (N, C) arithmetic between the passes, in readable PyTorch.

It defines what every backend computes, and runs if a backend has passes but no excitation kernel.

Symbols: N batch, C channels, S positions, R squeezed channels. m: (N, C) means of x; v: (N, C) sums of (x - m)^2;
u = a x + b is the normalised map, a and b: (C,); d: (N,) drop-path factor; s: (N, C) the gate's value.
The derivation is checked against autograd in tests/ops/test_algebra.py.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._params import BatchNormParams, ExcitationParams, SavedTensors
from ..activations import ACTIVATIONS, GATES
from .layout import positions

__all__ = [
    "BatchNorm",
    "Coefficients",
    "ExcitationGradients",
    "batch_norm",
    "excitation",
    "excitation_backward",
]


class BatchNorm(NamedTuple):
    """Batch norm as u = a x + b, and the statistics that it uses: the batch's or given ones."""

    mean: Tensor  # (C,)
    var: Tensor  # (C,) biased
    rstd: Tensor  # (C,)
    a: Tensor  # (C,)
    b: Tensor  # (C,)


def batch_norm(
    bn: BatchNormParams, wide: torch.dtype, positions: int, m: Tensor | None = None, v: Tensor | None = None
) -> BatchNorm:
    """Batch norm as an affine map. Batch statistics are merged from the samples' by Chan's formula, without
    cancellation; otherwise the running statistics normalise.

    Args:
        bn: the parameters, which may have sizes of 1 after the channels.
        wide: the dtype of the result.
        positions: S.
        m, v: (N, C) from pass 1, for batch statistics.
    """
    if bn.batch_stats:
        assert m is not None and v is not None
        mean = m.mean(0)
        var = (v.sum(0) + positions * (m - mean).square().sum(0)) / (m.shape[0] * positions)
    else:
        assert bn.running_mean is not None and bn.running_var is not None
        mean, var = bn.running_mean.to(wide).flatten(), bn.running_var.to(wide).flatten()
    rstd = (var + bn.eps).rsqrt()
    a = rstd if bn.weight is None else bn.weight.to(rstd.dtype).flatten() * rstd
    b = -a * mean if bn.bias is None else bn.bias.to(rstd.dtype).flatten() - a * mean
    return BatchNorm(mean, var, rstd, a, b)


class Coefficients(NamedTuple):
    """Result of :func:`excitation`."""

    scale: Tensor  # (N, C) = d s a
    shift: Tensor  # (N, C) = d s b
    factor: Tensor | None  # (N, C) the gate's value s
    hidden: Tensor | None  # (N, R) before the activation


def excitation(m: Tensor, bn: BatchNorm | None, fc: ExcitationParams, d: Tensor | None) -> Coefficients:
    """Scale and shift of pass 2. z = a m + b is the squeeze of u, computed without reading u;
    s = gate(W2 act(W1 z + b1) + b2); pass 2 then computes d s u = scale x + shift."""
    factor = hidden = None
    if fc.fc1_weight is not None and fc.fc2_weight is not None:
        z = m if bn is None else bn.a * m + bn.b
        b1, b2 = (None if bias is None else bias.to(m.dtype) for bias in (fc.fc1_bias, fc.fc2_bias))
        hidden = F.linear(z, fc.fc1_weight.to(m.dtype).flatten(1), b1)
        active = ACTIVATIONS[fc.act].forward(hidden)
        factor = GATES[fc.gate].forward(F.linear(active, fc.fc2_weight.to(m.dtype).flatten(1), b2))
    scale = torch.ones_like(m) if factor is None else factor
    if d is not None:
        scale = scale * d.to(m.dtype)[:, None]
    if bn is None:
        return Coefficients(scale, torch.zeros_like(m), factor, hidden)
    return Coefficients(scale * bn.a, scale * bn.b, factor, hidden)


class ExcitationGradients(NamedTuple):
    """Result of :func:`excitation_backward`; the gradient of an absent parameter is None."""

    k1: Tensor  # (N, C): dx = k1 dr + k2 (x - m) + k3
    k2: Tensor
    k3: Tensor
    bn_weight: Tensor | None  # (C,)
    bn_bias: Tensor | None
    fc1_weight: Tensor | None  # (R, C)
    fc1_bias: Tensor | None
    fc2_weight: Tensor | None  # (C, R)
    fc2_bias: Tensor | None


def excitation_backward(
    p: Tensor,
    q: Tensor,
    saved: SavedTensors,
    bn: BatchNorm | None,
    fc: ExcitationParams,
    d: Tensor | None,
    batch_stats: bool,
) -> ExcitationGradients:
    """All gradients but dr, from P = sum dr and Q = sum dr (x - m), both (N, C).

    ds = d (a Q + z P), where the left side is the gradient of the gate's value s. Through the gate and the two layers
    it gives dz and the weights' gradients. g1 = d s P + dz and g2 = d s Q are the sums of du and of du (x - m); dbeta =
    sum_n g1, dgamma = rstd sum_n (g2 + (m - mu) g1). Batch statistics depend on x. Given statistics do not, and k2 is
    then zero.
    """
    m, s = saved.mean, positions(saved.x)
    one = torch.ones_like(m)
    a, b = (one[0], torch.zeros_like(m[0])) if bn is None else (bn.a, bn.b)
    ds_factor = one if d is None else d.to(m.dtype)[:, None].expand_as(m)
    dz = torch.zeros_like(m)
    dw1 = db1 = dw2 = db2 = dgamma = dbeta = None
    ds = ds_factor
    if fc.fc1_weight is not None and fc.fc2_weight is not None:
        w1, w2 = fc.fc1_weight.to(m.dtype).flatten(1), fc.fc2_weight.to(m.dtype).flatten(1)
        act, z = ACTIVATIONS[fc.act], a * m + b
        dq = GATES[fc.gate].backward(ds_factor * (a * q + z * p), saved.factor)
        dhidden = act.backward(dq @ w2, saved.hidden)
        dz = dhidden @ w1
        dw2, db2 = dq.T @ act.forward(saved.hidden), dq.sum(0)
        dw1, db1 = dhidden.T @ z, dhidden.sum(0)
        ds = ds_factor * saved.factor
    k1, k2, k3 = a * ds, torch.zeros_like(m), dz / s
    if bn is not None:
        g1, g2 = ds * p + dz, ds * q
        dbeta = g1.sum(0)
        dgamma = bn.rstd * (g2 + (m - bn.mean) * g1).sum(0)
        count = m.shape[0] * s
        if batch_stats:
            k2 = (-a * bn.rstd * dgamma / count).expand_as(m).contiguous()
            k3 = k3 - dbeta / count
        k3 = a * k3 + k2 * (m - bn.mean)
    return ExcitationGradients(k1, k2, k3, dgamma, dbeta, dw1, db1, dw2, db2)
