"""Program for Nsight Compute: the kernels of a block in the first and the last stage, once each after a warm-up.

ncu --nvtx --nvtx-include "measured/" ... python3 -m benchmarks.gpu.work.profiled BACKEND
"""

import sys
from contextlib import AbstractContextManager, nullcontext

import torch

from se_fused import backends

from ..target import target
from . import at, emit
from .times import call, counted_bytes_of, inputs

__all__ = ["main"]

KERNELS = {
    "infer": ("cluster_fused", "scale_shift_act"),
    "train": ("moments", "scale_shift_act", "moments_backward", "scale_shift_act_backward"),
}


def _measured(device: str) -> AbstractContextManager[None]:
    return torch.cuda.nvtx.range("measured") if device == "cuda" else nullcontext()


def main(backend: str) -> int:
    there = target()
    if (reason := backends.BACKENDS[backend].can_use(there.device, there.dtype)) is not None:
        emit("profiled", ok=False, note=reason)
        return 1
    with backends.use_backend(backend):
        for shape in dict.fromkeys((there.stages[0], there.stages[-1])):
            given = inputs(shape, "channels_last", there)
            for mode, kernels in KERNELS.items():
                at(f"{mode} {shape}")
                run = call(mode, backend, given)
                run()
                if there.device == "cuda":
                    torch.cuda.synchronize()
                with _measured(there.device):
                    run()
                    if there.device == "cuda":
                        torch.cuda.synchronize()
                counted = {kernel: counted_bytes_of(kernel, mode, given["x"]) for kernel in kernels}
                emit("counted", shape=list(shape), mode=mode, layout="channels_last", bytes=counted)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
