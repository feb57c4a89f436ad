"""The public functions of the library: squeeze-excite blocks, fused with batch norm, residual and activation.

- ``batch_norm_squeeze_excite``: y = out_act(drop_path_scale * SE(BN(x)) + residual). ``squeeze_excite`` leaves out BN,
  ``batch_norm_act`` leaves out SE.
- ``conv1x1_squeeze_excite``: ``squeeze_excite`` after a 1x1 convolution, in inference.
- ``channel_gate``: channels rescaled by any function of their means.
- ``batch_norm_act_squeeze`` and ``gated_conv1x1``: squeeze-excite between an activation and a projection.

Each checks its arguments (``_arguments``) and chooses between the kernels and plain PyTorch (``dispatch``,
:mod:`se_fused.reference`). Symbols: N batch, C channels, S positions, R squeezed channels.
"""

from .batch_norm_squeeze_excite import batch_norm_act, batch_norm_squeeze_excite, squeeze_excite
from .channel_gate import channel_gate
from .conv1x1_squeeze_excite import conv1x1_squeeze_excite, fold_squeeze, pack_conv1x1
from .gated_projection import batch_norm_act_squeeze, gated_conv1x1

__all__ = [
    "batch_norm_act",
    "batch_norm_act_squeeze",
    "batch_norm_squeeze_excite",
    "channel_gate",
    "conv1x1_squeeze_excite",
    "fold_squeeze",
    "gated_conv1x1",
    "pack_conv1x1",
    "squeeze_excite",
]
