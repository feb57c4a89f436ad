"""The operators of ``torch.ops.se_fused``: what a call of each may look like, and the arguments of a call.

Operators that belong together, such as a forward pass and its backward pass, are one family with one description: its
axes, which values of them form a call (as in contract.py, for covering_arrays.py), and a generator of the calls. The
arguments of a backward pass are results of its forward pass.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from se_fused._formats import DTYPES, LAYOUTS
from se_fused._params import Results
from se_fused.activations import ACTIVATIONS, GATES, OUT_ACT_CODES, OUT_ACTIVATIONS, recomputed, writes_dr
from se_fused.functional import fold_squeeze, pack_conv1x1
from se_fused.ops import batch_norm_act_squeeze, batch_norm_squeeze_excite
from se_fused.ops.layout import dense_like
from se_fused.testing.verify import to_layout
from support.covering_arrays import Rule, covering_array

Values = Mapping[str, Any]  # of one call: the name of each axis, and its value

SHAPES = {
    "odd": (2, 24, 3, 5),
    "vectors": (3, 16, 4, 4),
    "one-sample": (1, 20, 2, 3),
    "one-channel": (3, 1, 5, 4),
    "one-position": (3, 18, 1, 1),
    "one-column": (2, 10, 7, 1),
    "3-D": (2, 9, 11),
    "3-D-one-position": (4, 6, 1),
    "5-D": (2, 10, 3, 2, 5),
    "one-element": (1, 1, 1, 1),
    "no-samples": (0, 6, 5, 4),
    "no-positions": (2, 6, 0, 4),
}
GRADIENTS = ("dense", "expanded", "other order")
"""The strides of a gradient dy: x's, those of a sum's gradient, and the other memory order."""


class Call(NamedTuple):
    """A call of the operator of this name, in its only overload."""

    operator: str
    arguments: tuple[Any, ...]

    @property
    def overload(self) -> Any:
        """The operator, as PyTorch calls it."""
        return getattr(torch.ops.se_fused, self.operator).default

    def detached(self) -> "Call":
        """The same with arguments that need no gradient."""
        return Call(self.operator, tuple(t.detach() if isinstance(t, Tensor) else t for t in self.arguments))


@dataclass(frozen=True)
class Family:
    """Operators that are described together."""

    operators: tuple[str, ...]
    axes: Mapping[str, Sequence[Any]]
    calls: Callable[[Values], Iterator[Call]]
    rules: tuple[Rule, ...] = ()

    def covering(self, strength: int, narrowed: Values | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name, values) of calls that have each combination of values of any ``strength`` axes.

        Args:
            narrowed: the values of some axes, instead of all.
        """
        if strength == 0:
            return
        axes = {**self.axes, **{name: values for name, values in (narrowed or {}).items() if name in self.axes}}
        for number, values in enumerate(covering_array(axes, self.rules, strength)):
            yield f"{self.operators[0]}-{number}-{values['shape']}-{values['layout']}", values


# ---- tensors
def _map(v: Values, shape: Sequence[int], layout: str | None = None) -> Tensor:
    return to_layout(torch.randn(*shape).to(v["dtype"]), layout or v["layout"])


def _gradient(v: Values, y: Tensor) -> Tensor:
    """A gradient of y."""
    if v["dy"] == "expanded":
        return torch.ones((), dtype=y.dtype).expand(y.shape)
    other = "channels_last" if v["layout"] == "contiguous" else "contiguous"
    return _map(v, y.shape, other if v["dy"] == "other order" else None)


def _parameters(v: Values, *shapes: tuple[int, ...], grad: bool = True) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float32).to(v["parameters"] or v["dtype"]).requires_grad_(grad)
            for shape in shapes]  # fmt: skip


def _matrix(v: Values, rows: int, columns: int) -> tuple[int, ...]:
    """The shape of a matrix, or of a 1x1 convolution's weight."""
    return (rows, columns, 1, 1) if v["as convolution"] else (rows, columns)


class _Norm(NamedTuple):
    """Batch norm's arguments, None for absent ones."""

    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    batch_stats: bool = False


def _norm(v: Values, c: int, grad: bool = True) -> _Norm:
    weight, bias = _parameters(v, (c,), (c,), grad=grad) if v["affine"] else (None, None)
    if v["batch_stats"]:  # the operators take no statistics to update
        return _Norm(None, None, weight, bias, True)
    mean, var = _parameters(v, (c,), (c,), grad=False)
    return _Norm(mean, var.abs() + 1, weight, bias, False)


def _excitation(v: Values, c: int, grad: bool = True) -> list[Tensor | None]:
    """Weight and bias of both layers."""
    r = v["hidden"]
    w1, b1, w2, b2 = _parameters(v, _matrix(v, r, c), (r,), _matrix(v, c, r), (c,), grad=grad)
    return [w1, b1, w2, b2] if v["biases"] else [w1, None, w2, None]


