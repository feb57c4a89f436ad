"""What the submodules of other libraries' blocks are, asked at each call: a hook may be new, a module replaced.

Everything here answers for exact classes without hooks, as :func:`se_fused.nn._checks.is_plain` does: what a kernel may
stand in for. Whatever else there is, is called as a module.
"""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ... import functional as F_se
from ...reference import ACTIVATIONS, GATES, OUT_ACTIVATIONS
from .._checks import is_plain
from ..squeeze_excite import _TIMM, _TORCH
from ..tail import DropPath, _is_fusable, _step, drop_path_scale, is_own

__all__ = [
    "ConvNormAct",
    "activation",
    "apply",
    "batch_norm",
    "brought_activation",
    "conv_norm_act",
    "conv_parts",
    "gate",
    "is_frozen_batch_norm",
    "is_nothing",
    "is_of",
    "norm_act",
    "norm_refusal",
    "normalisation",
    "out_activation",
    "path_scale",
    "untouched",
]


def is_of(module: object, library: str, name: str) -> bool:
    """Whether the module is exactly the class ``name`` of the file ``library``."""
    cls = type(module)
    return cls.__name__ == name and cls.__module__ == library


def untouched(module: nn.Module) -> bool:
    """Whether calling the module does no more than its class does: no hooks, no forward of its own."""
    return is_plain(module, type(module))


def is_nothing(module: nn.Module | None) -> bool:
    """Whether leaving the module out changes nothing."""
    return module is None or is_plain(module, nn.Identity)


def _name(module: nn.Module) -> str | None:
    cls = type(module)
    name = _TORCH.get(cls)
    if name is None and cls.__module__.startswith("timm."):
        name = _TIMM.get(cls.__name__)
    if name is None or not untouched(module):
        return None
    if isinstance(module, nn.LeakyReLU) and module.negative_slope != 0.01:
        return None
    return "gelu_tanh" if isinstance(module, nn.GELU) and module.approximate == "tanh" else name


def activation(module: nn.Module) -> str | None:
    """Its name in :data:`se_fused.reference.ACTIVATIONS`, or None."""
    name = _name(module)
    return name if name in ACTIVATIONS else None


def gate(module: nn.Module) -> str | None:
    """Its name in :data:`se_fused.reference.GATES`, or None."""
    name = _name(module)
    return name if name in GATES else None


def out_activation(module: nn.Module | None) -> str | None:
    """Its name in :data:`se_fused.reference.OUT_ACTIVATIONS`, "none" for no activation, or None if it is unknown."""
    if module is None:
        return "none"
    name = _name(module)
    if name == "identity":
        return "none"
    return name if name in OUT_ACTIVATIONS else None


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def _is_batch_norm_act(bn: object) -> bool:
    return is_of(bn, "timm.layers.norm_act", "BatchNormAct2d")


def is_frozen_batch_norm(module: nn.Module) -> bool:
    """Stub until the other branch is merged."""
    return is_of(module, "torchvision.ops.misc", "FrozenBatchNorm2d") and untouched(module)


def norm_refusal(bn: object, name: str) -> str | None:
    """Why a block whose last normalisation is this one has no tail to fuse, or None; hooks are not asked about."""
    if type(bn) in _BATCH_NORMS or _is_batch_norm_act(bn):
        return None
    return f"{name} is {type(bn).__name__}, not a batch norm"


def brought_activation(bn: nn.Module) -> str | None:
    """The activation inside timm's BatchNormAct2d; None for any other module, and where it has to be called."""
    if _is_batch_norm_act(bn) and untouched(bn) and is_nothing(bn._modules["drop"]):
        return out_activation(bn._modules["act"])
    return None


def normalisation(bn: nn.Module, x: Tensor) -> str | None:
    """The activation that the batch norm applies itself, mostly "none"; None where it has to be called."""
    if _is_fusable(bn, x):
        return "none"
    return brought_activation(bn) if x.dim() == 4 else None


def batch_norm(
    bn: nn.Module, x: Tensor, residual: Tensor | None, out_act: str, scale: Tensor | None, own: bool
) -> Tensor:
    """out_act(bn(x) * scale + residual) in one go, for a bn that :func:`normalisation` knows."""
    assert isinstance(bn, _BatchNorm)
    bn._check_input_dim(x)
    mean, var, training, momentum = _step(bn)
    return F_se.batch_norm_act(
        x, mean, var, bn.weight, bn.bias, residual,
        training=training, momentum=momentum, eps=bn.eps, out_act=out_act, drop_path_scale=scale, inplace=own,
    )  # fmt: skip


def norm_act(bn: nn.Module, act: nn.Module | None, x: Tensor, own: bool = False) -> Tensor:
    """act(bn(x)). ``own``: x is the caller's alone and may be overwritten in inference."""
    inner, outer = normalisation(bn, x), out_activation(act)
    if inner is not None and outer is not None and "none" in (inner, outer):
        return batch_norm(bn, x, None, outer if inner == "none" else inner, None, own)
    y: Tensor = bn(x)
    return y if act is None else act(y)


class ConvNormAct(NamedTuple):
    """A convolution, its batch norm and the activation behind it, if any."""

    conv: nn.Module
    bn: nn.Module
    act: nn.Module | None = None


def conv_parts(module: nn.Module) -> ConvNormAct | None:
    """The three inside timm's ``ConvNormAct``, torchvision's ``Conv2dNormActivation`` and MONAI's ``Convolution``; None
    for anything else, for another number of parts, and where a hook watches the whole."""
    if not untouched(module):
        return None
    parts = module._modules
    if is_of(module, "timm.layers.conv_bn_act", "ConvNormAct"):
        conv, bn = parts["conv"], parts["bn"]
        # an antialiasing layer that is absent is an attribute, not a submodule
        if getattr(module, "aa", None) is None and conv is not None and _is_batch_norm_act(bn):
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
    if not 2 <= len(children) <= 3 or type(children[1]) not in _BATCH_NORMS:
        return None
    return ConvNormAct(*children)  # type: ignore[arg-type]


def apply(parts: ConvNormAct, x: Tensor) -> Tensor:
    """act(bn(conv(x))), batch norm and activation in one."""
    return norm_act(parts.bn, parts.act, parts.conv(x), is_own(parts.conv))


def conv_norm_act(module: nn.Module, x: Tensor) -> Tensor:
    """module(x), with batch norm and activation in one where it is one of :func:`conv_parts`."""
    parts = conv_parts(module)
    if parts is None:
        y: Tensor = module(x)
        return y
    return apply(parts, x)


def path_scale(drop: nn.Module | None, x: Tensor) -> tuple[Tensor | None, nn.Module | None]:
    """Stochastic depth as factors (N,) or None, and the module itself where it has to be called instead.

    Draws what timm's ``DropPath`` draws for a map of x's dtype and device.
    """
    if is_nothing(drop):
        return None, None
    assert drop is not None
    if is_plain(drop, DropPath):
        return drop.scale(x), None
    if not (is_of(drop, "timm.layers.drop", "DropPath") and untouched(drop)):
        return None, drop
    if not drop.training or drop.drop_prob == 0.0:
        return None, None
    return drop_path_scale(x, drop.drop_prob, drop.scale_by_keep), None  # type: ignore[arg-type]
