"""Preprocessing of images for a network: the same in training, evaluation, prediction and exported files."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..._checks import check_int

__all__ = ["Preprocessing"]


@dataclass(frozen=True)
class Preprocessing:
    """Parameters of the preprocessing: letterbox to a square, one channel in [0, 1], then (image - mean) / std.

    Attributes:
        size: height and width S in pixels, >= 32.
        mean, std: mean and standard deviation of the pixels of the training images; std > 0.
    """

    size: int = 224
    mean: float = 0.5
    std: float = 0.25

    def __post_init__(self) -> None:
        check_int(self.size, "size", 32)
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"mean and std must be finite and std > 0, got mean={self.mean}, std={self.std}")

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images in [0, 1], of any shape, to the input of the network."""
        return (images - self.mean) / self.std

    def about(self) -> dict[str, Any]:
        """The parameters as a dictionary for files; ``Preprocessing(**about)`` restores them."""
        return asdict(self)
