"""Tests of bad input: the error names the argument and what is required, and nothing has been changed."""

import pytest
import torch

import se_fused
from se_fused import backends, functional
from se_fused._params import NO_EXCITATION, BatchNormParams, BlockOptions
from se_fused.activations import ACTIVATIONS, GATES, OUT_ACT_CODES, OUT_ACTIVATIONS

pytestmark = pytest.mark.quick

N, C, R = 2, 6, 3
CPU = backends.BACKENDS["cpu"]
BATCH_STATISTICS = BatchNormParams(None, None, None, None, True)


def arguments():
    return {
        "x": torch.randn(N, C, 4, 4), "running_mean": torch.zeros(C), "running_var": torch.ones(C),
        "bn_weight": torch.ones(C), "bn_bias": torch.zeros(C), "fc1_weight": torch.randn(R, C),
        "fc1_bias": torch.zeros(R), "fc2_weight": torch.randn(C, R), "fc2_bias": torch.zeros(C),
        "residual": torch.randn(N, C, 4, 4), "training": True,
    }  # fmt: skip


INNER = next(name for name, row in ACTIVATIONS.items() if row.keeps is None)  # closes no block


def quoted(names):
    return ", ".join(map(repr, names))


BAD = {
    "x is no tensor": ("x", [1.0], TypeError, "x must be a torch.Tensor, got list"),
    "integer x": ("x", torch.ones(N, C, 4, 4, dtype=torch.int64), TypeError, "x must be float32.*got int64.*x.float()"),
    "2-D x": ("x", torch.randn(N, C), ValueError, r"x must be \(N, C, \*spatial\).*\(2, 6\).*unsqueeze"),
    "6-D x": ("x", torch.randn(N, C, 1, 1, 1, 1), ValueError, "3, 4 or 5 dimensions"),
    "other channels": ("x", torch.randn(N, 7, 4, 4), ValueError, r"residual must have x's shape \(2, 7, 4, 4\)"),
    "meta device": ("fc1_weight", torch.randn(R, C, device="meta"), ValueError, "fc1_weight is on meta, x on cpu.*to"),
    "residual's shape": ("residual", torch.randn(N, C, 4, 5), ValueError, r"have x's shape.*\(2, 6, 4, 5\)"),
    "residual's dtype": ("residual", torch.randn(N, C, 4, 4).bfloat16(), TypeError, "residual must have x's dtype.*to"),
    "residual's device": ("residual", torch.randn(N, C, 4, 4, device="meta"), ValueError, "residual is on meta"),
    "fc1 transposed": ("fc1_weight", torch.randn(C, R), ValueError, r"must be \(R, C\) = \(6, 6\).*\(6, 3\)"),
    "fc1 is 3x3": ("fc1_weight", torch.randn(R, C, 3, 3), ValueError, "fc1_weight must be"),
    "fc1 is 1-D": ("fc1_weight", torch.randn(C), ValueError, r"fc1_weight must be \(R, C\) = \(6, 6\), got \(6,\)"),
    "fc1 has no outputs": ("fc1_weight", torch.randn(0, C), ValueError, "at least one output"),
    "fc1 missing": ("fc1_weight", None, TypeError, "fc1_weight must be a torch.Tensor, got NoneType"),
    "fc2's shape": ("fc2_weight", torch.randn(C, R + 1), ValueError, r"fc2_weight must be \(C, R\) = \(6, 3\)"),
    "fc1 bias": ("fc1_bias", torch.zeros(C), ValueError, r"fc1_bias must be \(R,\) = \(3,\), got \(6,\)"),
    "fc2 bias": ("fc2_bias", torch.zeros(R), ValueError, r"fc2_bias must be \(C,\) = \(6,\)"),
    "bn weight": ("bn_weight", torch.ones(C + 1), ValueError, "bn_weight must be"),
    "integer bn bias": ("bn_bias", torch.zeros(C, dtype=torch.int32), TypeError, "bn_bias must be float32"),
    "running_var alone": ("running_mean", None, ValueError, "must both be tensors or both be None"),
    "training": ("training", 1, TypeError, r"training must be True or False, got 1 \(int\)"),
    "momentum None": ("momentum", None, TypeError, "momentum.*1 / num_batches_tracked"),
    "momentum": ("momentum", 1.5, ValueError, r"momentum must lie in \[0, 1\], got 1.5"),
    "momentum text": ("momentum", "0.1", TypeError, "momentum must be a number, got str"),
    "eps": ("eps", -1e-5, ValueError, "eps must lie in"),
    "eps NaN": ("eps", float("nan"), ValueError, "eps must lie in"),
    "act": ("act", "rleu", ValueError, f"act must be one of {quoted(ACTIVATIONS)}, got 'rleu'"),
    "gate": ("gate", "softmax", ValueError, f"gate must be one of {quoted(GATES)}, got 'softmax'"),
    "out_act": ("out_act", INNER, ValueError, f"out_act must be one of {quoted(OUT_ACTIVATIONS)}, got {INNER!r}"),
    "drop_path shape": ("drop_path_scale", torch.ones(N + 1), ValueError, r"drop_path_scale must be \(N,\) = \(2,\)"),
    "drop_path gradient": ("drop_path_scale", torch.ones(N).requires_grad_(), ValueError, "not require a gradient"),
}


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD.values(), ids=BAD)
def test_bad_argument(name, value, error, message):
    given = arguments()
    running = given["running_mean"]
    with pytest.raises(error, match=message):
        functional.batch_norm_squeeze_excite(**(given | {name: value}))
    assert torch.equal(running, torch.zeros(C))  # running statistics are unchanged


