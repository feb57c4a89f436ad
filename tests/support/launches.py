"""Counting of what a call would launch on a GPU beside the kernels of this library."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Operators"]


class Operators(TorchDispatchMode):
    """Records the PyTorch operators that compute, each of which would be a launch; views and allocations do not.

    A convolution with a bias is two, because PyTorch adds the bias in a launch of its own on a GPU. The operators of
    this library are left out, because the backends list their launches.
    """

    FREE = ("empty", "new_empty", "view", "reshape", "detach", "select", "alias", "as_strided", "unbind", "split")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.split(".")[0]
        if name == "convolution" and args[2] is not None:
            self.names.append("bias of convolution")
        free = name == "t" or name.removeprefix("_").startswith(self.FREE)
        if not (free or function.namespace.startswith("se_fused")):
            self.names.append(name)
        return function(*args, **(kwargs or {}))
