"""Squeeze-and-excitation and batch norm, each with the residual and the activation that close a block."""

from torch import Tensor

from .. import _checks as check
from .. import reference
from ..backends import Backend
from ..ops.batch_norm_squeeze_excite import batch_norm_squeeze_excite as operator
from ..ops.layout import dense, dense_like
from ._arguments import (
    BatchNormTensors,
    ExcitationTensors,
    batch_norm_form,
    check_batch_norm,
    check_block_end,
    check_excitation,
    common_dtype,
    excitation_form,
    without_float64,
)
from .dispatch import backend_for, left_to_the_compiler, plain_is_faster

__all__ = ["batch_norm_act", "batch_norm_squeeze_excite", "squeeze_excite"]

_NONE = (None, None, None, None)


def _run_kernels(
    backend: Backend,
    x: Tensor,
    residual: Tensor | None,
    bn: BatchNormTensors | None,
    fc: ExcitationTensors | None,
    drop_path_scale: Tensor | None,
    out_act: str | None,
    inplace: bool,
    *,
    training: bool = False,
    momentum: float = 0.0,
    eps: float = 0.0,
    act: str = "relu",
    gate: str = "sigmoid",
) -> Tensor:
    """Bring the tensors into the form that kernels take, and run the operator."""
    x = dense(x)
    if residual is not None:
        residual = dense_like(residual, x)
    if drop_path_scale is not None:
        drop_path_scale = drop_path_scale.reshape(-1)
    bn, running = (_NONE, None) if bn is None else batch_norm_form(bn, x, training, momentum)
    tensors = without_float64(*bn, *(_NONE if fc is None else excitation_form(fc)), drop_path_scale)
    return operator(
        backend, inplace, running, x, residual, *tensors, training, float(eps), act, gate, out_act or "none"
    )


def squeeze_excite(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    act: str = "relu",
    gate: str = "sigmoid",
    out_act: str | None = None,
    drop_path_scale: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507), residual and activation, in two reads of x.

    Equivalent to::

        s = gate(fc2(act(fc1(x.mean(spatial)))))          # (N, C)
        y = out_act(x * s * drop_path_scale + residual)

    Args:
        x: (N, C, *spatial) with 1 to 3 spatial sizes; float32, bfloat16, float16 (float64 in plain PyTorch). Taken as
            it is in the contiguous and the channels_last order; other strides are made contiguous once.
        fc1_weight: (R, C), or (R, C, 1, 1) of a 1x1 convolution; any floating dtype.
        fc1_bias: (R,) or None.
        fc2_weight: (C, R), or (C, R, 1, 1).
        fc2_bias: (C,) or None.
        residual: what is added, of x's shape and dtype, or None.
        act: between the layers: identity, relu, relu6, leaky_relu (slope 0.01), silu, gelu, gelu_tanh, hard_swish, mish
            or tanh.
        gate: sigmoid or hard_sigmoid.
        out_act: after the sum: None, relu, silu or hard_swish.
        drop_path_scale: (N,) factor of each sample's branch (stochastic depth: 0 or 1/keep), without gradient.
        inplace: permits y to be written over x in inference (no gradient asked for, statistics given), where that
            saves an allocation and keeps the lines in the caches. What x then holds is undefined.

    Returns:
        y of x's shape, dtype and memory format. Sums run in float32, and y is rounded once.

    Raises:
        TypeError: not a tensor, or a dtype that is not taken. ValueError: a wrong shape, device or name.
        BackendUnavailable: the backend asked for by :func:`se_fused.use_backend` cannot take the call.
    """
    fc = (fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    check.check_x(x)
    check_block_end(x, residual, out_act, drop_path_scale)
    check_excitation(x, x.shape[1], fc, act, gate)
    x, residual = common_dtype(x, residual)
    backend = backend_for(x)
    if backend is None or plain_is_faster(backend, x, *fc, residual):
        return reference.squeeze_excite(
            x, *fc, residual, act=act, gate=gate, out_act=out_act, drop_path_scale=drop_path_scale
        )
    return _run_kernels(backend, x, residual, None, fc, drop_path_scale, out_act, inplace, act=act, gate=gate)


def batch_norm_squeeze_excite(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: str = "relu",
    gate: str = "sigmoid",
    out_act: str | None = None,
    drop_path_scale: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Batch norm and then :func:`squeeze_excite`: the end of an SE-ResNet block, still in two reads of x.

    Equivalent to ``squeeze_excite(F.batch_norm(x, ...), ...)``. The normalised map never exists, and for the backward
    pass only x, one bit per element and (N, C) vectors are kept.

    Args:
        x: (N, C, *spatial), as in :func:`squeeze_excite`.
        running_mean, running_var: (C,), or None. With ``training`` they are moved, without it they are used.
        bn_weight, bn_bias: gamma and beta (C,), or None for 1 and 0.
        fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual, act, gate, out_act, drop_path_scale, inplace: as in
            :func:`squeeze_excite`.
        training: normalise by the batch's statistics.
        momentum: share of the batch in the running statistics, in [0, 1]. For a cumulative average pass
            1 / num_batches_tracked, as ``torch.nn.BatchNorm2d(momentum=None)`` does.
        eps: added to the variance.

    Returns, Raises: as :func:`squeeze_excite`.
    """
    bn = (running_mean, running_var, bn_weight, bn_bias)
    fc = (fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    check.check_x(x)
    check_block_end(x, residual, out_act, drop_path_scale)
    check_batch_norm(x, bn, training, momentum, eps)
    check_excitation(x, x.shape[1], fc, act, gate)
    x, residual = common_dtype(x, residual)
    backend = backend_for(x)
    if backend is None or plain_is_faster(backend, x, *fc, bn_weight, bn_bias, residual):
        return reference.batch_norm_squeeze_excite(
            x, *bn, *fc, residual, training=training, momentum=momentum, eps=eps, act=act, gate=gate, out_act=out_act,
            drop_path_scale=drop_path_scale,
        )  # fmt: skip
    return _run_kernels(
        backend, x, residual, bn, fc, drop_path_scale, out_act, inplace,
        training=training, momentum=momentum, eps=eps, act=act, gate=gate,
    )  # fmt: skip


def batch_norm_act(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    out_act: str | None = "relu",
    drop_path_scale: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """Batch norm, residual and activation: the same kernels without the excitation.

    Equivalent to ``out_act(F.batch_norm(x, ...) * drop_path_scale + residual)``, and just that under ``torch.compile``
    in inference, unless a backend is asked for: the compiler fuses it as well. Arguments, result and errors are those
    of :func:`batch_norm_squeeze_excite`.
    """
    bn = (running_mean, running_var, bn_weight, bn_bias)
    check.check_x(x)
    check_block_end(x, residual, out_act, drop_path_scale)
    check_batch_norm(x, bn, training, momentum, eps)
    x, residual = common_dtype(x, residual)
    backend = None if left_to_the_compiler(training) else backend_for(x)
    if backend is None:
        return reference.batch_norm_act(
            x, *bn, residual, training=training, momentum=momentum, eps=eps, out_act=out_act,
            drop_path_scale=drop_path_scale,
        )  # fmt: skip
    return _run_kernels(
        backend, x, residual, bn, None, drop_path_scale, out_act, inplace, training=training, momentum=momentum, eps=eps
    )
