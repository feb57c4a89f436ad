"""The operator of a 1x1 convolution followed by squeeze-excite: ``se_fused::conv1x1_squeeze_excite``, for inference.

    y = out_act(s * (W3 h + b3) + residual),   s = gate(W2 act(Wf mean(h) + bf) + b2)

with Wf = W1 W3 and bf = W1 b3 + b1, which the caller has folded (``se_fused.functional.fold_squeeze``). For h in
channels_last, a backend's ``conv1x1_squeeze_excite`` may compute it in this form, and a backend's
``packed_conv1x1_squeeze_excite`` does if the caller has packed W3 (``se_fused.functional.pack_conv1x1``). In all other
cases the convolution runs first, and then the block of :mod:`.batch_norm_squeeze_excite`, in place on its output.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .. import backends
from .._params import NO_BATCH_NORM, BlockOptions, Conv1x1Params, ExcitationParams
from ..reference import conv1x1
from .batch_norm_squeeze_excite import batch_norm_squeeze_excite
from .layout import dense_like, is_channels_last
from .operators import define, through_dispatcher

__all__ = ["Arguments", "conv1x1_squeeze_excite"]


class Arguments(NamedTuple):
    """Arguments of the operator. Programs that were exported contain them in this order."""

    h: Tensor
    conv_weight: Tensor
    conv_bias: Tensor | None
    fc1_weight: Tensor
    fc1_bias: Tensor | None
    fc2_weight: Tensor
    fc2_bias: Tensor | None
    folded_weight: Tensor
    folded_bias: Tensor
    packed: Tensor | None
    residual: Tensor | None
    act: str
    gate: str
    out_act: str


def _run(
    backend: backends.Backend,
    h: Tensor,
    conv: Conv1x1Params,
    fc: ExcitationParams,
    folded: ExcitationParams,
    options: BlockOptions,
    inplace: bool = False,
) -> Tensor:
    # With one channel or one position both orders are the same memory, and the convolution decides which one it
    # returns. The result may have one channel too.
    has_one_order = h.is_contiguous() or conv.weight.shape[0] == 1
    rows_of_channels = h.dim() > 3 and is_channels_last(h) and not has_one_order
    given = options.residual
    if conv.packed is not None and backend.packed_conv1x1_squeeze_excite is not None and rows_of_channels:
        options = _like_result(options)
        # Write over the residual if the caller permits it, or if it is a copy made here.
        own = options.residual is not given or inplace
        residual = options.residual
        if residual is None:
            y = _new_result(h, conv.weight)
        else:
            y = residual if own else torch.empty_like(residual)
        backend.packed_conv1x1_squeeze_excite(h, conv, folded, options, y)
        return y
    if backend.conv1x1_squeeze_excite is not None and rows_of_channels:
        y = backend.conv1x1_squeeze_excite(h, conv, fc, folded, _like_result(options))
        return y
    u = conv1x1(h, conv.weight, conv.bias)
    if given is not None:
        options = replace(options, residual=dense_like(given, u))
    return batch_norm_squeeze_excite(backend, u, NO_BATCH_NORM, fc, options, True, through_dispatcher())


def _channels_last(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def _like_result(options: BlockOptions) -> BlockOptions:
    """The options with the residual in channels_last; not copied if it already is."""
    residual = options.residual
    if residual is None or is_channels_last(residual):
        return options
    return replace(options, residual=residual.contiguous(memory_format=_channels_last(residual)))


def _new_result(h: Tensor, conv_weight: Tensor) -> Tensor:
    shape = (h.shape[0], conv_weight.shape[0], *h.shape[2:])
    return torch.empty(shape, dtype=h.dtype, device=h.device, memory_format=_channels_last(h))


def _operator(a: Arguments) -> Tensor:
    return _run(
        backends.select(a.h.device.type, a.h.dtype),
        a.h,
        Conv1x1Params(a.conv_weight, a.conv_bias, a.packed),
        ExcitationParams(a.fc1_weight, a.fc1_bias, a.fc2_weight, a.fc2_bias, a.act, a.gate),
        ExcitationParams(a.folded_weight, a.folded_bias, a.fc2_weight, a.fc2_bias, a.act, a.gate),
        BlockOptions(a.residual, None, a.out_act),
    )


define("conv1x1_squeeze_excite", Arguments, Tensor, _operator, lambda a: conv1x1(a.h, a.conv_weight, a.conv_bias))


def conv1x1_squeeze_excite(
    backend: backends.Backend,
    h: Tensor,
    conv: Conv1x1Params,
    fc: ExcitationParams,
    folded: ExcitationParams,
    options: BlockOptions,
    inplace: bool,
) -> Tensor:
    """The operator: through the dispatcher in graphs and under dispatch modes, else directly on ``backend``. Not
    differentiable.

    Args:
        backend: the backend whose kernels run.
        h: (N, K, *spatial), dense.
        conv, fc, options: checked, in the form that the kernels need.
        folded: ``fc`` with the convolution folded into FC1 (``se_fused.functional.fold_squeeze``).
        inplace: permits writing the result over the residual. It has no effect in a graph, which plans its own memory.
    """
    if through_dispatcher():
        assert fc.fc1_weight is not None and fc.fc2_weight is not None
        assert folded.fc1_weight is not None and folded.fc1_bias is not None
        y: Tensor = torch.ops.se_fused.conv1x1_squeeze_excite(
            *Arguments(
                h, conv.weight, conv.bias, fc.fc1_weight, fc.fc1_bias, fc.fc2_weight, fc.fc2_bias, folded.fc1_weight,
                folded.fc1_bias, conv.packed, options.residual, fc.act, fc.gate, options.out_act,
            )
        )  # fmt: skip
        return y
    if not torch.is_grad_enabled():  # no_grad takes 10,000 instructions
        return _run(backend, h, conv, fc, folded, options, inplace)
    with torch.no_grad():
        return _run(backend, h, conv, fc, folded, options, inplace)
