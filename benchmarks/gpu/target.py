"""What the steps work on: a GPU at the sizes that matter; in the rehearsal, the same kernels on the CPU at tiny sizes.

The rehearsal runs the CUDA kernels' source in tests/support/cuda_shim and Triton's in its interpreter. Everything else
is the same code: the runner, the steps, their programs, and what reads their output.
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
"""The variable of the environment that says so, "1"."""

Shape = tuple[int, ...]

KERNELS = (
    "moments", "scale_shift_act", "moments_backward", "scale_shift_act_backward", "scale_shift_act_mean",
    "excitation", "excitation_backward", "l2_grouped", "cluster_fused",
)  # fmt: skip
"""Families of kernels, as both backends name them."""


@dataclass(frozen=True)
class Target:
    """Where, and how large."""

    device: str
    small: Shape
    odd: Shape
    stages: tuple[Shape, ...]
    """The maps that the blocks of ResNet-50's four stages end in; the first size is the largest batch."""
    batches: tuple[int, ...]
    """Batches that are timed, the largest first."""
    larger_than_l2: Shape
    """A map for which no sample fits into a cluster, and which is larger than L2: ``l2_grouped``'s."""
    network: tuple[str, str]
    """A network with SE and the same without."""
    image: int
    training: tuple[int, ...]
    inference: tuple[int, ...]
    """Batches of whole networks."""
    dtype: torch.dtype

    @property
    def rehearsal(self) -> bool:
        return self.device == "cpu"

    def at_batch(self, batch: int) -> tuple[Shape, ...]:
        """The stages at that batch."""
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
    """Make the tests' support modules importable: the checks of single kernels are theirs."""
    folder = str(ROOT / "tests")
    if folder not in sys.path:
        sys.path.insert(0, folder)


def target() -> Target:
    """This process's. In the rehearsal the CUDA backend is the shim's from now on."""
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
    """The family of a kernel by its name in a profile: "moments" of ``se_fused::cuda::moments_kernel<...>`` and of
    ``moments_unaligned_kernel``; None of what is not ours."""
    for part in name.replace("<", " ").replace("(", " ").replace(":", " ").split():
        if part.endswith("_kernel"):
            family = part.removesuffix("_kernel").removesuffix("_unaligned")
            return family if family in KERNELS else None
    return None


def launches_in(recorded: Any, device: Any) -> dict[str, list[float]]:
    """Microseconds of each launch that a profile of ``torch.profiler`` holds, by family; copies and fills are left out.

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
    """Microseconds of a call by kernel: the median of those of one launch, times its launches. Kernels that are not
    ours are one, "other".

    On a GPU from ``torch.profiler``. In the rehearsal the clock's time of the call in equal parts over the launches:
    a figure that means nothing, in the place where one is to come.

    Args:
        calls: the same work on different memory, in rotation.
        rounds: how often each is called.
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
