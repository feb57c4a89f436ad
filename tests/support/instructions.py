"""The instruction sets of the CPU kernels that this machine supports."""

import torch

from se_fused import backends


def supported() -> list[str]:
    """Their names, the best one last; "default" alone where the C++ library is missing."""
    cpu = backends.BACKENDS["cpu"]
    if cpu.can_use("cpu", torch.float32) is not None:
        return ["default"]
    before = cpu.capability()
    names = [name for name in ("default", "avx2", "avx512") if cpu.capability(name) == name]
    cpu.capability(before)
    return names


SUPPORTED = supported()
