"""Comparisons of a backend's passes with their definitions in se_fused.ops, for the tests of each backend."""

from typing import Any

import torch
from torch import Tensor

from se_fused import reference
from se_fused.activations import OUT_ACT_CODES, by_code, keeps_mask, recomputed, writes_dr
from se_fused.ops import moments as moments_definition
from se_fused.ops import scale_shift_act as scale_shift_act_definition
from se_fused.ops import scale_shift_act_mean as scale_shift_act_mean_definition
from se_fused.ops.layout import mask_numel, pack_mask, unpack_mask
from se_fused.testing.error_bounds import EPS, relative_error, ulp
from se_fused.testing.verify import to_layout

Shape = tuple[int, ...]
NONE = OUT_ACT_CODES["none"]
CORNERS = {code: by_code(code).corners for code in OUT_ACT_CODES.values()}
"""Activation code -> the points at which its derivative jumps."""
ACTIVATED = [(code, True) for code in OUT_ACT_CODES.values()] + [(OUT_ACT_CODES["relu"], False)]
"""(out_act, with a residual) of pass 2. The addition is the same code for all activations, so one is tested without."""
DERIVED = [(code, writes_dr(code, True)) for code in OUT_ACT_CODES.values()] + [(OUT_ACT_CODES["relu"], False)]
"""(out_act, whether dr is wanted) of the backward's pass 1, in the combinations that the ops request."""

shares: list[float] = []
"""Error / bound of each comparison so far; benchmarks/gpu reports the largest."""


def draw(shape: Shape, dtype: torch.dtype, layout: str, device: str, mean: float = 0.0) -> Tensor:
    return to_layout((torch.randn(shape, device=device) + mean).to(dtype), layout)


def per_sample(shape: Shape, device: str) -> Tensor:
    """Random numbers of shape (N, C)."""
    return torch.randn(shape[:2], device=device)


def bits(shape: Shape, layout: str, device: str) -> Tensor:
    """A mask with three fifths of its bits set."""
    return pack_mask(to_layout(torch.rand(shape, device=device) > 0.4, layout))


def close(mine: Tensor, truth: Tensor, dtype: torch.dtype, terms: Tensor | float) -> None:
    """Check an error against 4 units in the last place of dtype plus 8 float32 roundings of the terms' magnitude."""
    bound = 4 * ulp(truth, dtype) + 8 * EPS * terms
    excess = ((mine.double() - truth).abs() / bound).max().item()
    shares.append(excess)
    assert excess <= 1, f"error is {excess:.1f} times its bound"


def check_moments(backend: Any, shape: Shape, dtype: torch.dtype, layout: str, device: str = "cpu") -> None:
    x = draw(shape, dtype, layout, device, mean=30.0)  # E[x^2] - E[x]^2 would cancel with this mean
    mean, m2 = backend.moments(x)
    true_mean, true_m2 = moments_definition.moments(x.double())
    s = x[0, 0].numel()
    close(mean, true_mean, torch.float32, s**0.5 * true_mean.abs())
    # An error of the mean changes every difference: eps |mean| sum |x - mean| <= eps |mean| sqrt(S m2).
    close(m2, true_m2, torch.float32, s**0.5 * true_m2 + true_mean.abs() * (s * true_m2).sqrt())


