"""Checks of the arguments that several functions share, and their conversion to the form that the kernels need.

In messages, ``of`` is the name of the map x.
"""

from typing import Any

import torch
from torch import Tensor

from .. import _checks as check
from .. import reference
from ..backends import Running
from ..ops.layout import positions
from ..ops.running import running_statistics

__all__ = [
    "BatchNormTensors",
    "ExcitationTensors",
    "batch_norm_form",
    "check_batch_norm",
    "check_block_end",
    "check_conv1x1",
    "check_dtype",
    "check_excitation",
    "check_out_act",
    "check_residual",
    "common_dtype",
    "excitation_form",
    "without_float64",
]

BatchNormTensors = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""running_mean, running_var, bn_weight, bn_bias: (C,) each, or None."""

ExcitationTensors = tuple[Tensor, Tensor | None, Tensor, Tensor | None]
"""fc1_weight (R, C), fc1_bias (R,) or None, fc2_weight (C, R), fc2_bias (C,) or None."""


# ---- checks
def check_residual(residual: Any, x: Tensor, shape: torch.Size | None = None) -> None:
    """TypeError or ValueError unless the residual is None, or a tensor on x's device of the result's shape. That is x's
    shape, unless ``shape`` is given."""
    if residual is None:
        return
    check.check_tensor(residual, "residual")
    if shape is not None and residual.shape != shape:
        raise ValueError(f"residual must have the result's shape {tuple(shape)}, got {tuple(residual.shape)}")
    if shape is None and residual.shape != x.shape:
        raise ValueError(f"residual must have x's shape {tuple(x.shape)}, got {tuple(residual.shape)}")
    if residual.device != x.device:
        raise ValueError(f"residual is on {residual.device}, x on {x.device}: move one, residual.to(x.device)")


def check_dtype(t: Tensor | None, name: str, x: Tensor, of: str = "x") -> None:
    """TypeError unless t is None or has x's dtype; under autocast they may differ."""
    if t is not None and t.dtype != x.dtype and not check.autocasts(x):
        raise TypeError(f"{name} must have {of}'s dtype {x.dtype}, got {t.dtype}: cast one, {name}.to({of}.dtype)")


def check_out_act(out_act: Any) -> None:
    """ValueError unless the activation at the end of the block is None or one of ``reference.OUT_ACTIVATIONS``."""
    check.check_choice(out_act or "none", "out_act", reference.OUT_ACTIVATIONS)


def check_block_end(x: Tensor, residual: Any, out_act: Any, drop_path_scale: Any) -> None:
    """Checks the arguments of a block's end: the residual, the activation, and the factors of stochastic depth."""
    check_residual(residual, x)
    check_out_act(out_act)
    check.check_parameter(drop_path_scale, "drop_path_scale", (x.shape[0],), "(N,)", x)
    if drop_path_scale is not None and drop_path_scale.requires_grad:
        raise ValueError("drop_path_scale must not require a gradient: use drop_path_scale.detach()")


def check_excitation(x: Tensor, channels: int, fc: tuple[Any, Any, Any, Any], act: Any, gate: Any) -> None:
    """Checks the excitation's parameters for C ``channels`` on x's device, and the names of its activation and gate."""
    w1, b1, w2, b2 = fc
    for weight, name in ((w1, "fc1_weight"), (w2, "fc2_weight")):
        check.check_tensor(weight, name)
        if weight.dim() < 2:
            raise ValueError(f"{name} must be 2-D or that of a 1x1 convolution, got shape {tuple(weight.shape)}")
    r = w1.shape[0]
    if r < 1:
        raise ValueError(f"fc1_weight must have at least one output, got shape {tuple(w1.shape)}")
    check.check_parameter(w1, "fc1_weight", (r, channels), "(R, C)", x)
    check.check_parameter(b1, "fc1_bias", (r,), "(R,)", x)
    check.check_parameter(w2, "fc2_weight", (channels, r), "(C, R)", x)
    check.check_parameter(b2, "fc2_bias", (channels,), "(C,)", x)
    check.check_choice(act, "act", reference.ACTIVATIONS)
    check.check_choice(gate, "gate", reference.GATES)


