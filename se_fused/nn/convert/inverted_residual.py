"""Blocks that rescale before their projection: the inverted residuals of EfficientNet and MobileNetV3, timm's and
torchvision's. Each forward is its library's, in its order; the middle is that of :mod:`..gated_projection`."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..residual_block import is_own
from .block_end import tail
from .class_swap import Handler, register
from .gated_projection import fused_gate_projection
from .modules import conv_norm_act, conv_parts, is_nothing, is_of, norm_act, norm_refusal, untouched

__all__ = ["gate_and_project"]


def gate_and_project(
    first: nn.Module, se: nn.Module, last: nn.Module, x: Tensor
) -> tuple[Tensor, nn.Module | None, bool]:
    """last(se(first(x))) up to last's convolution, for two modules of convolution, batch norm and activation.

    Returns:
        The map, the batch norm that is left to do (None: none, last was called), and whether the map is the caller's
        alone.
    """
    before, after = conv_parts(first), conv_parts(last)
    projection = last if after is None else after.conv
    if before is None or is_nothing(se):
        out: Tensor = projection(se(conv_norm_act(first, x)))
    else:
        out = fused_gate_projection(before.bn, before.act, se, projection, before.conv(x))
    if after is None or after.act is not None:
        return (out, None, False) if after is None else (norm_act(after.bn, after.act, out), None, False)
    return out, after.bn, is_own(after.conv)


# ---- timm
def _middle(bn: nn.Module, aa: nn.Module | None, se: nn.Module, projection: nn.Module, x: Tensor, own: bool) -> Tensor:
    """projection(se(aa(bn(x)))), where bn has its activation inside."""
    if is_nothing(aa) and not is_nothing(se):
        return fused_gate_projection(bn, None, se, projection, x)
    y = norm_act(bn, None, x, own)
    out: Tensor = projection(se(y if aa is None else aa(y)))
    return out


def _space_to_depth(self: Any, x: Tensor) -> Tensor:
    return x if self.conv_s2d is None else norm_act(self.bn_s2d, None, self.conv_s2d(x), is_own(self.conv_s2d))


def _close(self: Any, bn: nn.Module, projection: nn.Module, out: Tensor, x: Tensor) -> Tensor:
    if not self.has_skip:
        return tail(out, None, bn=bn, act=None, own=is_own(projection))
    return tail(out, x, bn=bn, act=None, drop=self.drop_path, own=is_own(projection))


def _inverted_residual(self: Any, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):  # a proxy of torch.fx traces what was there
        return self.original.forward(self, x)
    out = self.conv_pw(_space_to_depth(self, x))
    out = self.conv_dw(norm_act(self.bn1, None, out, is_own(self.conv_pw)))
    out = _middle(self.bn2, self.aa, self.se, self.conv_pwl, out, is_own(self.conv_dw))
    return _close(self, self.bn3, self.conv_pwl, out, x)


def _depthwise_separable(self: Any, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        return self.original.forward(self, x)
    out = self.conv_dw(_space_to_depth(self, x))
    out = _middle(self.bn1, self.aa, self.se, self.conv_pw, out, is_own(self.conv_dw))
    return _close(self, self.bn2, self.conv_pw, out, x)


def _describe(se: object) -> str:
    has_se = se is not None and type(se) is not nn.Identity
    return "BN + act + squeeze, gate in the projection, BN + add" if has_se else "BN + act, BN + add"


def _register_timm(forward: Callable[[Any, Tensor], Tensor], bn: str, name: str) -> None:
    register(
        Handler(forward, lambda m: norm_refusal(getattr(m, bn), bn), lambda m: _describe(m.se)),
        f"timm.models._efficientnet_blocks.{name}",
    )


_register_timm(_inverted_residual, "bn2", "InvertedResidual")
_register_timm(_depthwise_separable, "bn1", "DepthwiseSeparableConv")


# ---- torchvision: a Sequential of an expansion or none, the depthwise convolution, SE or none, the projection
def _layers(block: Any) -> list[nn.Module] | None:
    """The block's layers, with None for an SE that is absent; None where its Sequential has to be called."""
    layers = list(block._modules.values())
    if type(block) is not nn.Sequential or not untouched(block) or len(layers) < 2:
        return None
    if is_of(layers[-2], "torchvision.ops.misc", "Conv2dNormActivation"):
        layers.insert(-1, nn.Identity())
    return layers


def _sequential(self: Any, x: Tensor) -> Tensor:
    layers = _layers(self.block) if isinstance(x, Tensor) else None
    if layers is None:
        return self.original.forward(self, x)
    *expansion, depthwise, se, projection = layers
    out = x
    for layer in expansion:
        out = conv_norm_act(layer, out)
    out, bn, own = gate_and_project(depthwise, se, projection, out)
    if not self.use_res_connect:
        return tail(out, None, bn=bn, act=None, own=own)
    return tail(out, x, bn=bn, act=None, drop=getattr(self, "stochastic_depth", None), own=own, in_place=True)


def _forward_input(self: Any, input: Tensor) -> Tensor:  # torchvision's name for it
    return _sequential(self, input)


def _sequential_refusal(module: Any) -> str | None:
    layers = _layers(module.block)
    parts = None if layers is None else conv_parts(layers[-1])
    if parts is None:
        return "block is not a Sequential that ends in a projection"
    return norm_refusal(parts.bn, "the last bn of block")


def _describe_sequential(module: Any) -> str:
    layers = _layers(module.block)
    return _describe(layers[-2]) if layers else "[Sequential]"


for _name in ("torchvision.models.efficientnet.MBConv", "torchvision.models.mobilenetv3.InvertedResidual"):
    register(Handler(_forward_input, _sequential_refusal, _describe_sequential), _name)