def _updating(v: Values, operator: str, functional: Call) -> Call:
    """The call of the operator that also updates running statistics, of any dtype."""
    arguments: Any = functional.arguments
    c = arguments.x.shape[1]
    mean, var = torch.randn(c).to(v["statistics"]), torch.rand(c).to(v["statistics"])
    return Call(operator, (*arguments._replace(running_mean=mean, running_var=var), 0.1))


# ---- the families
def _block(v: Values) -> Iterator[Call]:
    shape, grad = SHAPES[v["shape"]], v["save"]
    n, c = shape[:2]
    x = _map(v, shape).requires_grad_(grad)
    residual = _map(v, shape).requires_grad_(grad) if v["residual"] else None
    norm = _norm(v, c, grad) if "bn" in v["parts"] else _Norm()
    fc: list[Tensor | None] = _excitation(v, c, grad) if "se" in v["parts"] else [None] * 4
    drop = torch.rand(n) if v["drop_path"] else None
    names = (v["act"], v["gate"], v["out_act"])
    forward = Call(
        "batch_norm_squeeze_excite_forward",
        batch_norm_squeeze_excite.ForwardArguments(
            x, residual, *norm[:4], *fc, drop, norm.batch_stats, 1e-5, *names, v["save"]
        ),
    )
    yield forward
    if norm.batch_stats:
        yield _updating(v, "batch_norm_squeeze_excite_train", forward)
    if grad:
        with torch.no_grad():
            saved = Results(*forward.overload(*forward.arguments))
        kept = residual if recomputed(OUT_ACT_CODES[v["out_act"]]) else None
        yield Call(
            "batch_norm_squeeze_excite_backward",
            batch_norm_squeeze_excite.BackwardArguments(
                _gradient(v, x), x, kept, *saved[1:], norm.weight, norm.bias, fc[0], fc[2], drop, norm.batch_stats,
                1e-5, *names, v["want_dr"],
            ),
        ).detached()  # fmt: skip


def _norm_and_means(v: Values) -> Iterator[Call]:
    x = _map(v, SHAPES[v["shape"]]).requires_grad_()
    norm = _norm(v, x.shape[1])
    forward = Call("batch_norm_act_squeeze", batch_norm_act_squeeze.ForwardArguments(x, *norm, 1e-5, v["out_act"]))
    yield forward
    if norm.batch_stats:
        yield _updating(v, "batch_norm_act_squeeze_train", forward)
    with torch.no_grad():
        y, squeezed, mean, stats = forward.overload(*forward.arguments)
    yield Call(
        "batch_norm_act_squeeze_backward",
        batch_norm_act_squeeze.BackwardArguments(
            _gradient(v, y), torch.randn_like(squeezed), x, mean, stats, norm.weight, norm.bias, norm.batch_stats,
            1e-5, v["out_act"],
        ),
    ).detached()  # fmt: skip


def _channel_gate(v: Values) -> Iterator[Call]:
    x = _map(v, SHAPES[v["shape"]])
    residual = _map(v, x.shape) if v["residual"] else None
    squeeze = Call("squeeze", (x,))
    yield squeeze
    mean = squeeze.overload(x)
    factor = torch.rand_like(mean)
    rescale = Call("rescale", (x, residual, factor, v["out_act"], v["save"]))
    yield rescale
    if not v["save"]:
        return
    y, mask = rescale.overload(*rescale.arguments)
    dy, code = _gradient(v, y), OUT_ACT_CODES[v["out_act"]]
    back = Call("rescale_backward", (dy, x, residual if recomputed(code) else None, mask, mean, factor, v["out_act"]))
    yield back
    dr = back.overload(*back.arguments)[0] if writes_dr(code, True) else dense_like(dy, x)
    yield Call("squeeze_backward", (dr, factor, torch.rand_like(factor)))


def _conv1x1(v: Values) -> Iterator[Call]:
    n, k, *spatial = SHAPES[v["shape"]]
    c = v["channels"]
    h = _map(v, (n, k, *spatial))
    w = torch.randn(c, k, *(1,) * len(spatial) if v["as convolution"] else ()).to(h.dtype)
    b = torch.randn(c).to(h.dtype) if v["conv_bias"] else None
    fc = _excitation(v, c, grad=False)
    residual = None if v["residual"] is None else _map(v, (n, c, *spatial), v["residual"])
    packed = pack_conv1x1(w) if v["packed"] else None
    yield Call(
        "conv1x1_squeeze_excite",
        (h, w, b, *fc, *fold_squeeze(w, b, fc[0], fc[1]), packed, residual, v["act"], v["gate"], v["out_act"]),
    )


def _gated(v: Values) -> Iterator[Call]:
    n, c, *spatial = SHAPES[v["shape"]]
    y, d = _map(v, (n, c, *spatial)), v["channels"]
    weight = torch.randn(d, c, *(1,) * len(spatial) if v["as convolution"] else ()).to(y.dtype)
    bias = torch.randn(d).to(y.dtype) if v["bias"] else None
    yield Call("gated_conv1x1", (y, torch.rand(n, c), weight, bias))


