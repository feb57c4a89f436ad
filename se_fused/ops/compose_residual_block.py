"""A whole residual block from PyTorch's convolutions and a backend's kernels: for a backend without the block as one
operation, and the definition of that operation (csrc/residual_block.h).

Layers are numbered as in :class:`.ResidualBlockParams`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._params import (
    NO_EXCITATION,
    BatchNormParams,
    BlockOptions,
    ConvParams,
    ExcitationParams,
    Gradients,
    ResidualBlockParams,
    SavedTensors,
)
from ..activations import OUT_ACT_CODES, recomputed, writes_dr
from .batch_norm_squeeze_excite import call_backward, call_forward
from .layout import dense, dense_like

__all__ = ["LEFT_TO_PRODUCT", "WANTS_RESIDUAL", "WANTS_X", "compose_backward", "compose_forward"]

# The bits of `wanted`: x's gradient; that the first convolution's input gradient is left to a product; the gradient of
# a given residual; then four of each layer: weight and bias of the convolution and of batch norm.
WANTS_X, LEFT_TO_PRODUCT, WANTS_RESIDUAL, _BEFORE_LAYERS = 1, 2, 4, 3

_convolution_backward = torch.ops.aten.convolution_backward.default._op


def _wants(wanted: int, layer: int) -> int:
    """The four bits of a layer."""
    return wanted >> (_BEFORE_LAYERS + 4 * layer) & 15


# ---- convolutions
def _convolve(x: Tensor, conv: ConvParams) -> Tensor:
    zeros = (0,) * len(conv.stride)
    u = torch.convolution(
        x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, False, zeros, conv.groups
    )  # fmt: skip
    return dense(u)


def _convolve_backward(
    du: Tensor, x: Tensor, conv: ConvParams, want_dx: bool, want_weight: bool, want_bias: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias of a convolution; None for those that are not wanted."""
    masks = [want_dx, want_weight, want_bias]
    if not any(masks):
        return None, None, None
    zeros, sizes = (0,) * len(conv.stride), None if conv.bias is None else conv.bias.shape
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None] = _convolution_backward(
        du, x, conv.weight, sizes, conv.stride, conv.padding, conv.dilation, False, zeros, conv.groups, masks
    )  # fmt: skip
    return gradients


# ---- the block
_KEPT = 7  # tensors that the composition keeps of a layer: its input, its convolution's result, five of Results


def compose_forward(backend: Any, x: Tensor, block: ResidualBlockParams, save: bool) -> list[Tensor]:
    """y and, if ``save``, what :func:`compose_backward` needs beside x and the parameters. Running statistics are
    updated."""
    settings = block.settings
    kept: list[Tensor] = []

    def layer(i: int, a: Tensor, residual: Tensor | None) -> Tensor:
        u = _convolve(a, block.conv(i))
        fc, drop = (block.fc, block.drop_path_scale) if i == settings.last else (NO_EXCITATION, None)
        if residual is not None:
            residual = dense_like(residual, u)
        bn, options = block.bn(i), BlockOptions(residual, drop, settings.layers[i].out_act)
        if not save and not bn.batch_stats and backend.batch_norm_squeeze_excite_inference is not None:
            backend.batch_norm_squeeze_excite_inference(u, bn, fc, options, u)  # nothing else uses u
            return u
        results = call_forward(backend, u, bn, fc, options, save)
        if save:
            kept.extend((a, u, *results[1:]))
            if residual is not None and recomputed(OUT_ACT_CODES[options.out_act]):
                kept.append(residual)
        return results.y

    residual = x if settings.residual == "x" else block.residual
    if settings.has_shortcut:
        residual = layer(len(settings.layers) - 1, x, None)
        shortcut, kept = kept, []
    a = x
    for i in range(settings.last):
        a = layer(i, a, None)
    y = layer(settings.last, a, residual)
    if settings.has_shortcut:
        of_branch = _KEPT * (settings.last + 1)
        kept[of_branch:of_branch] = shortcut
    return [y, *kept]


