"""PyTorch modules: the SE layer, stochastic depth, fused ends of residual blocks and the middle of inverted residuals,
conversion of models from other libraries, and optimisation for inference."""

from .convert import Fused, Report, conversion_report, convert, revert
from .convert.inverted_residual import fused_gate_projection
from .inference import Graphed, graphed, optimize_for_inference
from .residual_block import DropPath, bn_act, conv_bn_act, drop_path_scale, fused_block_end, is_own
from .squeeze_excite import SqueezeExcite, activation_name, gate_name

__all__ = [
    "DropPath",
    "Fused",
    "Graphed",
    "Report",
    "SqueezeExcite",
    "activation_name",
    "bn_act",
    "conv_bn_act",
    "conversion_report",
    "convert",
    "drop_path_scale",
    "fused_block_end",
    "fused_gate_projection",
    "gate_name",
    "graphed",
    "is_own",
    "optimize_for_inference",
    "revert",
]
