"""Recognition of the modules that the layers of :mod:`.layers` can replace."""

from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..convert.attention_layers import arguments_of
from ..known import is_of, is_plain, untouched
from ..norms import brought_activation, is_batch_norm
from ..squeeze_excite import SqueezeExcite

__all__ = ["CONVS", "is_norm", "pads_same", "squeeze_excite_arguments", "why_no_conv"]

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Subclasses of Conv2d with TensorFlow's "SAME" padding, which depends on the size of the map: (module, class).
_SAME = (("timm.layers.conv2d_same", "Conv2dSame"), ("efficientnet_pytorch.utils", "Conv2dDynamicSamePadding"))


def squeeze_excite_arguments(module: nn.Module) -> dict[str, Any] | None:
    """Keyword arguments of :func:`se_fused.functional.squeeze_excite`; None if ``module`` is no supported SE layer."""
    if is_plain(module, SqueezeExcite) and module.is_fusable():
        return module.arguments()
    return arguments_of(module)


def is_norm(module: nn.Module | None) -> bool:
    """Whether the module is a batch norm with running statistics: ``scale * x + shift`` per channel in inference."""
    if module is None or not ((is_batch_norm(module) and untouched(module)) or brought_activation(module) is not None):
        return False
    return module.running_mean is not None and module.running_var is not None


def pads_same(module: nn.Module) -> bool:
    """Whether a convolution uses TensorFlow's "SAME" padding: output size = input size / stride, rounded up."""
    if any(is_of(module, *name) for name in _SAME):
        return untouched(module) and not any(module.padding)  # type: ignore[arg-type]
    return is_plain(module, *CONVS) and module.padding == "same"


def why_no_conv(module: nn.Module) -> str | None:
    """Reason why a convolution cannot be replaced by a layer of :mod:`.layers`; None if it can."""
    assert isinstance(module, _ConvNd), "the caller checks it"
    if not untouched(module):
        return "its forward was replaced"
    if type(module) not in CONVS and not pads_same(module):
        return f"{type(module).__name__} has a forward of its own"
    return None if module.padding_mode == "zeros" else f"padding_mode={module.padding_mode!r}"
