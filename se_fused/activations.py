"""The activations and gates of the library, one row each: what they compute and what the other modules need to know.

A new activation is a new row, with code in each kernel family (csrc/cpu, csrc/cuda, backends/triton). Everything else
follows from the tables: checks of names, numbers in the kernels, the rules of the backward pass, the modules and
functions that ``convert`` and ``optimize_for_inference`` recognise, and the options of the tests.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "ACTIVATIONS",
    "ACT_CODES",
    "ALIASES",
    "FUNCTIONS",
    "GATES",
    "GATE_CODES",
    "OUT_ACTIVATIONS",
    "OUT_ACT_CODES",
    "Activation",
    "Gate",
    "by_code",
    "keeps_mask",
    "name_of_module",
    "names_in_words",
    "recomputed",
    "writes_dr",
]

aten = torch.ops.aten


# ---- rows
@dataclass(frozen=True, kw_only=True)
class Function:
    """What activations and gates have in common: the function and the names under which other libraries have it."""

    forward: Callable[[Tensor], Tensor]
    modules: tuple[type[nn.Module], ...]
    """Classes of PyTorch that compute it, if their attributes have the values of ``attributes``; () if there is none.
    """
    attributes: dict[str, Any] = field(default_factory=dict)
    timm: tuple[str, ...] = ()
    """timm's classes, by name, because timm may not be installed."""
    aliases: tuple[str, ...] = ()
    """Other names of the same function in arguments of modules."""
    functions: tuple[Any, ...] = ()
    """Functions and tensor methods that compute it without further options, as torch.fx and Dynamo record them."""


@dataclass(frozen=True, kw_only=True)
class Activation(Function):
    """An activation between the two fully connected layers. One with ``keeps`` may also close a block."""

    backward: Callable[[Tensor, Tensor], Tensor]
    """(gradient of the result, input) -> gradient of the input."""
    corners: tuple[float, ...] = ()
    """Inputs at which the derivative jumps."""
    keeps: Literal["nothing", "mask", "input"] | None = None
    """What the derivative needs if the activation closes a block. "nothing": it is 1. "mask": the forward pass saves
    one bit per element. "input": the backward pass recomputes the activation's input. None: no kernel closes a block
    with it."""
    steepest: float = 1.13
    """An upper bound of the slope, for error bounds. It holds for GELU (1.129), which only hard-swish exceeds."""
    inplace: Callable[[Tensor], Tensor] | None = None
    """``forward`` written over its input, where PyTorch has that."""
    onednn: str | None = None
    """oneDNN's name of it as an operation on a convolution's result; None if oneDNN computes something else."""


@dataclass(frozen=True, kw_only=True)
class Gate(Function):
    """A gate, which turns the output of the second layer into a factor."""

    backward: Callable[[Tensor, Tensor], Tensor]
    """(gradient of the result s, s) -> gradient of the input. It is computed from the saved s."""
    steepest: float
    """The largest slope, for error bounds."""


def _identity(x: Tensor) -> Tensor:
    return x


# ---- the tables: a row's position is its number in the kernels, so new rows come last
ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(
        forward=_identity, backward=lambda g, x: g, modules=(nn.Identity,), keeps="nothing", onednn="none"
    ),
    "relu": Activation(
        forward=F.relu,
        backward=lambda g, x: aten.threshold_backward(g, x, 0),
        corners=(0.0,),
        modules=(nn.ReLU,),
        functions=(torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_"),
        keeps="mask",
        inplace=torch.relu_,
        # oneDNN's ReLU returns 0 for NaN, so PyTorch's runs after a convolution. With it, ResNet-50, SE-ResNet-50,
        # ResNet-18 and MobileNetV3 took 1.02, 0.94, 1.01 and 1.03 times as long as with oneDNN's (batch 8, 224 x 224,
        # two cores, 2026-11-27, torch 2.14.1). This library's pass with bias, residual and ReLU instead of both took up
        # to 1.06 times as long.
        onednn=None,
    ),
    "relu6": Activation(
        forward=F.relu6,
        backward=lambda g, x: aten.hardtanh_backward(g, x, 0.0, 6.0),
        corners=(0.0, 6.0),
        modules=(nn.ReLU6,),
    ),
    "leaky_relu": Activation(
        forward=F.leaky_relu,
        backward=lambda g, x: aten.leaky_relu_backward(g, x, 0.01, False),
        corners=(0.0,),
        modules=(nn.LeakyReLU,),
        attributes={"negative_slope": 0.01},
    ),
    "silu": Activation(
        forward=F.silu,
        backward=aten.silu_backward,
        modules=(nn.SiLU,),
        timm=("Swish", "SwishMe"),
        aliases=("swish",),
        functions=(F.silu,),
        keeps="input",
        onednn="swish",
    ),
    "gelu": Activation(
        forward=F.gelu,
        backward=aten.gelu_backward,
        modules=(nn.GELU,),
        attributes={"approximate": "none"},
        timm=("GELU",),
        functions=(F.gelu,),
    ),
    "gelu_tanh": Activation(
        forward=lambda x: F.gelu(x, approximate="tanh"),
        backward=lambda g, x: aten.gelu_backward(g, x, approximate="tanh"),
        modules=(nn.GELU,),
        attributes={"approximate": "tanh"},
        timm=("GELUTanh",),
    ),
    "hard_swish": Activation(
        forward=F.hardswish,
        backward=aten.hardswish_backward,
        corners=(-3.0, 3.0),
        steepest=1.5,
        modules=(nn.Hardswish,),
        timm=("HardSwish", "HardSwishMe"),
        aliases=("hardswish",),
        functions=(F.hardswish,),
        keeps="input",
        onednn="hardswish",
    ),
    "mish": Activation(
        forward=F.mish,
        backward=aten.mish_backward,
        modules=(nn.Mish,),
        timm=("Mish", "MishMe"),
        functions=(F.mish,),
    ),
    "tanh": Activation(
        forward=torch.tanh,
        backward=lambda g, x: aten.tanh_backward(g, torch.tanh(x)),
        modules=(nn.Tanh,),
        timm=("Tanh",),
        functions=(torch.tanh, torch.tanh_, F.tanh, "tanh", "tanh_"),
    ),
}
"""The activations between the two layers, by name."""

