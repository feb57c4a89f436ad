"""Measured limits of a device: speed of copies, in caches and in memory, and of matrix products.

Memory-bound kernels are compared with ``copy_``, the fastest way in which PyTorch moves the same number of bytes on
this device, rather than with a data sheet.
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
"""Rows and columns of the matrices. The result has 4096 tiles of 128 x 128, about 30 per multiprocessor of an H200."""
_CPU_MATMUL_SECONDS = 0.2


# ---- caches
def _cpu_cache_bytes() -> int | None:
    """Total bytes of the last-level caches of the CPUs that this process may use; None if sysfs has no entries."""
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
    """Bytes of the last-level cache: L2 of a GPU, or the sum over the CPUs that this process may use.

    Sources: ``torch.cuda.get_device_properties`` and sysfs. Without them, 64 MiB for a GPU and 32 MiB for a CPU.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 * MIB))
    return _cpu_cache_bytes() or 32 * MIB


def larger_than_cache(device: str | torch.device) -> int:
    """Bytes of a working set that does not fit into the caches of the device.

    Four times the last-level cache, limited to 256 MiB to 2 GiB, but at least twice the last-level cache.
    """
    last = cache_bytes(device)
    return max(min(max(4 * last, 256 * MIB), 2048 * MIB), 2 * last)


def _free_bytes(device: torch.device) -> int | None:
    """Free bytes of memory; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024  # "kB" in proc(5) means KiB
    except (OSError, ValueError, IndexError):
        pass
    return None


def rotation(nbytes: int, device: str | torch.device) -> int:
    """Number of buffer sets to use in rotation so that none is in a cache when it is used again.

    Between two uses of a set, the other sets move at least :func:`larger_than_cache` bytes, which takes 2 sets or more.
    The number is reduced, down to 1, if the sets would need more than a quarter of the free memory
    (``torch.cuda.mem_get_info``; ``MemAvailable``); the caches may then hold some of the data.

    Args:
        nbytes: bytes of one set, inputs and results, >= 1.
        device: the device.

    Raises:
        ValueError: ``nbytes`` is less than 1.
    """
    if nbytes < 1:
        raise ValueError(f"nbytes must be at least 1, got {nbytes}")
    device = torch.device(device)
    sets = 1 + math.ceil(larger_than_cache(device) / nbytes)
    free = _free_bytes(device)
    return sets if free is None else max(min(sets, free // 4 // nbytes), 1)


# ---- copies
def copier(device: str | torch.device, working_set: int) -> Callable[[], Tensor]:
    """Function that calls ``torch.Tensor.copy_`` on random float32, reading and writing working_set / 2 bytes each."""
    generator = torch.Generator(device).manual_seed(0)  # separate, so that the caller's random numbers do not change
    source = torch.rand(max(working_set // 8, 1), dtype=torch.float32, device=device, generator=generator)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def _copiers(device: str | torch.device, working_set: int, cold: bool) -> list[Callable[[], Tensor]]:
    return [copier(device, working_set) for _ in range(rotation(working_set, device) if cold else 1)]


def copy_bandwidth(
    device: str | torch.device, working_set: int | None = None, repeats: int = 7, cold: bool = False
) -> float:
    """Bytes per second of ``copy_``, read and written together, with which memory-bound kernels are compared.

    Args:
        device: the device.
        working_set: bytes of source and target together; None for one far larger than the caches. A small working set
            measures the cache that it fits into, unless ``cold`` is set.
        repeats: number of measurements, of which the median is returned.
        cold: copy pairs of buffers in rotation, so that none is in a cache; see :func:`rotation`.
    """
    size = larger_than_cache(device) if working_set is None else working_set
    sample = sampler(_copiers(device, size, cold), device)
    return size / statistics.median(in_turn({"": sample}, repeats, warmup=2)[""])


def copy_limits(device: str | torch.device, working_sets: Iterable[int], repeats: int = 7) -> list[dict[str, float]]:
    """Speed of ``copy_`` for working sets of several sizes, with warm and with cold caches.

    Args:
        device: the device.
        working_sets: sizes in bytes, source and target together.
        repeats: number of measurements, of which the median counts; warm and cold are measured in turn.

    Returns:
        For each size ``working_set_bytes``, and ``warm`` and ``cold`` in bytes per second, read and written together.
        ``cold`` is missing if the free memory is too small for a rotation that exceeds the caches (:func:`rotation`).
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

    This is the speed of the library call, not the peak of the hardware. On a CPU without a matrix unit for bfloat16, it
    is lower for bfloat16 than for float32.

    A product of n x n matrices counts as 2 * n**3 operations, multiplications and additions. n is 8192 on a GPU; on a
    CPU, n is doubled from 256 while one product is expected to take less than 0.2 s. The setting that allows TF32 or
    bfloat16 in float32 products is not changed (``torch.set_float32_matmul_precision``; by default they are not used).

    Args:
        device: the device.
        dtype: dtype of both matrices and of the product.
        repeats: number of measurements, of which the fastest counts, because the result is used as an upper limit.
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
    """Limits of the device for any implementation, as a dict for JSON.

    Args:
        device: the device.
        dtypes: dtypes of the measured matrix products.
        working_sets: sizes of the measured copies in bytes.

    Returns:
        ``cache_bytes`` (:func:`cache_bytes`), ``copy`` (:func:`copy_limits`), ``theoretical_bytes_per_second``
        (:func:`.device_state.theoretical_bandwidth`, None if unknown) and ``matmul_flops_per_second``
        (:func:`matmul_flops`, by the name of the dtype).
    """
    return {
        "cache_bytes": cache_bytes(device),
        "copy": copy_limits(device, working_sets),
        "theoretical_bytes_per_second": theoretical_bandwidth(device),
        "matmul_flops_per_second": {str(d).removeprefix("torch."): matmul_flops(device, d) for d in dtypes},
    }
