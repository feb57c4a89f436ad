"""Seeded random numbers for checks and measurements, generated on the device that uses them."""

import torch

__all__ = ["generator_on"]


def generator_on(device: str | torch.device, seed: int) -> torch.Generator:
    """A seeded generator for tensors on ``device``.

    Numbers for a GPU are generated on the GPU: 10^8 normal numbers take a millisecond there, and more than a second on
    a CPU. For the CPU, and for the device "meta", which has no memory, they are generated on the CPU.
    """
    kind = torch.device(device)
    return torch.Generator(kind if kind.type == "cuda" else "cpu").manual_seed(seed)
