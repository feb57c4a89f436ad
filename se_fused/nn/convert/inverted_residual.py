"""Squeeze-excite between an activation and a 1x1 projection, ``projection(se(act(bn(x))))``, and the blocks with it:
the inverted residuals of EfficientNet and MobileNetV3 in timm and torchvision.

:func:`fused_gate_projection` computes the middle of a block from the modules that hold its parameters. If the kernels
support the modules, it makes two calls of :mod:`se_fused.functional`, one before and one after the excitation.
Otherwise it calls the modules, with the same result. Parameters and buffers stay in their modules. The forward of each
block performs the steps of the original forward in the same order.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ... import functional as F_se
from ..._checks import autocasts
from ...backends import find, forced
from ..block_plan import BlockModules, ConvNormAct
from ..known import is_nothing, is_of, is_plain, out_activation, untouched
from ..norms import brought_activation, is_fusable, promoted, take
from ..residual_block import is_own
from ..se_layers import excitation
from ..whole_block import whole_block
from .block_end import block_end
from .class_swap import Handler, block_forward, register
from .modules import conv_norm_act, conv_parts, norm_act, norm_refusal

__all__ = ["fused_gate_projection", "gate_and_project"]


def _activation_behind(bn: nn.Module, act: nn.Module | None, x: Tensor) -> str | None:
    """Name of the activation, ``act`` or the one inside bn; None if bn or the activation must be called as a module."""
    if not is_fusable(bn, x):
        return brought_activation(bn) if act is None else None
    return out_activation(act)


def _is_projection(conv: nn.Module) -> bool:
    """Whether ``conv`` is exactly a 1x1 product without stride, padding, groups or hooks."""
    return (
        is_plain(conv, nn.Conv2d)
        and conv.kernel_size == (1, 1)
        and conv.stride == (1, 1)
        and conv.padding in ((0, 0), "same", "valid")
        and conv.groups == 1
    )


def _modules_are_faster(x: Tensor) -> bool:
    """Whether the backend setting ``auto`` calls the modules one by one, see :attr:`Backend.projection_from`."""
    if torch.compiler.is_compiling() or forced() != "auto" or x.dtype != torch.float32:
        return False
    backend, _ = find(x.device.type, x.dtype)
    if backend is None:
        return False
    return x.numel() < backend.projection_from.get((torch.is_grad_enabled(), not x.is_contiguous()), 0)


def fused_gate_projection(
    bn: nn.Module, act: nn.Module | None, se: nn.Module, projection: nn.Module, x: Tensor
) -> Tensor:
    """``projection(se(act(bn(x))))``, fused where the modules allow.

    The fused form calls :func:`se_fused.functional.batch_norm_act_squeeze`, then the layers of the excitation on the
    means of the channels, then :func:`se_fused.functional.gated_conv1x1`. It requires, all without hooks:

    - ``bn``: exactly an ``nn.BatchNorm2d``, an ``nn.SyncBatchNorm`` that has nothing to synchronise, timm's
      ``BatchNormAct2d``, or a frozen batch norm of torchvision or timm;
    - the activation: one of ``se_fused.reference.OUT_ACTIVATIONS``;
    - ``se``: a :class:`SqueezeExcite` or one of the layers of timm and torchvision in
      :data:`se_fused.nn.se_layers.SE_LAYERS`.

    If only ``se`` does not meet this, batch norm and activation are one call and ``se`` is called as a module.
    Otherwise the modules are called one by one; this is also done for small maps where measurements found it faster. A
    ``projection`` that has hooks, or is not a plain 1x1 convolution, is called on the rescaled map.

    Running statistics and ``num_batches_tracked`` are updated exactly as ``bn`` updates them. The excitation's layers
    receive the means in the dtype of the activated map, as in the SE module itself.

    Args:
        bn: the batch norm, with or without an activation inside.
        act: the activation after ``bn``; None if there is none or if it is inside ``bn``.
        se: the layer that rescales the channels.
        projection: the convolution after ``se``.
        x: (N, C, H, W), the output of the convolution before ``bn``.

    Returns:
        The output of ``projection``; (N, D, H, W) for a 1x1 convolution with D output channels.
    """
    name, excite = _activation_behind(bn, act, x) if x.dim() == 4 else None, excitation(se)
    if name is None or _modules_are_faster(x):
        y = bn(x) if act is None else act(bn(x))
        out: Tensor = projection(se(y))
        return out
    x, own = promoted(bn, x)
    tensors, settings = take(bn, x)
    if excite is None:
        out = projection(se(F_se.batch_norm_act(x, *tensors, **settings, out_act=name, inplace=own)))
        return out
    y, squeezed = F_se.batch_norm_act_squeeze(x, *tensors, **settings, out_act=name)
    gate = excite(squeezed.to(y.dtype)[:, :, None, None])
    if isinstance(projection, nn.Conv2d) and _is_projection(projection):
        if autocasts(y) or projection.weight.dtype == y.dtype:
            return F_se.gated_conv1x1(y, gate, projection.weight, projection.bias)
    scaled: Tensor = projection(y * gate)
    return scaled


def gate_and_project(
    first: nn.Module, se: nn.Module, last: nn.Module, x: Tensor
) -> tuple[Tensor, nn.Module | None, bool]:
    """last(se(first(x))) up to the convolution of ``last``; ``first`` and ``last`` are convolution, batch norm and
    activation.

    Returns:
        The map; the batch norm that the caller must still apply, or None if ``last`` is complete; and whether the map
        is a new tensor that no other code uses.
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
    """projection(se(aa(bn(x)))), for a bn with an activation inside; aa is timm's anti-aliasing layer."""
    if is_nothing(aa) and not is_nothing(se):
        return fused_gate_projection(bn, None, se, projection, x)
    y = norm_act(bn, None, x, own)
    out: Tensor = projection(se(y if aa is None else aa(y)))
    return out


