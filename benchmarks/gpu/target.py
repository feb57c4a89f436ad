"""Device and sizes of the steps: a GPU with realistic sizes, or in a rehearsal the CPU with tiny sizes.

A rehearsal runs the source of the CUDA kernels with tests/support/cuda_shim, and the Triton kernels in Triton's
interpreter. All other code is the same: the runner, the steps, their programs and the readers of their output.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from se_fused import backends
from se_fused.backends.cuda import CudaBackend

__all__ = ["KERNELS", "REHEARSAL", "ROOT", "Shape", "Target", "kernel_of", "target", "use_tests"]

ROOT = Path(__file__).resolve().parents[2]
REHEARSAL = "SE_FUSED_REHEARSAL"
"""Environment variable that is "1" in a rehearsal."""

Shape = tuple[int, ...]

KERNELS = (
    "moments", "scale_shift_act", "moments_backward", "scale_shift_act_backward", "scale_shift_act_mean",
    "excitation", "excitation_backward", "l2_grouped", "cluster_fused",
)  # fmt: skip
"""Families of kernels, with the names that both backends use."""


@dataclass(frozen=True)
class Target:
    """Device and sizes."""

    device: str
    small: Shape
    odd: Shape
    stages: tuple[Shape, ...]
    """Output maps of the blocks in ResNet-50's four stages, with the largest batch size."""
    batches: tuple[int, ...]
    """Timed batch sizes, the largest first."""
    larger_than_l2: Shape
    """A map that is larger than L2, and whose samples do not fit into a cluster; for ``l2_grouped``."""
    network: tuple[str, str]
    """A network with SE, and the same network without SE."""
    image: int
    training: tuple[int, ...]
    inference: tuple[int, ...]
    """Batch sizes of networks: ``training`` in training, ``inference`` in inference."""
    dtype: torch.dtype

    @property
    def rehearsal(self) -> bool:
        return self.device == "cpu"

    def at_batch(self, batch: int) -> tuple[Shape, ...]:
        """The stages with this batch size."""
        return tuple((batch, *stage[1:]) for stage in self.stages)


_GPU = Target(
    "cuda", (4, 24, 6, 8), (5, 70, 9, 7),
    ((128, 256, 56, 56), (128, 512, 28, 28), (128, 1024, 14, 14), (128, 2048, 7, 7)), (128, 8, 1),
    (16, 256, 112, 112), ("seresnet50", "resnet50"), 224, (256, 64), (256, 8, 1), torch.bfloat16,
)  # fmt: skip
_CPU = Target(
    "cpu", (2, 8, 2, 4), (2, 10, 3, 3), ((2, 8, 4, 4),), (2, 1), (4, 8, 4, 4), ("seresnet18", "resnet18"), 32, (2,),
    (2,), torch.float32,
)  # fmt: skip


def use_tests() -> None:
    """Make the support modules of the tests importable, which contain the checks of single kernels."""
    folder = str(ROOT / "tests")
    if folder not in sys.path:
        sys.path.insert(0, folder)


def target() -> Target:
    """The target of this process. In a rehearsal, this replaces the CUDA backend by the CPU shim."""
    if os.environ.get(REHEARSAL) != "1":
        return _GPU
    use_tests()
    from support import shim_library
    from support.interpreter import round_bfloat16

    if os.environ.get("TRITON_INTERPRET") == "1":
        round_bfloat16()
    elif backends.BACKENDS["cuda"].can_use("cpu", torch.float32) is not None:
        library = shim_library.library()
        backends.BACKENDS["cuda"] = CudaBackend(library, "cpu", None, "se_fused_cuda_shim")
    return _CPU


def kernel_of(name: str) -> str | None:
    """Family of a kernel from its name in a profile, None for kernels of other libraries.

    For example, "moments" for ``se_fused::cuda::moments_kernel<...>`` and for ``moments_unaligned_kernel``.
    """
    for part in name.replace("<", " ").replace("(", " ").replace(":", " ").split():
        if part.endswith("_kernel"):
            family = part.removesuffix("_kernel").removesuffix("_unaligned")
            return family if family in KERNELS else None
    return None


def launches_in(recorded: Any, device: Any) -> dict[str, list[float]]:
    """Microseconds of each launch in a profile of ``torch.profiler``, by family, without copies and fills.

    Args:
        recorded: the profile.
        device: ``torch.autograd.DeviceType`` of the launches.
    """
    found: dict[str, list[float]] = {}
    for event in recorded.profiler.kineto_results.events():
        if event.device_type() == device and not event.name().startswith("Mem"):
            found.setdefault(kernel_of(event.name()) or "other", []).append(event.duration_ns() / 1e3)
    return found


def kernel_times(calls: Sequence[Callable[[], Any]], rounds: int, device: str) -> dict[str, float]:
    """Microseconds per call by kernel: the median time of a launch, times the number of launches per call.

    Kernels of other libraries count together as "other". On a GPU, the times come from ``torch.profiler``. In a
    rehearsal, the wall-clock time is divided equally among the launches; these values are placeholders without meaning.

    Args:
        calls: functions that do the same work on different memory, called in rotation.
        rounds: number of calls of each function.
        device: "cpu" in a rehearsal, else a CUDA device.
    """
    for call in calls:
        call()
    durations: dict[str, list[float]] = {}
    if device != "cpu":
        from torch.profiler import ProfilerActivity, profile

        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as recorded:
            for _ in range(rounds):
                for call in calls:
                    call()
            torch.cuda.synchronize()
        durations = launches_in(recorded, torch.autograd.DeviceType.CUDA)
    else:
        from se_fused.backends.triton.launch import recording

        shim = cast(Any, backends.BACKENDS["cuda"])
        with recording() as launches:
            start = time.perf_counter()
            for call in list(calls) * rounds:
                call()
            took = time.perf_counter() - start
        names = [launch.name for launch in launches]
        if not names:
            names = [f"{name}_kernel" for name in str(shim._operators.launched()).split()]
        for name in names:
            durations.setdefault(kernel_of(name) or "other", []).append(took * 1e6 / len(names))
    times = rounds * len(calls)
    return {name: statistics.median(found) * len(found) / times for name, found in durations.items()}
