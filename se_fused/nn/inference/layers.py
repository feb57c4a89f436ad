"""Layers of an optimised model: convolutions that include batch norm, SE, residual addition and activation.

:func:`se_fused.optimize_for_inference` creates them. They support inference only, and their weights are buffers.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ... import functional as F_se
from ...activations import OUT_ACTIVATIONS as ROWS
from ...reference import ACTIVATIONS, GATES, OUT_ACTIVATIONS
from ..known import refuse_torchscript
from .casts import LAST, ordered
from .folding import fold_batch_norm
from .matching import pads_same

__all__ = [
    "ConvAct",
    "ConvSqueezeExcite",
    "GatedConvAct",
    "NormAct",
    "Rescale",
    "compute_dtype",
]

_CONV = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
# oneDNN's weight layout is optimal for one shape of x: with the layout for batch 2, batch 1 took twice as long; with
# the layout for 64 x 64 images, 224 x 224 images took 1.5 times as long. The weights are therefore stored in the
# layouts for the last two shapes, enough for full batches and a smaller last batch.
_SHAPES_KEPT = 2


def compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which a model of ``dtype`` computes: ``dtype``, but float32 for 16 bits on CPUs without AMX.

    Without AMX, oneDNN's 16-bit convolutions are slower than its float32 ones: a 3x3 convolution with 128 channels,
    28x28 positions and batch 8 took 11.4 ms in bfloat16, 10.1 ms in float16 and 6.6 ms in float32, on two cores with
    AVX512-BF16 and AVX512-FP16 (measured 2026-11-23, torch 2.14.1).
    """
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return dtype
    return dtype if _has_units(dtype) else torch.float32


def _has_units(dtype: torch.dtype) -> bool:
    """Whether the CPU has AMX for this 16-bit dtype and oneDNN uses it, which an environment variable can disable."""
    name = "_is_amx_tile_supported" if dtype == torch.bfloat16 else "_is_amx_fp16_supported"
    supported = getattr(torch.cpu, name, None)  # torch 2.11 has no _is_amx_fp16_supported
    return supported is not None and bool(supported()) and _onednn_takes(dtype)


@cache
def _onednn_takes(dtype: torch.dtype) -> bool:
    """Whether oneDNN supports convolutions of ``dtype`` on this machine.

    oneDNN raises an error for bfloat16 without AVX-512 and for float16 without AVX512-FP16. The check is necessary
    because a model may come from a file of another machine, or from a GPU.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    op = torch.ops.mkldnn
    asked = {torch.bfloat16: op._is_mkldnn_bf16_supported, torch.float16: op._is_mkldnn_fp16_supported}
    return bool(asked[dtype]()) if dtype in asked else dtype == torch.float32


class _Conv(nn.Module):
    """Base of the convolution layers: geometry, and weights with the batch norm folded in.

    ``keeps_residual``: whether the residual is read again later, so that it must not be overwritten.
    """

    weight: Tensor
    bias: Tensor | None
    __prepare_scriptable__ = refuse_torchscript

    def __init__(self, conv: _ConvNd, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        order = LAST.get(weight.dim(), torch.contiguous_format)
        self.register_buffer("weight", weight.to(dtype).contiguous(memory_format=order))
        self.register_buffer("bias", None if bias is None else bias.to(dtype))
        self.stride, self.dilation = list(conv.stride), list(conv.dilation)
        self.pads_same = pads_same(conv)
        self.padding = [0] * len(self.stride) if isinstance(conv.padding, str) else list(conv.padding)
        self.groups = conv.groups
        self.keeps_residual = True

    def bordered(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """x and the padding for the convolution call.

        If "SAME" padding needs one more element at the end of a dimension, the returned x is padded already.
        """
        if not self.pads_same:
            return x, self.padding
        totals = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, k, s, d in zip(x.shape[2:], self.weight.shape[2:], self.stride, self.dilation, strict=True)
        ]
        if not any(total % 2 for total in totals):
            return x, [total // 2 for total in totals]
        border = [side for t in reversed(totals) for side in (t // 2, t - t // 2)]  # F.pad starts with the last size
        return ordered(F.pad(x, border)), [0] * len(totals)

    def plain(self, x: Tensor, with_bias: bool = True) -> Tensor:
        """The convolution alone; the result is channels_last also where PyTorch's convolution returns it contiguous."""
        bias = self.bias if with_bias else None
        x, padding = self.bordered(x)
        return ordered(_CONV[x.dim()](x, self.weight, bias, self.stride, padding, self.dilation, self.groups))

    def extra_repr(self) -> str:
        c, k, *size = self.weight.shape
        return f"{k * self.groups}, {c}, kernel_size={tuple(size)}, stride={tuple(self.stride)}, groups={self.groups}"


