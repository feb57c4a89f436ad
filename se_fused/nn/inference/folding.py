"""Batch norm in inference is a factor and an offset by channel: both go into the weights of the layer before."""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

__all__ = ["fold_batch_norm", "fold_linear", "is_product"]


def fold_batch_norm(conv: _ConvNd | nn.Linear, bn: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, float64, of the convolution or linear layer that is ``bn(conv(x))`` in inference.

    ``bn``: a batch norm with running statistics, frozen or not, or None.
    """
    weight, bias = conv.weight.detach().double(), None if conv.bias is None else conv.bias.detach().double()
    if bn is None:
        return weight, bias
    scale, shift = _scale_and_shift(bn)
    weight = weight * scale.reshape(-1, *(1,) * (weight.dim() - 1))
    return weight, shift if bias is None else shift + scale * bias


def fold_linear(linear: nn.Linear, bn: Any) -> nn.Linear:
    """The linear layer, float64, that is ``bn(linear(x))`` in inference, for x (N, K)."""
    weight, bias = fold_batch_norm(linear, bn)
    folded = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    folded.weight = nn.Parameter(weight, requires_grad=False)
    folded.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
    return folded


def _scale_and_shift(bn: Any) -> tuple[Tensor, Tensor]:
    """scale and shift (C,), float64: bn(x) = scale * x + shift in inference."""
    assert bn.running_mean is not None and bn.running_var is not None, "the caller has looked"
    scale = (bn.running_var.double() + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight.detach().double()
    shift = -bn.running_mean.double() * scale
    return scale, shift if bn.bias is None else shift + bn.bias.detach().double()


def is_product(conv: Any) -> bool:
    """Whether a convolution, PyTorch's or one of these, is 1x1 at every position of a map or a volume."""
    padding = (0,) * len(conv.stride) if isinstance(conv.padding, str) else conv.padding  # "same" adds none to 1x1
    geometry = zip(conv.weight.shape[2:], conv.stride, padding, strict=True)
    return conv.weight.dim() > 3 and conv.groups == 1 and all(at == (1, 1, 0) for at in geometry)
