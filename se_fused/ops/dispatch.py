"""Choice between PyTorch's dispatcher and a direct call of a backend's kernels."""

import torch

__all__ = ["through_dispatcher"]


def through_dispatcher() -> bool:
    """Whether a call must go through the dispatcher: a graph is traced, or a ``TorchDispatchMode`` is active.

    Dispatch modes such as FLOP counters, fake tensors and memory trackers do not see kernels that Python launches
    directly. Nothing else needs the dispatcher, and this check costs 0.1 us.
    """
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
