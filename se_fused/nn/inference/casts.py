"""The first and last layers of an optimised model: inputs cast and ordered, switches held, results cast."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

__all__ = ["LAST", "CastInput", "CastOutput", "Fixed", "ordered"]

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The memory format of all maps between the layers, by their number of dimensions."""


def ordered(x: Tensor) -> Tensor:
    """x in the order that all maps between the layers have."""
    return x.contiguous(memory_format=LAST.get(x.dim(), torch.contiguous_format))


class _Cast(nn.Module):
    """Floating-point tensors in one dtype, inside lists, tuples and dictionaries too; all else is returned."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def cast(self, t: Any) -> Any:
        """Of one value."""
        return t.to(self.dtype) if isinstance(t, Tensor) and t.is_floating_point() else t

    def forward(self, value: Any) -> Any:
        """A tensor, or what holds some."""
        # most models have one tensor, for which looking into a tree takes 3 us
        return self.cast(value) if isinstance(value, Tensor) else tree_map(self.cast, value)

    def extra_repr(self) -> str:
        return f"dtype={self.dtype}"


class CastInput(_Cast):
    """One of the model's inputs as the layers want it: their dtype, channels_last."""

    def cast(self, t: Any) -> Any:
        """Of one value; what is cast is ordered too."""
        t = super().cast(t)
        return ordered(t) if isinstance(t, Tensor) and t.is_floating_point() else t


class CastOutput(_Cast):
    """The model's results in the dtype that it promised."""


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
            raise ValueError(
                f"{name} was {self.values[name]!r} when the model was optimised, got {value!r}: optimise the model "
                "again with that in example_input"
            )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.values.items())
