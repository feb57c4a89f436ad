"""The Triton backend: the same kernels for any GPU that Triton supports, and for Triton's interpreter on the CPU.

Triton is imported only when a call needs it. If ``TRITON_INTERPRET=1`` is then set in the environment, the kernels run
in Triton's interpreter on CPU tensors. That is slow and only for tests, so ``auto`` never chooses it.
"""

import os
from functools import lru_cache
from importlib import import_module, metadata
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

from ..base import OPERATIONS, LazyBackend, dtype_reason

__all__ = ["TritonBackend"]

_MODULES = ("passes", "batch_norm_squeeze_excite", "conv1x1_squeeze_excite")
_MINIMUM = (8, 0)  # has bfloat16 and 16-byte asynchronous copies; Triton supports nothing older


@lru_cache(maxsize=64)
def _gpu_reason(index: int) -> str | None:
    """None if the GPU of this index can be used, else the reason why not."""
    if torch.version.hip is None and torch.cuda.get_device_capability(index) < _MINIMUM:
        have = ".".join(map(str, torch.cuda.get_device_capability(index)))
        return f"it needs compute capability 8.0 or later; {torch.cuda.get_device_name(index)} has {have}"
    return None


def _asks_for_interpreter() -> bool:
    """Whether TRITON_INTERPRET is set, by the rule that Triton applies when kernels are imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def _interpreter_reason() -> str | None:
    """None if Triton's interpreter works with the installed numpy, else the reason why not. With an unsuitable numpy,
    loops whose bounds are only known at run time fail."""

    def version(package: str) -> tuple[int, ...]:
        return tuple(int(part) for part in metadata.version(package).split(".")[:2])

    if version("triton") <= (3, 6) and version("numpy") >= (2, 4):
        return "the interpreter of Triton 3.6 and before does not run with numpy 2.4 and later: pip install 'numpy<2.4'"
    return None


class TritonBackend(LazyBackend):
    """The passes, excitation and the whole operator in Triton, for float32, bfloat16 and float16."""

    name = "triton"
    offered = (*OPERATIONS, "conv1x1_squeeze_excite", "gated_conv1x1")

    def __init__(self) -> None:
        super().__init__()
        self._modules: tuple[ModuleType, ...] = ()
        self._error: str | None = None if find_spec("triton") else "Triton is not installed: pip install triton"
        self._interprets = False

    def load(self) -> str | None:
        """Import Triton and the kernels, once. Returns None, or the reason why the import failed."""
        if not self._modules and self._error is None:
            try:
                self._interprets = _asks_for_interpreter()
                self._modules = tuple(import_module(f".{name}", __name__) for name in _MODULES)
            except Exception as error:  # Triton raises many types, for example for an old driver or a broken install
                self._error = f"Triton does not load: {type(error).__name__}: {error}"
        return self._error

    def why_not(self, device: str, dtype: torch.dtype) -> str | None:
        if (reason := dtype_reason(dtype)) is not None:
            return reason
        if device == "cuda":
            return self.load() or _gpu_reason(torch.cuda.current_device())
        if device != "cpu":
            return f"it takes tensors on a GPU, not on {device}"
        if self._error is not None:
            return self._error
        if not (self._interprets if self._modules else _asks_for_interpreter()):
            return "on the CPU it runs only in Triton's interpreter, which is for tests (TRITON_INTERPRET=1)"
        return self.load() or _interpreter_reason()

    def describe(self) -> dict[str, Any]:
        if self._error is not None:
            return {"built": False, "reason": self._error}
        found = {"built": True, "triton": metadata.version("triton"), "interpreter": self._interprets}
        if self._modules:  # known once Triton is imported
            reason = import_module(".compiled_launch", __name__).why_not()
            found["launches"] = (
                "remembered" if reason is None else f"through Triton's JITFunction.run, because {reason}"
            )
        return found

    def find(self, name: str) -> Any:
        return next(getattr(module, name) for module in self._modules if name in module.__all__)
