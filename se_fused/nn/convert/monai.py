"""Handler for MONAI's SE blocks with one to three spatial dimensions: SEBlock and its subclasses SEBottleneck,
SEResNetBottleneck and SEResNeXtBottleneck, which differ only in the arguments of their convolutions."""

from typing import Any

from torch import Tensor

from ..block_plan import BlockModules
from ..known import is_nothing
from ..residual_block import is_own
from .attention_layers import arguments_of
from .block_end import block_end, describe_block_end
from .class_swap import Handler, block_forward, register
from .modules import conv_norm_act, conv_parts, norm_refusal

__all__: list[str] = []


def _modules(self: Any) -> BlockModules | None:
    branch = [conv_parts(module) for module in (self.conv1, self.conv2, self.conv3)]
    shortcut = None if is_nothing(self.project) else conv_parts(self.project)
    first, second, third = branch
    if first is None or second is None or third is None or third.act is not None:
        return None
    if shortcut is None and not is_nothing(self.project):
        return None
    return BlockModules(
        (first, second, third._replace(act=self.act)),
        shortcut,
        self.se_layer,
        arguments=arguments_of,
        containers=(self.conv1, self.conv2, self.conv3, self.project),
    )


@block_forward(_modules)
def _forward(self: Any, x: Tensor) -> Tensor:
    residual = self.project(x)
    out = conv_norm_act(self.conv2, conv_norm_act(self.conv1, x))
    parts = conv_parts(self.conv3)
    if parts is None or parts.act is not None:
        return block_end(self.conv3(out), residual, bn=None, se=self.se_layer, act=self.act, in_place=True)
    return block_end(
        parts.conv(out), residual, bn=parts.bn, se=self.se_layer, act=self.act, own=is_own(parts.conv), in_place=True
    )


def _last_bn(module: Any) -> object:
    """The batch norm of conv3, or the whole ``adn`` if it has other parts too. Ignores hooks."""
    adn = getattr(module.conv3, "adn", None)
    children = [] if adn is None else list(adn._modules.values())
    return children[0] if len(children) == 1 else adn


register(
    Handler(
        _forward,
        lambda module: norm_refusal(_last_bn(module), "conv3.adn"),
        lambda module: describe_block_end(_last_bn(module), module.se_layer, module.act),
    ),
    "monai.networks.blocks.squeeze_and_excitation.SEBlock",
)
