"""MONAI's SE blocks, of one to three dimensions: SEBlock, and SEBottleneck, SEResNetBottleneck, SEResNeXtBottleneck,
which differ in their convolutions' arguments alone."""

from typing import Any

from torch import Tensor

from ..residual_block import is_own
from .block_end import describe_tail, tail
from .class_swap import Handler, register
from .modules import conv_norm_act, conv_parts, norm_refusal

__all__: list[str] = []


def _forward(self: Any, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):  # a proxy of torch.fx traces what was there
        return self.original.forward(self, x)
    residual = self.project(x)
    out = conv_norm_act(self.conv2, conv_norm_act(self.conv1, x))
    parts = conv_parts(self.conv3)
    if parts is None or parts.act is not None:
        return tail(self.conv3(out), residual, bn=None, se=self.se_layer, act=self.act, in_place=True)
    return tail(
        parts.conv(out), residual, bn=parts.bn, se=self.se_layer, act=self.act, own=is_own(parts.conv), in_place=True
    )


def _last_bn(module: Any) -> object:
    """The batch norm behind the last convolution, if it is just those two, without asking about hooks."""
    adn = getattr(module.conv3, "adn", None)
    children = [] if adn is None else list(adn._modules.values())
    return children[0] if len(children) == 1 else adn


register(
    Handler(
        _forward,
        lambda module: norm_refusal(_last_bn(module), "conv3.adn"),
        lambda module: describe_tail(_last_bn(module), module.se_layer, module.act),
    ),
    "monai.networks.blocks.squeeze_and_excitation.SEBlock",
)
