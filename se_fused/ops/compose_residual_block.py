"""A whole residual block from PyTorch's convolutions and a backend's kernels: for a backend without the block as one
operation, and the definition of that operation.

Symbols: N batch, C channels of x, D those of y. The layers of a block are numbered 0, 1, ... along its branch, and the
shortcut's is the last.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._params import (
    NO_EXCITATION,
    BatchNormParams,
    BlockOptions,
    ConvNormParams,
    ConvParams,
    ExcitationParams,
    Gradients,
    ResidualBlockParams,
    SavedTensors,
)
from ..activations import OUT_ACT_CODES, recomputed, writes_dr
from .batch_norm_squeeze_excite import call_backward, call_forward
from .layout import dense, dense_like, is_channels_last

__all__ = ["BlockGradients", "LayerGradients", "Wanted", "compose_block_backward", "compose_block_forward"]

_convolution_backward = torch.ops.aten.convolution_backward.default._op


class LayerGradients(NamedTuple):
    """Gradients of a layer's parameters, shaped as those; None for one that is not wanted."""

    weight: Tensor | None
    bias: Tensor | None
    bn_weight: Tensor | None
    bn_bias: Tensor | None


NO_GRADIENTS = LayerGradients(None, None, None, None)


class BlockGradients(NamedTuple):
    """Gradients of a block: dx, of each layer, and of the excitation's parameters in the order of their record."""

    dx: Tensor | None
    layers: list[LayerGradients]
    fc: tuple[Tensor, ...]


class Wanted(NamedTuple):
    """Which gradients are wanted: dx, each layer's four, and any of the excitation's."""

    x: bool
    layers: tuple[tuple[bool, ...], ...]
    fc: bool


# ---- convolutions
def _convolve(x: Tensor, conv: ConvParams) -> Tensor:
    zeros = (0,) * len(conv.stride)
    u = torch.convolution(
        x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, False, zeros, conv.groups
    )  # fmt: skip
    return dense(u)


