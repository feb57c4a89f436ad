"""torchvision's residual blocks: ResNet's two and RegNet's."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..residual_block import is_own
from .block_end import describe_tail, tail
from .class_swap import Handler, register
from .inverted_residual import gate_and_project
from .modules import ConvNormAct, apply, conv_norm_act, conv_parts, is_of, norm_refusal, untouched

__all__: list[str] = []


def _basic_block(self: Any, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):  # a proxy of torch.fx traces what was there
        return self.original.forward(self, x)
    out = apply(ConvNormAct(self.conv1, self.bn1, self.relu), x)
    out = self.conv2(out)
    residual = x if self.downsample is None else self.downsample(x)
    return tail(out, residual, bn=self.bn2, act=self.relu, own=is_own(self.conv2), in_place=True)


def _bottleneck(self: Any, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        return self.original.forward(self, x)
    out = apply(ConvNormAct(self.conv1, self.bn1, self.relu), x)
    out = apply(ConvNormAct(self.conv2, self.bn2, self.relu), out)
    out = self.conv3(out)
    residual = x if self.downsample is None else self.downsample(x)
    return tail(out, residual, bn=self.bn3, act=self.relu, own=is_own(self.conv3), in_place=True)


def _register_resnet(forward: Callable[[Any, Tensor], Tensor], bn: str, name: str) -> None:
    def refusal(module: Any) -> str | None:
        return norm_refusal(getattr(module, bn), bn)

    def describe(module: Any) -> str:
        return describe_tail(getattr(module, bn), None, module.relu)

    register(Handler(forward, refusal, describe), f"torchvision.models.resnet.{name}")


_register_resnet(_basic_block, "bn2", "BasicBlock")
_register_resnet(_bottleneck, "bn3", "Bottleneck")


def _regnet_block(self: Any, x: Tensor) -> Tensor:
    branch, last = self.f, self.f._modules.get("c")
    parts = None if last is None or not untouched(branch) else conv_parts(last)
    if not isinstance(x, Tensor) or parts is None:
        return self.original.forward(self, x)
    residual = x if self.proj is None else self.proj(x)
    se = branch._modules.get("se")  # RegNetY's
    out = conv_norm_act(branch.a, x)
    out, bn, own = gate_and_project(branch.b, nn.Identity() if se is None else se, last, out)
    return tail(out, residual, bn=bn, act=self.activation, own=own)


def _regnet_refusal(module: Any) -> str | None:
    branch = module.f
    if not is_of(branch, "torchvision.models.regnet", "BottleneckTransform") or list(branch._modules)[-1] != "c":
        return f"f is {type(branch).__name__}, not BottleneckTransform"
    return norm_refusal(branch.c[1], "f.c.1")


register(
    Handler(
        _regnet_block,
        _regnet_refusal,
        lambda module: describe_tail(module.f.c[1], None, module.activation),
    ),
    "torchvision.models.regnet.ResBottleneckBlock",
)
