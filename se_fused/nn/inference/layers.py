"""The layers of an optimised model: convolutions with batch norm folded in and all that follows behind them.

They are made by :func:`se_fused.optimize_for_inference`, run in inference only, and hold tensors, not parameters.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ... import functional as F_se
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
# oneDNN's names of what it can do to a sum before storing it. Its ReLU gives 0 for NaN, so PyTorch's runs behind it, in
# place: with it ResNet-50, SE-ResNet-50, ResNet-18 and MobileNetV3 took 1.02, 0.94, 1.01 and 1.03 times as long as with
# oneDNN's (batch 8, 224 x 224, two cores, 2026-11-27, torch 2.14.1). Our own pass with bias, residual and ReLU in place
# of both took up to 1.06 times.
_POST_OPS = {"none": "none", "relu": "none", "silu": "swish", "hard_swish": "hardswish"}

# oneDNN's order of a weight is for one shape of x: with that of batch 2, batch 1 took twice the time, with that of
# 64 x 64 images 224 x 224 half as much again. A copy of the weights for each of the last shapes: a batch, and a rest.
_SHAPES_KEPT = 2


def compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that a model of ``dtype`` is computed in: its own, but float32 for 16 bits on CPUs without AMX.

    There oneDNN's 16-bit convolutions are slower than its float32 ones: 3x3, 128 channels, 28x28, batch 8 on two cores
    with AVX512-BF16 and -FP16 took 11.4 and 10.1 ms, in float32 6.6 (measured 2026-11-23, torch 2.14.1).
    """
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return dtype
    return dtype if _has_units(dtype) else torch.float32


def _has_units(dtype: torch.dtype) -> bool:
    """Whether the CPU has AMX for 16 bits, and oneDNN, which an environment variable may hold back, uses it."""
    name = "_is_amx_tile_supported" if dtype == torch.bfloat16 else "_is_amx_fp16_supported"
    supported = getattr(torch.cpu, name, None)  # the second is not in torch 2.11
    return supported is not None and bool(supported()) and _onednn_takes(dtype)


@cache
def _onednn_takes(dtype: torch.dtype) -> bool:
    """Whether oneDNN convolves dtype here: called for bfloat16 without AVX-512 or float16 without AVX512-FP16, it
    raises, and a model may come from a file that another machine wrote, or from a GPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    op = torch.ops.mkldnn
    asked = {torch.bfloat16: op._is_mkldnn_bf16_supported, torch.float16: op._is_mkldnn_fp16_supported}
    return bool(asked[dtype]()) if dtype in asked else dtype == torch.float32


class _Conv(nn.Module):
    """A convolution's geometry, with weights that have the batch norm in them.

    ``keeps_residual``: whether the residual is still wanted afterwards.
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
        """x, and what the convolution pads it with; where "SAME" padding is larger behind than before, x has it."""
        if not self.pads_same:
            return x, self.padding
        totals = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, k, s, d in zip(x.shape[2:], self.weight.shape[2:], self.stride, self.dilation, strict=True)
        ]
        if not any(total % 2 for total in totals):
            return x, [total // 2 for total in totals]
        border = [side for t in reversed(totals) for side in (t // 2, t - t // 2)]  # F.pad begins with the last size
        return ordered(F.pad(x, border)), [0] * len(totals)

    def plain(self, x: Tensor, with_bias: bool = True) -> Tensor:
        """The convolution alone, in channels_last even where PyTorch has none of x's dtype."""
        bias = self.bias if with_bias else None
        x, padding = self.bordered(x)
        return ordered(_CONV[x.dim()](x, self.weight, bias, self.stride, padding, self.dilation, self.groups))

    def extra_repr(self) -> str:
        c, k, *size = self.weight.shape
        return f"{k * self.groups}, {c}, kernel_size={tuple(size)}, stride={tuple(self.stride)}, groups={self.groups}"


class ConvAct(_Conv):
    """``act(conv(x) + residual)``: on the CPU one oneDNN call with weights in oneDNN's own order; elsewhere the
    convolution, and bias, residual and activation in one pass over its result.

    Args:
        conv, bn: what is folded together; ``bn`` may be None.
        dtype: of the weights.
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
        return self.__dict__ | {"_packed": {}}  # opaque to pickle, and made again in the next call

    def _apply(self, *args: Any, **kwargs: Any) -> "ConvAct":
        self._packed = {}
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def packable(self, x: Tensor) -> bool:
        """Whether oneDNN takes x, with weights in its own order."""
        return x.device.type == "cpu" and x.dim() == 4 and x.numel() > 0 and _onednn_takes(x.dtype)

    def close(self, y: Tensor, residual: Tensor | None) -> Tensor:
        """What follows the convolution without its bias, over its result."""
        if self.bias is None and residual is None and self.act == "none":
            return y
        # y + bias is what batch norm gives with mean 0 and variance 1
        return F_se.batch_norm_act(
            y, self.zero, self.one, None, self.bias, residual,
            training=False, eps=0.0, out_act=self.act, inplace=True,
        )  # fmt: skip

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x: (N, K, *spatial), residual: (N, C, *spatial) -> (N, C, *spatial)."""
        if torch.compiler.is_compiling() or torch._C._is_tracing():  # the compiler fuses by itself
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
        if residual is None:
            y = op._convolution_pointwise(x, packed, self.bias, *geometry, _POST_OPS[self.act], [], "")
        else:
            add: tuple[Any, ...] = (packed, self.bias, *geometry, "add", 1.0, None, [], None)
            if self.keeps_residual:
                y = op._convolution_pointwise.binary(x, residual, *add)
            else:
                y = op._convolution_pointwise_.binary(residual, x, *add)
        if self.act == "relu":
            return y.relu_()
        return y if residual is None else OUT_ACTIVATIONS[self.act](y)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, act={self.act}"


class _Excitation(nn.Module):
    """An SE layer's parameters, weights as matrices."""

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
        """By name, as :func:`squeeze_excite` takes them."""
        return dict(
            fc1_weight=self.fc1_weight, fc1_bias=self.fc1_bias, fc2_weight=self.fc2_weight, fc2_bias=self.fc2_bias,
            act=self.act, gate=self.gate,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self.fc2_weight.shape[0]}, {self.fc2_weight.shape[1]}, act={self.act}, gate={self.gate}"


class ConvSqueezeExcite(_Conv):
    """``act(se(conv(h)) + residual)`` for a 1x1 convolution: the excitation from h, scale and sum behind the product.

    Args:
        conv, bn: what is folded together; ``bn`` may be None.
        excitation: what :func:`squeeze_excite` takes by name: fc1_weight, fc1_bias, fc2_weight, fc2_bias, act, gate.
        dtype: of the weights.
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
        # our CPU product is float32: for bfloat16 oneDNN's convolution with AMX is the faster one
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
    """``act(se(x) + residual)`` on a map that something else than a 1x1 convolution made.

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
    """``act(conv(se(x)) + residual)`` for a 1x1 convolution: on a GPU the gate goes into the convolution's input.

    On the CPU x is rescaled in its place, in the caches, and convolved by oneDNN.

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
    """A batch norm that no convolution stands before, with its activation: ``act(scale * x + shift)`` in one pass.

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
