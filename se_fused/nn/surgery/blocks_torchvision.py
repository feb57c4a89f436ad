"""torchvision's residual blocks: ResNet's two and RegNet's."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..tail import is_own
from .classes import Handler, register
from .parts import conv_norm_act, conv_parts, is_of, norm_act, norm_refusal, untouched
from .tails import describe_tail, tail

__all__: list[str] = []


def _basic_block(self: Any, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):  # a proxy of torch.fx traces what was there
        return self.original.forward(self, x)
    out = norm_act(self.bn1, self.relu, self.conv1(x), is_own(self.conv1))
    out = self.conv2(out)
    residual = x if self.downsample is None else self.downsample(x)
    return tail(out, residual, bn=self.bn2, act=self.relu, own=is_own(self.conv2), in_place=True)


def _bottleneck(self: Any, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        return self.original.forward(self, x)
    out = norm_act(self.bn1, self.relu, self.conv1(x), is_own(self.conv1))
    out = norm_act(self.bn2, self.relu, self.conv2(out), is_own(self.conv2))
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
    out = x
    for layer in list(branch._modules.values())[:-1]:  # a, b and, in RegNetY, se
        out = conv_norm_act(layer, out)
    return tail(parts.conv(out), residual, bn=parts.bn, act=self.activation, own=is_own(parts.conv))


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
