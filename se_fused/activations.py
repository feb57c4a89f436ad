"""Activations and gates as the numbers that kernels take, and what each closing activation asks of a backward pass.

The numbers are those of csrc/enums.h; a test compares the two. Nobody else decides anything by a number: whoever wants
to know what is kept, computed again or written asks here.
"""

__all__ = ["ACT_CODES", "GATE_CODES", "OUT_ACT_CODES", "keeps_mask", "recomputed", "writes_dr"]


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
    ``wanted`` and not dy itself; and for stream 2, unless a mask tells it all."""
    return recomputed(out_act) or (wanted and _BY_CODE[out_act] != "one")
