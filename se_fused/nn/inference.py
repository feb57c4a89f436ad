"""The layers of an optimised model: convolutions with batch norm folded in and all that follows behind them.

They are made by :func:`se_fused.optimize_for_inference`, run in inference only, and hold tensors, not parameters.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .. import functional as F_se
from ..reference import OUT_ACTIVATIONS
from ._checks import refuse_torchscript

__all__ = ["ConvAct", "ConvSqueezeExcite", "Enter", "Leave", "NormAct", "Rescale", "compute_dtype", "fold_batch_norm"]

_CONV = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
# oneDNN's names of what it can do to a sum before storing it
_POST_OPS = {"none": "none", "relu": "relu", "silu": "swish", "hard_swish": "hardswish"}


def compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that a model of ``dtype`` is computed in: its own, but float32 for 16 bits on CPUs without AMX.

    There oneDNN's 16-bit convolutions are slower than its float32 ones: 3x3, 128 channels, 28x28, batch 8 on two cores
    with AVX512-BF16 and -FP16 took 11.4 and 10.1 ms, in float32 6.6 (measured 2026-11-23, torch 2.14.1).
    """
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return dtype
    has_units = torch.cpu._is_amx_tile_supported() if dtype == torch.bfloat16 else _has_amx_fp16()
    return dtype if has_units else torch.float32


def _has_amx_fp16() -> bool:
    supported = getattr(torch.cpu, "_is_amx_fp16_supported", None)  # not in torch 2.11
    return supported is not None and bool(supported())


