"""The op contract that every backend's tests check: the axes of a call, which combinations are calls, and the checks.

``AXES`` and ``RULES`` are the one description. test_contract.py in tests/backends takes covering arrays of it, fuzz.py
random calls. lines.py lists the backends.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from se_fused import functional, reference
from se_fused._formats import DTYPES, LAYOUTS
from se_fused.activations import ACTIVATIONS
from se_fused.ops.layout import is_channels_last
from se_fused.testing.case import ALL_OPS, GRADIENTS, VIEWS, Case
from se_fused.testing.error_bounds import forward_bound
from se_fused.testing.verify import check, condition
from support.covering_arrays import Rule, covering_array

Shape = tuple[int, ...]
Values = Mapping[str, Any]  # of one call: the name of each axis, and its value

SHAPES: dict[str, Shape] = {
    "odd-S": (4, 24, 7, 5),
    "S=1": (5, 16, 1, 1),
    "one-sample": (1, 20, 6, 6),
    "one-channel": (3, 1, 5, 4),
    "3-D": (3, 18, 11),
    "5-D": (2, 10, 3, 2, 5),
}

MORE_SHAPES: dict[str, Shape] = {
    "no-samples": (0, 6, 5, 5),
    "no-positions": (2, 6, 0, 5),
    "one-element": (1, 1, 1),
    "prime": (3, 13, 11, 5),
    "vectors": (2, 32, 4, 8),  # C and S are multiples of every vector
    "many-channels": (2, 300, 3, 1),  # more than a block of threads processes side by side
    "long-rows": (1, 3, 37, 29),
}


def shapes(budget: int) -> dict[str, Shape]:
    """The shapes by class. The largest has about ``budget`` elements, in rows that are no multiple of a vector."""
    channels, side = (70 if budget > 10_000 else 9), math.isqrt(budget // 64)
    return SHAPES | MORE_SHAPES | {"many-samples": (19, channels, 2, 3), "huge": (2, 32, side, side | 1)}


# ---- the description
ABSENT: tuple[tuple[str, ...], ...] = (
    (),
    ("fc1_bias", "fc2_bias"),
    ("bn_weight", "bn_bias"),
    ("running_mean", "running_var"),
    ("fc2_bias", "bn_weight", "running_mean", "running_var"),
)

AXES: dict[str, tuple[Any, ...]] = {
    "op": ALL_OPS,
    "training": (False, True),
    "out_act": tuple(reference.OUT_ACTIVATIONS),
    "residual": (None, *(view for view in VIEWS if view != "expanded")),  # the residual's strides
    "drop_path": (False, True),
    "absent": ABSENT,
    "act": tuple(reference.ACTIVATIONS),
    "gate": tuple(reference.GATES),
    "hidden": (6, 1, 75),
    "dtype": tuple(DTYPES.values()),
    "parameter_dtype": (None, torch.float32),
    "layout": tuple(LAYOUTS),
    "x_view": ("dense", "offset", "sliced", "permuted"),
    "mean": (0.0, 1.0, 100.0),
    "gradients": GRADIENTS,
    "dy_view": VIEWS,
    "inplace": (False, True),
}
"""Every axis of a call but the shape, whose values depend on the backend's budget. Simple values come first: a random
call that fails is reduced towards them."""


def _is_excited(op: str) -> bool:
    return Case(op).has_excitation


def _parameters_of(op: str) -> set[str]:
    return set(Case(op, residual=False).draw(0))


_PARAMETERS = {op: _parameters_of(op) for op in ALL_OPS}

RULES: tuple[Rule, ...] = (
    # An axis that an op does not have keeps its first value, so that a case counts only for what it tests.
    Rule(("op", "training"), lambda op, training: "batch_norm" in op or not training),
    Rule(("op", "absent"), lambda op, absent: set(absent) <= _PARAMETERS[op]),
    Rule(("op", "act"), lambda op, act: _is_excited(op) or act == AXES["act"][0]),
    Rule(("op", "gate"), lambda op, gate: _is_excited(op) or gate == AXES["gate"][0]),
    Rule(("op", "hidden"), lambda op, hidden: _is_excited(op) or hidden == AXES["hidden"][0]),
    Rule(("op", "residual"), lambda op, residual: op != "batch_norm_act_squeeze" or residual is None),
    Rule(("op", "drop_path"), lambda op, drop_path: op != "batch_norm_act_squeeze" or not drop_path),
    Rule(("op", "inplace"), lambda op, inplace: not inplace or op not in ("batch_norm_act_squeeze", "channel_gate")),
    # The bound of channel_gate holds for a gate that computes in float32.
    Rule(("op", "parameter_dtype"), lambda op, dtype: op != "channel_gate" or dtype == torch.float32),
    # Inference needs the running statistics.
    Rule(("training", "absent"), lambda training, absent: training or "running_mean" not in absent),
    # Training needs two values per channel. Two normalise to -1 and 1 whatever they are, and gradients of x are zero up
    # to rounding.
    Rule(("training", "shape"), lambda training, shape: not training or shape[0] * math.prod(shape[2:]) > 2),
    # With one hidden unit and one sample, all elements of fc2's gradient have one common rounding error.
    Rule(("shape", "hidden"), lambda shape, hidden: shape[0] > 1 or hidden > 1),
    Rule(("residual", "gradients"), lambda given, who: given is not None or "residual" not in who),
    Rule(
        ("op", "absent", "gradients"),
        lambda op, absent, who: (
            who not in ("parameters", "not x") or not {"bn_weight", "bn_bias"} <= set(absent) or _is_excited(op)
        ),
    ),
    Rule(("gradients", "dy_view"), lambda who, view: who != "none" or view == "dense"),
    # Behind batch norm, a constant gradient gives zero up to rounding.
    Rule(
        ("training", "out_act", "dy_view"),
        lambda training, out_act, view: view != "expanded" or not training or out_act != "none",
    ),
    Rule(("shape", "dy_view"), lambda shape, view: view != "expanded" or math.prod(shape) > 0),
)


def is_allowed(values: Values, name: str, value: Any) -> bool:
    """Whether a call may have this value beside those that are chosen."""
    more = {**values, name: value}
    return all(rule.holds(more) for rule in RULES if name in rule.axes)


def case_of(values: Values) -> Case:
    """The call of these values; axes of a backend's own are left out."""
    given = {name: value for name, value in values.items() if name in AXES or name == "shape"}
    view = given.pop("residual")
    return Case(**given, residual=view is not None, residual_view=view or "dense")


