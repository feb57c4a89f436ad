"""The op contract that every backend's tests check: shapes, options, and error bounds."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from se_fused import functional, reference
from se_fused.ops.layout import is_channels_last
from se_fused.testing.error_bounds import forward_bound
from se_fused.testing.verify import Case, check

Shape = tuple[int, ...]

SHAPES: dict[str, Shape] = {
    "odd-S": (4, 24, 7, 5),
    "S=1": (5, 16, 1, 1),
    "one-sample": (1, 20, 6, 6),
    "one-channel": (3, 1, 5, 4),
    "3-D": (3, 18, 11),
    "5-D": (2, 10, 3, 2, 5),
}

# Every closing activation with each kind of residual: each op decides from both what it saves and what it writes.
_RESIDUALS: dict[str, dict[str, Any]] = {
    "residual": {},
    "residual-without-gradient": {"residual_grad": False},
    "no-residual": {"residual": False},
}
_CLOSED: dict[str, dict[str, Any]] = {
    "bn-se": {"op": "batch_norm_squeeze_excite"},
    "se": {"op": "squeeze_excite", "training": False},
    "bn": {"op": "batch_norm_act"},
}
CLOSINGS: dict[str, dict[str, Any]] = {
    f"{op}-{out_act}-{residual}": {"out_act": out_act, **_CLOSED[op], **_RESIDUALS[residual]}
    for op, out_act, residual in itertools.product(_CLOSED, reference.OUT_ACTIVATIONS, _RESIDUALS)
}

OPTIONS: dict[str, dict[str, Any]] = CLOSINGS | {
    **{f"eval-{out_act}": {"training": False, "out_act": out_act} for out_act in reference.OUT_ACTIVATIONS},
    "no-drop-path": {"drop_path": False},
    "no-fc-biases": {"absent": ("fc1_bias", "fc2_bias")},
    "no-affine": {"absent": ("bn_weight", "bn_bias")},
    "no-running-statistics": {"absent": ("running_mean", "running_var")},
    "hard-gate": {"gate": "hard_sigmoid"},
    "float32-parameters": {"parameter_dtype": torch.float32},
    "large-mean": {"mean": 100.0, "shape": (4, 16, 12, 12), "dtype": torch.float32},
    "R=1": {"hidden": 1, "shape": (2, 5, 3, 3)},
    "several-tiles": {"hidden": 75, "shape": (18, 70, 2, 2)},
}


def passes(case: Case, backend: str, device: str, seeds: Sequence[int] = (0, 1, 2)) -> None:
    """Check that y and the gradients are within their bounds and come from the requested backend."""
    result = check(dataclasses.replace(case, device=device), seeds=seeds)
    assert result.backend == backend
    assert result.forward <= 1, f"forward error is {result.forward:.2f} of its bound"
    for name, (error, bound) in result.gradients.items():
        assert error <= bound, f"gradient of {name}: {error:.2e} > {bound:.2e}"


def infer(case: Case, inplace: bool = False) -> tuple[float, Tensor, Tensor]:
    """(largest error / bound, x, y) of a call without gradients."""
    given = case.draw(0)
    wide = {k: v.detach().double() if isinstance(v, Tensor) else v for k, v in given.items()}
    truth = case.call(reference, wide)
    with torch.no_grad():
        y = getattr(functional, case.op)(**given, inplace=inplace)
    excess = (y.double() - truth).abs() / forward_bound(wide, truth, case.dtype)
    return float("inf") if excess.isnan().any() else excess.max().item(), given["x"], y


def check_gate_corners(device: str) -> None:
    """Hard gates that are closed, open and at the corners in between: PyTorch's choice of slope. No random draw is
    likely to have them."""
    corners = torch.tensor([-4.0, -3.0, 0.0, 3.0, 4.0], device=device)
    x, w1, w2 = (torch.ones(shape, device=device) for shape in ((2, 5, 3, 3), (4, 5), (5, 4)))
    gradients = []
    for module in (functional, reference):
        bias = corners.clone().requires_grad_()
        y = module.squeeze_excite(x, w1, None, w2 * 0, bias, gate="hard_sigmoid")
        gradients.append(torch.autograd.grad(y.sum(), bias)[0])
    torch.testing.assert_close(*gradients)


def check_running_statistics(device: str) -> None:
    """Several steps, with the unbiased variance; momentum 0 and 1, and above 1/2, where lerp has another formula."""
    for momentum in (0.1, 0.0, 0.7, 1.0):
        ours = [torch.zeros(6, device=device), torch.ones(6, device=device)]
        theirs = [t.clone() for t in ours]
        for _ in range(3):
            x = torch.randn(5, 6, 4, 3, device=device) * 3 + 2
            functional.batch_norm_act(x, *ours, None, None, training=True, momentum=momentum)
            torch.nn.functional.batch_norm(x, *theirs, None, None, True, momentum)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


def check_statistics_of_infinity(device: str) -> None:
    """An infinite element makes the running mean infinite and the running variance NaN, in any sample."""
    for sample in (0, 2):
        x = torch.randn(4, 3, 5, 4, device=device)
        x[sample, 0, 2, 1], x[sample, 1, 0, 0] = float("inf"), float("-inf")
        ours = [torch.zeros(3, device=device), torch.ones(3, device=device)]
        theirs = [t.clone() for t in ours]
        functional.batch_norm_act(x, *ours, None, None, training=True, momentum=0.1)
        torch.nn.functional.batch_norm(x, *theirs, None, None, True, 0.1)
        assert theirs[0].isinf().sum() == 2
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


def keeps_order(y: Tensor, x: Tensor) -> bool:
    """Whether y has a memory order of x. With one channel or one position, x has both orders."""
    return (x.is_contiguous() and y.is_contiguous()) or (is_channels_last(x) and is_channels_last(y))


def results(case: Case) -> list[Tensor]:
    """y, the gradients and a running statistic of a training step."""
    given = case.draw(0)
    y = case.call(functional, given)
    tensors = [v for v in given.values() if isinstance(v, Tensor) and v.requires_grad]
    return [y, *torch.autograd.grad(y, tensors, torch.ones_like(y)), given["running_var"]]