def check_batch_norm(x: Tensor, bn: tuple[Any, Any, Any, Any], training: Any, momentum: Any, eps: Any) -> None:
    """Checks batch norm's tensors against x's channels, and its settings."""
    names = ("running_mean", "running_var", "bn_weight", "bn_bias")
    for t, name in zip(bn, names, strict=True):
        check.check_parameter(t, name, (x.shape[1],), "(C,)", x)
    check.check_bool(training, "training")
    running_mean, running_var = bn[:2]
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must both be tensors or both be None")
    if not training and running_mean is None:
        raise ValueError(
            "running_mean and running_var are needed with training=False; pass training=True to normalise by the batch"
        )
    if momentum is None:
        raise TypeError("momentum must be a number; for a cumulative average pass 1 / num_batches_tracked")
    check.check_number(momentum, "momentum", 0.0, 1.0)
    check.check_number(eps, "eps", 0.0, float("inf"))
    if training and x.shape[0] * positions(x) == 1:
        raise ValueError(f"training needs more than one value per channel, got x of shape {tuple(x.shape)}")


def check_conv1x1(x: Tensor, weight: Any, bias: Any, names: tuple[str, str], sizes: tuple[str, str], of: str) -> None:
    """Checks weight and bias of a 1x1 convolution of x.

    Args:
        x: (N, K, *spatial).
        weight: (C, K), or that of a 1x1 convolution.
        bias: (C,) or None.
        names: names of weight and bias in messages.
        sizes: names of C and K in messages.
        of: name of x in messages.
    """
    name, bias_name = names
    out, given = sizes
    check.check_tensor(weight, name)
    if weight.dim() < 2 or weight.shape[0] < 1:
        raise ValueError(
            f"{name} must be ({out}, {given}) or that of a 1x1 convolution, got shape {tuple(weight.shape)}"
        )
    channels = weight.shape[0]
    check.check_parameter(weight, name, (channels, x.shape[1]), f"({out}, {given})", x, of)
    check.check_parameter(bias, bias_name, (channels,), f"({out},)", x, of)


# ---- conversion to the form that the kernels need
def common_dtype(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x and residual in one dtype. Under autocast they may differ and are promoted, as in eager mode.

    Raises:
        TypeError: their dtypes differ without autocast.
    """
    if residual is None or residual.dtype == x.dtype:
        return x, residual
    check_dtype(residual, "residual", x)
    common = torch.promote_types(x.dtype, residual.dtype)
    return x.to(common), residual.to(common)


def without_float64(*tensors: Tensor | None) -> list[Tensor | None]:
    """float64 parameters converted to float32, the kernels' widest dtype; others unchanged."""
    return [t if t is None or t.dtype != torch.float64 else t.float() for t in tensors]


def excitation_form(fc: ExcitationTensors) -> ExcitationTensors:
    """The excitation's parameters with contiguous weights of one dtype. A weight (R, C, 1, 1) of a 1x1 convolution
    keeps its shape, because in both memory formats its memory is that of the matrix (R, C)."""
    fc1_weight, fc1_bias, fc2_weight, fc2_bias = fc
    fc1_weight, fc2_weight = fc1_weight.contiguous(), fc2_weight.contiguous()
    if fc1_weight.dtype != fc2_weight.dtype:
        fc1_weight, fc2_weight = fc1_weight.float(), fc2_weight.float()
    return fc1_weight, fc1_bias, fc2_weight, fc2_bias


def batch_norm_form(
    bn: BatchNormTensors, x: Tensor, training: bool, momentum: float
) -> tuple[BatchNormTensors, Running | None]:
    """(batch norm's tensors, running statistics to update). In training the first have no running statistics; otherwise
    the second is None."""
    if not training:
        return bn, None
    running = running_statistics(*bn[:2], x.shape[0] * positions(x), momentum)
    return (None, None, *bn[2:]), running
