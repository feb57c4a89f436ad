"""The memory formats that kernels use without a copy, and the layout of the bit mask.

A tensor (N, C, *spatial) is dense in one of two orders: contiguous (adjacent elements are positions) or channels_last
(adjacent elements are channels). A "row" is a run of contiguous elements: (n, c) with its S positions, or (n, s) with
its C channels. The mask of a ReLU has one bit per element, in the map's memory order, with each row padded to whole
bytes, lowest bit first.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = [
    "dense",
    "dense_like",
    "in_kernel_order",
    "is_channels_last",
    "mask_numel",
    "pack_mask",
    "positions",
    "unpack_mask",
]

_MAPS = ("dy", "residual")  # an operator's arguments of x's shape, beside x
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def positions(x: Tensor) -> int:
    """S: the number of positions of x (N, C, *spatial)."""
    s = 1
    for size in x.shape[2:]:
        s *= size
    return s


def is_channels_last(x: Tensor) -> bool:
    """Whether x (N, C, *spatial) is dense and adjacent elements are channels; also for 3-D tensors."""
    memory_format = _FORMATS.get(x.dim())
    if memory_format is not None:
        return x.is_contiguous(memory_format=memory_format)
    return x.movedim(1, -1).is_contiguous()


def dense(x: Tensor) -> Tensor:
    """x itself if it is contiguous or channels_last, else a contiguous copy."""
    return x if x.is_contiguous() or is_channels_last(x) else x.contiguous()


def dense_like(t: Tensor, x: Tensor) -> Tensor:
    """t in the memory order of x; not copied if it already has that order."""
    if t.stride() == x.stride() or (t.is_contiguous() if x.is_contiguous() else is_channels_last(t)):
        return t
    return torch.empty_like(x, dtype=t.dtype).copy_(t)


def in_kernel_order(arguments: Any) -> Any:
    """An operator's arguments in the memory orders that kernels take: x dense, the other maps in its order, all else
    contiguous, but running statistics as they are, because an operator may write to them. Maps are known by their
    names: a comparison of shapes would be a condition on the batch size of a graph.

    A compiler gives x, and each other tensor, another order than the traced one where that saves it a copy.
    """
    x = dense(arguments.x)

    def ordered(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or name.startswith("running"):
            return value
        if name == "x":
            return x
        return dense_like(value, x) if name in _MAPS else value.contiguous()

    return type(arguments)(*(ordered(*each) for each in zip(arguments._fields, arguments, strict=True)))


def _rows(x: Tensor) -> tuple[int, int]:
    """(number of rows, elements per row) of a dense x."""
    n, c, s = x.shape[0], x.shape[1], positions(x)
    # With one position both orders are the same memory, and the kernels use rows of C elements.
    return (n * c, s) if s != 1 and x.is_contiguous() else (n * s, c)


def mask_numel(x: Tensor) -> int:
    """Bytes of the mask of a dense x."""
    rows, length = _rows(x)
    return rows * ((length + 7) // 8)


def pack_mask(bits: Tensor) -> Tensor:
    """Booleans (N, C, *spatial), dense -> uint8 (mask_numel,)."""
    rows, length = _rows(bits)
    flat = (bits if bits.is_contiguous() else bits.movedim(1, -1)).reshape(rows, length)
    padded = torch.nn.functional.pad(flat.to(torch.uint8), (0, -length % 8)).reshape(-1, 8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits.device)
    return (padded * weights).sum(1, dtype=torch.uint8)


def unpack_mask(mask: Tensor, x: Tensor) -> Tensor:
    """uint8 (mask_numel,) -> booleans of the shape of a dense x."""
    rows, length = _rows(x)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    flat = ((mask.reshape(rows, -1, 1) & weights) != 0).reshape(rows, -1)[:, :length]
    if x.is_contiguous():
        return flat.reshape(x.shape)
    return flat.reshape(x.movedim(1, -1).shape).movedim(-1, 1)