def _convolve_backward(
    du: Tensor, x: Tensor, conv: ConvParams, want_dx: bool, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias; None for those that are not wanted."""
    masks = [want_dx, wanted[0], wanted[1]]
    if not any(masks):
        return None, None, None
    zeros, sizes = (0,) * len(conv.stride), None if conv.bias is None else conv.bias.shape
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None] = _convolution_backward(
        du, x, conv.weight, sizes, conv.stride, conv.padding, conv.dilation, False, zeros, conv.groups, masks
    )  # fmt: skip
    return gradients


def adds_by_product(conv: ConvParams, t: Tensor) -> bool:
    """Whether the input's gradient is added to ``t``, of x's shape, as a matrix product that accumulates. It saves two
    passes over t: the convolution's gradient is neither written nor read again.

    That needs a 1x1 convolution of stride 1 and channels_last memory. In float32 on a GPU both computations must have
    the same precision: PyTorch allows TF32 in convolutions, but not in products, which are then several times slower.
    """
    if not conv.is_product or not is_channels_last(t):
        return False
    if t.is_cuda and t.dtype == torch.float32:
        return torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32
    return True


def _rows(t: Tensor) -> Tensor:
    """(N, C, *spatial) in channels_last -> (N * S, C), a view."""
    c = t.shape[1]
    return t.as_strided((t.numel() // c, c), (c, 1))


def _add_input_gradient(base: Tensor, du: Tensor, x: Tensor, conv: ConvParams, own: bool) -> Tensor:
    """``base`` plus the gradient of the convolution's input. ``own``: base may be overwritten."""
    if adds_by_product(conv, base) and is_channels_last(du):
        rows = _rows(base)
        weight = conv.weight.reshape(conv.weight.shape[:2])
        if own:
            torch.addmm(rows, _rows(du), weight, out=rows)
            return base
        added = torch.empty_like(base)
        torch.addmm(rows, _rows(du), weight, out=_rows(added))
        return added
    dx, _, _ = _convolve_backward(du, x, conv, True, (False, False))
    assert dx is not None
    return dx.add_(base)


# ---- the block
def compose_block_forward(
    backend: Any, x: Tensor, block: ResidualBlockParams, save: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """y and, if ``save``, what :func:`compose_block_backward` needs beside x and the parameters. Running statistics are
    updated."""

    def layer(a: Tensor, params: ConvNormParams, fc: ExcitationParams, options: BlockOptions) -> Tensor:
        u = _convolve(a, params.conv)
        if options.residual is not None:
            options.residual = dense_like(options.residual, u)
        if not save and not params.bn.batch_stats and backend.batch_norm_squeeze_excite_inference is not None:
            backend.batch_norm_squeeze_excite_inference(u, params.bn, fc, options, u)  # u is no one else's
            return u
        results = call_forward(backend, u, params.bn, fc, options, save)
        if save:
            kept.extend((a, u, *results[1:]))
            kept.append(options.residual if recomputed(OUT_ACT_CODES[options.out_act]) else None)
        return results.y

    kept: list[Tensor | None] = []
    residual = x
    if block.shortcut is not None:
        residual = layer(x, block.shortcut, NO_EXCITATION, BlockOptions())
        first, kept = kept, []
    a = x
    *inner, last = block.branch
    for params in inner:
        a = layer(a, params, NO_EXCITATION, BlockOptions(out_act=params.out_act))
    y = layer(a, last, block.fc, BlockOptions(residual, block.drop_path_scale, last.out_act))
    if block.shortcut is not None:
        kept += first
    return y, kept


_KEPT = 8  # tensors that a layer keeps: its input, its convolution's output, five results, and the residual


def compose_block_backward(
    backend: Any, dy: Tensor, x: Tensor, block: ResidualBlockParams, kept: list[Tensor | None], wanted: Wanted
) -> BlockGradients:
    """The gradients of :func:`compose_block_forward`."""
    layers, last = block.layers, len(block.branch) - 1
    found = [NO_GRADIENTS] * len(layers)

    def norm(i: int, dy: Tensor, fc: ExcitationParams, drop: Tensor | None, want_dr: bool) -> Gradients:
        """The gradients of layer i after its convolution."""
        bn, saved = layers[i].bn, kept[_KEPT * i : _KEPT * (i + 1)]
        norm = BatchNormParams(None, None, bn.weight, bn.bias, bn.batch_stats, bn.momentum, bn.eps)
        options = BlockOptions(saved[-1], drop, layers[i].out_act)
        return call_backward(backend, dy, SavedTensors(*saved[1:-1]), norm, fc, options, want_dr)  # type: ignore[arg-type]

    def conv(i: int, g: Gradients, want_da: bool) -> Tensor | None:
        """The gradient of layer i's input; those of its parameters are put into ``found``."""
        params, (want_weight, want_bias, *_) = layers[i], wanted.layers[i]
        a = kept[_KEPT * i]
        assert a is not None
        da, weight, bias = _convolve_backward(g.dx, a, params.conv, want_da, (want_weight, want_bias))
        bn = params.bn
        found[i] = LayerGradients(
            weight, bias, None if bn.weight is None else g.dbn_weight, None if bn.bias is None else g.dbn_bias
        )
        return da

    want_shortcut = wanted.x if block.shortcut is None else wanted.x or any(wanted.layers[-1])
    fc = block.fc
    weights = ExcitationParams(fc.fc1_weight, None, fc.fc2_weight, None, fc.act, fc.gate)
    g = end = norm(last, dy, weights, block.drop_path_scale, want_shortcut)
    i = last
    while i > 0 and (wanted.x or any(any(flags) for flags in wanted.layers[:i])):
        da = conv(i, g, True)
        assert da is not None
        i -= 1
        g = norm(i, da, NO_EXCITATION, None, False)
    conv(i, g, False)
    dx = None
    if want_shortcut:
        own = writes_dr(OUT_ACT_CODES[layers[last].out_act], True)
        dx = end.dr if own else dy
        if block.shortcut is not None:
            dx = conv(len(layers) - 1, norm(len(layers) - 1, dx, NO_EXCITATION, None, False), wanted.x)
            own = True
        if wanted.x:
            assert dx is not None and i == 0
            dx = _add_input_gradient(dx, g.dx, x, layers[0].conv, own)
    return BlockGradients(dx, found, tuple(end[4:]))
