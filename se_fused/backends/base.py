"""Base classes of the backends."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .._formats import DTYPES

__all__ = [
    "OPERATIONS",
    "SUPPORTED",
    "Backend",
    "BackendUnavailable",
    "LazyBackend",
    "constant_in_graphs",
    "dtype_reason",
]

WhyNot = Callable[[str, torch.dtype], str | None]


class BackendUnavailable(RuntimeError):
    """Raised if the requested backend, or every backend, cannot run a call. The message gives the reason."""


SUPPORTED = frozenset(DTYPES.values())
_NAMES = ", ".join(list(DTYPES)[:-1]) + " and " + list(DTYPES)[-1]


def dtype_reason(dtype: torch.dtype) -> str | None:
    """None if the kernels support the dtype, else the reason why not."""
    if dtype in SUPPORTED:
        return None
    return f"it takes {_NAMES}, not {str(dtype).removeprefix('torch.')}"


def constant_in_graphs(why_not: WhyNot) -> WhyNot:
    """Marks ``why_not`` so that torch.compile treats its result as a constant instead of tracing it.

    Tracing may reach ``why_not`` before any eager call does, and must not follow its imports and library loading. The
    mark is that of torch.compiler.assume_constant_result, which is not used because it would import torch._dynamo
    together with this package (1 s).
    """

    def reason(device: str, dtype: torch.dtype) -> str | None:
        return why_not(device, dtype)

    reason._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return reason


class Operations:
    """The operators that every backend implements, as plain attributes: the passes, with the arguments of their
    definitions in :mod:`se_fused.ops`, and the whole operator, whose arguments are the records of
    :mod:`se_fused._params`."""

    moments: Any
    scale_shift_act: Any
    moments_backward: Any
    scale_shift_act_backward: Any
    scale_shift_act_mean: Any
    scale_shift_act_mean_backward: Any
    batch_norm_squeeze_excite_forward: Any
    """(x, bn, fc, options, save) -> Results. Updates running statistics that are given with ``batch_stats``; they are
    contiguous and not float64."""
    batch_norm_squeeze_excite_inference: Any
    """(x, bn, fc, options, y) -> None, without batch statistics; saves nothing and writes into y, which may be x."""
    batch_norm_squeeze_excite_backward: Any
    """(dy, saved, bn, fc, options, want_dr) -> Gradients; ``options.residual`` is the saved residual, and running
    statistics and biases of the layers are None."""


OPERATIONS = tuple(Operations.__annotations__)
"""Names of these operators, which are the same in every layer."""


class Backend(Operations):
    """A set of kernels. :mod:`se_fused.ops` defines the operators, their arguments and their results."""

    name: str
    auto_devices: tuple[str, ...]
    """Device types on which ``auto`` may choose it; elsewhere it must be requested by name."""

    plain_from: Mapping[tuple[bool, torch.dtype], int] = {}
    """(gradients wanted, dtype) -> N * C * R from which on ``auto`` runs plain PyTorch if x has one position. The two
    layers are then all the work, and PyTorch's matrix products were measured to be faster."""

    projection_from: Mapping[tuple[bool, bool], int] = {}
    """(gradients recorded, x is channels_last) -> elements of a float32 x from which on ``auto`` fuses the middle of an
    inverted residual block. For a smaller x the separate modules were measured to be faster."""

    residual_block_forward: Any
    """(x, block, save) -> [y, and what the backward pass needs]. Updates running statistics. None if the backend has no
    such operator and the block is composed (:mod:`se_fused.ops.compose_residual_block`)."""

    residual_block_backward: Any
    """(dy, x, block, kept, wanted) -> gradients, as :func:`se_fused.ops.compose_residual_block.compose_backward`. None
    where ``residual_block_forward`` is."""

    conv1x1_squeeze_excite: Any
    """(h, conv, fc, folded, options) -> y, for h in channels_last, in inference. None if the backend has no such
    kernel."""

    packed_conv1x1_squeeze_excite: Any
    """(h, conv, folded, options, y) -> None, for packed weights; y may be the residual. None if the backend has no such
    kernel."""

    batch_norm_act_squeeze: Any
    """(x, bn, out_act, save) -> (y, squeezed, mean, stats), float32 beside y. Updates running statistics as
    ``batch_norm_squeeze_excite_forward`` does. mean is empty unless ``save``; stats is so too without ``batch_stats``.
    None if the backend has no such operator and its passes are composed."""

    batch_norm_act_squeeze_backward: Any
    """(dy, dsqueezed, x, mean, stats, bn, out_act) -> (dx, dbn_weight, dbn_bias), float32 beside dx; running statistics
    are None. None where ``batch_norm_act_squeeze`` is."""

    gated_conv1x1: Any
    """For y in channels_last, in inference; its last argument is an alternative callable with the same result. None if
    the backend has no such kernel."""

    def __getattr__(self, name: str) -> Any:
        """None for an operation that the backend does not have."""
        if name not in OPTIONAL:
            raise AttributeError(name)
        setattr(self, name, None)  # a plain attribute from now on
        return None

    def can_use(self, device: str, dtype: torch.dtype) -> str | None:
        """None if the backend can process a tensor of this device type and dtype, else a short reason why not."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """The state of the backend, such as whether it is built and why it cannot run, for :func:`se_fused.info`."""
        raise NotImplementedError


OPTIONAL = (
    "batch_norm_squeeze_excite_forward",
    "batch_norm_squeeze_excite_inference",
    "batch_norm_squeeze_excite_backward",
    "residual_block_forward",
    "residual_block_backward",
    "batch_norm_act_squeeze",
    "batch_norm_act_squeeze_backward",
    "conv1x1_squeeze_excite",
    "packed_conv1x1_squeeze_excite",
    "gated_conv1x1",
)
"""Names of the operations that a backend may leave out: they are then composed of the passes, or run in PyTorch."""


class LazyBackend(Backend):
    """A GPU backend that is loaded when it is first needed; each operation is looked up at its first use."""

    auto_devices = ("cuda",)
    offered: tuple[str, ...] = OPERATIONS
    """Names of the operations that :meth:`find` returns."""

    def __init__(self) -> None:
        self._reason = constant_in_graphs(self.why_not)

    def load(self) -> str | None:
        """Load the library or modules of the operations, once. Returns None, or the reason why loading failed."""
        raise NotImplementedError

    def find(self, name: str) -> Any:
        """The operation of that name, once :meth:`load` has succeeded."""
        raise NotImplementedError

    def why_not(self, device: str, dtype: torch.dtype) -> str | None:
        """The result of :meth:`can_use`."""
        raise NotImplementedError

    def can_use(self, device: str, dtype: torch.dtype) -> str | None:
        return self._reason(device, dtype)

    def __getattr__(self, name: str) -> Any:
        if name not in self.offered:
            return super().__getattr__(name)
        if (reason := self.load()) is not None:
            raise RuntimeError(reason)
        operation = self.find(name)
        setattr(self, name, operation)  # a plain attribute from now on
        return operation
