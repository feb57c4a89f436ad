"""Tests of the formulas of DESIGN section 2, as written in se_fused.ops, against autograd in float64.

All kernels rest on these formulas. The definitions, composed to the whole op, must reproduce autograd's gradients up to
rounding for every combination of the optional parts.
"""

import dataclasses

import pytest
import torch
from support.contract import CLOSINGS
from support.definitions import Definitions
from support.records import records_of
from torch import Tensor

from se_fused import reference
from se_fused._params import BatchNormParams, BlockOptions, SavedTensors
from se_fused.activations import OUT_ACT_CODES, recomputed
from se_fused.ops import channel_gate
from se_fused.ops.batch_norm_act_squeeze import compose_squeeze, compose_squeeze_backward
from se_fused.ops.compose import compose_backward, compose_forward
from se_fused.testing.verify import Case

pytestmark = pytest.mark.quick


CASES = {
    "bn-se-add-relu": {},
    "eval": {"training": False},
    "silu-eval-no-residual": {"out_act": "silu", "training": False, "residual": False},
    "no-activation": {"out_act": None},
    "no-drop-path": {"drop_path": False},
    "no-biases": {"absent": ("fc1_bias", "fc2_bias", "bn_bias")},
    "no-affine": {"absent": ("bn_weight", "bn_bias")},
    "hard-gate": {"gate": "hard_sigmoid"},
    "bn-act-eval": {"op": "batch_norm_act", "training": False},
    "channels-last": {"layout": "channels_last"},
} | {f"act-{act}": {"act": act} for act in reference.ACTIVATIONS}
CASES |= CLOSINGS


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_composition_equals_autograd(options):
    case = Case(
        **{"op": "batch_norm_squeeze_excite", "dtype": torch.float64, "parameter_dtype": torch.float64} | options
    )
    given = case.draw(0)
    inputs = {k: v for k, v in given.items() if isinstance(v, torch.Tensor) and v.requires_grad}
    truth = case.call(reference, {k: v.clone() if k.startswith("running") else v for k, v in given.items()})
    dy = torch.randn_like(truth)
    gradients = dict(zip(inputs, torch.autograd.grad(truth, list(inputs.values()), dy), strict=True))

    x, bn, fc, options = records_of(case, given)
    with torch.no_grad():
        y, *saved = compose_forward(Definitions(), x, bn, fc, options, True)
        if not recomputed(OUT_ACT_CODES[options.out_act]):
            options = dataclasses.replace(options, residual=None)
        want_dr = "residual" in inputs
        results = compose_backward(Definitions(), dy, SavedTensors(x, *saved), bn, fc, options, want_dr)
    # PyTorch's backward of hard sigmoid multiplies by a float32 1/6, which is 5e-9 off, also in float64.
    rtol, atol = (1e-7, 1e-7) if case.gate == "hard_sigmoid" else (1e-10, 1e-11)
    torch.testing.assert_close(y, truth, rtol=1e-12, atol=1e-12)
    assert y.stride() == x.stride()
    names = ("x", "residual", "bn_weight", "bn_bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")
    mine = dict(zip(names, results, strict=True))
    if (case.out_act or "none") == "none":
        mine["residual"] = dy
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            mine[name].reshape(gradient.shape),
            gradient,
            rtol=rtol,
            atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("out_act", OUT_ACT_CODES)
def test_reference_gradcheck(training, out_act):
    """The reference's gradients agree with finite differences."""
    case = Case(
        "batch_norm_squeeze_excite", (2, 4, 3, 2), torch.float64, training=training, out_act=out_act, hidden=3,
        act="silu", parameter_dtype=torch.float64,
    )  # fmt: skip
    given = case.draw(1)
    names = [k for k, v in given.items() if isinstance(v, torch.Tensor) and v.requires_grad]

    def run(*tensors):
        fresh = {k: v.clone() for k, v in given.items() if k.startswith("running")}
        return case.call(reference, given | fresh | dict(zip(names, tensors, strict=True)))

    assert torch.autograd.gradcheck(run, [given[k] for k in names])


