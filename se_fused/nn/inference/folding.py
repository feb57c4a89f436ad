"""Folding of batch norm, in inference a scale and a shift per channel, into the weights of the layer before it."""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

__all__ = ["fold_batch_norm", "fold_linear", "is_product"]


def fold_batch_norm(conv: _ConvNd | nn.Linear, bn: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, float64, of the convolution or linear layer that computes ``bn(conv(x))`` in inference.

    ``bn`` is a batch norm with running statistics, also a frozen one, or None for the unchanged weights.
    """
    weight, bias = conv.weight.detach().double(), None if conv.bias is None else conv.bias.detach().double()
    if bn is None:
        return weight, bias
    scale, shift = _scale_and_shift(bn)
    weight = weight * scale.reshape(-1, *(1,) * (weight.dim() - 1))
    return weight, shift if bias is None else shift + scale * bias


def fold_linear(linear: nn.Linear, bn: Any) -> nn.Linear:
    """Linear layer, float64, that computes ``bn(linear(x))`` in inference, for x (N, K)."""
    weight, bias = fold_batch_norm(linear, bn)
    folded = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    folded.weight = nn.Parameter(weight, requires_grad=False)
    folded.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
    return folded


def _scale_and_shift(bn: Any) -> tuple[Tensor, Tensor]:
    """scale and shift (C,), float64, with bn(x) = scale * x + shift in inference."""
    assert bn.running_mean is not None and bn.running_var is not None, "the caller checks it"
    scale = (bn.running_var.double() + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight.detach().double()
    shift = -bn.running_mean.double() * scale
    return scale, shift if bn.bias is None else shift + bn.bias.detach().double()


def is_product(conv: Any) -> bool:
    """Whether a convolution of this package or of PyTorch is a 1x1 product without stride, padding or groups.

    False for 1-D convolutions.
    """
    padding = (0,) * len(conv.stride) if isinstance(conv.padding, str) else conv.padding  # "same" pads no 1x1 kernel
    geometry = zip(conv.weight.shape[2:], conv.stride, padding, strict=True)
    return conv.weight.dim() > 3 and conv.groups == 1 and all(at == (1, 1, 0) for at in geometry)
