"""The C++ backend (csrc/cpu). Its library is loaded on import; a load error is stored and reported when the backend is
needed."""

from collections.abc import Mapping
from typing import Any

import torch

from .._build import find_library
from .base import OPERATIONS, SUPPORTED, Backend, dtype_reason
from .compiled import with_records

__all__ = ["CpuBackend"]

_LIBRARY = find_library("_C_cpu")


def _load() -> str | None:
    """Load the library. Returns None, or the reason why its operators are not available."""
    if not _LIBRARY.exists():
        return (
            "the C++ library is not built: install a C++ compiler (Debian: apt-get install g++) and reinstall with "
            "SE_FUSED_BUILD=cpu pip install --no-build-isolation ."
        )
    try:
        torch.ops.load_library(str(_LIBRARY))
    except (OSError, RuntimeError) as error:  # built for another torch or machine, or a symbol is missing
        return f"{_LIBRARY.name} does not load: {error}"
    return None


_MORE = (
    "residual_block_forward",
    "residual_block_backward",
    "packed_conv1x1_squeeze_excite",
    "batch_norm_act_squeeze",
    "batch_norm_act_squeeze_backward",
)
"""Operators that a backend may leave out."""


class CpuBackend(Backend):
    """The passes, excitation and the whole operator in C++, for float32, bfloat16 and float16, with AVX-512, AVX2 or
    the compiler's default instruction set."""

    name = "cpu"
    library = _LIBRARY
    auto_devices = ("cpu",)
    conv1x1_squeeze_excite = None  # it would have to pack the weights in every call
    gated_conv1x1 = None
    # Measured: benchmarks/NOTES.md, "Shapes at which se_fused is not faster". In 16 bits the kernels are faster than
    # plain PyTorch up to larger products than in float32.
    plain_from: Mapping[tuple[bool, torch.dtype], int] = {
        (False, torch.float32): 2**24,
        (True, torch.float32): 2**22,
        (True, torch.bfloat16): 2**24,
    }

    projection_from: Mapping[tuple[bool, bool], int] = {
        (False, False): 2**19,
        (False, True): 5 * 2**18,
        (True, False): 2**19,
        (True, True): 2**19,
    }

    def __init__(self) -> None:
        self.load_error = _load()
        if self.load_error is None:
            for operation in (*OPERATIONS, *_MORE):
                setattr(self, operation, with_records(torch.ops.se_fused_cpu, operation))

    def can_use(self, device: str, dtype: torch.dtype) -> str | None:
        if device != "cpu":
            return f"it takes tensors on the CPU, not on {device}"
        return self.load_error if dtype in SUPPORTED else dtype_reason(dtype)

    def describe(self) -> dict[str, Any]:
        if self.load_error is not None:
            return {"built": _LIBRARY.exists(), "reason": self.load_error}
        return {"built": True, "library": _LIBRARY.name, "instructions": self.capability()}

    @staticmethod
    def capability(cap: str | None = None) -> str:
        """The instruction set in use: ``"default"``, ``"avx2"`` or ``"avx512"``.

        Args:
            cap: the highest instruction set to use from now on, in this process; ``""`` removes the cap and None leaves
                it unchanged. The environment variable ``ATEN_CPU_CAPABILITY`` sets the cap that a process starts with,
                as it does in PyTorch.
        """
        return str(torch.ops.se_fused_cpu.capability(cap))
