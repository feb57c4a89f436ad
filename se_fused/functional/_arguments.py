"""Checks of the arguments that several functions share, and their conversion to the form that the kernels need.

The checks take the records of :mod:`se_fused._params`. In messages, ``of`` is the name of the map x.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _checks as check
from .._params import BatchNormParams, BlockOptions, Conv1x1Params, ExcitationParams
from ..activations import ACTIVATIONS, GATES, OUT_ACTIVATIONS
from ..ops.layout import dense_like, positions

__all__ = [
    "ConvNames",
    "check_batch_norm",
    "check_conv1x1",
    "check_dtype",
    "check_excitation",
    "check_options",
    "check_out_act",
    "check_residual",
    "common_dtype",
    "kernel_batch_norm",
    "kernel_excitation",
    "kernel_options",
]


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


def check_out_act(out_act: Any) -> str:
    """The name of the activation at the end of the block; "none" for None.

    Raises:
        ValueError: no kernel has it.
    """
    return check.check_choice(out_act or "none", "out_act", OUT_ACTIVATIONS)


def check_options(residual: Any, drop_path_scale: Any, out_act: Any, x: Tensor) -> BlockOptions:
    """Checks the arguments of a block's end: the residual, the activation, and the factors of stochastic depth."""
    options = BlockOptions(residual, drop_path_scale, check_out_act(out_act))
    check_residual(residual, x)
    if drop_path_scale is not None:
        check.check_parameters((("drop_path_scale", drop_path_scale),), (x.shape[0],), "(N,)", x)
        if drop_path_scale.requires_grad:
            raise ValueError("drop_path_scale must not require a gradient: use drop_path_scale.detach()")
    return options


def check_excitation(fc: ExcitationParams, x: Tensor, channels: int) -> None:
    """Checks the excitation's parameters for C ``channels`` on x's device, and the names of its activation and gate."""
    fc1_weight, fc1_bias, fc2_weight, fc2_bias, act, gate = fc
    for weight, name in ((fc1_weight, "fc1_weight"), (fc2_weight, "fc2_weight")):
        check.check_tensor(weight, name)
        assert weight is not None
        if weight.dim() < 2:
            raise ValueError(f"{name} must be 2-D or that of a 1x1 convolution, got shape {tuple(weight.shape)}")
    assert fc1_weight is not None
    r = fc1_weight.shape[0]
    if r < 1:
        raise ValueError(f"fc1_weight must have at least one output, got shape {tuple(fc1_weight.shape)}")
    check.check_parameters((("fc1_weight", fc1_weight),), (r, channels), "(R, C)", x)
    check.check_parameters((("fc2_weight", fc2_weight),), (channels, r), "(C, R)", x)
    check.check_parameters((("fc1_bias", fc1_bias),), (r,), "(R,)", x)
    check.check_parameters((("fc2_bias", fc2_bias),), (channels,), "(C,)", x)
    check.check_choice(act, "act", ACTIVATIONS)
    check.check_choice(gate, "gate", GATES)


def check_batch_norm(bn: BatchNormParams, x: Tensor) -> None:
    """Checks batch norm's tensors against x's channels, and its settings."""
    running_mean, running_var, weight, bias, training, momentum, eps = bn
    vectors = (
        ("running_mean", running_mean), ("running_var", running_var), ("bn_weight", weight), ("bn_bias", bias)
    )  # fmt: skip
    check.check_parameters(vectors, (x.shape[1],), "(C,)", x)
    check.check_bool(training, "training")
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


class ConvNames(NamedTuple):
    """How messages name the arguments of a 1x1 convolution: weight, bias and map, and the channels after and before."""

    weight: str
    bias: str
    x: str
    out: str
    given: str


def check_conv1x1(conv: Conv1x1Params, x: Tensor, names: ConvNames) -> None:
    """Checks weight (C, K) and bias (C,) of a 1x1 convolution of x (N, K, *spatial)."""
    weight = conv.weight
    check.check_tensor(weight, names.weight)
    if weight.dim() < 2 or weight.shape[0] < 1:
        raise ValueError(
            f"{names.weight} must be ({names.out}, {names.given}) or that of a 1x1 convolution, "
            f"got shape {tuple(weight.shape)}"
        )
    channels = weight.shape[0]
    matrix, vector = f"({names.out}, {names.given})", f"({names.out},)"
    check.check_parameters(((names.weight, weight),), (channels, x.shape[1]), matrix, x, names.x)
    check.check_parameters(((names.bias, conv.bias),), (channels,), vector, x, names.x)


# ---- conversion to the form that the kernels need
def common_dtype(x: Tensor, options: BlockOptions) -> tuple[Tensor, BlockOptions]:
    """x and the residual in one dtype. Under autocast they may differ and are promoted, as in eager mode.

    Raises:
        TypeError: their dtypes differ without autocast.
    """
    residual = options.residual
    if residual is None or residual.dtype == x.dtype:
        return x, options
    check_dtype(residual, "residual", x)
    common = torch.promote_types(x.dtype, residual.dtype)
    return x.to(common), options._replace(residual=residual.to(common))


def _narrow(t: Tensor | None) -> Tensor | None:
    """float64, which the kernels do not have, as float32; others unchanged."""
    return t if t is None or t.dtype != torch.float64 else t.float()


def kernel_batch_norm(bn: BatchNormParams) -> BatchNormParams:
    """Batch norm's tensors without float64; but running statistics that are to be updated stay as they are."""
    running_mean, running_var, weight, bias, batch_stats, momentum, eps = bn
    if not batch_stats:
        running_mean, running_var = _narrow(running_mean), _narrow(running_var)
    return BatchNormParams(
        running_mean, running_var, _narrow(weight), _narrow(bias), batch_stats, float(momentum), float(eps)
    )


def kernel_excitation(fc: ExcitationParams) -> ExcitationParams:
    """The excitation's parameters with contiguous weights of one dtype that is not float64. A weight (R, C, 1, 1) of a
    1x1 convolution keeps its shape, because in both memory formats its memory is that of the matrix (R, C)."""
    fc1_weight, fc1_bias, fc2_weight, fc2_bias, act, gate = fc
    assert fc1_weight is not None and fc2_weight is not None
    fc1_weight, fc2_weight = fc1_weight.contiguous(), fc2_weight.contiguous()
    if fc1_weight.dtype != fc2_weight.dtype or fc1_weight.dtype == torch.float64:
        fc1_weight, fc2_weight = fc1_weight.float(), fc2_weight.float()
    return ExcitationParams(fc1_weight, _narrow(fc1_bias), fc2_weight, _narrow(fc2_bias), act, gate)


def kernel_options(options: BlockOptions, x: Tensor) -> BlockOptions:
    """The residual in the memory order of the dense x, and the factors of stochastic depth as a vector."""
    residual, drop, out_act = options
    if residual is not None:
        residual = dense_like(residual, x)
    if drop is not None:
        drop = _narrow(drop.reshape(-1))
    return BlockOptions(residual, drop, out_act)