def check_scale_shift_act(
    backend: Any, shape: Shape, dtype: torch.dtype, layout: str, out_act: int, with_residual: bool, device: str = "cpu"
) -> None:
    x = draw(shape, dtype, layout, device)
    residual = draw(shape, dtype, layout, device) if with_residual else None
    scale, shift = per_sample(shape, device), per_sample(shape, device)
    save_mask = keeps_mask(out_act)
    y, mask = backend.scale_shift_act(x, residual, scale, shift, out_act, save_mask)
    wide = None if residual is None else residual.double()
    truth, true_mask = scale_shift_act_definition.scale_shift_act(
        x.double(), wide, scale.double(), shift.double(), out_act, save_mask
    )
    close(y, truth, dtype, 4 + x.double().abs() * 4)
    if out_act in (NONE, OUT_ACT_CODES["relu"]):  # computed in float32, then rounded to the nearest once
        excess = (y.double() - truth).abs() / (ulp(truth, dtype) / 2 + 8 * EPS * (4 + x.double().abs() * 4))
        assert excess.max() <= 1, f"y is {excess.max():.2f} times its rounding away from the truth"
    assert y.dtype == dtype and y.stride() == x.stride()
    if save_mask:
        assert mask.numel() == mask_numel(x)
        different = unpack_mask(mask, x) != unpack_mask(true_mask, x)
        # float32 and float64 may disagree on the sign of the sum only where it is zero up to rounding.
        t, _ = scale_shift_act_definition.scale_shift_act(x.double(), wide, scale.double(), shift.double(), NONE, False)
        assert t[different].abs().max().item() < 1e-5 if different.any() else True


def check_moments_backward(
    backend: Any, shape: Shape, dtype: torch.dtype, layout: str, out_act: int, want_dr: bool, device: str = "cpu"
) -> None:
    dy, x, residual = (draw(shape, dtype, layout, device) for _ in range(3))
    mask = bits(shape, layout, device)
    mean, scale, shift = (per_sample(shape, device) for _ in range(3))
    dr, p, q = backend.moments_backward(dy, x, residual, mask, mean, scale, shift, out_act, want_dr)
    true_dr, _, _ = moments_definition.moments_backward(
        dy.double(), x.double(), residual.double(), mask, mean.double(), scale.double(), shift.double(), out_act, True
    )
    if want_dr:
        close(dr, true_dr, dtype, 16)
        assert dr.stride() == x.stride()
    else:
        assert dr.numel() == 0
    # The sums use dr as it is stored, rounded to dtype.
    stored = dr.double() if want_dr else true_dr.to(dtype).double()
    # If dr is not stored, add its own error: of terms that cancel where the slope is zero, and of rounding to dtype.
    own = 0 if want_dr or not recomputed(out_act) else (4 + torch.finfo(dtype).eps / EPS) * 3 * dy.double().abs()
    s = x[0, 0].numel()
    wide = x.double() - mean.double().reshape(mean.shape + (1,) * (x.dim() - 2))
    terms = s**0.5 * stored.abs() + own
    close(p, stored.flatten(2).sum(2), torch.float32, terms.flatten(2).sum(2))
    close(q, (stored * wide).flatten(2).sum(2), torch.float32, (terms * wide.abs()).flatten(2).sum(2))


def check_scale_shift_act_mean(
    backend: Any, shape: Shape, dtype: torch.dtype, layout: str, out_act: int, device: str = "cpu"
) -> None:
    x = draw(shape, dtype, layout, device)
    scale, shift = per_sample(shape, device), per_sample(shape, device) + 2  # so that most values are positive
    y, mean = backend.scale_shift_act_mean(x, scale, shift, out_act)
    truth, true_mean = scale_shift_act_mean_definition.scale_shift_act_mean(
        x.double(), scale.double(), shift.double(), out_act
    )
    error_terms = 4 + x.double().abs() * 4
    close(y, truth, dtype, error_terms)
    assert y.dtype == dtype and y.stride() == x.stride() and mean.dtype == torch.float32
    assert mean.shape == shape[:2] and mean.is_contiguous()
    # The mean is computed before y is rounded to dtype, so its error is that of float32 for every dtype.
    s = x[0, 0].numel()
    close(mean, true_mean, torch.float32, error_terms.flatten(2).mean(2) + s**0.5 * truth.abs().flatten(2).mean(2))


