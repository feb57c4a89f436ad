"""Captured calls: what a call must share with one to replay its CUDA graph, and what can be captured."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ... import backends
from .copies import computes_weight

__all__ = ["CONSTANTS", "Key", "Layout", "State", "check_example", "check_model", "flat", "key_of", "refuse_training"]

DEVICE = "cuda"
"""The device type of the graphs. Tests replace it together with torch.cuda."""

CONSTANTS = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)

_data_ptr = torch._C.TensorBase.data_ptr


class Layout(NamedTuple):
    """What a tensor must share with the tensor of an example. ``stride`` is 0 in dimensions of size 1, whose strides
    have no meaning: a contiguous image with one channel is channels_last too."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, t: Tensor) -> "Layout":
        stride = tuple(s if n > 1 else 0 for n, s in zip(t.shape, t.stride(), strict=True))
        return cls(tuple(t.shape), stride, t.dtype, t.device)

    def is_dense(self) -> bool:
        """Whether the elements fill their memory without gaps and without sharing."""
        count = 1
        for stride, size in sorted((s, n) for s, n in zip(self.stride, self.shape, strict=True) if n > 1):
            if stride != count:
                return False
            count *= size
        return True

    def __str__(self) -> str:
        return f"{self.shape} of {str(self.dtype).removeprefix('torch.')} with strides {self.stride} on {self.device}"


class Key(NamedTuple):
    """What a call must share with the example of a graph."""

    leaves: tuple[Any, ...]
    """For each leaf of the arguments: a :class:`Layout`, or (type, value) of what is no tensor."""
    structure: Any
    autocast: torch.dtype | None
    backend: str

    @property
    def device(self) -> torch.device:
        return next(leaf.device for leaf in self.leaves if isinstance(leaf, Layout))

    def __str__(self) -> str:
        leaves = ", ".join(str(leaf) if isinstance(leaf, Layout) else repr(leaf[1]) for leaf in self.leaves)
        autocast = "" if self.autocast is None else f", autocast to {str(self.autocast).removeprefix('torch.')}"
        return leaves + autocast + ("" if self.backend == "auto" else f", backend {self.backend}")


_ONE_TENSOR = tree_flatten(((torch.empty(0),), {}))[1]


def flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
    """Leaves and structure of the arguments."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):  # tree_flatten takes 7 us
        return [args[0]], _ONE_TENSOR
    return tree_flatten((args, kwargs))


def key_of(leaves: Sequence[Any], structure: Any) -> Key:
    found = tuple(Layout.of(leaf) if isinstance(leaf, Tensor) else (type(leaf), leaf) for leaf in leaves)
    autocast = torch.get_autocast_dtype(DEVICE) if torch.is_autocast_enabled(DEVICE) else None
    return Key(found, structure, autocast, backends.forced())


class State:
    """The modules and tensors of a model, to notice that a graph reads tensors which the model does not have any more.

    The tensors are kept alive, because the graphs read their memory. An equal address is therefore the same memory.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self._settings = [m.__dict__ for m in self.modules.values()]
        self._parents = [m._modules for m in self.modules.values() if m._modules]
        self._holders = [d for m in self.modules.values() for d in (m._parameters, m._buffers) if d]
        self._kept = [t for d in self._holders for t in d.values() if t is not None]
        self._children, self._addresses = self._found()

    def _found(self) -> tuple[list[nn.Module | None], list[int]]:
        children = [child for d in self._parents for child in d.values()]
        tensors = [t for d in self._holders for t in d.values() if t is not None]
        return children, list(map(_data_ptr, tensors))

    def is_stale(self) -> bool:
        """Whether a module, parameter or buffer was replaced, moved or cast; 50 us for SE-ResNet50."""
        return (self._children, self._addresses) != self._found()

    def in_training(self) -> bool:
        """Whether a module is in training mode; 5 us for SE-ResNet50."""
        return any(settings["training"] for settings in self._settings)


def _where(name: str) -> str:
    return f"model.{name}" if name else "model"


def refuse_training(state: State) -> None:
    if state.in_training():
        name = next(name for name, m in state.modules.items() if m.training)
        raise ValueError(f"{_where(name)} is in training mode, and its graphs are of eval mode: call model.eval()")


def check_model(state: State, device: torch.device) -> None:
    """Raise an error for a model that a graph on ``device`` cannot stand for."""
    refuse_training(state)
    for name, module in state.modules.items():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if not all(map(computes_weight, hooks)):
            raise ValueError(f"{_where(name)} has forward hooks, which a CUDA graph would not run: remove them")
        for key, t in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if t.device != device:
                where = _where(f"{name}.{key}" if name else key)
                raise ValueError(f"{where} is on {t.device}, the examples are on {device}: model.to({str(device)!r})")


def check_example(name: str, leaves: Sequence[Any]) -> None:
    """Raise an error for an example that cannot be the input of a graph."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    for leaf in leaves:
        if not isinstance(leaf, (Tensor, *CONSTANTS)):
            raise TypeError(
                f"{name} holds a {type(leaf).__name__}: give tensors, numbers, strings, and lists, tuples and "
                "dictionaries of these"
            )
    for t in tensors:
        if t.device.type != DEVICE:
            raise ValueError(f"{name} has a tensor on {t.device}, and a CUDA graph needs a GPU: move it with .cuda()")
        if t.device != tensors[0].device:
            raise ValueError(f"{name} has tensors on {tensors[0].device} and {t.device}: move them to one GPU")
        if t.requires_grad:
            raise ValueError(f"{name} requires grad, and the graphs have no backward pass: pass {name}.detach()")
        if not t.numel():
            raise ValueError(f"{name} has a tensor without elements: give an example of the size of later calls")
        if not Layout.of(t).is_dense():
            raise ValueError(f"{name} has gaps between its elements or shares them: pass {name}.contiguous()")
