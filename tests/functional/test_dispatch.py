"""Tests of the calls that ``auto`` leaves to plain PyTorch, which was faster when measured (benchmarks/NOTES.md)."""

import pytest
import torch
from torch import nn

from se_fused import functional, reference, use_backend
from se_fused.nn import SqueezeExcite, fused_gate_projection

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("shape", "dtype", "grad", "plain"),
    [
        ((64, 2048, 1, 1), torch.float32, False, True),
        ((63, 2048, 1, 1), torch.float32, False, False),  # fewer products
        ((64, 2048, 1, 2), torch.float32, False, False),  # more positions
        ((64, 2048, 1, 1), torch.bfloat16, False, False),
        ((16, 2048, 1, 1), torch.float32, True, True),
        ((15, 2048, 1, 1), torch.float32, True, False),
        ((64, 2048, 1, 1), torch.bfloat16, True, True),
    ],
)
@pytest.mark.parametrize("norm", [False, True])
def test_auto_leaves_it_to_plain_pytorch(monkeypatch, shape, dtype, grad: bool, plain: bool, norm: bool):
    c, r = shape[1], 128
    x = torch.randn(shape).to(dtype).requires_grad_(grad)
    fc = [t.to(dtype) for t in (torch.randn(r, c) / 45, torch.randn(r), torch.randn(c, r) / 11, torch.randn(c))]
    name = "batch_norm_squeeze_excite" if norm else "squeeze_excite"
    right, called = reference.block, []
    monkeypatch.setattr(reference, "block", lambda *args, **options: called.append(1) or right(*args, **options))
    bn = [torch.randn(c), torch.rand(c) + 1, None, None] if norm else []
    options = {"training": False} if norm else {}

    def call():
        with torch.set_grad_enabled(grad):
            return getattr(functional, name)(x, *bn, *fc, out_act="relu", **options)

    y = call()
    assert bool(called) == plain
    called.clear()
    with use_backend("cpu"):  # a backend requested by name is always used
        forced = call()
    assert not called
    eps = 8 * torch.finfo(dtype).eps  # plain PyTorch rounds every step to dtype
    torch.testing.assert_close(y, forced, rtol=eps, atol=eps)


@pytest.mark.parametrize(
    ("shape", "channels_last", "grad", "fused"),
    [
        ((8, 64, 32, 32), False, False, True),  # 2^19 elements
        ((8, 64, 32, 31), False, False, False),
        ((8, 64, 32, 32), True, False, False),
        ((20, 64, 32, 32), True, False, True),
        ((8, 64, 32, 32), True, True, True),
        ((8, 64, 32, 31), True, True, False),
    ],
)
def test_auto_leaves_small_projections_to_the_modules(monkeypatch, shape, channels_last: bool, grad: bool, fused: bool):
    c = shape[1]
    modules = nn.ModuleList([nn.BatchNorm2d(c), nn.SiLU(), SqueezeExcite(c), nn.Conv2d(c, 16, 1)])
    x = torch.randn(shape).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    right, called = functional.batch_norm_act_squeeze, []
    monkeypatch.setattr(
        functional, "batch_norm_act_squeeze", lambda *args, **options: called.append(1) or right(*args, **options)
    )

    def call(given):
        modules.train(grad)
        with torch.set_grad_enabled(grad):
            return fused_gate_projection(*modules, given)

    y = call(x)
    assert bool(called) == fused
    called.clear()
    with use_backend("cpu"):
        forced = call(x)
    assert called
    torch.testing.assert_close(y, forced, rtol=1e-4, atol=1e-4)
