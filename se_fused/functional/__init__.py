"""The public functions: y = out_act(drop_path_scale * SE(BN(x)) + residual), with SE or BN left out in two of them; one
with the convolution before it inside; one whose gate is any function of the means; and two for squeeze-excite between
an activation and a projection.

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
