"""Each streaming kernel of the CPU backend against its definition in se_fused.ops, on every instruction set.

Row lengths go through all the kernels' cases: shorter than a vector step, exact multiples, and a rest that overlaps.
"""

import itertools

import pytest
import torch

from se_fused import backends
from se_fused.bounds import EPS, relative_error, ulp
from se_fused.ops import affine as affine_definition
from se_fused.ops import moments as moments_definition
from se_fused.ops.layout import mask_numel, pack_mask, unpack_mask
from se_fused.verify import DTYPES, LAYOUTS, to_layout

CPU = backends.BACKENDS["cpu"]
# (N, C, *spatial): S = 1, 3, 16, 35, 49, 64+1, a long row in two blocks; C below, at and above a vector step
SHAPES = [
    (2, 5, 1, 1),
    (3, 16, 3),
    (2, 8, 4, 4),
    (2, 33, 7, 5),
    (2, 17, 7, 7),
    (1, 3, 5, 13),
    (2, 2, 70, 61),
    (2, 40, 3, 3, 5),
]
SHAPES += [(1, 24, 600)]
SHAPE_IDS = ["x".join(map(str, shape)) for shape in SHAPES]

pytestmark = [
    pytest.mark.usefixtures("instructions"),
    pytest.mark.parametrize("layout", LAYOUTS),
    pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES),
    pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS),
]


def draw(shape, dtype, layout, mean=0.0):
    return to_layout((torch.randn(shape) + mean).to(dtype), layout)


def nc(shape, scale=1.0):
    return torch.randn(shape[:2]) * scale


def close(mine, truth, dtype, terms):
    """Within 4 units in the last place of dtype and a few float32 roundings of the terms' magnitude."""
    bound = 4 * ulp(truth, dtype) + 8 * EPS * terms
    excess = ((mine.double() - truth).abs() / bound).max().item()
    assert excess <= 1, f"error is {excess:.1f} times its bound"


def test_moments(shape, dtype, layout):
    x = draw(shape, dtype, layout, mean=30.0)  # a mean that would cancel in E[x^2] - E[x]^2
    mean, m2 = CPU.moments(x)
    true_mean, true_m2 = moments_definition.moments(x.double())
    s = x[0, 0].numel()
    close(mean, true_mean, torch.float32, s**0.5 * true_mean.abs())
    # a rounding of the mean moves every difference: eps |mean| sum |x - mean| <= eps |mean| sqrt(S m2)
    close(m2, true_m2, torch.float32, s**0.5 * true_m2 + true_mean.abs() * (s * true_m2).sqrt())


@pytest.mark.parametrize("out_act", [0, 1, 2], ids=["none", "relu", "silu"])
@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "alone"])
def test_affine(shape, dtype, layout, out_act, with_residual):
    x, residual = draw(shape, dtype, layout), draw(shape, dtype, layout) if with_residual else None
    scale, shift = nc(shape), nc(shape)
    y, mask = CPU.affine(x, residual, scale, shift, out_act, out_act == 1)
    wide = None if residual is None else residual.double()
    truth, true_mask = affine_definition.affine(x.double(), wide, scale.double(), shift.double(), out_act, out_act == 1)
    close(y, truth, dtype, 4 + x.double().abs() * 4)
    assert y.dtype == dtype and y.stride() == x.stride()
    if out_act == 1:
        assert mask.numel() == mask_numel(x)
        different = unpack_mask(mask, x) != unpack_mask(true_mask, x)
        # only where the sum is zero to rounding may float32 and float64 disagree on its sign
        t, _ = affine_definition.affine(x.double(), wide, scale.double(), shift.double(), 0, False)
        assert t[different].abs().max().item() < 1e-5 if different.any() else True


@pytest.mark.parametrize("out_act", [0, 1, 2], ids=["none", "relu", "silu"])
@pytest.mark.parametrize("want_dr", [True, False], ids=["dr", "no-dr"])
def test_moments_backward(shape, dtype, layout, out_act, want_dr):
    dy, x, residual = (draw(shape, dtype, layout) for _ in range(3))
    mask = pack_mask(to_layout(torch.rand(shape) > 0.4, layout))
    mean, scale, shift = nc(shape), nc(shape), nc(shape)
    dr, p, q = CPU.moments_backward(dy, x, residual, mask, mean, scale, shift, out_act, want_dr)
    true_dr, _, _ = moments_definition.moments_backward(
        dy.double(), x.double(), residual.double(), mask, mean.double(), scale.double(), shift.double(), out_act, True
    )
    if want_dr:
        close(dr, true_dr, dtype, 16)
        assert dr.stride() == x.stride()
    else:
        assert dr.numel() == 0
    # the sums are of dr as it is stored: rounded
    stored = dr.double() if want_dr else true_dr.to(dtype).double()
    # without dr, SiLU's own error counts: of terms that cancel where its slope is zero, and of dtype's rounding
    own = 0 if want_dr or out_act != 2 else (4 + torch.finfo(dtype).eps / EPS) * 3 * dy.double().abs()
    s = x[0, 0].numel()
    wide = x.double() - mean.double().reshape(mean.shape + (1,) * (x.dim() - 2))
    close(p, stored.flatten(2).sum(2), torch.float32, (s**0.5 * stored.abs() + own).flatten(2).sum(2))
    close(
        q,
        (stored * wide).flatten(2).sum(2),
        torch.float32,
        ((s**0.5 * stored.abs() + own) * wide.abs()).flatten(2).sum(2),
    )


@pytest.mark.parametrize(("masked", "with_x"), list(itertools.product([True, False], repeat=2)))
def test_affine_backward(shape, dtype, layout, masked, with_x):
    dr, x = draw(shape, dtype, layout), draw(shape, dtype, layout, mean=5.0)
    mask = pack_mask(to_layout(torch.rand(shape) > 0.4, layout)) if masked else torch.empty(0)
    k = [nc(shape) for _ in range(4)]
    dx = CPU.affine_backward(dr, x if with_x else None, mask, *k)
    truth = affine_definition.affine_backward(
        dr.double(), x.double() if with_x else None, mask, *(t.double() for t in k)
    )
    close(dx, truth, dtype, 8 + 4 * x.double().abs())
    assert dx.stride() == dr.stride()


def test_nan_and_infinity_flow_as_in_pytorch(shape, dtype, layout):
    x = draw(shape, dtype, layout)
    flat = x.flatten()
    for value, at in ((float("nan"), 0), (float("inf"), flat.numel() // 2), (float("-inf"), flat.numel() - 1)):
        flat[at] = value
    x = to_layout(flat.reshape(shape), layout)
    one, nothing = torch.ones(shape[:2]), torch.zeros(shape[:2])
    y, mask = CPU.affine(x, None, one, nothing, 1, True)
    torch.testing.assert_close(y, torch.relu(x), rtol=0, atol=0, equal_nan=True)
    truth = torch.autograd.grad(torch.relu(x.requires_grad_()).sum(), x)[0]
    assert torch.equal(unpack_mask(mask, x), truth != 0)
    mean, _ = CPU.moments(x.detach())
    expected = x.detach().float().flatten(2).mean(2)
    assert torch.equal(mean.isnan(), expected.isnan())
    assert relative_error(mean.nan_to_num(0, 0, 0), expected.double().nan_to_num(0, 0, 0)) < 1e-5