def check_scale_shift_act_mean_backward(
    backend: Any, shape: Shape, dtype: torch.dtype, layout: str, out_act: int, device: str = "cpu"
) -> None:
    dy, x = draw(shape, dtype, layout, device), draw(shape, dtype, layout, device, mean=2.0)
    added, mean, scale, shift = (per_sample(shape, device) for _ in range(4))
    dr, p, q = backend.scale_shift_act_mean_backward(dy, added, x, mean, scale, shift, out_act)
    wide = [t.double() for t in (dy, added, x, mean, scale, shift)]
    true_dr, _, _ = scale_shift_act_mean_definition.scale_shift_act_mean_backward(*wide, out_act)
    t, _ = scale_shift_act_definition.scale_shift_act(wide[2], None, wide[4], wide[5], NONE, False)
    # At a jump of the derivative, float32 and float64 may be on different sides.
    at_corner = torch.zeros_like(t, dtype=torch.bool)
    for corner in CORNERS[out_act]:
        at_corner |= (t - corner).abs() < 1e-5
    close(dr.where(~at_corner, 0), true_dr.where(~at_corner, 0), dtype, 16 + 8 * added.double().abs().max())
    assert dr.stride() == x.stride()
    stored, s = dr.double(), x[0, 0].numel()
    away = wide[2] - wide[3].reshape(mean.shape + (1,) * (x.dim() - 2))
    terms = s**0.5 * stored.abs()
    close(p, stored.flatten(2).sum(2), torch.float32, terms.flatten(2).sum(2))
    close(q, (stored * away).flatten(2).sum(2), torch.float32, (terms * away.abs()).flatten(2).sum(2))


def check_scale_shift_act_backward(
    backend: Any, shape: Shape, dtype: torch.dtype, layout: str, masked: bool, with_x: bool, device: str = "cpu"
) -> None:
    dr, x = draw(shape, dtype, layout, device), draw(shape, dtype, layout, device, mean=5.0)
    mask = bits(shape, layout, device) if masked else torch.empty(0, device=device)
    k = [per_sample(shape, device) for _ in range(4)]
    dx = backend.scale_shift_act_backward(dr, x if with_x else None, mask, *k)
    truth = scale_shift_act_definition.scale_shift_act_backward(
        dr.double(), x.double() if with_x else None, mask, *(t.double() for t in k)
    )
    close(dx, truth, dtype, 8 + 4 * x.double().abs())
    assert dx.stride() == dr.stride()


def check_nan_and_infinity(backend: Any, shape: Shape, dtype: torch.dtype, layout: str, device: str = "cpu") -> None:
    x = draw(shape, dtype, layout, device)
    flat = x.flatten()
    for value, at in ((float("nan"), 0), (float("inf"), flat.numel() // 2), (float("-inf"), flat.numel() - 1)):
        flat[at] = value
    x = to_layout(flat.reshape(shape), layout)
    one, nothing = torch.ones(shape[:2], device=device), torch.zeros(shape[:2], device=device)
    y, mask = backend.scale_shift_act(x, None, one, nothing, OUT_ACT_CODES["relu"], True)
    torch.testing.assert_close(y, torch.relu(x), rtol=0, atol=0, equal_nan=True)
    truth = torch.autograd.grad(torch.relu(x.requires_grad_()).sum(), x)[0]
    assert torch.equal(unpack_mask(mask, x), truth != 0)
    for name in OUT_ACT_CODES:
        y, mean = backend.scale_shift_act_mean(x.detach(), one, nothing, OUT_ACT_CODES[name])
        truth = reference.OUT_ACTIVATIONS[name](x.detach().double())  # PyTorch's float32 gelu makes infinity NaN
        assert torch.equal(y.isnan(), truth.isnan()) and torch.equal(y.isinf(), truth.isinf())
        assert torch.equal(mean.isnan(), truth.flatten(2).mean(2).isnan())
    mean, _ = backend.moments(x.detach())
    expected = x.detach().float().flatten(2).mean(2)
    assert torch.equal(mean.isnan(), expected.isnan())
    assert torch.equal(mean.isinf(), expected.isinf())
    assert relative_error(mean.nan_to_num(0, 0, 0), expected.double().nan_to_num(0, 0, 0)) < 1e-5
