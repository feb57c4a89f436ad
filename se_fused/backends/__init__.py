"""The backends, one class each, and the choice between them.

A backend implements the passes (``moments``, ``scale_shift_act`` and their backward passes) and, optionally, the whole
operator in one call (``batch_norm_squeeze_excite_forward``, ``_inference`` and ``_backward``; None if it has none). The
class :class:`Backend` has their arguments.
:mod:`se_fused.ops` defines what each of them computes. The choice is made inside the operators, so a compiled graph
does not depend on it, except for ``reference``, which uses no operators.
"""

import os
from types import TracebackType

import torch

from .base import Backend, BackendUnavailable
from .cpu import CpuBackend
from .cuda import CudaBackend
from .triton import TritonBackend

__all__ = [
    "AUTO_ORDER",
    "BACKENDS",
    "Backend",
    "BackendUnavailable",
    "find",
    "forced",
    "select",
    "use_backend",
    "why_not",
]

_triton = TritonBackend()
BACKENDS: dict[str, Backend] = {
    "cuda": CudaBackend(product=_triton),
    "triton": _triton,
    "cpu": CpuBackend(),
}
"""Backends with kernels, in the order in which ``auto`` tries them. ``reference`` means that none is used."""

AUTO_ORDER = tuple(BACKENDS)
NAMES = ("auto", *AUTO_ORDER, "reference")

_AUTO = {
    device: tuple(backend for backend in BACKENDS.values() if device in backend.auto_devices)
    for device in ("cpu", "cuda")
}
"""The backends that ``auto`` tries, by device type."""

_forced: str = "auto"


def _checked(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source} must be one of {', '.join(NAMES)}; got {name!r}")
    return name


_forced = _checked(os.environ.get("SE_FUSED_BACKEND", "auto") or "auto", "environment variable SE_FUSED_BACKEND")


def forced() -> str:
    """The name of the currently requested backend, or ``"auto"``."""
    return _forced


class use_backend:
    """Selects a backend: ``use_backend(name)`` from now on, ``with use_backend(name):`` until the end of the block.

    Args:
        name: ``"auto"``, ``"cuda"``, ``"triton"``, ``"cpu"`` or ``"reference"``. The environment variable
            ``SE_FUSED_BACKEND`` sets the value that a process starts with.

    The setting applies to the whole process, not to a thread. If the selected backend cannot run a call, the call
    raises :class:`BackendUnavailable` with the reason.

    Raises:
        ValueError: an unknown name.
    """

    def __init__(self, name: str) -> None:
        global _forced
        self._previous = _forced
        self._name = _forced = _checked(name, "name")

    def __enter__(self) -> "use_backend":
        global _forced
        _forced = self._name
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _forced
        _forced = self._previous


def why_not(backend: Backend, device: str, dtype: torch.dtype) -> str | None:
    """None if ``auto`` may choose this backend for this device type and dtype, else the reason."""
    reason = backend.can_use(device, dtype)
    if reason is None and device not in backend.auto_devices:
        reason = f"on {device} it runs only if it is requested by name"
    return reason


def _why_none(device: str, dtype: torch.dtype) -> str:
    """The reasons against each backend for ``auto``."""
    return "; ".join(f"{name}: {why_not(backend, device, dtype)}" for name, backend in BACKENDS.items())


def find(device: str, dtype: torch.dtype, name: str | None = None) -> tuple[Backend | None, str]:
    """The backend for a call on this device type and dtype, or None and the reason why the call runs in plain PyTorch.

    Args:
        device, dtype: of the call's map.
        name: the backend to use, ``"auto"`` or ``"reference"``; None for the one that is requested.

    Raises:
        BackendUnavailable: a backend was requested by name and cannot run.
    """
    asked = name or _forced
    if asked == "auto":
        for backend in _AUTO.get(device, ()):  # runs in each call, so reasons are built only if no backend is found
            if backend.can_use(device, dtype) is None:
                return backend, ""
        return None, _why_none(device, dtype)
    if asked == "reference":
        return None, "requested"
    reason = BACKENDS[asked].can_use(device, dtype)
    if reason is not None:
        raise BackendUnavailable(f"backend {asked!r} was requested but cannot run here: {reason}")
    return BACKENDS[asked], ""


def select(device: str, dtype: torch.dtype) -> Backend:
    """The backend for an operator that is already running, for example in a compiled graph. ``reference`` cannot be
    honoured there and counts as ``auto``.

    Raises:
        BackendUnavailable: no backend can run the call, or the one requested by name cannot.
    """
    backend, reason = find(device, dtype, "auto" if _forced == "reference" else _forced)
    if backend is None:
        raise BackendUnavailable(f"no backend can run {dtype} on {device}: {reason}")
    return backend
