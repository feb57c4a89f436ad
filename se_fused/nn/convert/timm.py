"""Handlers for timm's residual blocks: ResNet, the legacy SENets, RegNet and TResNet.

Each forward performs timm's steps in timm's order, with batch norm and the operations after it in one call.
"""

from typing import Any

from torch import Tensor, nn

from ..block_plan import BlockModules, ConvNormAct
from ..known import is_nothing
from ..residual_block import is_own
from .attention_layers import arguments_of
from .block_end import block_end, bottleneck_branches, describe_block_end, register_block, single_relu_modules
from .class_swap import Handler, block_forward, register
from .inverted_residual import gate_and_project
from .modules import apply, conv_norm_act, conv_parts, norm_act, norm_refusal

__all__: list[str] = []


def _inner(bn: nn.Module, drop_block: nn.Module, act: nn.Module, x: Tensor, own: bool) -> Tensor:
    """act(drop_block(bn(x)))."""
    if is_nothing(drop_block):
        return norm_act(bn, act, x, own)
    y: Tensor = act(drop_block(bn(x)))
    return y


def _end(self: Any, out: Tensor, x: Tensor, conv: nn.Module, bn: nn.Module, act: nn.Module) -> Tensor:
    return block_end(
        out, x, bn=bn, se=self.se, drop=self.drop_path, act=act, shortcut=self.downsample, own=is_own(conv),
        in_place=True,
    )  # fmt: skip


def _basic_modules(self: Any) -> BlockModules:
    branch = ConvNormAct(self.conv1, self.bn1, self.act1), ConvNormAct(self.conv2, self.bn2, self.act2)
    return BlockModules(branch, self.downsample, self.se, self.drop_path, arguments_of, (self.drop_block, self.aa))


def _bottleneck_modules(self: Any) -> BlockModules:
    branch = (
        ConvNormAct(self.conv1, self.bn1, self.act1), ConvNormAct(self.conv2, self.bn2, self.act2),
        ConvNormAct(self.conv3, self.bn3, self.act3),
    )  # fmt: skip
    return BlockModules(branch, self.downsample, self.se, self.drop_path, arguments_of, (self.drop_block, self.aa))


@block_forward(_basic_modules)
def _basic_block(self: Any, x: Tensor) -> Tensor:
    out = _inner(self.bn1, self.drop_block, self.act1, self.conv1(x), is_own(self.conv1))
    out = self.conv2(self.aa(out))
    return _end(self, out, x, self.conv2, self.bn2, self.act2)


@block_forward(_bottleneck_modules)
def _bottleneck(self: Any, x: Tensor) -> Tensor:
    out = apply(ConvNormAct(self.conv1, self.bn1, self.act1), x)
    out = _inner(self.bn2, self.drop_block, self.act2, self.conv2(out), is_own(self.conv2))
    out = self.conv3(self.aa(out))
    return _end(self, out, x, self.conv3, self.bn3, self.act3)


register_block(_basic_block, "bn2", "se", "act2", "timm.models.resnet.BasicBlock")
register_block(_bottleneck, "bn3", "se", "act3", "timm.models.resnet.Bottleneck")


@block_forward(lambda block: single_relu_modules(block, block.se_module))
def _legacy_bottleneck(self: Any, x: Tensor) -> Tensor:
    out, residual = bottleneck_branches(self, x)
    return block_end(out, residual, bn=self.bn3, se=self.se_module, act=self.relu, own=is_own(self.conv3))


@block_forward()
def _legacy_block(self: Any, x: Tensor) -> Tensor:
    out = apply(ConvNormAct(self.conv1, self.bn1, self.relu), x)
    out = apply(ConvNormAct(self.conv2, self.bn2, self.relu), out)  # in this block, SE follows the activation
    residual = x if self.downsample is None else self.downsample(x)
    return block_end(out, residual, bn=None, se=self.se_module, act=self.relu)


register_block(_legacy_bottleneck, "bn3", "se_module", "relu", "timm.models.senet.Bottleneck")
register(
    Handler(
        _legacy_block,
        lambda module: norm_refusal(module.bn2, "bn2"),
        lambda module: "BN + act, " + describe_block_end(None, module.se_module, module.relu),
    ),
    "timm.models.senet.SEResNetBlock",
)


def _last(module: Any, x: Tensor) -> tuple[Tensor, nn.Module | None, bool]:
    """Output of the convolution in the block's last ``ConvNormAct``, the batch norm that the caller must still apply,
    and whether the output is a new tensor that no other code uses. Other modules are called, with no batch norm left.
    """
    parts = conv_parts(module)
    if parts is None:
        return module(x), None, False
    return parts.conv(x), parts.bn, is_own(parts.conv)


@block_forward()
def _regnet_bottleneck(self: Any, x: Tensor) -> Tensor:
    out, bn, own = gate_and_project(self.conv2, self.se, self.conv3, conv_norm_act(self.conv1, x))
    if self.downsample is None:  # timm then skips the addition and stochastic depth
        return block_end(out, None, bn=bn, act=self.act3, own=own)
    return block_end(out, x, bn=bn, drop=self.drop_path, act=self.act3, shortcut=self.downsample, own=own)


@block_forward()
def _tresnet_basic_block(self: Any, x: Tensor) -> Tensor:
    residual = x if self.downsample is None else self.downsample(x)
    out, bn, own = _last(self.conv2, self.conv1(x))
    return block_end(out, residual, bn=bn, se=self.se, drop=self.drop_path, act=self.act, own=own)


@block_forward()
def _tresnet_bottleneck(self: Any, x: Tensor) -> Tensor:
    residual = x if self.downsample is None else self.downsample(x)
    out = self.conv2(self.conv1(x))
    out, bn, own = _last(self.conv3, out if self.se is None else self.se(out))
    return block_end(out, residual, bn=bn, drop=self.drop_path, act=self.act, own=own)


register_block(_regnet_bottleneck, "conv3.bn", None, "act3", "timm.models.regnet.Bottleneck")
register_block(_tresnet_basic_block, "conv2.bn", "se", "act", "timm.models.tresnet.BasicBlock")
register_block(_tresnet_bottleneck, "conv3.bn", None, "act", "timm.models.tresnet.Bottleneck")
