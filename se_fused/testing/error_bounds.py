"""Error bounds of results, derived from the formulas (DESIGN section 3).

The forward bound propagates rounding errors through the op's formulas, in float64. A sum of n float32 numbers may have
an error of eps * sqrt(n) times its terms' magnitude (the usual model of independent rounding errors), a product or sum
of two numbers an error of eps, and the result 4 units in the last place of its dtype. Gradients may have twice the
error of eager PyTorch on the same inputs in the same dtype.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..activations import ACTIVATIONS, GATES, OUT_ACTIVATIONS
from ..ops.moments import per_channel

__all__ = [
    "EPS",
    "GRADIENT_FLOOR",
    "conv_bound",
    "forward_bound",
    "mean_error",
    "relative_error",
    "squeeze_bound",
    "ulp",
]

EPS = torch.finfo(torch.float32).eps
GRADIENT_FLOOR = 8 * EPS
"""Relative error that a gradient may always have, even if eager PyTorch's error happens to be smaller, because its last
sums run in another order."""


def ulp(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance between adjacent numbers of ``dtype`` at y (float64)."""
    info = torch.finfo(dtype)
    exponent = torch.floor(torch.log2(y.abs().clamp_min(info.tiny)))
    return torch.exp2(exponent) * info.eps


def relative_error(mine: Tensor, truth: Tensor) -> float:
    """||mine - truth|| / ||truth|| in float64; infinite if mine is not finite where the truth is."""
    difference = (mine.double() - truth).norm().item()
    if difference != difference:
        return float("inf")
    return difference / max(truth.norm().item(), torch.finfo(torch.float64).tiny)


def mean_error(x: Tensor) -> Tensor:
    """The largest error of each mean over the positions (N, C) of x (N, C, *spatial), float64, as a float32 sum."""
    size = x.flatten(2).abs()
    return EPS * size.shape[2] ** 0.5 * size.mean(2)


def _gate_bound(
    given: Mapping[str, Any], z: Tensor, error_z: Tensor, magnitude: Tensor, terms: float
) -> tuple[Tensor, Tensor]:
    """The gate's factor (N, C) and its largest error, from the squeeze z (N, C) and its error ``error_z``.

    ``magnitude`` is the magnitude of the terms of z's sum, and ``terms`` the square root of the number of terms that
    the first layer adds.
    """
    w1, w2 = given["fc1_weight"].flatten(1), given["fc2_weight"].flatten(1)
    b1 = 0 if given.get("fc1_bias") is None else given["fc1_bias"]
    b2 = 0 if given.get("fc2_bias") is None else given["fc2_bias"]
    p = z @ w1.T + b1
    error_p = error_z @ w1.abs().T + EPS * terms * (magnitude @ w1.abs().T + abs(b1))
    act, gate = ACTIVATIONS[given["act"]], GATES[given["gate"]]
    h = act.forward(p)
    error_h = act.steepest * error_p + 4 * EPS * h.abs()
    q = h @ w2.T + b2
    error_q = error_h @ w2.abs().T + EPS * w1.shape[0] ** 0.5 * (h.abs() @ w2.abs().T + abs(b2))
    factor = gate.forward(q)
    return factor, gate.steepest * error_q + 4 * EPS * factor