OUT_ACTIVATIONS: dict[str, Activation] = {
    "none" if name == "identity" else name: row for name, row in ACTIVATIONS.items() if row.keeps is not None
}
"""The activations that may close a block, by name; ``out_act=None`` means "none"."""

GATES: dict[str, Gate] = {
    "sigmoid": Gate(
        forward=torch.sigmoid,
        backward=lambda g, s: g * s * (1 - s),
        steepest=1 / 4,
        modules=(nn.Sigmoid,),
        timm=("Sigmoid",),
        functions=(torch.sigmoid, torch.sigmoid_, F.sigmoid, "sigmoid", "sigmoid_"),
    ),
    "hard_sigmoid": Gate(
        forward=F.hardsigmoid,
        backward=lambda g, s: g * ((s > 0) & (s < 1)) / 6,  # with slope 0 at the corners, as in PyTorch
        steepest=1 / 6,
        modules=(nn.Hardsigmoid,),
        timm=("HardSigmoid", "HardSigmoidMe"),
        aliases=("hardsigmoid",),
        functions=(F.hardsigmoid,),
    ),
}
"""The gates, by name."""

_ROWS: dict[str, Function] = {**ACTIVATIONS, **GATES}


# ---- names
ALIASES = {alias: name for name, row in _ROWS.items() for alias in row.aliases}
"""Other names of the same functions."""

FUNCTIONS: dict[Any, str] = {function: name for name, row in _ROWS.items() for function in row.functions}
"""The activations and gates, by function and by tensor method."""

_BY_CLASS: dict[type[nn.Module], list[str]] = {}
_BY_TIMM_NAME: dict[str, str] = {}
for _name, _row in _ROWS.items():
    for _class in _row.modules:
        _BY_CLASS.setdefault(_class, []).append(_name)
    for _timm in _row.timm:
        _BY_TIMM_NAME[_timm] = _name


def name_of_module(layer: object) -> str | None:
    """The name in the tables of an activation or gate, given as a module or as its class. None if it is unknown, or if
    its options are others than those of the row, such as another slope of a LeakyReLU. Subclasses of known classes are
    unknown."""
    is_class = isinstance(layer, type)
    cls = layer if isinstance(layer, type) else type(layer)
    for name in _BY_CLASS.get(cls, ()):
        if is_class or all(getattr(layer, key) == value for key, value in _ROWS[name].attributes.items()):
            return name
    return _BY_TIMM_NAME.get(cls.__name__) if cls.__module__.startswith("timm.") else None


def names_in_words(names: Iterable[str]) -> str:
    """The names as documents list them: "None, relu, silu or hard_swish"."""
    *most, last = ("None" if name == "none" else name for name in names)
    return f"{', '.join(most)} or {last}" if most else last


# ---- numbers in the kernels. Other modules do not interpret them: the functions below tell what they mean.
ACT_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
OUT_ACT_CODES = {name: ACT_CODES["identity" if name == "none" else name] for name in OUT_ACTIVATIONS}
GATE_CODES = {name: code for code, name in enumerate(GATES)}

_BY_CODE = tuple(ACTIVATIONS.values())


def by_code(act: int) -> Activation:
    """The activation of a number."""
    return _BY_CODE[act]


def keeps_mask(out_act: int) -> bool:
    """Whether the forward pass saves a mask for the derivative."""
    return _BY_CODE[out_act].keeps == "mask"


def recomputed(out_act: int) -> bool:
    """Whether the backward pass recomputes the activation's input, for which it also needs the residual."""
    return _BY_CODE[out_act].keeps == "input"


def writes_dr(out_act: int, wanted: bool) -> bool:
    """Whether the backward pass writes dr = dy * out_act'. It does if the residual's gradient is ``wanted`` and differs
    from dy, and if pass 2, which computes dx, cannot obtain dr from dy and a mask."""
    keeps = _BY_CODE[out_act].keeps
    return keeps == "input" or (wanted and keeps != "nothing")
