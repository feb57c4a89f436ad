"""Names of activations and gates as the numbers that kernels take. The order is that of csrc/cpu/kernels.h."""

__all__ = ["ACT_CODES", "GATE_CODES", "OUT_ACT_CODES", "RECOMPUTED"]


def _numbered(*names: str) -> dict[str, int]:
    return {name: code for code, name in enumerate(names)}


OUT_ACT_CODES = _numbered("none", "relu", "silu", "hard_swish")
RECOMPUTED = frozenset(("silu", "hard_swish"))
"""Their derivative is computed from the sum before the activation, again in the backward pass; ReLU's is a mask."""
GATE_CODES = _numbered("sigmoid", "hard_sigmoid")
ACT_CODES = _numbered(
    "identity", "relu", "relu6", "leaky_relu", "silu", "gelu", "gelu_tanh", "hard_swish", "mish", "tanh"
)
