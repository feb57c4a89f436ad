"""Decision whether a module is converted, and the reason if it is not."""

import re

import torch
from torch import nn

from .class_swap import Fused, known

__all__ = ["is_ours", "refusal"]

# Common names of classes that rescale channels: SEModule, SE_Block, scSE, SqueezeExcite, ECALayer, ChannelAttn and
# related layers. SELU, SqueezeNet and classes of torch itself (MSELoss) must not match.
_TELLING = re.compile(
    r"(?i:squeeze(?!net)|excit|channel_?att|selective_?kernel|global_?context|cbam)"
    r"|SE(?=$|_|[A-Z][a-z])|^(?i:eca)(?=$|_|[A-Z])"
)


def is_ours(module: nn.Module) -> bool:
    """Whether the module is defined by this library, and so runs the kernels without conversion."""
    return type(module).__module__.split(".")[0] == "se_fused" and not isinstance(module, Fused)


def refusal(module: nn.Module) -> str | None:
    """Reason why a module is not converted; None if it can be converted.

    The reason is empty for a module that is neither supported nor named like a squeeze-excite layer; reports omit it.
    """
    cls = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        telling = _TELLING.search(str(getattr(module, "original_name", "")))
        return "compiled by TorchScript: convert before torch.jit.script" if telling else ""
    if isinstance(module, Fused):
        return "its class was changed after it was converted"
    handler = known(cls)
    if isinstance(handler, str):
        return handler
    if handler is None:
        inside = any(known(type(child)) is not None for child in module.modules())
        if isinstance(module, torch.fx.GraphModule) and not inside and not any(map(is_ours, module.modules())):
            return "torch.fx has traced through its blocks: convert before that, with leaf_modules=[se_fused.nn.Fused]"
        unknown = not inside and not cls.__module__.startswith("torch.") and _TELLING.search(cls.__name__)
        return "se_fused does not support this class" if unknown else ""
    if "forward" in module.__dict__:
        return "its forward was replaced on this instance"
    return handler.refusal(module)
