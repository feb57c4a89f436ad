"""Tests of functional.channel_gate, against the error bounds of squeeze_excite with the same gate."""

import copy
import dataclasses
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.contract import SHAPES
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from se_fused import backends, functional, reference, use_backend
from se_fused._formats import DTYPES
from se_fused.testing.error_bounds import forward_bound
from se_fused.testing.verify import Case, check

pytestmark = pytest.mark.quick

CASE = Case("squeeze_excite", training=False)


def through_gate(module, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual, *, act, gate, **options):
    """squeeze_excite, with its gate passed to channel_gate as a callable."""

    def factor(mean: Tensor) -> Tensor:
        hidden = reference.ACTIVATIONS[act](F.linear(mean.to(fc1_weight.dtype), fc1_weight, fc1_bias))
        return reference.GATES[gate](F.linear(hidden, fc2_weight, fc2_bias))

    return module.channel_gate(x, factor, residual, **options)


@pytest.fixture
def gated(monkeypatch):
    """Make verify.check of squeeze_excite call channel_gate instead; the truth is still squeeze_excite in float64."""
    monkeypatch.setattr(functional, "squeeze_excite", partial(through_gate, functional))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_act", [None, *reference.OUT_ACTIVATIONS], ids=str)
def test_against_float64(gated, out_act, dtype, layout):
    # The bound was derived for the arithmetic of a gate with float32 parameters.
    case = dataclasses.replace(CASE, out_act=out_act, dtype=DTYPES[dtype], layout=layout, parameter_dtype=torch.float32)
    result = check(case)
    assert result.backend == "cpu"
    assert result.forward <= 1
    for name, (error, bound) in result.gradients.items():
        assert error <= bound, name


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
def test_shapes(gated, shape, residual):
    assert check(dataclasses.replace(CASE, shape=shape, residual=residual, drop_path=residual)).ok


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_inference(layout):
    given = dataclasses.replace(CASE, layout=layout).draw(0)
    with torch.no_grad():
        y = through_gate(functional, **given)
    truth = reference.squeeze_excite(**{k: v.double() if isinstance(v, Tensor) else v for k, v in given.items()})
    wide = {k: v.detach().double() if isinstance(v, Tensor) else v for k, v in given.items()}
    assert ((y - truth).abs() <= forward_bound(wide, truth, torch.float32)).all()
    assert y.stride() == given["x"].stride() and not y.requires_grad


