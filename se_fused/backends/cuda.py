"""The CUDA backend (csrc/cuda). Its library is loaded when it is first needed; a load error is stored and reported as
the reason why the backend cannot run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from .._build import find_library, recorded
from .base import OPERATIONS, Backend, LazyBackend, dtype_reason
from .compiled import with_records

__all__ = ["CudaBackend"]

_LIBRARY = find_library("_C_cuda")
_PLANS = ("cluster_fused", "l2_grouped", "separate")


def _checked_plan(path: str, source: str) -> str:
    if path and path not in _PLANS:
        raise ValueError(f"{source} must be one of {', '.join(_PLANS)}, or empty for the rule; got {path!r}")
    return path


@lru_cache(maxsize=64)
def _problem(index: int) -> str:
    return str(torch.ops.se_fused_cuda.problem(index))


class CudaBackend(LazyBackend):
    """The passes, excitation and the whole operator in CUDA C++, for float32, bfloat16 and float16 on sm_80 and later.

    The environment variable ``SE_FUSED_CUDA_PLAN`` sets the :meth:`forced_plan` that a process starts with, and
    ``SE_FUSED_PDL`` whether its :meth:`programmatic_launches` are on.

    Args:
        library: the shared library to load.
        device: the device type of its tensors. Tests use ``"cpu"``, with a build of the kernels' source for the CPU.
        product: a backend that has ``conv1x1_squeeze_excite`` and ``gated_conv1x1``, which the CUDA library has not.
        namespace: the namespace of the library's operators.
    """

    name = "cuda"
    offered = (*OPERATIONS, "residual_block_forward", "residual_block_backward")

    def __init__(
        self,
        library: Path = _LIBRARY,
        device: str = "cuda",
        product: Backend | None = None,
        namespace: str = "se_fused_cuda",
    ) -> None:
        super().__init__()
        self.library, self._device, self._product = library, device, product
        self._operators = getattr(torch.ops, namespace)
        self._loaded = False
        self._error: str | None = None

    def load(self) -> str | None:
        """Load the library, once. Returns None, or the reason why its operators are not available."""
        if self._loaded or self._error is not None:
            return self._error
        path = _checked_plan(os.environ.get("SE_FUSED_CUDA_PLAN", ""), "environment variable SE_FUSED_CUDA_PLAN")
        overlap = os.environ.get("SE_FUSED_PDL") or "1"
        if overlap not in ("0", "1"):
            raise ValueError(f"environment variable SE_FUSED_PDL must be 0 or 1; got {overlap!r}")
        if not self.library.exists():
            why = recorded()["note"] or f"{self.library.name} is missing"
            self._error = (
                f"the CUDA library is not built ({why}); "
                "SE_FUSED_BUILD=cuda pip install --no-build-isolation . builds it or says what that needs"
            )
        elif self._device == "cuda" and torch.version.cuda is None:
            self._error = f"torch {torch.__version__} is a build without CUDA"
        else:
            try:
                torch.ops.load_library(str(self.library))
                if self._device == "cuda" and not torch.cuda.is_available():
                    self._error = "torch sees no GPU"
                self._loaded = self._error is None
                if self._loaded and path:
                    self._operators.force_plan(path)
                if self._loaded and overlap == "0":
                    self._operators.set_programmatic_launches(False)
            except (OSError, RuntimeError) as error:  # built for another CUDA, or a symbol is missing
                self._error = f"{self.library.name} does not load: {error}"
        return self._error

    def why_not(self, device: str, dtype: torch.dtype) -> str | None:
        if device != self._device:
            return f"it takes tensors on a GPU, not on {device}"
        reason = dtype_reason(dtype) or self.load()
        if reason is None and device == "cuda":
            reason = _problem(torch.cuda.current_device()) or None
        return reason

    def describe(self) -> dict[str, Any]:
        reason = self.load()
        if reason is not None:
            return {"built": self.library.exists(), "reason": reason}
        described: dict[str, Any] = {"built": True, "library": self.library.name}
        if self._device == "cuda" and (problem := _problem(torch.cuda.current_device())):
            return described | {"reason": problem}
        why = self._operators.why_not_programmatic(self._current_device())
        described["programmatic launches"] = f"no: {why}" if why else "yes"
        stages = ((256, 56), (512, 28), (1024, 14), (2048, 7))
        plans = {f"(128, {c}, {s}, {s})": self.plan(128, c, s * s, True, 2, c // 16) for c, s in stages}
        return described | {"inference of ResNet-50's stages, 16 bits, channels_last": plans}

    def plan(
        self, n: int, c: int, s: int, channels_last: bool, item_bytes: int, r: int, weight_bytes: int | None = None
    ) -> str:
        """A description of how inference of a map (N, C, S positions) with R squeezed channels runs on the current
        device, and why. ``weight_bytes`` is the size of an element of the weights if it is not that of the map."""
        more = () if weight_bytes is None else (weight_bytes,)
        given = (n, c, s, channels_last, item_bytes, r, self._current_device(), *more)
        return str(self._operators.plan(*given))

    def _current_device(self) -> int:
        return torch.cuda.current_device() if self._device == "cuda" else 0

    @contextmanager
    def forced_plan(self, path: str) -> Iterator[None]:
        """Forces the path of inference until the end of the block, for tests and measurements: ``"cluster_fused"``,
        ``"l2_grouped"`` or ``"separate"``; ``""`` lets the rule choose.

        The setting applies to the whole process, not to a thread. It is read when an operator is called, so a CUDA
        graph keeps the path that it was captured with. A map that the path cannot process raises RuntimeError with the
        reason, which :meth:`plan` also gives.

        Raises:
            ValueError: an unknown path.
            RuntimeError: the library does not load.
        """
        if (reason := self.load()) is not None:
            raise RuntimeError(reason)
        before = self._operators.force_plan(_checked_plan(path, "path"))
        try:
            yield
        finally:
            self._operators.force_plan(before)

    @contextmanager
    def programmatic_launches(self, on: bool) -> Iterator[None]:
        """Switches programmatic dependent launches on or off until the end of the block, to compare the two. With them,
        the launches of a call overlap at their ends, on devices and drivers that have them.

        The setting applies to the whole process, not to a thread. It is read when an operator is called, so a CUDA
        graph keeps the launches that it was captured with.

        Raises:
            RuntimeError: the library does not load.
        """
        if (reason := self.load()) is not None:
            raise RuntimeError(reason)
        before = self._operators.set_programmatic_launches(on)
        try:
            yield
        finally:
            self._operators.set_programmatic_launches(before)

    @property
    def conv1x1_squeeze_excite(self) -> Any:
        """``conv1x1_squeeze_excite`` of the ``product`` backend. For each shape it is timed against the convolution
        followed by this backend's block, and the faster one is used. None without such a backend."""
        if self._product is None or self._product.can_use(self._device, torch.float32) is not None:
            return None
        return partial(
            self._product.conv1x1_squeeze_excite, block=self.batch_norm_squeeze_excite_inference, block_name=self.name
        )

    @property
    def gated_conv1x1(self) -> Any:
        """``gated_conv1x1`` of the ``product`` backend. For each shape it is timed against the alternative that the
        caller passes, and the faster one is used. None without such a backend."""
        if self._product is None or self._product.can_use(self._device, torch.float32) is not None:
            return None
        return self._product.gated_conv1x1

    def find(self, name: str) -> Any:
        return with_records(self._operators, name)
