"""Channel attention with any gate: the passes over the map are kernels, and the caller supplies the gate."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _checks as check
from .. import reference
from .._params import BlockOptions
from ..ops.channel_gate import rescale, squeeze
from ..ops.layout import dense
from ..ops.operators import through_dispatcher
from ._arguments import check_options, common_dtype, has_kernel_order, kernel_options
from .dispatch import backend_for, left_to_the_compiler

__all__ = ["channel_gate"]


def _checked_factor(factor: Any, x: Tensor) -> Tensor:
    if not isinstance(factor, Tensor):
        raise TypeError(f"gate must return a torch.Tensor, got {type(factor).__name__}")
    if factor.shape != x.shape[:2]:
        raise ValueError(f"gate must return (N, C) = {tuple(x.shape[:2])}, got shape {tuple(factor.shape)}")
    return factor


def channel_gate(
    x: Tensor,
    gate: Callable[[Tensor], Tensor],
    residual: Tensor | None = None,
    *,
    out_act: str | None = None,
    drop_path_scale: Tensor | None = None,
) -> Tensor:
    """Rescale channels by a function of their means: ECA, effective SE, and SE variants without a fused kernel.

    Equivalent to::

        s = gate(x.mean(spatial))                         # (N, C)
        y = out_act(x * s * drop_path_scale + residual)

    x is read twice and y written once; the backward pass goes over the maps twice as well. The gate runs in PyTorch
    between the passes, so autograd gives the gradients of its parameters and of every tensor that it uses.

    Args:
        x: (N, C, *spatial), as in :func:`squeeze_excite`.
        gate: maps the means (N, C), float32 (float64 for float64), to the factor (N, C), any floating dtype.
        residual: tensor to add, of x's shape and dtype, or None.
        out_act: activation after the sum: None, relu, silu or hard_swish.
        drop_path_scale: (N,) factor of each sample's branch, without gradient.

    Returns:
        y of x's shape, dtype and memory format.

    Raises:
        TypeError: an argument is not a tensor or not callable, or has an unsupported dtype. ValueError: a wrong shape,
            device or name.
        BackendUnavailable: the backend requested with :func:`se_fused.use_backend` cannot run the call.
    """
    check.check_x(x)
    if not callable(gate):
        raise TypeError(f"gate must be callable, (N, C) means to an (N, C) factor, got {type(gate).__name__}")
    options = BlockOptions(residual, drop_path_scale, out_act or "none")
    check_options(options, x)
    if residual is not None and residual.dtype != x.dtype:
        x, options = common_dtype(x, options)
    through = through_dispatcher()
    compiling = through and torch.compiler.is_compiling()
    # An exported program would lose the gradients of ops.channel_gate, because its operators have no autograd formulas.
    for_training = compiling and torch.compiler.is_exporting() and torch.is_grad_enabled()
    backend = None
    if not (for_training or (compiling and left_to_the_compiler(training=False))):
        backend = backend_for(x, compiling)
    if backend is None:
        return reference.channel_gate(
            x, lambda m: _checked_factor(gate(m), x), options.residual, out_act=out_act, drop_path_scale=drop_path_scale
        )
    if not has_kernel_order(x, options):
        x = dense(x)
        options = kernel_options(options, x)
    squeezed = squeeze(backend, x, through)
    mean = squeezed.mean
    factor = gate(mean)
    if not isinstance(factor, Tensor) or factor.shape != mean.shape:
        _checked_factor(factor, x)
    if factor.dtype != mean.dtype:
        factor = factor.to(mean.dtype)
    if options.drop_path_scale is not None:
        factor = factor * options.drop_path_scale[:, None].to(factor.dtype)
    return rescale(backend, squeezed, factor.contiguous(), options)