def calls(
    budget: int, strength: int, others: Mapping[str, Sequence[Any]] = AXES
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A covering array of the description: (name, values) of each call.

    Args:
        budget: the most elements of a map.
        strength: the number of axes whose combinations are covered.
        others: the axes but the shape. A backend may have more, such as the instruction sets.
    """
    by_class = shapes(budget)
    axes = {"op": AXES["op"], "shape": tuple(by_class.values()), **others}
    names = {shape: name for name, shape in by_class.items()}
    for number, values in enumerate(covering_array(axes, RULES, strength)):
        told = (values["op"], names[values["shape"]], values["out_act"], values["act"], values["layout"])
        yield f"{number}-{'-'.join(told)}-{str(values['dtype']).removeprefix('torch.')}", values


# Every closing activation with each kind of residual: each op decides from both what it saves and what it writes.
_RESIDUALS: dict[str, dict[str, Any]] = {
    "residual": {},
    "residual-without-gradient": {"gradients": "not residual"},
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


# ---- the checks
DRAWS = (1, 5, 40)
"""Draws of numbers per call: more only if the gradients of fewer fail. Gradients are held to eager's error as a median
over draws. Few draws of a small map are chance, and among many calls some are unlucky; a fault stays."""


def meets(case: Case, backend: str, device: str) -> None:
    """Check one call against the contract."""
    for draws in DRAWS:
        try:
            return passes(case, backend, device, range(draws))
        except OutOfBound:
            if draws == DRAWS[-1]:
                raise


class OutOfBound(AssertionError):
    """A gradient's error is larger than its bound, as a median over the draws."""


def passes(
    case: Case, backend: str, device: str, seeds: Sequence[int] = (0, 1, 2), *, conditioned: bool = False
) -> None:
    """Check that y and the gradients are within their bounds and come from the requested backend.

    Args:
        conditioned: whether gradients may have the change that rounding of x causes (se_fused/testing/verify.py) in
            addition to their bounds.
    """
    case = dataclasses.replace(case, device=device)
    result = check(case, seeds=seeds)
    assert result.backend == backend
    assert not result.faults, "; ".join(result.faults)
    assert result.forward <= 1, f"forward error is {result.forward:.2f} of its bound"
    more = condition(case, seeds) if conditioned and not result.ok else {}
    for name, (error, bound) in result.gradients.items():
        change = more.get(name, 0.0)
        if not error <= bound + change:
            told = f" + {change:.2e}, its change by rounding of x" if conditioned else ""
            raise OutOfBound(f"gradient of {name}: {error:.2e} > {bound:.2e}{told}")


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
    """Gates that are closed, open and at the corners in between: PyTorch's choice of slope. No random draw is likely to
    have the corners of hard_sigmoid."""
    corners = torch.tensor([-4.0, -3.0, 0.0, 3.0, 4.0], device=device)
    x, w1, w2 = (torch.ones(shape, device=device) for shape in ((2, 5, 3, 3), (4, 5), (5, 4)))
    for gate in reference.GATES:
        gradients = []
        for module in (functional, reference):
            bias = corners.clone().requires_grad_()
            y = module.squeeze_excite(x, w1, None, w2 * 0, bias, gate=gate)
            gradients.append(torch.autograd.grad(y.sum(), bias)[0])
        torch.testing.assert_close(*gradients)


def check_corners(act: str, device: str) -> None:
    """Hidden values at which the slope of an activation jumps: PyTorch's choice. No random draw is likely to have
    them."""
    corners = torch.tensor(sorted({at for row in ACTIVATIONS.values() for at in row.corners}), device=device)
    r = len(corners)
    x, w1, w2 = torch.ones(2, 5, 3, 3, device=device), torch.zeros(r, 5, device=device), torch.randn(5, r).to(device)
    gradients = []
    for module in (functional, reference):
        bias = corners.clone().requires_grad_()
        y = module.squeeze_excite(x, w1, bias, w2, None, act=act)
        gradients.append(torch.autograd.grad(y.square().sum(), bias)[0])
    torch.testing.assert_close(*gradients)


def check_running_statistics(device: str) -> None:
    """Several steps, with the unbiased variance; momentum 0 and 1, and above 1/2, where lerp has another formula.

    With a drop path as well, because kernels then find the statistics elsewhere.
    """
    for momentum, drop_path_scale in itertools.product((0.1, 0.0, 0.7, 1.0), (None, torch.ones(5, device=device))):
        ours = [torch.zeros(6, device=device), torch.ones(6, device=device)]
        theirs = [t.clone() for t in ours]
        for _ in range(3):
            x = torch.randn(5, 6, 4, 3, device=device) * 3 + 2
            functional.batch_norm_act(
                x, *ours, None, None, training=True, momentum=momentum, drop_path_scale=drop_path_scale
            )
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
