"""Device functions of the CUDA kernels by themselves: errors of the activations against the bounds beside their code
(csrc/cuda/activations.cuh), and the division by a reciprocal (csrc/cuda/tiles.cuh).

The shim's approximate functions have the largest errors that a GPU's may have.
"""

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
import torch
from support import compiled, shim_library
from support.paths import ROOT, SUPPORT
from torch import Tensor

pytestmark = [
    pytest.mark.quick,
    pytest.mark.skipif(shim_library.why_not() is not None, reason=str(shim_library.why_not())),
]
U = 2.0**-24
SMALLEST = float(torch.finfo(torch.float32).tiny)
Activation = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module", name="functions")
def given_functions() -> ctypes.CDLL:
    flags = ["-std=c++20", "-O1", "-fPIC", "-Wno-unknown-pragmas", f"-I{shim_library.SHIM.relative_to(ROOT)}"]
    return ctypes.CDLL(str(compiled.build([SUPPORT / "cuda_functions.cpp"], flags, ["-shared"])))


@pytest.fixture(name="function")
def given_function(functions: ctypes.CDLL) -> Callable[[str], Activation]:
    """A function of a number by its name."""

    def named(name: str) -> Activation:
        def call(x: Tensor) -> Tensor:
            y = torch.empty_like(x)
            pointers = (ctypes.c_void_p(t.data_ptr()) for t in (x, y))
            getattr(functions, name)(*pointers, ctypes.c_int64(x.numel()))
            return y

        return call

    return named


def grid() -> Tensor:
    """Float32 numbers of both signs from 2^-30 to 2^8, 2,000 in each power of two, and 400,000 around the largest
    errors."""
    bits = np.arange(97 << 23, 135 << 23, 4201, dtype=np.uint32)
    all_sizes = torch.from_numpy(bits.view(np.float32).copy())
    return torch.cat([all_sizes, -all_sizes, torch.linspace(-10, 10, 400_001), torch.zeros(1)])


def largest(excess: Tensor, x: Tensor) -> str:
    at = int(excess.argmax())
    return f"{excess[at]:.3f} of the bound at x = {x[at]:.9g}"


def test_sigmoid_and_silu(function: Callable[[str], Activation]) -> None:
    x = grid()
    wide = x.double()
    truth = torch.sigmoid(wide)
    for name, exact, rounding in (("sigmoid_approx", truth, 0), ("silu_approx", wide * truth, 1)):
        error = (function(name)(x).double() - exact).abs()
        relative = torch.where(x < 0, 1.25 * wide.abs() + 9, 7.0) + rounding
        excess = error / (relative * U * exact.abs() * (1 + 1e-5) + SMALLEST * wide.abs().clamp_min(1))
        assert excess.max() <= 1, f"{name}: {largest(excess, x)}"
        assert excess.max() > 0.5, f"{name}: the bound is too large, {largest(excess, x)}"
        if name == "sigmoid_approx":
            assert (error / U).max() <= 6, largest(error / U, x)


def test_the_slope_of_silu(function: Callable[[str], Activation]) -> None:
    x = grid()
    wide = x.double().requires_grad_()
    (truth,) = torch.autograd.grad(torch.nn.functional.silu(wide).sum(), wide)
    error = (function("silu_slope_approx")(x).double() - truth).abs() / U
    assert error.max() <= 16, largest(error, x)
    assert error.max() > 4, largest(error, x)


def test_corners(function: Callable[[str], Activation]) -> None:
    """Infinity and NaN as in PyTorch, and 0 where the exponential overflows."""
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([-inf, -1e38, -200.0, -100.0, -88.8, -0.0, 0.0, 100.0, 1e38, inf, nan])
    assert function("sigmoid_approx")(x)[1:5].tolist() == [0, 0, 0, 0]
    for name, exact in (("sigmoid_approx", torch.sigmoid), ("silu_approx", torch.nn.functional.silu)):
        torch.testing.assert_close(function(name)(x), exact(x), rtol=5e-7, atol=SMALLEST, equal_nan=True)
    wide = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(torch.nn.functional.silu(wide).sum(), wide)
    torch.testing.assert_close(function("silu_slope_approx")(x), slope, rtol=1e-6, atol=1e-36, equal_nan=True)


def test_hard_sigmoid_is_exact_at_its_corners(function: Callable[[str], Activation]) -> None:
    x = torch.cat([torch.linspace(-4, 4, 80_001), torch.tensor([-3.0, 3.0])])
    y = function("hard_sigmoid")(x)
    assert y[-2:].tolist() == [0, 1]
    error = (y.double() - ((x.double() + 3) / 6).clamp(0, 1)).abs() / U
    assert error.max() <= 2, largest(error, x)


def test_division_by_a_reciprocal(functions: ctypes.CDLL) -> None:
    """For every period below 100, those around powers of two and the largest, near multiples of the period and at the
    ends of the numbers that a map can have."""
    wrong = functions.wrong_periods
    wrong.restype, wrong.argtypes = ctypes.c_int64, [ctypes.c_int64, ctypes.c_int, ctypes.c_int64]
    near_powers = [(1 << k) + more for k in range(7, 30) for more in (-1, 0, 1)]
    for period in [*range(1, 100), 196, 784, *near_powers, 2**30 - 1]:
        for first in (0, 5 * period, 1000 * period - 1, 2**40 // period * period, 2**40 - 17):
            assert wrong(first, period, 9000) == 0, (first, period)