def fold_batch_norm(conv: _ConvNd, bn: _BatchNorm | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, float64, of the convolution that is ``bn(conv(x))`` in inference."""
    weight, bias = conv.weight.detach().double(), None if conv.bias is None else conv.bias.detach().double()
    if bn is None:
        return weight, bias
    scale, shift = _norm(bn)
    weight = weight * scale.reshape(-1, *(1,) * (weight.dim() - 1))
    return weight, shift if bias is None else shift + scale * bias


def _norm(bn: _BatchNorm) -> tuple[Tensor, Tensor]:
    """scale and shift (C,), float64: bn(x) = scale * x + shift in inference."""
    assert bn.running_mean is not None and bn.running_var is not None, "the caller has looked"
    scale = (bn.running_var.double() + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight.detach().double()
    shift = -bn.running_mean.double() * scale
    return scale, shift if bn.bias is None else shift + bn.bias.detach().double()


class Enter(nn.Module):
    """The model's input as the layers want it: their dtype, channels_last."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Any) -> Any:
        """Floating-point tensors of 4 or 5 dimensions are changed, others (and what is no tensor) returned."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        return x.to(self.dtype).contiguous(memory_format=_LAST.get(x.dim(), torch.contiguous_format))


class Leave(nn.Module):
    """The model's results in the dtype that it promised."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, y: Any) -> Any:
        """Floating-point tensors inside lists, tuples and dictionaries are cast."""
        return torch.utils._pytree.tree_map(
            lambda t: t.to(self.dtype) if isinstance(t, Tensor) and t.is_floating_point() else t, y
        )


class _Conv(nn.Module):
    """A convolution's weights and geometry. ``keeps_residual``: whether the residual is still wanted afterwards."""

    weight: Tensor
    bias: Tensor | None
    __prepare_scriptable__ = refuse_torchscript

    def __init__(self, conv: _ConvNd, bn: _BatchNorm | None, dtype: torch.dtype) -> None:
        super().__init__()
        weight, bias = fold_batch_norm(conv, bn)
        order = _LAST.get(weight.dim(), torch.contiguous_format)
        self.register_buffer("weight", weight.to(dtype).contiguous(memory_format=order))
        self.register_buffer("bias", None if bias is None else bias.to(dtype))
        assert not isinstance(conv.padding, str), "the caller has looked"
        self.stride, self.padding, self.dilation = list(conv.stride), list(conv.padding), list(conv.dilation)
        self.groups = conv.groups
        self.keeps_residual = True

    def plain(self, x: Tensor) -> Tensor:
        """The convolution alone."""
        return _CONV[x.dim()](x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        c, k, *size = self.weight.shape
        return f"{k * self.groups}, {c}, kernel_size={tuple(size)}, stride={tuple(self.stride)}, groups={self.groups}"


class ConvAct(_Conv):
    """``act(conv(x) + residual)``; on the CPU one oneDNN call with weights in oneDNN's own order.

    Args:
        conv, bn: what is folded together; ``bn`` may be None.
        dtype: of the weights.
        act: "none", "relu", "silu" or "hard_swish".
    """

    def __init__(self, conv: _ConvNd, bn: _BatchNorm | None, dtype: torch.dtype, act: str = "none") -> None:
        super().__init__(conv, bn, dtype)
        self.act = act
        self._packed: Tensor | None = None
        self._packed_for = torch.Size()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}  # opaque to pickle, and made again in the next call

    def _apply(self, *args: Any, **kwargs: Any) -> "ConvAct":
        self._packed = None
        super()._apply(*args, **kwargs)
        return self

    def _packable(self, x: Tensor) -> bool:
        # a graph is to have standard operators
        if torch.compiler.is_compiling() or torch._C._is_tracing() or x.dim() != 4 or x.numel() == 0:
            return False
        return x.device.type == "cpu" and x.dtype != torch.float64 and torch.backends.mkldnn.is_available()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x: (N, K, *spatial), residual: (N, C, *spatial) -> (N, C, *spatial)."""
        if not self._packable(x):
            y = self.plain(x)
            return OUT_ACTIVATIONS[self.act](y if residual is None else y.add_(residual))
        op = torch.ops.mkldnn
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        if self._packed is None or self._packed_for != x.shape[2:]:
            # oneDNN's order is for an image size: with that of 64 x 64, 224 x 224 took up to twice the time
            self._packed = op._reorder_convolution_weight(self.weight, *geometry, list(x.shape))
            self._packed_for = x.shape[2:]
        packed, post_op = self._packed, _POST_OPS[self.act]
        if residual is None:
            return op._convolution_pointwise(x, packed, self.bias, *geometry, post_op, [], "")
        if self.act not in ("none", "relu"):
            y = op._convolution_pointwise.binary(x, residual, packed, self.bias, *geometry, "add", 1.0, None, [], None)
            return OUT_ACTIVATIONS[self.act](y)
        relu = None if self.act == "none" else "relu"
        if self.keeps_residual:
            return op._convolution_pointwise.binary(
                x, residual, packed, self.bias, *geometry, "add", 1.0, relu, [], None
            )
        return op._convolution_pointwise_.binary(residual, x, packed, self.bias, *geometry, "add", 1.0, relu, [], None)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, act={self.act}"


def _gate_buffers(module: nn.Module, gate: dict[str, Any], dtype: torch.dtype) -> None:
    """Keep what squeeze_excite takes by name; weights as matrices."""
    for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"):
        value = gate[name]
        if value is not None:
            value = value.detach().to(dtype)
            value = value.flatten(1).contiguous() if name.endswith("weight") else value
        module.register_buffer(name, value)
    module.gate_acts = {"act": gate["act"], "gate": gate["gate"]}  # type: ignore[assignment]


class ConvSqueezeExcite(_Conv):
    """``act(se(conv(h)) + residual)`` for a 1x1 convolution: the gate from h, scale and sum behind the product.

    Args:
        conv, bn: what is folded together; ``bn`` may be None.
        gate: fc1_weight, fc1_bias, fc2_weight, fc2_bias, act, gate, as :func:`squeeze_excite` takes them.
        dtype: of the weights.
        out_act: None, "relu" or "silu".
    """

    gate_acts: dict[str, str]

    def __init__(
        self, conv: _ConvNd, bn: _BatchNorm | None, gate: dict[str, Any], dtype: torch.dtype, out_act: str | None
    ) -> None:
        super().__init__(conv, bn, dtype)
        self.out_act = out_act
        _gate_buffers(self, gate, dtype)
        weight, bias = fold_batch_norm(conv, bn)
        folded = F_se.fold_squeeze(weight, bias, self.fc1_weight, self.fc1_bias)
        for name, value in zip(("folded_weight", "folded_bias"), folded, strict=True):
            self.register_buffer(name, value)
        on_cpu = weight.device.type == "cpu" and not (dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported())
        self.register_buffer("packed", F_se.pack_conv1x1(weight) if on_cpu else None)

    def forward(self, h: Tensor, residual: Tensor | None = None) -> Tensor:
        """h: (N, K, *spatial), residual: (N, C, *spatial) -> (N, C, *spatial)."""
        return F_se.conv1x1_squeeze_excite(
            h, self.weight, self.bias, self.fc1_weight, self.fc1_bias, self.fc2_weight, self.fc2_bias, residual,
            **self.gate_acts, out_act=self.out_act, folded=(self.folded_weight, self.folded_bias), packed=self.packed,
            inplace=not self.keeps_residual,
        )  # fmt: skip


class Rescale(nn.Module):
    """``act(se(x) + residual)`` on a map that something else than a 1x1 convolution made.

    Args:
        gate: as for :class:`ConvSqueezeExcite`.
        dtype: of the weights.
        out_act: None, "relu" or "silu".
    """

    gate_acts: dict[str, str]
    __prepare_scriptable__ = refuse_torchscript

    def __init__(self, gate: dict[str, Any], dtype: torch.dtype, out_act: str | None) -> None:
        super().__init__()
        self.out_act = out_act
        self.keeps_input = True
        _gate_buffers(self, gate, dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(N, C, *spatial) -> (N, C, *spatial)."""
        return F_se.squeeze_excite(
            x, self.fc1_weight, self.fc1_bias, self.fc2_weight, self.fc2_bias, residual,
            **self.gate_acts, out_act=self.out_act, inplace=not self.keeps_input,
        )  # fmt: skip


class NormAct(nn.Module):
    """A batch norm that no convolution stands before, with its activation: ``act(scale * x + shift)`` in one pass.

    Args:
        bn: the batch norm.
        out_act: None, "relu" or "silu".
    """

    mean: Tensor
    __prepare_scriptable__ = refuse_torchscript

    def __init__(self, bn: _BatchNorm, out_act: str | None) -> None:
        super().__init__()
        self.out_act, self.eps = out_act, bn.eps
        self.keeps_input = True
        for name in ("running_mean", "running_var", "weight", "bias"):
            value = getattr(bn, name)
            self.register_buffer(name, None if value is None else value.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *spatial) -> (N, C, *spatial)."""
        return F_se.batch_norm_act(
            x, self.running_mean, self.running_var, self.weight, self.bias,
            training=False, eps=self.eps, out_act=self.out_act, inplace=not self.keeps_input,
        )  # fmt: skip
