"""Tests of the CPU backend's passes against their definitions in se_fused.ops, on every instruction set.

Row lengths cover all cases of the kernels: shorter than a vector step, exact multiples, and a remainder handled by an
overlapping step.
"""

import itertools

import pytest
from support.kernels import (
    check_moments,
    check_moments_backward,
    check_nan_and_infinity,
    check_scale_shift_act,
    check_scale_shift_act_backward,
    check_scale_shift_act_mean,
    check_scale_shift_act_mean_backward,
)

from se_fused import backends
from se_fused._formats import DTYPES, LAYOUTS
from se_fused.activations import OUT_ACT_CODES

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
CASES = [
    pytest.param(shape, id="x".join(map(str, shape)), marks=[pytest.mark.isa] if shape == (2, 17, 7, 7) else [])
    for shape in SHAPES
]

# Three parameters at a time decide which code runs: a row's end in steps of a dtype's width with or without a residual,
# an activation in a layout's loop over channels.
pytestmark = [
    pytest.mark.quick,
    pytest.mark.grid(test=3, quick=2),
    pytest.mark.usefixtures("instructions"),
    pytest.mark.parametrize("layout", LAYOUTS),
    pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES),
    pytest.mark.parametrize("shape", CASES),
]


def test_moments(shape, dtype, layout):
    check_moments(CPU, shape, dtype, layout)


@pytest.mark.parametrize("out_act", OUT_ACT_CODES.values(), ids=OUT_ACT_CODES)
@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "alone"])
def test_scale_shift_act(shape, dtype, layout, out_act, with_residual):
    check_scale_shift_act(CPU, shape, dtype, layout, out_act, with_residual)


@pytest.mark.parametrize("out_act", OUT_ACT_CODES.values(), ids=OUT_ACT_CODES)
@pytest.mark.parametrize("want_dr", [True, False], ids=["dr", "no-dr"])
def test_moments_backward(shape, dtype, layout, out_act, want_dr):
    check_moments_backward(CPU, shape, dtype, layout, out_act, want_dr)


@pytest.mark.parametrize(("masked", "with_x"), list(itertools.product([True, False], repeat=2)))
def test_scale_shift_act_backward(shape, dtype, layout, masked, with_x):
    check_scale_shift_act_backward(CPU, shape, dtype, layout, masked, with_x)


@pytest.mark.parametrize("out_act", OUT_ACT_CODES.values(), ids=OUT_ACT_CODES)
def test_scale_shift_act_mean(shape, dtype, layout, out_act):
    check_scale_shift_act_mean(CPU, shape, dtype, layout, out_act)
    check_scale_shift_act_mean_backward(CPU, shape, dtype, layout, out_act)


def test_nan_and_infinity_flow_as_in_pytorch(shape, dtype, layout):
    check_nan_and_infinity(CPU, shape, dtype, layout)
