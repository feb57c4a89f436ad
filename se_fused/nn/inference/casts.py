"""Layers at the inputs and outputs of an optimised model: casts, memory formats and checks of constant arguments."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

__all__ = ["LAST", "CastInput", "CastOutput", "Fixed", "ordered"]

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Memory format of all maps between the layers, by their number of dimensions."""


def ordered(x: Tensor) -> Tensor:
    """x in the memory format of all maps between the layers: channels_last, or contiguous for other dimensions."""
    return x.contiguous(memory_format=LAST.get(x.dim(), torch.contiguous_format))


class _Cast(nn.Module):
    """Cast floating-point tensors, also inside lists, tuples and dictionaries; return other values unchanged."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def cast(self, t: Any) -> Any:
        """Cast one value."""
        return t.to(self.dtype) if isinstance(t, Tensor) and t.is_floating_point() else t

    def forward(self, value: Any) -> Any:
        """Cast a tensor, or the tensors inside a list, tuple or dictionary."""
        # most models have a single tensor, for which tree_map would take 3 us
        return self.cast(value) if isinstance(value, Tensor) else tree_map(self.cast, value)

    def extra_repr(self) -> str:
        return f"dtype={self.dtype}"


class CastInput(_Cast):
    """Convert an input of the model to the dtype of the layers and to channels_last."""

    def cast(self, t: Any) -> Any:
        """Cast one value, and change its memory format if it is a floating-point tensor."""
        t = super().cast(t)
        return ordered(t) if isinstance(t, Tensor) and t.is_floating_point() else t


class CastOutput(_Cast):
    """Convert the results of the model to the requested dtype."""


class Fixed(nn.Module):
    """Check that constant arguments have the values with which the model was optimised.

    Arguments without a tensor may decide which branch the model takes, and the traced graph holds only one branch.

    Args:
        values: the constant arguments by name.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__()
        self.values = values

    def forward(self, name: str, value: Any) -> None:
        """Compare the argument ``name`` of a call with its constant value.

        Raises:
            ValueError: the values differ.
        """
        if value != self.values[name]:
            raise ValueError(
                f"{name} was {self.values[name]!r} when the model was optimised, got {value!r}: optimise the model "
                "again with that in example_input"
            )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.values.items())