def test_eval_without_running_statistics():
    given = arguments() | {"running_mean": None, "running_var": None, "training": False}
    with pytest.raises(ValueError, match="needed with training=False; pass training=True"):
        functional.batch_norm_squeeze_excite(**given)


def test_one_value_per_channel():
    with pytest.raises(ValueError, match="more than one value per channel"):
        functional.batch_norm_act(torch.randn(1, C, 1, 1), None, None, None, None, training=True)


def test_unknown_backend_and_unavailable_backend():
    with pytest.raises(ValueError, match="name must be one of auto, cuda, triton, cpu, reference; got 'cudnn'"):
        se_fused.use_backend("cudnn")
    x, w1, w2 = torch.randn(2, 4, 3, 3), torch.randn(2, 4), torch.randn(4, 2)
    with (
        backends.use_backend("cuda"),
        pytest.raises(se_fused.BackendUnavailable, match=r"'cuda' was requested.*not on cpu"),
    ):
        functional.squeeze_excite(x, w1, None, w2, None)
    with backends.use_backend("cpu"), pytest.raises(se_fused.BackendUnavailable, match="not float64"):
        functional.squeeze_excite(x.double(), w1.double(), None, w2.double(), None)
    functional.squeeze_excite(x, w1, None, w2, None)  # outside the block, the setting no longer applies


def test_use_backend_as_a_function_and_nested():
    before = backends.forced()
    se_fused.use_backend("reference")
    assert backends.forced() == "reference"
    with se_fused.use_backend("cpu"):
        assert backends.forced() == "cpu"
        with se_fused.use_backend("reference"):
            assert backends.forced() == "reference"
        assert backends.forced() == "cpu"
    assert backends.forced() == "reference"
    se_fused.use_backend(before)


def test_falling_back_says_so_once(monkeypatch):
    """A call without a usable kernel warns once, with the reason."""
    cpu = backends.BACKENDS["cpu"]
    monkeypatch.setattr(cpu, "load_error", "the C++ library is not built: for this test")
    monkeypatch.setattr(functional.dispatch, "_warned", set())
    x, w1, w2 = torch.randn(2, 4, 3, 3), torch.randn(2, 4), torch.randn(4, 2)
    with pytest.warns(UserWarning, match="runs plain PyTorch.*not built: for this test"):
        functional.squeeze_excite(x, w1, None, w2, None)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        functional.squeeze_excite(x, w1, None, w2, None)


@pytest.mark.parametrize("op", ["batch_norm_squeeze_excite_forward", "moments"])
def test_kernels_refuse_what_python_would_not_send(op):
    """Kernels check shapes themselves, so that a wrong shape is an error and not an invalid memory access."""
    x = torch.randn(2, 4, 6, 6)[:, :, ::2]
    with pytest.raises(RuntimeError, match="x must be dense"):
        if op == "moments":
            torch.ops.se_fused_cpu.moments(x)
        else:
            CPU.batch_norm_squeeze_excite_forward(x, BATCH_STATISTICS, NO_EXCITATION, BlockOptions(), False)


def test_kernels_refuse_a_residual_in_another_order():
    x = torch.randn(2, 4, 6, 6)
    residual = x.contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="residual must have x's memory format"):
        CPU.batch_norm_squeeze_excite_forward(x, BATCH_STATISTICS, NO_EXCITATION, BlockOptions(residual), False)


@pytest.mark.parametrize("number", [-1, *sorted(set(range(len(ACTIVATIONS))) - set(OUT_ACT_CODES.values())), 99])
def test_kernels_refuse_numbers_that_no_activation_has(number):
    x, vector = torch.randn(2, 4, 3, 3), torch.randn(2, 4)
    with pytest.raises(RuntimeError, match=f"out_act {number} is not the number of an activation that can close"):
        CPU.scale_shift_act(x, None, vector, vector, number, False)
    with pytest.raises(RuntimeError, match="out_act"):
        CPU.scale_shift_act_mean_backward(x, vector, x, vector, vector, vector, number)
