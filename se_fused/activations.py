"""Activations and gates: names by class and function, numbers in the kernels, and needs of the backward pass.

The numbers are those of csrc/enums.h; a test compares the two. Other modules do not interpret the numbers: the
functions below tell what the backward pass of an activation saves, recomputes and writes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
    "ACT_CODES",
    "ALIASES",
    "FUNCTIONS",
    "GATE_CODES",
    "OUT_ACT_CODES",
    "keeps_mask",
    "name_of_module",
    "recomputed",
    "writes_dr",
]

# ---- names
ALIASES = {"swish": "silu", "hardswish": "hard_swish", "hardsigmoid": "hard_sigmoid"}
"""Other names of the same functions."""

FUNCTIONS: dict[Any, str] = {
    torch.relu: "relu", torch.relu_: "relu", F.relu: "relu", F.relu_: "relu", F.silu: "silu", F.hardswish: "hard_swish",
    "relu": "relu", "relu_": "relu",
}  # fmt: skip
"""The activations at the end of a block, by function and by tensor method, as torch.fx records them."""

_TORCH: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Hardswish: "hard_swish",
    nn.Mish: "mish",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hard_sigmoid",
}
# timm's classes for the same functions, by name, because timm may not be installed.
_TIMM = {
    "GELU": "gelu",
    "GELUTanh": "gelu_tanh",
    "HardSigmoid": "hard_sigmoid",
    "HardSigmoidMe": "hard_sigmoid",
    "HardSwish": "hard_swish",
    "HardSwishMe": "hard_swish",
    "Mish": "mish",
    "MishMe": "mish",
    "Sigmoid": "sigmoid",
    "Swish": "silu",
    "SwishMe": "silu",
    "Tanh": "tanh",
}


def name_of_module(layer: object) -> str | None:
    """The name in :mod:`se_fused.reference` of an activation or gate, given as a module or as its class. None if it is
    unknown, or a LeakyReLU with another slope than 0.01. Subclasses of known classes are unknown."""
    cls = layer if isinstance(layer, type) else type(layer)
    name = _TORCH.get(cls)
    if name is None and cls.__module__.startswith("timm."):
        name = _TIMM.get(cls.__name__)
    if isinstance(layer, nn.LeakyReLU) and layer.negative_slope != 0.01:
        return None
    return "gelu_tanh" if type(layer) is nn.GELU and layer.approximate == "tanh" else name


# ---- numbers
def _numbered(*names: str) -> dict[str, int]:
    return {name: code for code, name in enumerate(names)}


_DERIVATIVES = {"none": "one", "relu": "mask", "silu": "recomputed", "hard_swish": "recomputed"}
"""Source of the derivative of the activation at a block's end. "one": the derivative is 1. "mask": the forward pass
saves one bit per element. "recomputed": it is computed from the activation's input, which the backward pass
recomputes."""

OUT_ACT_CODES = _numbered(*_DERIVATIVES)
GATE_CODES = _numbered("sigmoid", "hard_sigmoid")
ACT_CODES = _numbered(
    "identity", "relu", "relu6", "leaky_relu", "silu", "gelu", "gelu_tanh", "hard_swish", "mish", "tanh"
)

_BY_CODE = tuple(_DERIVATIVES.values())


def keeps_mask(out_act: int) -> bool:
    """Whether the forward pass saves a mask for the derivative."""
    return _BY_CODE[out_act] == "mask"


def recomputed(out_act: int) -> bool:
    """Whether the backward pass recomputes the activation's input, for which it also needs the residual."""
    return _BY_CODE[out_act] == "recomputed"


def writes_dr(out_act: int, wanted: bool) -> bool:
    """Whether the backward pass writes dr = dy * out_act'. It does if the residual's gradient is ``wanted`` and differs
    from dy, and if pass 2, which computes dx, cannot obtain dr from dy and a mask."""
    return recomputed(out_act) or (wanted and _BY_CODE[out_act] != "one")