def _space_to_depth(self: Any, x: Tensor) -> Tensor:
    return x if self.conv_s2d is None else norm_act(self.bn_s2d, None, self.conv_s2d(x), is_own(self.conv_s2d))


class _Names(NamedTuple):
    """Names of a block's modules: depthwise convolution and projection, each with its batch norm."""

    depthwise: str
    depthwise_bn: str
    projection: str
    projection_bn: str


_INVERTED, _SEPARABLE = _Names("conv_dw", "bn2", "conv_pwl", "bn3"), _Names("conv_dw", "bn1", "conv_pw", "bn2")


def _pair(self: Any, conv: str, bn: str) -> ConvNormAct:
    return ConvNormAct(getattr(self, conv), getattr(self, bn))


def _expansion_modules(self: Any) -> BlockModules:
    return BlockModules((_pair(self, "conv_pw", "bn1"),), residual="none")


def _without_se_modules(names: _Names, self: Any) -> BlockModules | None:
    """All layers of a block without SE."""
    if self.conv_s2d is not None:
        return None
    layers = [_pair(self, names.depthwise, names.depthwise_bn), _pair(self, names.projection, names.projection_bn)]
    if names is _INVERTED:
        layers.insert(0, _pair(self, "conv_pw", "bn1"))
    drop, residual = (self.drop_path, "x") if self.has_skip else (None, "none")
    return BlockModules(tuple(layers), drop=drop, absent=(self.aa, self.se), residual=residual)


def _projection_modules(names: _Names, self: Any) -> BlockModules:
    layer = _pair(self, names.projection, names.projection_bn)
    drop, residual = (self.drop_path, "given") if self.has_skip else (None, "none")
    return BlockModules((layer,), drop=drop, residual=residual)


# One function for each part of each class, by which their plans are found.
_WITHOUT_SE = {names: partial(_without_se_modules, names) for names in (_INVERTED, _SEPARABLE)}
_PROJECTION = {names: partial(_projection_modules, names) for names in (_INVERTED, _SEPARABLE)}


def _timm_block(self: Any, names: _Names, x: Tensor) -> Tensor:
    has_se = not is_nothing(self.se)
    if not has_se and (whole := whole_block(self, x, _WITHOUT_SE[names])) is not None:
        return whole
    out = _space_to_depth(self, x)
    if names is _INVERTED:
        expanded = whole_block(self, out, _expansion_modules)
        out = norm_act(self.bn1, None, self.conv_pw(out), is_own(self.conv_pw)) if expanded is None else expanded
    depthwise, projection = getattr(self, names.depthwise), getattr(self, names.projection)
    bn, last = getattr(self, names.depthwise_bn), getattr(self, names.projection_bn)
    out, residual = depthwise(out), x if self.has_skip else None
    if has_se and is_nothing(self.aa) and _modules_are_faster(out):
        out = self.se(bn(out))
        if (closed := whole_block(self, out, _PROJECTION[names], residual)) is not None:
            return closed
        out = projection(out)
    else:
        out = _middle(bn, self.aa, self.se, projection, out, is_own(depthwise))
    drop = self.drop_path if self.has_skip else None
    return block_end(out, residual, bn=last, act=None, drop=drop, own=is_own(projection))


@block_forward()
def _inverted_residual(self: Any, x: Tensor) -> Tensor:
    return _timm_block(self, _INVERTED, x)


@block_forward()
def _depthwise_separable(self: Any, x: Tensor) -> Tensor:
    return _timm_block(self, _SEPARABLE, x)


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


# ---- torchvision: a Sequential of an optional expansion, the depthwise convolution, an optional SE and the projection
def _layers(block: Any) -> list[nn.Module] | None:
    """The block's layers, with an identity for an absent SE; None if the Sequential must be called as a module."""
    layers = list(block._modules.values())
    if type(block) is not nn.Sequential or not untouched(block) or len(layers) < 2:
        return None
    if is_of(layers[-2], "torchvision.ops.misc", "Conv2dNormActivation"):
        layers.insert(-1, nn.Identity())
    return layers


@block_forward()
def _sequential(self: Any, x: Tensor) -> Tensor:
    layers = _layers(self.block)
    if layers is None:
        return self.original.forward(self, x)
    *expansion, depthwise, se, projection = layers
    out = x
    for layer in expansion:
        out = conv_norm_act(layer, out)
    out, bn, own = gate_and_project(depthwise, se, projection, out)
    if not self.use_res_connect:
        return block_end(out, None, bn=bn, act=None, own=own)
    return block_end(out, x, bn=bn, act=None, drop=getattr(self, "stochastic_depth", None), own=own, in_place=True)


def _forward_input(self: Any, input: Tensor) -> Tensor:  # torchvision names the argument "input"
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
