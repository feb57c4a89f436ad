"""A convolution's bias as a batch norm, for the kernels of the block that follows the convolution.

PyTorch adds the bias of a convolution on a GPU in a launch of its own, which reads and writes the whole map. The
kernels of a block add the shift of a batch norm while they read the map.
"""

from functools import lru_cache

import torch
from torch import Tensor

from .._params import NO_BATCH_NORM, BatchNormParams

__all__ = ["bias_as_batch_norm"]


@lru_cache(maxsize=256)
def _zeros(channels: int, device: torch.device) -> Tensor:
    return torch.zeros(channels, dtype=torch.float32, device=device)


def bias_as_batch_norm(bias: Tensor | None) -> BatchNormParams:
    """Batch norm in eval mode that adds ``bias`` (C,): mean 0, variance 0 and eps 1. None is no batch norm."""
    if bias is None:
        return NO_BATCH_NORM
    # Memory that is allocated during a capture belongs to the CUDA graph, so it must not be kept for other calls.
    capturing = bias.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    zeros = (_zeros.__wrapped__ if capturing else _zeros)(bias.shape[0], bias.device)
    return BatchNormParams(zeros, zeros, None, bias, False, 0.0, 1.0)