def _input_gradient(v: Values) -> Iterator[Call]:
    n, c, *spatial = SHAPES[v["shape"]]
    k = v["channels"]
    weight = torch.randn(k, c, *(1,) * len(spatial)).to(v["dtype"])
    yield Call("add_input_gradient", (_map(v, (n, c, *spatial)), _map(v, (n, k, *spatial), v["other"]), weight))


# ---- the descriptions
_COMMON: dict[str, tuple[Any, ...]] = {
    "shape": tuple(SHAPES),
    "dtype": tuple(DTYPES.values()),
    "layout": tuple(LAYOUTS),
}
_NORM: dict[str, tuple[Any, ...]] = {"batch_stats": (True, False), "affine": (True, False)}
_STATISTICS_DTYPE: dict[str, tuple[Any, ...]] = {"statistics": (torch.float32, torch.bfloat16, torch.float64)}
_EXCITATION: dict[str, tuple[Any, ...]] = {
    "biases": (True, False),
    "as convolution": (False, True),
    "hidden": (6, 1),
    "act": tuple(ACTIVATIONS),
    "gate": tuple(GATES),
}
_PARAMETERS: dict[str, tuple[Any, ...]] = {"parameters": (None, torch.float32)}  # their dtype; None for the map's
_OUT_ACT: dict[str, tuple[Any, ...]] = {"out_act": tuple(OUT_ACTIVATIONS)}


def _only(axis: str, allowed: Callable[[Any], bool], **simple: Any) -> Iterator[Rule]:
    """Axes without a meaning unless ``allowed`` holds for the value of ``axis`` keep one value, so that a call counts
    only for what it tests."""
    for other, value in simple.items():
        yield Rule((axis, other), lambda given, mine, value=value: allowed(given) or mine == value)


def _values_per_channel(shape: str) -> int:
    n, _, *spatial = SHAPES[shape]
    return n * math.prod(spatial)


# Batch statistics need two values per channel.
_STATISTICS = Rule(("shape", "batch_stats"), lambda shape, batch: not batch or _values_per_channel(shape) != 1)
# PyTorch's convolution refuses a map without positions.
_CONVOLVED = Rule(("shape",), lambda shape: shape != "no-positions")

FAMILIES = (
    Family(
        (
            "batch_norm_squeeze_excite_forward",
            "batch_norm_squeeze_excite_train",
            "batch_norm_squeeze_excite_backward",
        ),
        _COMMON
        | _NORM
        | _STATISTICS_DTYPE
        | _EXCITATION
        | _PARAMETERS
        | _OUT_ACT
        | {
            "parts": ("bn-se", "bn", "se"),
            "residual": (True, False),
            "drop_path": (True, False),
            "save": (True, False),
            "want_dr": (True, False),
            "dy": GRADIENTS,
        },
        _block,
        (
            _STATISTICS,
            *_only("parts", lambda parts: "bn" in parts, batch_stats=False, affine=True),
            *_only("batch_stats", lambda batch: batch, statistics=torch.float32),
            *_only(
                "parts",
                lambda parts: "se" in parts,
                biases=True,
                **{"as convolution": False},
                hidden=6,
                act="identity",
                gate="sigmoid",
            ),
            *_only("save", lambda save: save, want_dr=True, dy="dense"),
            *_only("residual", lambda residual: residual, want_dr=False),
        ),
    ),
    Family(
        ("batch_norm_act_squeeze", "batch_norm_act_squeeze_train", "batch_norm_act_squeeze_backward"),
        _COMMON | _NORM | _STATISTICS_DTYPE | _PARAMETERS | _OUT_ACT | {"dy": GRADIENTS},
        _norm_and_means,
        (_STATISTICS, *_only("batch_stats", lambda batch: batch, statistics=torch.float32)),
    ),
    Family(
        ("squeeze", "rescale", "rescale_backward", "squeeze_backward"),
        _COMMON | _OUT_ACT | {"residual": (True, False), "save": (True, False), "dy": GRADIENTS},
        _channel_gate,
        tuple(_only("save", lambda save: save, dy="dense")),
    ),
    Family(
        ("conv1x1_squeeze_excite",),
        _COMMON
        | _EXCITATION
        | _PARAMETERS
        | _OUT_ACT
        | {
            "channels": (20, 1, 16),
            "conv_bias": (True, False),
            "packed": (True, False),
            "residual": (None, *LAYOUTS),
        },
        _conv1x1,
        (_CONVOLVED,),
    ),
    Family(
        ("gated_conv1x1",),
        _COMMON | {"channels": (3, 40, 1), "bias": (True, False), "as convolution": (True, False)},
        _gated,
    ),
    Family(("add_input_gradient",), _COMMON | {"channels": (3, 1), "other": tuple(LAYOUTS)}, _input_gradient),
)

BY_OPERATOR = {name: family for family in FAMILIES for name in family.operators}
