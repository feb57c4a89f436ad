"""What a device can do at most: the speed of copies, through caches and through memory, and of matrix products.

Kernels bound by memory are compared with ``copy_``, not with a data sheet: it is the fastest that PyTorch itself moves
as many bytes here.
"""

import math
import os
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .device_state import theoretical_bandwidth
from .timing import in_turn, primed, sampler

__all__ = [
    "cache_bytes",
    "copier",
    "copy_bandwidth",
    "copy_limits",
    "larger_than_cache",
    "limits",
    "matmul_flops",
    "rotation",
]

MIB = 2**20
_CPUS = Path("/sys/devices/system/cpu")
_MEMINFO = Path("/proc/meminfo")
_GPU_MATMUL = 8192
"""Rows and columns: 4096 tiles of 128 x 128 of the result, some thirty for each multiprocessor of an H200."""
_CPU_MATMUL_SECONDS = 0.2


# ---- caches
def _cpu_cache_bytes() -> int | None:
    """Last-level caches that the CPUs of this process have, together; None where sysfs does not say."""
    affinity = getattr(os, "sched_getaffinity", None)
    found: dict[tuple[int, str], int] = {}  # (level, CPUs that share it): bytes
    for cpu in affinity(0) if affinity is not None else range(os.cpu_count() or 1):
        for folder in (_CPUS / f"cpu{cpu}" / "cache").glob("index*"):
            try:
                level, shared, size = (
                    (folder / name).read_text().strip() for name in ("level", "shared_cpu_list", "size")
                )
                found[int(level), shared] = int(size[:-1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[size[-1]]
            except (OSError, ValueError, KeyError, IndexError):
                continue
    last = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == last) or None


def cache_bytes(device: str | torch.device) -> int:
    """Bytes of the last-level caches: a GPU's L2; of a CPU those of all CPUs that this process may use.

    From ``torch.cuda.get_device_properties`` and sysfs; 64 MiB for a GPU, 32 MiB for a CPU where they do not say.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 * MIB))
    return _cpu_cache_bytes() or 32 * MIB


def larger_than_cache(device: str | torch.device) -> int:
    """Bytes of a working set that no cache of the device holds.

    Four times the last level, but 256 MiB to 2 GiB, and at least twice the last level.
    """
    last = cache_bytes(device)
    return max(min(max(4 * last, 256 * MIB), 2048 * MIB), 2 * last)


def _free_bytes(device: torch.device) -> int | None:
    """Memory that is free; None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024  # "kB" of proc(5) are KiB
    except (OSError, ValueError, IndexError):
        pass
    return None


def rotation(nbytes: int, device: str | torch.device) -> int:
    """How many sets of nbytes, used one after another, make a rotation that no cache holds.

    So many that :func:`larger_than_cache` bytes of the others go by between two uses of one: 2 or more; fewer, and then
    the caches may hold some of it, where they would take more than a quarter of the free memory
    (``torch.cuda.mem_get_info``; ``MemAvailable``). At least 1.

    Args:
        nbytes: of one set, inputs and results, >= 1.
        device: where.

    Raises:
        ValueError: nbytes is too small.
    """
    if nbytes < 1:
        raise ValueError(f"nbytes must be at least 1, got {nbytes}")
    device = torch.device(device)
    sets = 1 + math.ceil(larger_than_cache(device) / nbytes)
    free = _free_bytes(device)
    return sets if free is None else max(min(sets, free // 4 // nbytes), 1)


# ---- copies
def copier(device: str | torch.device, working_set: int) -> Callable[[], Tensor]:
    """A call of ``torch.Tensor.copy_`` that reads working_set / 2 bytes and writes as many; float32, random."""
    generator = torch.Generator(device).manual_seed(0)  # the caller's random numbers stay what they are
    source = torch.rand(max(working_set // 8, 1), dtype=torch.float32, device=device, generator=generator)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def _copiers(device: str | torch.device, working_set: int, cold: bool) -> list[Callable[[], Tensor]]:
    return [copier(device, working_set) for _ in range(rotation(working_set, device) if cold else 1)]


def copy_bandwidth(
    device: str | torch.device, working_set: int | None = None, repeats: int = 7, cold: bool = False
) -> float:
    """Bytes per second of ``copy_``, read and written together: what kernels bound by memory are compared with.

    Args:
        device: where.
        working_set: bytes of source and target together; None for one far larger than the caches. A small one measures
            the cache that it fits into, unless cold.
        repeats: measurements of which the median counts.
        cold: copy among as many pairs in rotation as no cache holds; see :func:`rotation`.
    """
    size = larger_than_cache(device) if working_set is None else working_set
    sample = sampler(_copiers(device, size, cold), device)
    return size / statistics.median(in_turn({"": sample}, repeats, warmup=2)[""])


def copy_limits(device: str | torch.device, working_sets: Iterable[int], repeats: int = 7) -> list[dict[str, float]]:
    """Speed of ``copy_`` on working sets of several sizes, out of the caches and out of memory.

    Args:
        device: where.
        working_sets: bytes of source and target together, each.
        repeats: measurements of which the median counts; warm and cold are taken in turn.

    Returns:
        For each size ``working_set_bytes``, ``warm`` and ``cold`` in bytes per second, read and written together.
        ``cold`` is absent where there is no memory for a rotation that no cache holds (:func:`rotation`).
    """
    found = []
    for size in working_sets:
        samplers = {"warm": primed(sampler(_copiers(device, size, False), device))}
        if (rotation(size, device) - 1) * size >= larger_than_cache(device):
            samplers["cold"] = sampler(_copiers(device, size, True), device)
        seconds = in_turn(samplers, repeats, warmup=2)
        speeds = {name: size / statistics.median(values) for name, values in seconds.items()}
        found.append({"working_set_bytes": size, **speeds})
    return found


# ---- arithmetic
def matmul_flops(device: str | torch.device, dtype: torch.dtype, repeats: int = 7) -> float:
    """Floating-point operations per second of ``torch.mm`` on square matrices of normal random numbers.

    It is what that library call reaches, not the hardware's peak: where a CPU has no matrix unit for bfloat16, less
    than with float32.

    A product of n x n matrices counts 2 * n**3, a multiplication and an addition each. n is 8192 on a GPU; on a CPU it
    doubles from 256 for as long as one product is expected to take less than 0.2 s. Whether float32 products may use
    TF32 or bfloat16 is left as it is set (``torch.set_float32_matmul_precision``; by default they may not).

    Args:
        device: where.
        dtype: of both matrices and their product.
        repeats: measurements of which the fastest counts: a roof is what can be reached.
    """
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(0)

    def product(n: int) -> Callable[[], Any]:
        a, b = (torch.randn(n, n, device=device, generator=generator).to(dtype) for _ in range(2))
        out = torch.empty(n, n, dtype=dtype, device=device)
        return lambda: torch.mm(a, b, out=out)

    n = _GPU_MATMUL if device.type == "cuda" else 256
    if device.type != "cuda":
        while 8 * primed(sampler(product(n), device))() < _CPU_MATMUL_SECONDS and n < _GPU_MATMUL:
            n *= 2
    seconds = in_turn({"": sampler(product(n), device)}, repeats)[""]
    return 2 * n**3 / min(seconds)


def limits(device: str | torch.device, dtypes: Iterable[torch.dtype], working_sets: Iterable[int]) -> dict[str, Any]:
    """What bounds any implementation on this device, for JSON.

    Args:
        device: where.
        dtypes: for the speed of matrix products.
        working_sets: bytes, for the speed of copies.

    Returns:
        ``cache_bytes`` (:func:`cache_bytes`), ``copy`` (:func:`copy_limits`), ``theoretical_bytes_per_second``
        (:func:`.device_state.theoretical_bandwidth`, None where it is not known) and
        ``matmul_flops_per_second`` (:func:`matmul_flops`, by the name of the dtype).
    """
    return {
        "cache_bytes": cache_bytes(device),
        "copy": copy_limits(device, working_sets),
        "theoretical_bytes_per_second": theoretical_bandwidth(device),
        "matmul_flops_per_second": {str(d).removeprefix("torch."): matmul_flops(device, d) for d in dtypes},
    }
