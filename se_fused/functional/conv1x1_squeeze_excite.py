"""A 1x1 convolution fused with the squeeze-excite after it, for inference."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _checks as check
from .. import reference
from .._params import NO_BATCH_NORM, BlockOptions, Conv1x1Params, ExcitationParams
from ..ops.conv1x1_squeeze_excite import conv1x1_squeeze_excite as operator
from ..ops.layout import dense
from ._arguments import (
    ConvNames,
    check_conv1x1,
    check_dtype,
    check_out_act,
    check_residual,
    excitation_parameters,
    has_kernel_form,
    kernel_excitation,
)
from .batch_norm_squeeze_excite import squeeze_excite
from .dispatch import backend_for, is_transformed, wants_gradient

__all__ = ["conv1x1_squeeze_excite", "fold_squeeze", "pack_conv1x1"]

_NAMES = ConvNames("conv_weight", "conv_bias", "h", "(C, K)", "(C,)")
_PANEL = 16  # channels per weight panel, as in csrc/cpu/conv1x1_squeeze_excite.inl


def _matrix(weight: Tensor) -> Tensor:
    """A weight (C, K), or that of a 1x1 convolution, as (C, K)."""
    return weight if weight.dim() == 2 else weight.flatten(1)


def fold_squeeze(
    conv_weight: Tensor, conv_bias: Tensor | None, fc1_weight: Tensor, fc1_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Folds a 1x1 convolution into FC1, which then applies to the means of the convolution's input:
    W1 mean(W3 h + b3) + b1 = (W1 W3) mean(h) + (W1 b3 + b1).

    Args:
        conv_weight: (C, K), or that of a 1x1 convolution.
        conv_bias: (C,) or None.
        fc1_weight: (R, C), or that of a 1x1 convolution.
        fc1_bias: (R,) or None.

    Returns:
        Weight (R, K) and bias (R,), float32; the products are computed in float64.
    """
    w1, w3 = _matrix(fc1_weight).double(), _matrix(conv_weight).double()
    weight = torch.mm(w1, w3).float()
    if conv_bias is not None:
        bias = torch.mv(w1, conv_bias.double())
        return weight, (bias if fc1_bias is None else bias + fc1_bias).float()
    return weight, weight.new_zeros(weight.shape[0]) if fc1_bias is None else fc1_bias.float()


def pack_conv1x1(conv_weight: Tensor) -> Tensor:
    """Packs the weight of a 1x1 convolution for the CPU kernel: panels of 16 channels, padded with zeros.

    Args:
        conv_weight: (C, K), or that of a 1x1 convolution.

    Returns:
        (ceil(C / 16), K, 16), float32.
    """
    weight = _matrix(conv_weight.detach()).float()
    channels, k = weight.shape
    if channels % _PANEL:
        weight = F.pad(weight, (0, 0, 0, -channels % _PANEL))
    return weight.reshape(-1, _PANEL, k).transpose(1, 2).contiguous()


def conv1x1_squeeze_excite(
    h: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    act: str = "relu",
    gate: str = "sigmoid",
    out_act: str | None = None,
    folded: tuple[Tensor, Tensor] | None = None,
    packed: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """A 1x1 convolution followed by :func:`squeeze_excite`, in inference as one matrix product.

    Equivalent to ``squeeze_excite(conv(h), ...)``; the caller folds a batch norm between the two into the convolution.
    Averaging commutes with a 1x1 convolution, so the excitation is computed from h, which has fewer channels in a
    bottleneck block, and scale, residual and activation become the epilogue of the convolution.

    On a GPU with h in channels_last (4-D, 5-D), Triton has a kernel for it. The first call of a shape times it against
    cuDNN's convolution followed by :func:`squeeze_excite`, and the choice is cached on disk. On the CPU the C++ backend
    has a kernel for h in channels_last that takes the ``packed`` weight; its products are float32 whatever h's dtype.
    In all other cases, and if gradients are recorded, the two run one after the other.

    Args:
        h: (N, K, *spatial) with 1 to 3 spatial sizes; float32, bfloat16, float16.
        conv_weight: (C, K), or (C, K, 1, 1); h's dtype.
        conv_bias: (C,) or None.
        fc1_weight, fc1_bias, fc2_weight, fc2_bias, act, gate, out_act: as in :func:`squeeze_excite`, for C channels.
        residual: (N, C, *spatial), h's dtype, or None.
        folded: the result of :func:`fold_squeeze` for these parameters. If None, each call computes it, which costs
            R * C * K products.
        packed: the result of :func:`pack_conv1x1` for ``conv_weight``; used by the CPU backend only.
        inplace: permits writing the result over ``residual``.

    Returns:
        (N, C, *spatial), h's dtype and memory format.

    Raises:
        TypeError, ValueError: an argument is not a tensor, or has a wrong dtype, shape or device; the message names it.
        BackendUnavailable: the backend requested with :func:`se_fused.use_backend` cannot run the call.
    """
    conv = Conv1x1Params(conv_weight, conv_bias, packed)
    fc = ExcitationParams(fc1_weight, fc1_bias, fc2_weight, fc2_bias, act, gate)
    check.check_x(h, "h")
    check_conv1x1(conv, h, _NAMES)
    check_dtype(conv_weight, "conv_weight", h, "h")
    n, k, *spatial = h.shape
    c = conv_weight.shape[0]
    check_residual(residual, h, torch.Size((n, c, *spatial)))
    options = BlockOptions(residual, None, check_out_act(out_act))
    parameters = excitation_parameters(fc, c)
    if folded is not None:
        r = fc1_weight.shape[0]
        parameters += (("folded[0]", folded[0], (r, k), "(R, K)"), ("folded[1]", folded[1], (r,), "(R,)"))
    if packed is not None:
        panels = (-(-c // _PANEL), k, _PANEL)
        parameters += (("packed", packed, panels, "(ceil(C / 16), K, 16)"),)
    any_wide = check.check_parameters(parameters, h, "h")
    if packed is not None and packed.dtype != torch.float32:
        raise TypeError(f"packed must be float32 as pack_conv1x1 makes it, got {packed.dtype}")
    check_dtype(residual, "residual", h, "h")
    tensors = (h, conv_weight, conv_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual)
    if check.autocasts(h) or wants_gradient(*tensors) or is_transformed():
        u = reference.conv1x1(h, conv_weight, conv_bias)
        return squeeze_excite(
            u, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual, act=act, gate=gate, out_act=out_act
        )
    backend = backend_for(h)
    if backend is None:
        return reference.block(reference.conv1x1(h, conv_weight, conv_bias), NO_BATCH_NORM, fc, options)
    weight, bias = folded or fold_squeeze(conv_weight, conv_bias, fc1_weight, fc1_bias)
    if any_wide or not has_kernel_form(fc):
        fc = kernel_excitation(fc)
    combined = ExcitationParams(weight, bias, fc.fc2_weight, fc.fc2_bias, act, gate)
    return operator(backend, dense(h), conv, fc, combined, options, inplace)
