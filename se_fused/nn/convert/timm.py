"""timm's residual blocks: ResNet, the legacy SE-nets, RegNet, TResNet. Each forward is timm's, in timm's order, with
batch norm and what follows it in one call."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..residual_block import is_own
from .block_end import describe_tail, tail
from .class_swap import Handler, register
from .inverted_residual import gate_and_project
from .modules import ConvNormAct, apply, conv_norm_act, conv_parts, is_nothing, norm_act, norm_refusal

__all__: list[str] = []


def _register_block(forward: Callable[[Any, Tensor], Tensor], bn: str, se: str | None, act: str, *names: str) -> None:
    """A block whose tail has its batch norm, SE and activation under these names, a path with dots or one name."""

    def last_bn(module: Any) -> object:
        return module.get_submodule(bn)

    def refusal(module: Any) -> str | None:
        return norm_refusal(last_bn(module), bn)

    def describe(module: Any) -> str:
        attention = None if se is None else getattr(module, se)
        return describe_tail(last_bn(module), attention, getattr(module, act))

    register(Handler(forward, refusal, describe), *names)


def _inner(bn: nn.Module, drop_block: nn.Module, act: nn.Module, x: Tensor, own: bool) -> Tensor:
    """act(drop_block(bn(x)))."""
    if is_nothing(drop_block):
        return norm_act(bn, act, x, own)
    y: Tensor = act(drop_block(bn(x)))
    return y


def _basic_block(self: Any, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):  # a proxy of torch.fx traces what was there
        return self.original.forward(self, x)
    out = _inner(self.bn1, self.drop_block, self.act1, self.conv1(x), is_own(self.conv1))
    out = self.conv2(self.aa(out))
    return tail(
        out, x, bn=self.bn2, se=self.se, drop=self.drop_path, act=self.act2, shortcut=self.downsample,
        own=is_own(self.conv2), in_place=True,
    )  # fmt: skip


def _bottleneck(self: Any, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        return self.original.forward(self, x)
    out = apply(ConvNormAct(self.conv1, self.bn1, self.act1), x)
    out = _inner(self.bn2, self.drop_block, self.act2, self.conv2(out), is_own(self.conv2))
    out = self.conv3(self.aa(out))
    return tail(
        out, x, bn=self.bn3, se=self.se, drop=self.drop_path, act=self.act3, shortcut=self.downsample,
        own=is_own(self.conv3), in_place=True,
    )  # fmt: skip


_register_block(_basic_block, "bn2", "se", "act2", "timm.models.resnet.BasicBlock")
_register_block(_bottleneck, "bn3", "se", "act3", "timm.models.resnet.Bottleneck")


def _legacy_bottleneck(self: Any, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        return self.original.forward(self, x)
    out = apply(ConvNormAct(self.conv1, self.bn1, self.relu), x)
    out = apply(ConvNormAct(self.conv2, self.bn2, self.relu), out)
    out = self.conv3(out)
    residual = x if self.downsample is None else self.downsample(x)
    return tail(out, residual, bn=self.bn3, se=self.se_module, act=self.relu, own=is_own(self.conv3))


def _legacy_block(self: Any, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        return self.original.forward(self, x)
    out = apply(ConvNormAct(self.conv1, self.bn1, self.relu), x)
    out = apply(ConvNormAct(self.conv2, self.bn2, self.relu), out)  # SE sees it after the activation
    residual = x if self.downsample is None else self.downsample(x)
    return tail(out, residual, bn=None, se=self.se_module, act=self.relu)


_register_block(_legacy_bottleneck, "bn3", "se_module", "relu", "timm.models.senet.Bottleneck")
register(
    Handler(
        _legacy_block,
        lambda module: norm_refusal(module.bn2, "bn2"),
        lambda module: "BN + act, " + describe_tail(None, module.se_module, module.relu),
    ),
    "timm.models.senet.SEResNetBlock",
)


def _last(module: Any, x: Tensor) -> tuple[Tensor, nn.Module | None, bool]:
    """The convolution of the block's last ``ConvNormAct``, the batch norm that is left to do, and whether the map is
    the caller's alone."""
    parts = conv_parts(module)
    if parts is None:
        return module(x), None, False
    return parts.conv(x), parts.bn, is_own(parts.conv)


def _regnet_bottleneck(self: Any, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        return self.original.forward(self, x)
    out, bn, own = gate_and_project(self.conv2, self.se, self.conv3, conv_norm_act(self.conv1, x))
    if self.downsample is None:  # neither a sum nor stochastic depth
        return tail(out, None, bn=bn, act=self.act3, own=own)
    return tail(out, x, bn=bn, drop=self.drop_path, act=self.act3, shortcut=self.downsample, own=own)


def _tresnet_basic_block(self: Any, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        return self.original.forward(self, x)
    residual = x if self.downsample is None else self.downsample(x)
    out, bn, own = _last(self.conv2, self.conv1(x))
    return tail(out, residual, bn=bn, se=self.se, drop=self.drop_path, act=self.act, own=own)


def _tresnet_bottleneck(self: Any, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        return self.original.forward(self, x)
    residual = x if self.downsample is None else self.downsample(x)
    out = self.conv2(self.conv1(x))
    out, bn, own = _last(self.conv3, out if self.se is None else self.se(out))
    return tail(out, residual, bn=bn, drop=self.drop_path, act=self.act, own=own)


_register_block(_regnet_bottleneck, "conv3.bn", None, "act3", "timm.models.regnet.Bottleneck")
_register_block(_tresnet_basic_block, "conv2.bn", "se", "act", "timm.models.tresnet.BasicBlock")
_register_block(_tresnet_bottleneck, "conv3.bn", None, "act", "timm.models.tresnet.Bottleneck")
