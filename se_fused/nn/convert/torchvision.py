"""Handlers for torchvision's residual blocks: BasicBlock and Bottleneck of ResNet, and the block of RegNet."""

from typing import Any

from torch import Tensor, nn

from ..block_plan import BlockModules, ConvNormAct
from ..known import is_of, untouched
from ..residual_block import is_own
from .block_end import block_end, bottleneck_branches, describe_block_end, register_block, single_relu_modules
from .class_swap import Handler, block_forward, register
from .inverted_residual import gate_and_project
from .modules import apply, conv_norm_act, conv_parts, norm_refusal

__all__: list[str] = []


def _basic_modules(self: Any) -> BlockModules:
    branch = ConvNormAct(self.conv1, self.bn1, self.relu), ConvNormAct(self.conv2, self.bn2, self.relu)
    return BlockModules(branch, self.downsample)


@block_forward(_basic_modules)
def _basic_block(self: Any, x: Tensor) -> Tensor:
    out = apply(ConvNormAct(self.conv1, self.bn1, self.relu), x)
    out = self.conv2(out)
    residual = x if self.downsample is None else self.downsample(x)
    return block_end(out, residual, bn=self.bn2, act=self.relu, own=is_own(self.conv2), in_place=True)


@block_forward(single_relu_modules)
def _bottleneck(self: Any, x: Tensor) -> Tensor:
    out, residual = bottleneck_branches(self, x)
    return block_end(out, residual, bn=self.bn3, act=self.relu, own=is_own(self.conv3), in_place=True)


register_block(_basic_block, "bn2", None, "relu", "torchvision.models.resnet.BasicBlock")
register_block(_bottleneck, "bn3", None, "relu", "torchvision.models.resnet.Bottleneck")


def _regnet_modules(self: Any) -> BlockModules | None:
    branch = self.f
    if not untouched(branch) or list(branch._modules) != ["a", "b", "c"]:  # RegNetX; RegNetY has SE before c
        return None
    layers = [conv_parts(module) for module in branch._modules.values()]
    shortcut = None if self.proj is None else conv_parts(self.proj)
    first, second, third = layers
    if first is None or second is None or third is None or (shortcut is None and self.proj is not None):
        return None
    containers = (branch,) if self.proj is None else (branch, self.proj)
    return BlockModules(
        (first, second, third._replace(act=self.activation)),
        shortcut,
        containers=containers,
    )


@block_forward(_regnet_modules)
def _regnet_block(self: Any, x: Tensor) -> Tensor:
    branch, last = self.f, self.f._modules.get("c")
    parts = None if last is None or not untouched(branch) else conv_parts(last)
    if last is None or parts is None:
        return self.original.forward(self, x)
    residual = x if self.proj is None else self.proj(x)
    se = branch._modules.get("se")  # in RegNetY only
    out = conv_norm_act(branch.a, x)
    out, bn, own = gate_and_project(branch.b, nn.Identity() if se is None else se, last, out)
    return block_end(out, residual, bn=bn, act=self.activation, own=own)


def _regnet_refusal(module: Any) -> str | None:
    branch = module.f
    if not is_of(branch, "torchvision.models.regnet", "BottleneckTransform") or list(branch._modules)[-1] != "c":
        return f"f is {type(branch).__name__}, not BottleneckTransform"
    return norm_refusal(branch.c[1], "f.c.1")


register(
    Handler(
        _regnet_block,
        _regnet_refusal,
        lambda module: describe_block_end(module.f.c[1], None, module.activation),
    ),
    "torchvision.models.regnet.ResBottleneckBlock",
)
