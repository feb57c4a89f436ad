"""The end of a residual block of another library, act(drop_path(se(bn(x))) + shortcut), fused where possible."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ... import functional as F_se
from ..block_plan import BlockModules, ConvNormAct
from ..known import out_activation
from ..norms import normalisation, promoted, take
from ..residual_block import path_scale
from ..squeeze_excite import close_block
from .attention_layers import arguments_of, excitation_of
from .class_swap import Fused, Handler, register
from .modules import apply, batch_norm, norm_refusal

__all__ = ["block_end", "bottleneck_branches", "describe_block_end", "register_block", "single_relu_modules"]


def block_end(
    x: Tensor,
    identity: Tensor | None,
    *,
    bn: nn.Module | None,
    act: nn.Module | None,
    se: nn.Module | None = None,
    drop: nn.Module | None = None,
    shortcut: nn.Module | None = None,
    own: bool = False,
    in_place: bool = False,
) -> Tensor:
    """act(drop(se(bn(x))) + shortcut(identity)) in as few kernel calls as the modules allow.

    A module that no kernel can replace (of another class, or with hooks) is called.

    Args:
        x: (N, C, *spatial), the output of the block's last convolution.
        identity: the input of ``shortcut``, or the added map itself if ``shortcut`` is None; None adds nothing.
        bn, act, se, drop: modules of the block; None if the block does not have one.
        shortcut: the module of the shortcut. It is called after stochastic depth has drawn its random numbers, as in
            timm's blocks.
        own: True if no other code uses x, so that it may be overwritten in inference.
        in_place: True if the original block adds in place, so that the sum has x's dtype; otherwise the sum has the
            promoted dtype of both.

    Returns:
        (N, C, *spatial).
    """
    closing = out_activation(act)
    arguments = None if se is None else arguments_of(se)
    if bn is not None and normalisation(bn, x) != "none":
        x, bn, own = bn(x), None, False
    elif bn is not None:
        x, own = promoted(bn, x, own)  # the following operations use the dtype of bn(x)
    excitation = None
    if se is not None and arguments is None:
        if bn is not None:
            x, bn, own = batch_norm(bn, x, None, "none", None, own), None, False
        excitation = excitation_of(se, x)
        if excitation is None:
            x, se = se(x), None
    scale, drop = path_scale(drop, x)
    if drop is not None:
        x = drop(_fused(x, None, bn, arguments, excitation, None, "none", own))
        bn = arguments = excitation = None
    residual = identity if shortcut is None else shortcut(identity)
    if residual is not None and residual.dtype != x.dtype:
        common = x.dtype if in_place else torch.promote_types(x.dtype, residual.dtype)
        x, residual = x.to(common), residual.to(common)
    y = _fused(x, residual, bn, arguments, excitation, scale, closing or "none", own)
    return y if closing is not None or act is None else act(y)


def _fused(
    x: Tensor,
    residual: Tensor | None,
    bn: nn.Module | None,
    arguments: dict[str, Any] | None,
    excitation: Callable[[Tensor], Tensor] | None,
    scale: Tensor | None,
    out_act: str,
    own: bool,
) -> Tensor:
    """One functional call, chosen by whether there is a bn, and SE arguments, an excitation function or neither."""
    if excitation is not None:
        return F_se.channel_gate(x, excitation, residual, out_act=out_act, drop_path_scale=scale)
    if arguments is None:
        if bn is None:
            return close_block(x, residual, out_act, scale)
        return batch_norm(bn, x, residual, out_act, scale, own)
    if bn is None:
        return F_se.squeeze_excite(
            x, residual=residual, out_act=out_act, drop_path_scale=scale, inplace=own, **arguments
        )
    (mean, var, weight, bias), settings = take(bn, x)
    return F_se.batch_norm_squeeze_excite(
        x, mean, var, weight, bias, residual=residual, **settings,
        out_act=out_act, drop_path_scale=scale, inplace=own, **arguments,
    )  # fmt: skip


def describe_block_end(bn: object, se: nn.Module | None, act: nn.Module | None) -> str:
    """Description of a block's end for the report, such as "BN + SE + add + act".

    "+" joins the steps of one kernel call, a comma separates calls, and a module called as such is in brackets.
    """
    pieces = [] if bn is None else ["BN" if norm_refusal(bn, "") is None else f"[{type(bn).__name__}]"]
    add = "add"
    if isinstance(se, Fused) and arguments_of(se) is not None:
        pieces.append("SE")
    elif isinstance(se, Fused):  # channel_gate: its layers are called between two separate passes
        pieces, add = [*pieces, "gate + add"], ""
    elif se is not None:
        pieces, add = [*pieces, f"[{type(se).__name__}]"], ""
    joined = (" + " if add else ", ").join(pieces)
    closing = [add] if add else []
    if act is not None and not isinstance(act, nn.Identity):
        closing.append("act" if out_activation(act) is not None else f"[{type(act).__name__}]")
    return " + ".join([joined, *closing] if joined else closing)


def register_block(forward: Callable[[Any, Tensor], Tensor], bn: str, se: str | None, act: str, *names: str) -> None:
    """Register a block class by the names of its last batch norm (dots allowed), its SE layer and its activation."""

    def last_bn(module: Any) -> object:
        return module.get_submodule(bn)

    def refusal(module: Any) -> str | None:
        return norm_refusal(last_bn(module), bn)

    def describe(module: Any) -> str:
        attention = None if se is None else getattr(module, se)
        return describe_block_end(last_bn(module), attention, getattr(module, act))

    register(Handler(forward, refusal, describe), *names)


def single_relu_modules(block: Any, se: nn.Module | None = None) -> BlockModules:
    """The modules of a bottleneck with a single ReLU module."""
    convs, norms = (block.conv1, block.conv2, block.conv3), (block.bn1, block.bn2, block.bn3)
    branch = tuple(ConvNormAct(conv, bn, block.relu) for conv, bn in zip(convs, norms, strict=True))
    return BlockModules(branch, block.downsample, se, arguments=arguments_of)


def bottleneck_branches(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output of the third convolution, and of the shortcut, of a bottleneck with a single ReLU module."""
    out = apply(ConvNormAct(block.conv1, block.bn1, block.relu), x)
    out = apply(ConvNormAct(block.conv2, block.bn2, block.relu), out)
    out = block.conv3(out)
    return out, x if block.downsample is None else block.downsample(x)
