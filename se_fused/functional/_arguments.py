"""Checks of the arguments that several functions share, and their conversion to the form that the kernels need.

The checks take the records of :mod:`se_fused._params`. In messages, ``of`` is the name of the map x.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _checks as check
from .._params import BatchNormParams, BlockOptions, Conv1x1Params, ExcitationParams
from ..activations import ACTIVATIONS, GATES, OUT_ACTIVATIONS
from ..ops.layout import dense_like, is_channels_last

__all__ = [
    "ConvNames",
    "batch_norm_parameters",
    "check_block",
    "check_conv1x1",
    "check_dtype",
    "check_options",
    "check_out_act",
    "check_residual",
    "common_dtype",
    "excitation_parameters",
    "has_float_settings",
    "has_kernel_form",
    "has_kernel_order",
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
    if residual.shape != (x.shape if shape is None else shape):
        wanted = "x's shape" if shape is None else "the result's shape"
        raise ValueError(f"residual must have {wanted} {tuple(shape or x.shape)}, got {tuple(residual.shape)}")
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


def check_options(options: BlockOptions, x: Tensor) -> None:
    """Checks the arguments of a block's end: the residual, the activation, and the factors of stochastic depth."""
    residual, drop_path_scale, out_act = options.residual, options.drop_path_scale, options.out_act
    if residual is not None and not (
        isinstance(residual, Tensor)
        and residual.dtype in check.FLOATS
        and residual.shape == x.shape
        and ((residual.is_cpu and x.is_cpu) or residual.device == x.device)
    ):
        check_residual(residual, x)
    if type(out_act) is not str or out_act not in OUT_ACTIVATIONS:
        check.check_choice(out_act, "out_act", OUT_ACTIVATIONS)
    if drop_path_scale is not None:
        check.check_parameters((("drop_path_scale", drop_path_scale, (x.shape[0],), "(N,)"),), x)
        if drop_path_scale.requires_grad:
            raise ValueError("drop_path_scale must not require a gradient: use drop_path_scale.detach()")


# The next two return (name, value, shape, meaning of the shape) of a record's tensors, so that one loop checks all
# tensors of a call. A function of _checks.py is called only if its error may be due: half of a call's time on the host
# is checks, and most of that calls.
def excitation_parameters(fc: ExcitationParams, channels: int) -> tuple[check.Parameter, ...]:
    """The excitation's tensors for C ``channels``, for a check of their shapes, after a check of all else: the names of
    activation and gate, and that there is a weight."""
    fc1_weight, fc2_weight, act, gate = fc.fc1_weight, fc.fc2_weight, fc.act, fc.gate
    if fc2_weight is None:
        check.check_tensor(fc2_weight, "fc2_weight")
    if not isinstance(fc1_weight, Tensor):
        check.check_tensor(fc1_weight, "fc1_weight")
    assert fc1_weight is not None
    size = fc1_weight.shape
    r = size[0] if size else 0
    if r < 1:
        raise ValueError(f"fc1_weight must have at least one output, got shape {tuple(size)}")
    if type(act) is not str or act not in ACTIVATIONS:
        check.check_choice(act, "act", ACTIVATIONS)
    if type(gate) is not str or gate not in GATES:
        check.check_choice(gate, "gate", GATES)
    return (
        ("fc1_weight", fc1_weight, (r, channels), "(R, C)"),
        ("fc1_bias", fc.fc1_bias, (r,), "(R,)"),
        ("fc2_weight", fc2_weight, (channels, r), "(C, R)"),
        ("fc2_bias", fc.fc2_bias, (channels,), "(C,)"),
    )


def batch_norm_parameters(bn: BatchNormParams, x: Tensor, channels: int) -> tuple[check.Parameter, ...]:
    """Batch norm's tensors for C ``channels``, for a check of their shapes, after a check of all else: its settings."""
    running_mean, running_var = bn.running_mean, bn.running_var
    training, momentum, eps = bn.batch_stats, bn.momentum, bn.eps
    if type(training) is not bool:
        check.check_bool(training, "training")
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must both be tensors or both be None")
    if not training and running_mean is None:
        raise ValueError(
            "running_mean and running_var are needed with training=False; pass training=True to normalise by the batch"
        )
    if momentum is None:
        raise TypeError("momentum must be a number; for a cumulative average pass 1 / num_batches_tracked")
    if type(momentum) is not float or not 0.0 <= momentum <= 1.0:
        check.check_number(momentum, "momentum", 0.0, 1.0)
    if type(eps) is not float or not eps >= 0.0:
        check.check_number(eps, "eps", 0.0, float("inf"))
    if training and channels and x.numel() == channels:
        raise ValueError(f"training needs more than one value per channel, got x of shape {tuple(x.shape)}")
    vector = (channels,)
    return (
        ("running_mean", running_mean, vector, "(C,)"),
        ("running_var", running_var, vector, "(C,)"),
        ("bn_weight", bn.weight, vector, "(C,)"),
        ("bn_bias", bn.bias, vector, "(C,)"),
    )


