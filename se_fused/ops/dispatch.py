"""When a call goes through PyTorch's dispatcher as an operator, and when straight to a backend's kernels."""

import torch

__all__ = ["through_dispatcher"]


def through_dispatcher() -> bool:
    """Whether somebody looks for operators: a graph is traced, or a ``TorchDispatchMode`` is active.

    Kernels that are launched from Python pass a dispatch mode by, so FLOP counters, fake tensors and memory trackers
    would not see them. Nothing else needs the dispatcher, and the test costs 0.1 us.
    """
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
