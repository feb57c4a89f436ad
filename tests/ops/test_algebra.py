"""Tests of the formulas of DESIGN section 2, as written in se_fused.ops, against autograd in float64.

All kernels rest on these formulas. The definitions, composed to the whole op, must reproduce autograd's gradients up to
rounding for every combination of the optional parts.
"""

import pytest
import torch
from support.contract import CLOSINGS

from se_fused import reference
from se_fused.activations import OUT_ACT_CODES, recomputed
from se_fused.ops import moments as moments_definition
from se_fused.ops import scale_shift_act as scale_shift_act_definition
from se_fused.ops.batch_norm_squeeze_excite import compose_backward, compose_forward
from se_fused.testing.verify import Case


class Definitions:
    """The passes as defined in se_fused.ops."""

    moments = staticmethod(moments_definition.moments)
    moments_backward = staticmethod(moments_definition.moments_backward)
    scale_shift_act = staticmethod(scale_shift_act_definition.scale_shift_act)
    scale_shift_act_backward = staticmethod(scale_shift_act_definition.scale_shift_act_backward)


NO_GATE = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")
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

    arguments = [given.get(k) for k in ("residual", "running_mean", "running_var", "bn_weight", "bn_bias", *NO_GATE)]
    if case.training:
        arguments[1:3] = None, None
    options = (case.training, 1e-5, case.act, case.gate, case.out_act or "none")
    with torch.no_grad():
        x, d = given["x"], given["drop_path_scale"]
        y, mask, mean, factor, hidden, stats = compose_forward(Definitions, x, *arguments, d, *options, True)
        residual = given["residual"] if recomputed(OUT_ACT_CODES[options[-1]]) else None
        kept = (residual, mask, mean, factor, hidden, stats)
        parameters = [given.get(k) for k in ("bn_weight", "bn_bias", "fc1_weight", "fc2_weight")]
        want_dr = "residual" in inputs
        results = compose_backward(Definitions, dy, x, *kept, *parameters, d, *options, want_dr)
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
@pytest.mark.parametrize("out_act", [None, "relu", "silu", "hard_swish"])
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