def _shaped(gradients: Sequence[Tensor], parameters: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients in the shapes of their parameters; None where there is no parameter."""
    return [
        None if t is None else g if g.shape == t.shape else g.reshape(t.shape)
        for g, t in zip(gradients, parameters, strict=True)
    ]


def compose_backward(
    backend: Any, dy: Tensor, x: Tensor, block: ResidualBlockParams, kept: list[Tensor], wanted: int
) -> list[Tensor | None]:
    """The gradients of :func:`compose_forward`.

    Returns:
        Of the residual, of the first layer, four of each layer, and four of the excitation. The first is the gradient
        of a given residual or, in x's gradient, that of x or of the shortcut's input; None if it is dy itself. The
        second is the gradient of the first convolution's input; with LEFT_TO_PRODUCT that of its result. x's gradient
        is their sum unless the residual is given or absent. Those of a layer belong to weight and bias of the
        convolution and of batch norm.
    """
    settings = block.settings
    layers, last = len(settings.layers), settings.last
    residual = kept[_KEPT * layers] if len(kept) > _KEPT * layers else None
    found: list[Tensor | None] = [None] * (2 + 4 * layers + 4)
    want_x = bool(wanted & WANTS_X)

    def norm(i: int, dy: Tensor, want_dr: bool) -> Gradients:
        """The gradients of layer i after its convolution."""
        bn, fc, drop = block.bn(i), NO_EXCITATION, None
        if i == last:
            fc, drop = block.fc, block.drop_path_scale
            fc = ExcitationParams(fc.fc1_weight, None, fc.fc2_weight, None, fc.act, fc.gate)
        settings_of_bn = bn.batch_stats, bn.momentum, bn.eps
        bn = BatchNormParams(None, None, bn.weight, bn.bias, *settings_of_bn)
        saved = SavedTensors(*kept[_KEPT * i + 1 : _KEPT * (i + 1)])
        options = BlockOptions(residual if i == last else None, drop, settings.layers[i].out_act)
        g = call_backward(backend, dy, saved, bn, fc, options, want_dr)
        found[2 + 4 * i + 2 : 2 + 4 * i + 4] = _shaped((g.dbn_weight, g.dbn_bias), (bn.weight, bn.bias))
        if i == last and fc.fc1_weight is not None:
            found[-4:] = _shaped(g[4:], block.tensors[-4:])
        return g

    def conv(i: int, du: Tensor, want_input: bool) -> Tensor | None:
        """The gradient of layer i's input; those of its weight and bias are put into ``found``."""
        flags = _wants(wanted, i)
        da, *gradients = _convolve_backward(
            du, kept[_KEPT * i], block.conv(i), want_input, bool(flags & 1), bool(flags & 2)
        )
        found[2 + 4 * i : 2 + 4 * i + 2] = gradients
        return da

    want_dr = {
        "none": False,
        "x": want_x,
        "shortcut": want_x or _wants(wanted, layers - 1) != 0,
        "given": bool(wanted & WANTS_RESIDUAL),
    }[settings.residual]
    end = norm(last, dy, want_dr)
    i, du = last, end.dx
    while i > 0 and (want_x or any(_wants(wanted, j) for j in range(i))):
        da = conv(i, du, True)
        assert da is not None
        i, du = i - 1, da  # frees the gradient before it
        du = norm(i, du, False).dx
    by_product = bool(wanted & LEFT_TO_PRODUCT)
    dx = conv(i, du, i == 0 and want_x and not by_product)
    if want_x:
        found[1] = du if by_product else dx
    if want_dr:
        dr = end.dr if writes_dr(OUT_ACT_CODES[settings.layers[last].out_act], True) else None
        if settings.has_shortcut:
            dr = conv(layers - 1, norm(layers - 1, dy if dr is None else dr, False).dx, want_x)
        found[0] = dr
    return found