def forward_bound(given: Mapping[str, Any], y: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest error that each element of the result may have, in y's shape.

    Args:
        given: the op's arguments by name, in float64: x, residual, running_mean, running_var, bn_weight, bn_bias,
            fc1_weight (R, C), fc1_bias, fc2_weight (C, R), fc2_bias, drop_path_scale, training, eps, act, gate,
            out_act.
        y: the exact result, float64, x's shape.
        dtype: the dtype of the result.
    """
    x: Tensor = given["x"]
    n, c = x.shape[:2]
    flat = x.flatten(2)
    s = flat.shape[2]
    m, size = flat.mean(2), flat.abs().mean(2)
    error_m = EPS * s**0.5 * size
    a, b = torch.ones(c, dtype=x.dtype, device=x.device), torch.zeros(c, dtype=x.dtype, device=x.device)
    error_a = error_b = torch.zeros_like(a)
    if given.get("training") or given.get("running_mean") is not None:
        gamma = a if given.get("bn_weight") is None else given["bn_weight"]
        beta = b if given.get("bn_bias") is None else given["bn_bias"]
        if given.get("training"):
            mu, var = m.mean(0), flat.var((0, 2), correction=0)
            error_mu = error_m.mean(0) + EPS * n**0.5 * size.mean(0)
            relative_var = EPS * (n * s) ** 0.5 + 2 * EPS
        else:
            mu, var = given["running_mean"], given["running_var"]
            error_mu, relative_var = torch.zeros_like(mu), 2 * EPS
        a = gamma * (var + given["eps"]).rsqrt()
        b = beta - a * mu
        # With u = a (x - mu) + beta, an error of mu changes b by a * error_mu, and an error of a changes the slope
        # about mu.
        error_a = a.abs() * (relative_var / 2 + 2 * EPS)
        error_b = EPS * beta.abs() + error_a * mu.abs() + a.abs() * error_mu + EPS * (a * mu).abs()
    factor = torch.ones_like(m)
    error_factor = torch.zeros_like(m)
    if given.get("fc1_weight") is not None:
        z = a * m + b
        error_z = a.abs() * error_m + error_a * m.abs() + error_b + EPS * ((a * m).abs() + b.abs())
        factor, error_factor = _gate_bound(given, z, error_z, z.abs(), c**0.5)
    if given.get("drop_path_scale") is not None:
        factor = factor * given["drop_path_scale"][:, None]
        error_factor = error_factor * given["drop_path_scale"][:, None]
    error_scale = error_factor * a.abs() + factor.abs() * error_a + 2 * EPS * (factor * a).abs()
    error_shift = error_factor * b.abs() + factor.abs() * error_b + 2 * EPS * (factor * b).abs()
    terms = per_channel((factor * a).abs(), x) * x.abs() + per_channel((factor * b).abs(), x)
    if given.get("residual") is not None:
        terms = terms + given["residual"].abs()
    carried = per_channel(error_scale, x) * x.abs() + per_channel(error_shift, x) + 2 * EPS * terms
    return OUT_ACTIVATIONS[given.get("out_act") or "none"].steepest * carried + 4 * ulp(y, dtype)


def squeeze_bound(given: Mapping[str, Any], y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The largest errors that the results of ``batch_norm_act_squeeze`` may have: of y's elements (N, C, *spatial), and
    of their mean (N, C). The mean is over S values with float32's errors only, whatever y's dtype.

    Args:
        given, y, dtype: as in :func:`forward_bound`.
    """
    flat = y.flatten(2)
    mean = forward_bound(given, y, torch.float32).flatten(2).mean(2) + EPS * flat.shape[2] ** 0.5 * flat.abs().mean(2)
    return forward_bound(given, y, dtype), mean


def conv_bound(given: Mapping[str, Any], y: Tensor, dtype: torch.dtype, product_eps: float, stored: bool) -> Tensor:
    """The largest error that each element of ``conv1x1_squeeze_excite`` may have, in y's shape.

    The squeeze sums S and then K numbers, or K and then S; the larger of the two bounds holds for both.

    Args:
        given: the op's arguments by name, in float64: h, conv_weight (C, K), conv_bias, the gate's parameters,
            residual, act, gate, out_act.
        y: the exact result, float64, (N, C, *spatial).
        dtype: the dtype of the result.
        product_eps: relative rounding error of a factor in the convolution's products: 0, except for TF32, which keeps
            11 bits.
        stored: whether the convolution's result may be rounded to dtype before squeeze-excite.
    """
    h, weight = given["h"].flatten(2), given["conv_weight"].flatten(1)
    bias = 0 if given["conv_bias"] is None else given["conv_bias"][None, :, None]
    k, s = h.shape[1], h.shape[2]
    u = torch.einsum("ck,nks->ncs", weight, h) + bias
    size = torch.einsum("ck,nks->ncs", weight.abs(), h.abs()) + abs(bias)
    error_u = (EPS * k**0.5 + 2 * product_eps) * size
    if stored:
        error_u = error_u + ulp(u, dtype) / 2
    error_m = error_u.mean(2) + EPS * s**0.5 * size.mean(2)
    # The folded weights are rounded to float32, and multiply means that are not summed over C first.
    terms = k**0.5 + u.shape[1] ** 0.5
    factor, error_factor = _gate_bound(given, u.mean(2), error_m, size.mean(2), terms)
    carried = error_factor[:, :, None] * u.abs() + factor[:, :, None] * (error_u + 2 * EPS * u.abs())
    if given["residual"] is not None:
        carried = carried + EPS * given["residual"].flatten(2).abs()
    slope = OUT_ACTIVATIONS[given.get("out_act") or "none"].steepest
    return slope * carried.reshape(y.shape) + 4 * ulp(y, dtype)
