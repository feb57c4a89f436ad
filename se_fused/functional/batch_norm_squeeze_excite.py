"""Squeeze-and-excitation and batch norm, together or alone, with the residual and the activation at a block's end."""

import torch
from torch import Tensor

from .. import reference
from .._params import NO_BATCH_NORM, NO_EXCITATION, BatchNormParams, BlockOptions, ExcitationParams
from ..ops.batch_norm_squeeze_excite import batch_norm_squeeze_excite as operator
from ..ops.layout import dense
from ..ops.operators import through_dispatcher
from ._arguments import (
    check_block,
    common_dtype,
    has_float_settings,
    has_kernel_form,
    has_kernel_order,
    kernel_batch_norm,
    kernel_excitation,
    kernel_options,
)
from .dispatch import backend_for, left_to_the_compiler, plain_is_faster

__all__ = ["batch_norm_act", "batch_norm_squeeze_excite", "squeeze_excite"]


def _block(
    x: Tensor, bn: BatchNormParams | None, fc: ExcitationParams | None, options: BlockOptions, inplace: bool
) -> Tensor:
    """The block, by kernels or in plain PyTorch. The arguments are not checked yet; ``bn`` and ``fc`` may be left
    out."""
    any_wide = check_block(x, bn, fc, options)
    residual = options.residual
    if residual is not None and residual.dtype != x.dtype:
        x, options = common_dtype(x, options)
    layers = NO_EXCITATION if fc is None else fc
    norm = NO_BATCH_NORM if bn is None else bn
    through = through_dispatcher()
    compiling = through and torch.compiler.is_compiling()
    backend = None
    if not (compiling and fc is None and left_to_the_compiler(norm.batch_stats)):
        backend = backend_for(x, compiling)
    # A graph always uses the kernels: a condition on sizes would specialise it to these sizes.
    has_one_position = fc is not None and not compiling and x.numel() == x.shape[0] * x.shape[1]
    if backend is None or (has_one_position and plain_is_faster(backend, x, norm, layers, options)):
        return reference.block(x, norm, layers, options)
    if bn is not None and (any_wide or not has_float_settings(bn)):
        norm = kernel_batch_norm(bn)
    if fc is not None and (any_wide or not has_kernel_form(fc)):
        layers = kernel_excitation(fc)
    if not has_kernel_order(x, options):
        x = dense(x)
        options = kernel_options(options, x)
    return operator(backend, x, norm, layers, options, inplace, through)


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
        x: (N, C, *spatial) with 1 to 3 spatial sizes; float32, bfloat16, float16 (float64 in plain PyTorch). Contiguous
            and channels_last memory is used without a copy; other strides are made contiguous once.
        fc1_weight: (R, C), or (R, C, 1, 1) of a 1x1 convolution; any floating dtype.
        fc1_bias: (R,) or None.
        fc2_weight: (C, R), or (C, R, 1, 1).
        fc2_bias: (C,) or None.
        residual: tensor to add, of x's shape and dtype, or None.
        act: activation between the layers: identity, relu, relu6, leaky_relu (slope 0.01), silu, gelu, gelu_tanh,
            hard_swish, mish or tanh.
        gate: sigmoid or hard_sigmoid.
        out_act: activation after the sum: None, relu, silu or hard_swish.
        drop_path_scale: (N,) factor of each sample's branch (stochastic depth: 0 or 1/keep), without gradient.
        inplace: permits writing y over x in inference (no gradient recorded, no batch statistics), which saves an
            allocation and keeps the lines in the caches. The contents of x are then undefined.

    Returns:
        y of x's shape, dtype and memory format. Sums are computed in float32, and y is rounded once.

    Raises:
        TypeError: an argument is not a tensor, or has an unsupported dtype. ValueError: a wrong shape, device or name.
        BackendUnavailable: the backend requested with :func:`se_fused.use_backend` cannot run the call.
    """
    fc = ExcitationParams(fc1_weight, fc1_bias, fc2_weight, fc2_bias, act, gate)
    return _block(x, None, fc, BlockOptions(residual, drop_path_scale, out_act or "none"), inplace)


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
    """Batch norm followed by :func:`squeeze_excite`, the end of an SE-ResNet block, in two reads of x.

    Equivalent to ``squeeze_excite(F.batch_norm(x, ...), ...)``. The normalised map is never stored. For the
    backward pass only x and (N, C) vectors are saved; with relu also one bit per element, with silu and hard_swish also
    the residual.

    Args:
        x: (N, C, *spatial), as in :func:`squeeze_excite`.
        running_mean, running_var: (C,), or None. They are updated if ``training``, and used for normalisation if not.
        bn_weight, bn_bias: gamma and beta (C,), or None for 1 and 0.
        fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual, act, gate, out_act, drop_path_scale, inplace: as in
            :func:`squeeze_excite`.
        training: normalise by the batch's statistics, and update the running ones.
        momentum: share of the batch in the running statistics, in [0, 1]. For a cumulative average pass
            1 / num_batches_tracked, as ``torch.nn.BatchNorm2d(momentum=None)`` does.
        eps: added to the variance.

    Returns, Raises: as :func:`squeeze_excite`.
    """
    bn = BatchNormParams(running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
    fc = ExcitationParams(fc1_weight, fc1_bias, fc2_weight, fc2_bias, act, gate)
    return _block(x, bn, fc, BlockOptions(residual, drop_path_scale, out_act or "none"), inplace)


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
    """Batch norm, residual and activation: the kernels of :func:`batch_norm_squeeze_excite` without the excitation.

    Equivalent to ``out_act(F.batch_norm(x, ...) * drop_path_scale + residual)``. Under ``torch.compile`` in inference
    it runs this expression in plain PyTorch, because the compiler fuses it as well, unless a backend is requested by
    name. Arguments, result and errors are those of :func:`batch_norm_squeeze_excite`.
    """
    bn = BatchNormParams(running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
    return _block(x, bn, None, BlockOptions(residual, drop_path_scale, out_act or "none"), inplace)
