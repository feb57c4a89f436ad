"""The operator of a 1x1 convolution followed by squeeze-excite: ``se_fused::conv1x1_squeeze_excite``, for inference.

    y = out_act(s * (W3 h + b3) + residual),   s = gate(W2 act(Wf mean(h) + bf) + b2)

with Wf = W1 W3 and bf = W1 b3 + b1, which the caller has folded (``se_fused.functional.fold_squeeze``). For h in
channels_last, a backend's ``conv1x1_squeeze_excite`` may compute it in this form, and a backend's
``packed_conv1x1_squeeze_excite`` does if the caller has packed W3 (``se_fused.functional.pack_conv1x1``). In all other
cases the convolution runs first, and then the block of :mod:`.batch_norm_squeeze_excite`, in place on its output.
"""

from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..activations import ACT_CODES, GATE_CODES, OUT_ACT_CODES
from ..reference import conv1x1
from .batch_norm_squeeze_excite import batch_norm_squeeze_excite
from .dispatch import through_dispatcher
from .layout import dense_like, is_channels_last

__all__ = ["conv1x1_squeeze_excite"]

_library = torch.library.Library("se_fused", "FRAGMENT")  # the operator lives as long as this object
_library.define(
    "conv1x1_squeeze_excite(Tensor h, Tensor conv_weight, Tensor? conv_bias, Tensor fc1_weight, Tensor? fc1_bias,"
    " Tensor fc2_weight, Tensor? fc2_bias, Tensor folded_weight, Tensor folded_bias, Tensor? packed,"
    " Tensor? residual, str act, str gate, str out_act) -> Tensor"
)


def _run(
    backend: backends.Backend,
    h: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    folded_weight: Tensor,
    folded_bias: Tensor,
    packed: Tensor | None,
    residual: Tensor | None,
    act: str,
    gate: str,
    out_act: str,
    *,
    inplace: bool = False,
) -> Tensor:
    # With one channel or one position both orders are the same memory, and the convolution decides which one it
    # returns.
    rows_of_channels = h.dim() > 3 and is_channels_last(h) and not h.is_contiguous()
    codes = ACT_CODES[act], GATE_CODES[gate], OUT_ACT_CODES[out_act]
    if packed is not None and backend.packed_conv1x1_squeeze_excite is not None and rows_of_channels:
        given = residual
        if residual is not None:
            residual = _like_result(residual)
        # Write over the residual if the caller permits it, or if it is a copy made here.
        y = _new_result(h, conv_weight) if residual is None or (residual is given and not inplace) else residual
        backend.packed_conv1x1_squeeze_excite(
            h, packed, conv_bias, folded_weight, folded_bias, fc2_weight, fc2_bias, residual, *codes, y
        )
        return y
    if backend.conv1x1_squeeze_excite is not None and rows_of_channels:
        if residual is not None:
            residual = _like_result(residual)
        y = backend.conv1x1_squeeze_excite(
            h, conv_weight, conv_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, folded_weight, folded_bias, residual,
            *codes,
        )  # fmt: skip
        return y
    u = conv1x1(h, conv_weight, conv_bias)
    if residual is not None:
        residual = dense_like(residual, u)
    none = (None, None, None, None)
    fc = (fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    return batch_norm_squeeze_excite(backend, True, None, u, residual, *none, *fc, None, False, 0.0, act, gate, out_act)


def _channels_last(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def _like_result(residual: Tensor) -> Tensor:
    """The residual in channels_last; not copied if it already is."""
    return residual.contiguous(memory_format=_channels_last(residual))


def _new_result(h: Tensor, conv_weight: Tensor) -> Tensor:
    shape = (h.shape[0], conv_weight.shape[0], *h.shape[2:])
    return torch.empty(shape, dtype=h.dtype, device=h.device, memory_format=_channels_last(h))


def _conv1x1_squeeze_excite(h: Tensor, *args: Any) -> Tensor:
    return _run(backends.select(h.device.type, h.dtype), h, *args)


_library.impl("conv1x1_squeeze_excite", _conv1x1_squeeze_excite, "CompositeExplicitAutograd")


@torch.library.register_fake("se_fused::conv1x1_squeeze_excite", lib=_library)
def _conv1x1_squeeze_excite_fake(h: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, *_: Any) -> Tensor:
    return conv1x1(h, conv_weight, conv_bias)


def conv1x1_squeeze_excite(backend: backends.Backend, *args: Any, inplace: bool) -> Tensor:
    """The operator: through the dispatcher in graphs and under dispatch modes, else directly on ``backend``. Not
    differentiable.

    ``inplace`` permits writing the result over the residual. It has no effect in a graph, which plans its own memory.
    """
    if through_dispatcher():
        y: Tensor = torch.ops.se_fused.conv1x1_squeeze_excite(*args)
        return y
    with torch.no_grad():
        return _run(backend, *args, inplace=inplace)
