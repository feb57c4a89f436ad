"""What stands at the ends of an optimised model: inputs cast and ordered, switches held, results cast."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LAST", "Enter", "Fixed", "Leave", "ordered"]

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The memory format of all maps between the layers, by their number of dimensions."""


def ordered(x: Tensor) -> Tensor:
    """x in the order that all maps between the layers have."""
    return x.contiguous(memory_format=LAST.get(x.dim(), torch.contiguous_format))


class Enter(nn.Module):
    """One of the model's inputs as the layers want it: their dtype, channels_last."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Any) -> Any:
        """Floating-point tensors are changed, inside lists, tuples and dictionaries too; all else is returned."""
        return torch.utils._pytree.tree_map(
            lambda t: ordered(t.to(self.dtype)) if isinstance(t, Tensor) and t.is_floating_point() else t, x
        )

    def extra_repr(self) -> str:
        return f"dtype={self.dtype}"


class Fixed(nn.Module):
    """The values of arguments that the model may decide by, for which it was optimised.

    Args:
        values: by name; a call with another one is refused.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__()
        self.values = values

    def forward(self, name: str, value: Any) -> None:
        """Compares what was given with what was fixed.

        Raises:
            ValueError: they differ.
        """
        if value != self.values[name]:
            raise ValueError(f"{name} was {self.values[name]!r} when the model was optimised, got {value!r}: optimise "
                             "the model again with that in example_input")  # fmt: skip

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.values.items())


class Leave(nn.Module):
    """The model's results in the dtype that it promised."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, y: Any) -> Any:
        """Floating-point tensors inside lists, tuples and dictionaries are cast."""
        return torch.utils._pytree.tree_map(
            lambda t: t.to(self.dtype) if isinstance(t, Tensor) and t.is_floating_point() else t, y
        )

    def extra_repr(self) -> str:
        return f"dtype={self.dtype}"