class ConvAct(_Conv):
    """``act(bn(conv(x)) + residual)`` with the batch norm folded into the weights.

    On the CPU this is one oneDNN call with weights in oneDNN's layout. On other devices, the convolution is followed by
    one pass over its result, with bias, residual and activation.

    Args:
        conv: the convolution.
        bn: the batch norm that is folded into it, or None.
        dtype: dtype of the weights.
        act: "none", "relu", "silu" or "hard_swish".
    """

    zero: Tensor
    one: Tensor

    def __init__(self, conv: _ConvNd, bn: Any, dtype: torch.dtype, act: str = "none") -> None:
        super().__init__(conv, *fold_batch_norm(conv, bn), dtype)
        self.act = act
        self.register_buffer("zero", self.weight.new_zeros(conv.out_channels, dtype=torch.float32))
        self.register_buffer("one", torch.ones_like(self.zero))
        self._packed: dict[torch.Size, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": {}}  # pickle cannot store oneDNN tensors; the next call creates them again

    def _apply(self, *args: Any, **kwargs: Any) -> "ConvAct":
        self._packed = {}
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def packable(self, x: Tensor) -> bool:
        """Whether oneDNN supports x, with weights in oneDNN's layout."""
        return x.device.type == "cpu" and x.dim() == 4 and x.numel() > 0 and _onednn_takes(x.dtype)

    def close(self, y: Tensor, residual: Tensor | None) -> Tensor:
        """Add bias and residual to the convolution's result y and apply the activation, in one pass."""
        if self.bias is None and residual is None and self.act == "none":
            return y
        # batch norm with mean 0, variance 1 and eps 0 computes y + bias
        return F_se.batch_norm_act(
            y, self.zero, self.one, None, self.bias, residual,
            training=False, eps=0.0, out_act=self.act, inplace=True,
        )  # fmt: skip

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x: (N, K, *spatial), residual: (N, C, *spatial) -> (N, C, *spatial)."""
        if torch.compiler.is_compiling() or torch._C._is_tracing():  # the compiler fuses these operations
            y = self.plain(x)
            return OUT_ACTIVATIONS[self.act](y if residual is None else y + residual)
        if not self.packable(x):
            return self.close(self.plain(x, with_bias=False), residual)
        op = torch.ops.mkldnn
        shape = x.shape
        x, padding = self.bordered(x)
        geometry = (padding, self.stride, self.dilation, self.groups)
        packed = self._packed.get(shape)
        if packed is None:
            if len(self._packed) == _SHAPES_KEPT:
                del self._packed[next(iter(self._packed))]
            packed = self._packed[shape] = op._reorder_convolution_weight(self.weight, *geometry, list(x.shape))
        act = ROWS[self.act]
        if residual is None:
            y = op._convolution_pointwise(x, packed, self.bias, *geometry, act.onednn or "none", [], "")
            if act.onednn is not None:
                return y
        else:
            add: tuple[Any, ...] = (packed, self.bias, *geometry, "add", 1.0, None, [], None)
            if self.keeps_residual:
                y = op._convolution_pointwise.binary(x, residual, *add)
            else:
                y = op._convolution_pointwise_.binary(residual, x, *add)
        return act.forward(y) if act.inplace is None else act.inplace(y)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, act={self.act}"


class _Excitation(nn.Module):
    """Parameters of an SE layer, with the weights as matrices."""

    fc1_weight: Tensor
    fc1_bias: Tensor | None
    fc2_weight: Tensor
    fc2_bias: Tensor | None

    def __init__(self, arguments: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"):
            value = arguments[name]
            if value is not None:
                value = value.detach().to(dtype)
                value = value.flatten(1).contiguous() if name.endswith("weight") else value
            self.register_buffer(name, value)
        self.act, self.gate = arguments["act"], arguments["gate"]

    def forward(self, mean: Tensor) -> Tensor:
        """The gate (N, C) from the means (N, C)."""
        hidden = ACTIVATIONS[self.act](F.linear(mean, self.fc1_weight, self.fc1_bias))
        return GATES[self.gate](F.linear(hidden, self.fc2_weight, self.fc2_bias))

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of :func:`se_fused.functional.squeeze_excite`."""
        return dict(
            fc1_weight=self.fc1_weight, fc1_bias=self.fc1_bias, fc2_weight=self.fc2_weight, fc2_bias=self.fc2_bias,
            act=self.act, gate=self.gate,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self.fc2_weight.shape[0]}, {self.fc2_weight.shape[1]}, act={self.act}, gate={self.gate}"


class ConvSqueezeExcite(_Conv):
    """``act(se(bn(conv(h))) + residual)`` for a 1x1 convolution, with the batch norm folded into the weights.

    The mean of the convolution's result follows from the mean of h, so the gate is computed before the convolution.
    Rescaling, addition and activation follow the product in the same call.

    Args:
        conv: the 1x1 convolution.
        bn: the batch norm that is folded into it, or None.
        excitation: keyword arguments of :func:`se_fused.functional.squeeze_excite`: fc1_weight, fc1_bias, fc2_weight,
            fc2_bias, act, gate.
        dtype: dtype of the weights.
        act: "none", "relu", "silu" or "hard_swish".
    """

    folded_weight: Tensor
    folded_bias: Tensor
    packed: Tensor | None

    def __init__(
        self, conv: _ConvNd, bn: Any, excitation: dict[str, Any], dtype: torch.dtype, act: str = "none"
    ) -> None:
        weight, bias = fold_batch_norm(conv, bn)
        super().__init__(conv, weight, bias, dtype)
        self.act, self.excitation = act, _Excitation(excitation, dtype)
        folded = F_se.fold_squeeze(weight, bias, self.excitation.fc1_weight, self.excitation.fc1_bias)
        self.register_buffer("folded_weight", folded[0])
        self.register_buffer("folded_bias", folded[1])
        # this library's CPU product computes in float32; for bfloat16, oneDNN's convolution with AMX is faster
        on_cpu = weight.device.type == "cpu" and not (dtype == torch.bfloat16 and _has_units(dtype))
        self.register_buffer("packed", F_se.pack_conv1x1(weight) if on_cpu else None)

    def forward(self, h: Tensor, residual: Tensor | None = None) -> Tensor:
        """h: (N, K, *spatial), residual: (N, C, *spatial) -> (N, C, *spatial)."""
        return F_se.conv1x1_squeeze_excite(
            h, self.weight, self.bias, residual=residual, **self.excitation.arguments(), out_act=self.act,
            folded=(self.folded_weight, self.folded_bias), packed=self.packed, inplace=not self.keeps_residual,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, act={self.act}"


class Rescale(nn.Module):
    """``act(se(x) + residual)`` for an SE layer that does not follow a 1x1 convolution.

    Args:
        excitation, dtype, act: as for :class:`ConvSqueezeExcite`.
    """

    __prepare_scriptable__ = refuse_torchscript

    def __init__(self, excitation: dict[str, Any], dtype: torch.dtype, act: str = "none") -> None:
        super().__init__()
        self.act, self.excitation = act, _Excitation(excitation, dtype)
        self.keeps_input = True

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(N, C, *spatial) -> (N, C, *spatial)."""
        return F_se.squeeze_excite(
            x, residual=residual, **self.excitation.arguments(), out_act=self.act, inplace=not self.keeps_input
        )

    def extra_repr(self) -> str:
        return f"act={self.act}"


class GatedConvAct(nn.Module):
    """``act(conv(se(x)) + residual)`` for a 1x1 convolution.

    On a GPU, the convolution multiplies its input by the gate while it reads it. On the CPU, x is rescaled in place if
    no other layer reads it, while it is in the caches, and then convolved by oneDNN.

    Args:
        rescale: the SE layer.
        conv: the convolution.
    """

    __prepare_scriptable__ = refuse_torchscript

    def __init__(self, rescale: Rescale, conv: ConvAct) -> None:
        super().__init__()
        self.rescale, self.conv = rescale, conv

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x: (N, C, *spatial), residual: (N, D, *spatial) -> (N, D, *spatial)."""
        if torch.compiler.is_compiling() or torch._C._is_tracing() or self.conv.packable(x):
            y: Tensor = self.conv(self.rescale(x), residual)
            return y
        gate = self.rescale.excitation(x.flatten(2).mean(2))
        return self.conv.close(F_se.gated_conv1x1(x, gate, self.conv.weight), residual)


class NormAct(nn.Module):
    """A batch norm that no convolution precedes, and its activation: ``act(scale * x + shift)`` in one pass.

    Args:
        bn: the batch norm, with running statistics.
        act: "none", "relu", "silu" or "hard_swish".
    """

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    __prepare_scriptable__ = refuse_torchscript

    def __init__(self, bn: Any, act: str = "none") -> None:
        super().__init__()
        self.act, self.eps = act, bn.eps
        self.keeps_input = True
        given = {"mean": bn.running_mean, "var": bn.running_var, "weight": bn.weight, "bias": bn.bias}
        for name, value in given.items():
            self.register_buffer(name, None if value is None else value.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *spatial) -> (N, C, *spatial)."""
        return F_se.batch_norm_act(
            x, self.mean, self.var, self.weight, self.bias,
            training=False, eps=self.eps, out_act=self.act, inplace=not self.keeps_input,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self.mean.shape[0]}, act={self.act}"