def check_block(x: Tensor, bn: BatchNormParams | None, fc: ExcitationParams | None, options: BlockOptions) -> bool:
    """Checks the arguments of a block; ``bn`` and ``fc`` may be left out.

    Returns:
        Whether a parameter is float64, for which the kernels need another form.
    """
    check.check_x(x)
    check_options(options, x)
    channels = x.shape[1]
    norm = () if bn is None else batch_norm_parameters(bn, x, channels)
    layers = () if fc is None else excitation_parameters(fc, channels)
    return check.check_parameters(norm + layers, x)


class ConvNames(NamedTuple):
    """How messages name the arguments of a 1x1 convolution, weight, bias and map, and the shapes of the first two."""

    weight: str
    bias: str
    x: str
    matrix: str
    vector: str


def check_conv1x1(conv: Conv1x1Params, x: Tensor, names: ConvNames) -> None:
    """Checks weight (C, K) and bias (C,) of a 1x1 convolution of x (N, K, *spatial)."""
    weight = conv.weight
    check.check_tensor(weight, names.weight)
    if weight.dim() < 2 or weight.shape[0] < 1:
        raise ValueError(
            f"{names.weight} must be {names.matrix} or that of a 1x1 convolution, got shape {tuple(weight.shape)}"
        )
    channels = weight.shape[0]
    parameters = (
        (names.weight, weight, (channels, x.shape[1]), names.matrix),
        (names.bias, conv.bias, (channels,), names.vector),
    )
    check.check_parameters(parameters, x, names.x)


# ---- conversion to the form that the kernels need
def common_dtype(x: Tensor, options: BlockOptions) -> tuple[Tensor, BlockOptions]:
    """x and a residual of another dtype in one dtype. Under autocast they are promoted, as in eager mode.

    Raises:
        TypeError: their dtypes differ without autocast.
    """
    residual = options.residual
    assert residual is not None
    check_dtype(residual, "residual", x)
    common = torch.promote_types(x.dtype, residual.dtype)
    return x.to(common), replace(options, residual=residual.to(common))


def _narrow(t: Tensor | None) -> Tensor | None:
    """float64, which the kernels do not have, as float32; others unchanged."""
    return t if t is None or t.dtype != torch.float64 else t.float()


def has_float_settings(bn: BatchNormParams) -> bool:
    """Whether momentum and eps are floats; they may be ints."""
    return type(bn.momentum) is float and type(bn.eps) is float


def kernel_batch_norm(bn: BatchNormParams) -> BatchNormParams:
    """Batch norm's settings as floats, and its tensors without float64; but running statistics that are to be updated
    stay as they are."""
    running_mean, running_var = bn.running_mean, bn.running_var
    if not bn.batch_stats:
        running_mean, running_var = _narrow(running_mean), _narrow(running_var)
    return BatchNormParams(
        running_mean, running_var, _narrow(bn.weight), _narrow(bn.bias), bn.batch_stats, float(bn.momentum),
        float(bn.eps),
    )  # fmt: skip


def has_kernel_form(fc: ExcitationParams) -> bool:
    """Whether the weights of the excitation are contiguous and of one dtype."""
    w1, w2 = fc.fc1_weight, fc.fc2_weight
    assert w1 is not None and w2 is not None
    return w1.is_contiguous() and w2.is_contiguous() and w1.dtype == w2.dtype


def kernel_excitation(fc: ExcitationParams) -> ExcitationParams:
    """The excitation's parameters with contiguous weights of one dtype that is not float64. A weight (R, C, 1, 1) of a
    1x1 convolution keeps its shape, because in both memory formats its memory is that of the matrix (R, C)."""
    fc1_weight, fc2_weight = fc.fc1_weight, fc.fc2_weight
    assert fc1_weight is not None and fc2_weight is not None
    fc1_weight, fc2_weight = fc1_weight.contiguous(), fc2_weight.contiguous()
    if fc1_weight.dtype != fc2_weight.dtype or fc1_weight.dtype == torch.float64:
        fc1_weight, fc2_weight = fc1_weight.float(), fc2_weight.float()
    return ExcitationParams(fc1_weight, _narrow(fc.fc1_bias), fc2_weight, _narrow(fc.fc2_bias), fc.act, fc.gate)


def has_kernel_order(x: Tensor, options: BlockOptions) -> bool:
    """Whether x is dense, the residual has its memory order, and nothing else has to be converted."""
    residual = options.residual
    if options.drop_path_scale is not None:
        return False
    if x.is_contiguous():
        return residual is None or residual.is_contiguous()
    return is_channels_last(x) and (residual is None or residual.stride() == x.stride())


def kernel_options(options: BlockOptions, x: Tensor) -> BlockOptions:
    """The residual in the memory order of the dense x, and the factors of stochastic depth as a vector."""
    residual, drop = options.residual, options.drop_path_scale
    ordered = residual if residual is None else dense_like(residual, x)
    if drop is None and ordered is residual:
        return options
    return BlockOptions(ordered, None if drop is None else _narrow(drop.reshape(-1)), options.out_act)
