"""Activations and gates: their names by class and function, their numbers in kernels, and what each closing activation
asks of a backward pass.

The numbers are those of csrc/enums.h; a test compares the two. No other module decides anything by a number: what is
kept, computed again or written is asked here.
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
"""The closing activations by function and by method of a tensor, as torch.fx records them."""

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
# timm has classes of its own for the same functions; they are known by name, because timm may not be installed.
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
    """The name of an activation or a gate that is a module or a class of one, as :mod:`se_fused.reference` has it; None
    where it is unknown, or set to other constants. A subclass is unknown."""
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
"""Where a closing activation's derivative comes from: there is none to speak of, it is a mask of one bit per element
that the forward pass keeps, or it is computed from the sum before the activation, which is computed again."""

OUT_ACT_CODES = _numbered(*_DERIVATIVES)
GATE_CODES = _numbered("sigmoid", "hard_sigmoid")
ACT_CODES = _numbered(
    "identity", "relu", "relu6", "leaky_relu", "silu", "gelu", "gelu_tanh", "hard_swish", "mish", "tanh"
)

_BY_CODE = tuple(_DERIVATIVES.values())


def keeps_mask(out_act: int) -> bool:
    """Whether the forward pass keeps a mask for the derivative."""
    return _BY_CODE[out_act] == "mask"


def recomputed(out_act: int) -> bool:
    """Whether the backward pass computes the sum before the activation again; it then needs the residual too."""
    return _BY_CODE[out_act] == "recomputed"


def writes_dr(out_act: int, wanted: bool) -> bool:
    """Whether the backward pass writes dr, which is dy times the derivative: for the residual, where its gradient is
    ``wanted`` and not dy itself; and for the second pass, which computes dx, unless a mask tells it all."""
    return recomputed(out_act) or (wanted and _BY_CODE[out_act] != "one")