def gradients(names, given, function=through_gate):
    y = function(functional, **given)
    wanted = [given[n] for n in names]
    return torch.autograd.grad(y, wanted, torch.ones_like(y).normal_(generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("frozen", ["x", "residual", "gate"])
def test_partly_frozen(frozen):
    """A tensor that needs no gradient does not change the gradients of the others."""
    given = CASE.draw(0)
    names = [k for k, v in given.items() if isinstance(v, Tensor) and v.requires_grad]
    dropped = [n for n in names if n == frozen or (frozen == "gate" and n.startswith("fc"))]
    kept = [n for n in names if n not in dropped]
    wanted = dict(zip(names, gradients(names, given), strict=True))
    given |= {n: given[n].detach() for n in dropped}
    for name, gradient in zip(kept, gradients(kept, given), strict=True):
        assert torch.equal(gradient, wanted[name]), name


def test_gate_that_others_see():
    """Gradients are right if the gate's value is also part of the loss, and if the gate ignores the means."""
    x = torch.randn(3, 5, 4, 4, requires_grad=True)
    seen = []

    def gate(mean):
        seen.append(mean.sigmoid())
        return seen[-1]

    def both(y):
        return torch.autograd.grad(y.square().sum() + seen.pop().sum(), x)[0]

    torch.testing.assert_close(both(functional.channel_gate(x, gate)), both(reference.channel_gate(x, gate)))
    functional.channel_gate(x, gate)
    alone = torch.autograd.grad(seen.pop().sum(), x)[0]
    torch.testing.assert_close(alone, torch.autograd.grad(x.mean((2, 3)).sigmoid().sum(), x)[0])
    w = torch.rand(3, 5)
    (constant,) = torch.autograd.grad(functional.channel_gate(x, lambda _: w).sum(), x)
    torch.testing.assert_close(constant, w[:, :, None, None].expand_as(x))


def test_fullgraph_with_backward():
    torch._dynamo.reset()
    counter = CompileCounter()
    given = CASE.draw(0)
    names = [k for k, v in given.items() if isinstance(v, Tensor) and v.requires_grad]
    compiled = torch.compile(through_gate, fullgraph=True, backend=counter)
    eager, graph = (gradients(names, given, f) for f in (through_gate, compiled))
    assert counter.frame_count == 1
    for name, a, b in zip(names, eager, graph, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)


def test_compiled_through_aot():
    torch._dynamo.reset()
    given = CASE.draw(0)
    names = [k for k, v in given.items() if isinstance(v, Tensor) and v.requires_grad]
    compiled = torch.compile(through_gate, fullgraph=True, backend="aot_eager")
    eager, graph = (gradients(names, given, f) for f in (through_gate, compiled))
    for name, a, b in zip(names, eager, graph, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)


def test_second_derivatives():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    (dx,) = torch.autograd.grad(functional.channel_gate(x, torch.sigmoid).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivatives.*reference"):
        dx.sum().backward()
    with use_backend("reference"):
        (dx,) = torch.autograd.grad(functional.channel_gate(x, torch.sigmoid).square().sum(), x, create_graph=True)
        dx.sum().backward()


@pytest.mark.filterwarnings("ignore:se_fused has no kernel")
def test_transforms_and_float64_take_plain_pytorch():
    x = torch.randn(2, 3, 4, 4)
    per_sample = torch.func.vmap(torch.func.grad(lambda t: functional.channel_gate(t[None], torch.sigmoid).sum()))(x)
    y = x.double().requires_grad_()
    truth = torch.autograd.grad(functional.channel_gate(y, torch.sigmoid).sum(), y)[0]
    torch.testing.assert_close(per_sample, truth.float())
    assert torch.autograd.gradcheck(lambda t: functional.channel_gate(t, torch.sigmoid, t, out_act="silu"), y)


def test_empty_and_autocast():
    assert functional.channel_gate(torch.zeros(0, 3, 4, 4), torch.sigmoid).shape == (0, 3, 4, 4)
    layer = torch.nn.Linear(6, 6)
    x, residual = torch.randn(2, 6, 4, 4).bfloat16(), torch.randn(2, 6, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = functional.channel_gate(x, layer, residual)
        wanted = x * layer(x.mean((2, 3)))[:, :, None, None] + residual
    assert y.dtype == wanted.dtype == torch.float32
    torch.testing.assert_close(y, wanted, rtol=2**-7, atol=2**-7)


def test_triton_has_the_streams_too():
    with use_backend("triton"):
        if backends.BACKENDS["triton"].can_use("cpu", torch.float32) is not None:
            pytest.skip("Triton's interpreter is not active")
        x = torch.randn(2, 3, 4, 4, requires_grad=True)
        mine = torch.autograd.grad(functional.channel_gate(x, torch.sigmoid, x, out_act="relu").square().sum(), x)
    wide = copy.deepcopy(x).detach().double().requires_grad_()
    truth = torch.autograd.grad(reference.channel_gate(wide, torch.sigmoid, wide, out_act="relu").square().sum(), wide)
    torch.testing.assert_close(mine[0], truth[0].float())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(x=[1.0]), TypeError, "x must be a torch.Tensor, got list"),
        (dict(x=torch.zeros(3, 4)), ValueError, "x must be .N, C, .spatial"),
        (dict(gate="sigmoid"), TypeError, "gate must be callable.*got str"),
        (dict(gate=lambda m: 1.0), TypeError, "gate must return a torch.Tensor, got float"),
        (dict(gate=lambda m: m[:, :1]), ValueError, r"gate must return \(N, C\) = \(2, 3\), got shape \(2, 1\)"),
        (dict(residual=torch.zeros(2, 3, 4, 5)), ValueError, "residual must have x's shape"),
        (dict(out_act="softmax"), ValueError, "out_act must be one of 'none', .*got 'softmax'"),
        (dict(drop_path_scale=torch.zeros(3)), ValueError, "drop_path_scale must be"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernels", "reference"])
def test_refuses(arguments, error, message, dtype):
    given = {"x": torch.zeros(2, 3, 4, 4, dtype=dtype), "gate": torch.sigmoid} | arguments
    if isinstance(given.get("residual"), Tensor):
        given["residual"] = given["residual"].to(dtype)
    with pytest.raises(error, match=message):
        functional.channel_gate(**given)
