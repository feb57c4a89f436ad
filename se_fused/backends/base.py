"""What a backend is."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._formats import DTYPES

__all__ = [
    "OPERATIONS",
    "Backend",
    "BackendUnavailable",
    "LazyBackend",
    "Running",
    "constant_in_graphs",
    "dtype_reason",
]

WhyNot = Callable[[str, torch.dtype], str | None]


class Running(NamedTuple):
    """Batch norm's running statistics, to be moved towards the batch's: new = old + momentum (batch - old)."""

    mean: Tensor  # (C,)
    var: Tensor  # (C,)
    momentum: float
    unbias: float  # the batch's variance times this is what moves var: count / (count - 1)


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot take the call; the message says why."""


_TAKEN = tuple(DTYPES.values())


def dtype_reason(dtype: torch.dtype) -> str | None:
    """None for a dtype that kernels take, else why not."""
    if dtype in _TAKEN:
        return None
    return f"it takes float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"


def constant_in_graphs(why_not: WhyNot) -> WhyNot:
    """``why_not``, whose answer torch.compile takes as it is.

    It may ask while it traces, before any other call: it must not follow imports and the loading of libraries. That is
    torch.compiler.assume_constant_result, which would import torch._dynamo with us (1 s).
    """

    def reason(device: str, dtype: torch.dtype) -> str | None:
        return why_not(device, dtype)

    reason._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return reason


class Operations:
    """The passes and the whole op, which every backend has, as plain attributes."""

    moments: Any
    scale_shift_act: Any
    moments_backward: Any
    scale_shift_act_backward: Any
    scale_shift_act_mean: Any
    scale_shift_act_mean_backward: Any
    batch_norm_squeeze_excite_inference: Any  # without saving, into its last argument y, which may be x
    batch_norm_squeeze_excite_backward: Any


OPERATIONS = tuple(Operations.__annotations__)
"""Their names, which are the same in every layer."""


class Backend(Operations):
    """A set of kernels. The operators' meaning, arguments and results are those of :mod:`se_fused.ops`."""

    name: str
    auto_devices: tuple[str, ...]
    """Device types on which ``auto`` may take it; elsewhere it must be asked for by name."""

    moves_running = False
    """Whether ``batch_norm_squeeze_excite_forward`` takes a :class:`Running` as one more argument and moves it in the
    same launches."""

    plain_from: Mapping[tuple[bool, torch.dtype], int] = {}
    """By whether a gradient is asked for, and dtype: from so many products N C R on, ``auto`` runs plain PyTorch where
    x has one position. The two layers are all the work there, and its products were measured to be faster."""

    projection_from: Mapping[tuple[bool, bool], int] = {}
    """By whether gradients are recorded, and whether x is channels_last: elements of a float32 x from which on ``auto``
    fuses the middle of an inverted residual block. For smaller ones its modules were measured to be faster."""

    batch_norm_squeeze_excite_forward: Any
    """With a :class:`Running` as one more argument where it ``moves_running``."""

    conv1x1_squeeze_excite: Any
    """Of h in channels_last, in inference; None where there is none."""

    packed_conv1x1_squeeze_excite: Any
    """From packed weights into its last argument y, which may be the residual; None where there is none."""

    gated_conv1x1: Any
    """Of y in channels_last, in inference, with what else could be called as its last argument; None where there is
    none."""

    def can_use(self, device: str, dtype: torch.dtype) -> str | None:
        """None if a tensor of this device type and dtype can be taken, else the reason why not, in a few words."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What is built and found, for :func:`se_fused.info`."""
        raise NotImplementedError


class LazyBackend(Backend):
    """A GPU's backend: loaded when it is first asked for, its operations looked up when they are first used."""

    auto_devices = ("cuda",)
    moves_running = True
    packed_conv1x1_squeeze_excite = None
    offered: tuple[str, ...] = OPERATIONS
    """The operations that :meth:`find` knows."""

    def __init__(self) -> None:
        self._reason = constant_in_graphs(self.why_not)

    def load(self) -> str | None:
        """Load what the operations need, once. Returns None, or the reason why they are not there."""
        raise NotImplementedError

    def find(self, name: str) -> Any:
        """The operation of that name, once :meth:`load` has succeeded."""
        raise NotImplementedError

    def why_not(self, device: str, dtype: torch.dtype) -> str | None:
        """What :meth:`can_use` answers."""
        raise NotImplementedError

    def can_use(self, device: str, dtype: torch.dtype) -> str | None:
        return self._reason(device, dtype)

    def __getattr__(self, name: str) -> Any:
        if name not in self.offered:
            raise AttributeError(name)
        if (reason := self.load()) is not None:
            raise RuntimeError(reason)
        operation = self.find(name)
        setattr(self, name, operation)  # a plain attribute from now on
        return operation
