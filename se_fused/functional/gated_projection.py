"""Squeeze-excite between an activation and a 1x1 projection: the two halves around the excitation.

EfficientNet, MobileNetV3 and RegNetY: ``y = act(BN(x))``, ``s = gate(fc2(act(fc1(mean y))))``, ``out = proj(s * y)``.
"""

from torch import Tensor

from .. import _checks as check
from .. import reference
from ..ops.batch_norm_act_squeeze import squeeze
from ..ops.gated_conv1x1 import gated_conv1x1 as operator
from ..ops.layout import dense
from ..ops.rescale import rescale
from ._arguments import batch_norm_form, check_batch_norm, check_conv1x1, check_dtype, check_out_act, without_float64
from .dispatch import backend_for, is_transformed, wants_gradient

__all__ = ["batch_norm_act_squeeze", "gated_conv1x1"]


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

    Passes over the map: inference 2 (x read, y written), where PyTorch has 5 (batch norm 2, activation 2, mean 1);
    training forward 3 (x is read once more for its statistics, which the map needs) and backward 6 (dy, x -> dr; dr, x
    -> dx), where PyTorch has 6 and 12 (sum of the two gradients 4, activation 3, batch norm 5). The gradient of the
    squeeze is one number per sample and channel: the pass that applies the activation's derivative adds it. Kept for
    the backward pass: x and (N, C) vectors, no mask.

    Args:
        x: (N, C, *spatial) with 1 to 3 spatial sizes; float32, bfloat16, float16 (float64 in plain PyTorch). Taken as
            it is in the contiguous and the channels_last order; other strides are made contiguous once.
        running_mean, running_var: (C,), or None. With ``training`` they are moved, without it they are used.
        bn_weight, bn_bias: gamma and beta (C,), or None for 1 and 0.
        training: normalise by the batch's statistics.
        momentum: share of the batch in the running statistics, in [0, 1]. For a cumulative average pass
            1 / num_batches_tracked, as ``torch.nn.BatchNorm2d(momentum=None)`` does.
        eps: added to the variance.
        out_act: None, relu, silu or hard_swish.

    Returns:
        y of x's shape, dtype and memory format, as :func:`batch_norm_act` gives it; and squeezed (N, C), float32
        (float64 for float64): the mean of y's values before they are rounded to x's dtype.

    Raises:
        TypeError: not a tensor, or a dtype that is not taken. ValueError: a wrong shape, device or name.
        BackendUnavailable: the backend asked for by :func:`se_fused.use_backend` cannot take the call.
    """
    bn = (running_mean, running_var, bn_weight, bn_bias)
    check.check_x(x)
    check_batch_norm(x, bn, training, momentum, eps)
    check_out_act(out_act)
    backend = backend_for(x)
    if backend is None:
        return reference.batch_norm_act_squeeze(x, *bn, training=training, momentum=momentum, eps=eps, out_act=out_act)
    x = dense(x)
    tensors, running = batch_norm_form(bn, x, training, momentum)
    return squeeze(backend, running, x, *without_float64(*tensors), training, float(eps), out_act or "none")


def gated_conv1x1(y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution of ``gate * y``; in inference the scaled map is not written where that moves less memory.

    Equivalent to ``conv(gate[:, :, None, None] * y)``. On a GPU with y in channels_last (4-D, 5-D) Triton's 1x1 product
    multiplies what it has loaded: no pass. The product is rounded to y's dtype, because tensor cores take no other,
    which is what a scaled map in memory would be rounded to. The first call of a shape measures it against the
    following. Elsewhere the weights of each sample take the gate, for one batched product, where that moves less
    memory than a pass over y: without a bias, where D is less than S (:func:`se_fused.ops.gated_conv1x1.scales_weight`
    has the count); else y does, in one pass.

    With a gradient wanted: y is scaled (2 passes forward, 4 backward; PyTorch has 2 and 6) and convolved. With
    :func:`batch_norm_act_squeeze` before it the middle of a block is 5 passes forward and 10 backward in training,
    where PyTorch has 8 and 18. Under autocast as well: the convolution casts what it casts.

    Args:
        y: (N, C, *spatial) with 1 to 3 spatial sizes; float32, bfloat16, float16 (float64 in plain PyTorch).
        gate: (N, C), or (N, C, 1, 1); any floating dtype.
        weight: (D, C), or (D, C, 1, 1); y's dtype.
        bias: (D,) or None; y's dtype.

    Returns:
        (N, D, *spatial), y's dtype and memory format.

    Raises:
        TypeError, ValueError: an argument is no tensor, or of the wrong dtype, shape or device; the message names it.
        BackendUnavailable: a backend was asked for by name and cannot run.
    """
    check.check_x(y, "y")
    check.check_tensor(gate, "gate")
    check.check_parameter(gate, "gate", tuple(y.shape[:2]), "(N, C)", y, "y")
    check_conv1x1(y, weight, bias, ("weight", "bias"), ("D", "C"), "y")
    check_dtype(weight, "weight", y, "y")
    check_dtype(bias, "bias", y, "y")
    factor = gate.reshape(y.shape[:2])
    backend = backend_for(y)
    if backend is None:
        return reference.gated_conv1x1(y, factor, weight, bias)
    differentiable = wants_gradient(y, gate, weight, bias)
    y = dense(y)
    if differentiable or check.autocasts(y) or is_transformed():
        return reference.conv1x1(rescale(backend, y, factor), weight, bias)
    return operator(backend, y, factor.float().contiguous(), weight, bias)
