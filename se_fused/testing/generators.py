"""Random numbers for checks and measurements, drawn where they are used."""

import torch

__all__ = ["generator_on"]


def generator_on(device: str | torch.device, seed: int) -> torch.Generator:
    """A seeded generator for tensors on ``device``.

    A GPU draws on its own: 10^8 normal numbers take it a millisecond, and a CPU more than a second. What lies on the
    CPU, or on no device at all ("meta"), is drawn on the CPU.
    """
    kind = torch.device(device)
    return torch.Generator(kind if kind.type == "cuda" else "cpu").manual_seed(seed)