def doubles(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("batch_stats", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("out_act", OUT_ACT_CODES)
def test_squeeze_of_the_activated_map(out_act: str, batch_stats: bool) -> None:
    """DESIGN section 2.4, with gradients of both results."""
    x, weight, bias = doubles((3, 5, 4, 3), (5,), (5,))
    mean, var = torch.randn(5, dtype=torch.float64), torch.rand(5, dtype=torch.float64) + 0.5
    y, squeezed = reference.batch_norm_act_squeeze(
        x, mean.clone(), var.clone(), weight, bias, training=batch_stats, out_act=out_act
    )
    dy, dsqueezed = torch.randn_like(y), torch.randn_like(squeezed)
    truth = torch.autograd.grad((y, squeezed), [x, weight, bias], (dy, dsqueezed))
    bn = BatchNormParams(mean, var, weight, bias, batch_stats, 0.1, 1e-5)
    with torch.no_grad():
        mine, means, m, stats = compose_squeeze(Definitions(), x, bn, out_act)
        found = compose_squeeze_backward(Definitions(), dy, dsqueezed, x, m, stats, bn, out_act)
    for a, b in zip((mine, means, *found), (y, squeezed, *truth), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "no-residual"])
@pytest.mark.parametrize("out_act", OUT_ACT_CODES)
def test_any_gate_over_the_means(out_act: str, with_residual: bool) -> None:
    """DESIGN section 2.5: two functions around the gate, whose gradients meet in the first."""
    x, residual, matrix = doubles((3, 5, 4, 3), (3, 5, 4, 3), (5, 5))
    inputs = [x, matrix, *([residual] if with_residual else [])]
    added = residual if with_residual else None

    def gate(mean: Tensor) -> Tensor:
        return torch.sigmoid(mean @ matrix)

    truth = reference.channel_gate(x, gate, added, out_act=out_act)
    backend = Definitions()
    squeezed = channel_gate.squeeze(backend, x, through=False)
    mine = channel_gate.rescale(backend, squeezed, gate(squeezed.mean), BlockOptions(added, None, out_act))
    dy = torch.randn_like(truth)
    torch.testing.assert_close(mine, truth, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(mine, inputs, dy), torch.autograd.grad(truth, inputs, dy), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_gate_on_the_weight() -> None:
    """DESIGN section 2.6: W (s y) is (W s) y."""
    y, s, weight = (t.detach() for t in doubles((3, 5, 4, 3), (3, 5), (7, 5)))
    scaled = torch.einsum("ndc,nchw->ndhw", weight * s[:, None, :], y)
    torch.testing.assert_close(scaled, reference.gated_conv1x1(y, s, weight), rtol=1e-12, atol=1e-12)


def test_squeeze_before_the_convolution() -> None:
    """DESIGN section 2.7: averaging commutes with a 1x1 convolution, and fc1 folds into it."""
    h, r, w3, b3 = (t.detach() for t in doubles((3, 4, 5, 2), (3, 16, 5, 2), (16, 4), (16,)))
    w1, b1, w2, b2 = (t.detach() for t in doubles((6, 16), (6,), (16, 6), (16,)))
    hidden = torch.relu(h.mean((2, 3)) @ (w1 @ w3).T + (w1 @ b3 + b1))
    s = torch.sigmoid(hidden @ w2.T + b2)
    u = torch.einsum("ck,nkhw->nchw", w3, h)
    y = torch.relu(s[:, :, None, None] * u + (s * b3)[:, :, None, None] + r)
    truth = reference.conv1x1_squeeze_excite(h, w3, b3, w1, b1, w2, b2, r, out_act="relu")
    torch.testing.assert_close(y, truth, rtol=1e-12, atol=1e-12)
