"""Squeeze-excite between an activation and a 1x1 projection: the fused operations before and after the excitation.

EfficientNet, MobileNetV3 and RegNetY have blocks of this form: ``y = act(BN(x))``,
``s = gate(fc2(act(fc1(mean y))))``, ``out = proj(s * y)``.
"""

from torch import Tensor

from .. import _checks as check
from .. import reference
from .._params import BatchNormParams, Conv1x1Params
from ..ops.batch_norm_act_squeeze import squeeze
from ..ops.gated_conv1x1 import gated_conv1x1 as operator
from ..ops.layout import dense
from ..ops.rescale import rescale
from ._arguments import (
    ConvNames,
    batch_norm_parameters,
    check_conv1x1,
    check_dtype,
    check_out_act,
    has_float_settings,
    kernel_batch_norm,
)
from .dispatch import backend_for, is_transformed, wants_gradient

__all__ = ["batch_norm_act_squeeze", "gated_conv1x1"]

_NAMES = ConvNames("weight", "bias", "y", "(D, C)", "(D,)")


def batch_norm_act_squeeze(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    out_act: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Batch norm and activation, and the mean of the result over its positions in the same pass.

    Equivalent to ``y = out_act(F.batch_norm(x, ...)); y, y.mean((2, 3))``, differentiable in both results.

    Passes over the map in inference: 2 (x read, y written); PyTorch has 5 (batch norm 2, activation 2, mean 1). In
    training: forward 3 (one more read of x, for the batch statistics) and backward 6 (dy, x -> dr; dr, x -> dx);
    PyTorch has 6 and 12 (sum of the two gradients 4, activation 3, batch norm 5). The gradient of the squeeze is one
    number per sample and channel, which the pass that applies the activation's derivative adds. x and (N, C) vectors
    are saved for the backward pass, and no mask.

    Args:
        x: (N, C, *spatial) with 1 to 3 spatial sizes; float32, bfloat16, float16 (float64 in plain PyTorch). Contiguous
            and channels_last memory is used without a copy; other strides are made contiguous once.
        running_mean, running_var: (C,), or None. They are updated if ``training``, and used for normalisation if not.
        bn_weight, bn_bias: gamma and beta (C,), or None for 1 and 0.
        training: normalise by the batch's statistics, and update the running ones.
        momentum: share of the batch in the running statistics, in [0, 1]. For a cumulative average pass
            1 / num_batches_tracked, as ``torch.nn.BatchNorm2d(momentum=None)`` does.
        eps: added to the variance.
        out_act: None, relu, silu or hard_swish.

    Returns:
        y of x's shape, dtype and memory format, the result of :func:`batch_norm_act`; and squeezed (N, C), float32
        (float64 for float64): the mean of y's values before they are rounded to x's dtype.

    Raises:
        TypeError: an argument is not a tensor, or has an unsupported dtype. ValueError: a wrong shape, device or name.
        BackendUnavailable: the backend requested with :func:`se_fused.use_backend` cannot run the call.
    """
    bn = BatchNormParams(running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
    check.check_x(x)
    if check.check_parameters(batch_norm_parameters(bn, x, x.shape[1]), x) or not has_float_settings(bn):
        narrow = kernel_batch_norm(bn)
    else:
        narrow = bn
    name = check_out_act(out_act)
    backend = backend_for(x)
    if backend is None:
        return reference.batch_norm_act_squeeze(
            x, running_mean, running_var, bn_weight, bn_bias, training=training, momentum=momentum, eps=eps,
            out_act=out_act,
        )  # fmt: skip
    return squeeze(backend, dense(x), narrow, name)


def gated_conv1x1(y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution of ``gate * y``. In inference the scaled map is not stored if that moves less memory.

    Equivalent to ``conv(gate[:, :, None, None] * y)``. There are three implementations in inference:

    - On a GPU with y in channels_last (4-D, 5-D), Triton's 1x1 product multiplies the loaded values by the gate, which
      needs no extra pass. gate * y is rounded to y's dtype, because tensor cores need it, and because a scaled map in
      memory would be rounded the same way. The first call of a shape times it against the following two.
    - The gate is multiplied into the weights of each sample, for one batched product, if that moves less memory than a
      pass over y: without a bias, if D < S (:func:`se_fused.ops.gated_conv1x1.scales_weight` has the count).
    - Otherwise y is scaled in one pass, and convolved.

    If gradients are recorded, y is scaled (2 passes forward, 4 backward; PyTorch has 2 and 6) and convolved; so it is
    under autocast, which then casts the convolution's arguments. With :func:`batch_norm_act_squeeze` before it, the
    middle of a block takes 5 passes forward and 10 backward in training, where PyTorch has 8 and 18.

    Args:
        y: (N, C, *spatial) with 1 to 3 spatial sizes; float32, bfloat16, float16 (float64 in plain PyTorch).
        gate: (N, C), or (N, C, 1, 1); any floating dtype.
        weight: (D, C), or (D, C, 1, 1); y's dtype.
        bias: (D,) or None; y's dtype.

    Returns:
        (N, D, *spatial), y's dtype and memory format.

    Raises:
        TypeError, ValueError: an argument is not a tensor, or has a wrong dtype, shape or device; the message names it.
        BackendUnavailable: the backend requested with :func:`se_fused.use_backend` cannot run the call.
    """
    check.check_x(y, "y")
    check.check_tensor(gate, "gate")
    check.check_parameters((("gate", gate, tuple(y.shape[:2]), "(N, C)"),), y, "y")
    check_conv1x1(Conv1x1Params(weight, bias), y, _NAMES)
    check_dtype(weight, "weight", y, "y")
    check_dtype(bias, "bias", y, "y")
    factor = gate if gate.dim() == 2 else gate.reshape(y.shape[:2])
    backend = backend_for(y)
    if backend is None:
        return reference.gated_conv1x1(y, factor, weight, bias)
    differentiable = wants_gradient(y, gate, weight, bias)
    y = dense(y)
    if differentiable or check.autocasts(y) or is_transformed():
        return reference.conv1x1(rescale(backend, y, factor), weight, bias)
    return operator(backend, y, factor.float().contiguous(), weight, bias)
