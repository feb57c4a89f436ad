"""Modules: the SE layer, stochastic depth, the tail of a residual block, and the middle of an inverted one."""

from .gated_projection import fused_gate_projection
from .squeeze_excite import SqueezeExcite, activation_name, gate_name
from .tail import DropPath, bn_act, conv_bn_act, drop_path_scale, fused_tail, is_own

__all__ = [
    "DropPath",
    "SqueezeExcite",
    "activation_name",
    "bn_act",
    "conv_bn_act",
    "drop_path_scale",
    "fused_gate_projection",
    "fused_tail",
    "gate_name",
    "is_own",
]
