"""Fused calls for groups of submodules: convolution, batch norm and activation.

The submodules are inspected in every call, because hooks may be added and modules replaced at any time. Single modules
are recognised by :mod:`..known` and :mod:`..norms`.
"""

from torch import Tensor, nn

from ... import functional as F_se
from ..block_plan import BlockModules, ConvNormAct
from ..known import is_of, out_activation, untouched
from ..norms import is_batch_norm, is_batch_norm_act, normalisation, promoted, take
from ..residual_block import is_own
from ..whole_block import whole_block

__all__ = [
    "apply",
    "batch_norm",
    "conv_norm_act",
    "conv_parts",
    "norm_act",
    "norm_refusal",
]


def norm_refusal(bn: object, name: str) -> str | None:
    """Reason why a block that ends with the normalisation ``bn`` is not converted, or None. Ignores hooks."""
    if is_batch_norm(bn) or is_batch_norm_act(bn):
        return None
    return f"{name} is {type(bn).__name__}, not a batch norm"


def batch_norm(
    bn: nn.Module, x: Tensor, residual: Tensor | None, out_act: str, scale: Tensor | None, own: bool
) -> Tensor:
    """out_act(bn(x) * scale + residual) in one call, for a bn that :func:`normalisation` supports."""
    x, own = promoted(bn, x, own)
    tensors, settings = take(bn, x)
    return F_se.batch_norm_act(x, *tensors, residual, **settings, out_act=out_act, drop_path_scale=scale, inplace=own)


def norm_act(bn: nn.Module, act: nn.Module | None, x: Tensor, own: bool = False) -> Tensor:
    """act(bn(x)). ``own``: no other code uses x, so that it may be overwritten in inference."""
    inner, outer = normalisation(bn, x), out_activation(act)
    if inner is not None and outer is not None and "none" in (inner, outer):
        return batch_norm(bn, x, None, outer if inner == "none" else inner, None, own)
    y: Tensor = bn(x)
    return y if act is None else act(y)


def conv_parts(module: nn.Module) -> ConvNormAct | None:
    """Parts of timm's ``ConvNormAct``, torchvision's ``Conv2dNormActivation`` or MONAI's ``Convolution``.

    None for any other module, for another number or kind of parts, and for a module with hooks.
    """
    if not untouched(module):
        return None
    parts = module._modules
    if is_of(module, "timm.layers.conv_bn_act", "ConvNormAct"):
        conv, bn = parts["conv"], parts["bn"]
        # an antialiasing layer that is absent is an attribute, not a submodule
        if getattr(module, "aa", None) is None and conv is not None and is_batch_norm_act(bn):
            return ConvNormAct(conv, bn)  # type: ignore[arg-type]
        return None
    if is_of(module, "torchvision.ops.misc", "Conv2dNormActivation"):
        children = list(parts.values())
    elif is_of(module, "monai.networks.blocks.convolutions", "Convolution") and list(parts) == ["conv", "adn"]:
        adn = parts["adn"]
        assert adn is not None
        if not is_of(adn, "monai.networks.blocks.acti_norm", "ADN") or not untouched(adn):
            return None
        children = [parts["conv"], *adn._modules.values()]
    else:
        return None
    if not 2 <= len(children) <= 3 or not is_batch_norm(children[1]):
        return None
    return ConvNormAct(*children)  # type: ignore[arg-type]


def apply(parts: ConvNormAct, x: Tensor) -> Tensor:
    """act(bn(conv(x))), with batch norm and activation in one call."""
    return norm_act(parts.bn, parts.act, parts.conv(x), is_own(parts.conv))


def _modules_of(module: nn.Module) -> BlockModules | None:
    parts = conv_parts(module)
    return None if parts is None else BlockModules((parts,), residual="none", containers=(module,))


def conv_norm_act(module: nn.Module, x: Tensor) -> Tensor:
    """module(x), in one call or with batch norm and activation in one call, if :func:`conv_parts` supports the
    module."""
    if (out := whole_block(module, x, _modules_of)) is not None:
        return out
    parts = conv_parts(module)
    if parts is None:
        y: Tensor = module(x)
        return y
    return apply(parts, x)
