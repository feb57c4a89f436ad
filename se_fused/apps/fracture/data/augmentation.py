"""Label-preserving augmentation of radiographs with torchvision's transforms, with random parameters for each image."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

__all__ = ["Augmentation", "RandomGamma"]


class RandomGamma(v2.Transform):
    """Random gamma correction, image ** gamma, which imitates other exposures and screens.

    Args:
        most: largest gamma, >= 1; log(gamma) is uniform in ±log(most).
    """

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"gamma": self.most ** (2 * torch.rand(()).item() - 1)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(v2.functional.adjust_gamma, inpt, gamma=params["gamma"])


@contextmanager
def _own_numbers() -> Iterator[None]:
    """Restore PyTorch's CPU random state on exit."""
    state = torch.random.get_rng_state()
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


class Augmentation:
    """Random flips, rotation, scaling, translation, gamma, contrast, brightness, blur, noise and erased patches.

    Areas from outside the image become black, like the letterbox.

    Args:
        strength: 0 to 2. At 1: rotation by up to 20°, scaling by up to 12 %, translation by up to 6 %, gamma up to
            1.25, contrast and brightness by up to 20 %, blur and noise with probability 0.3 each, one erased patch with
            probability 0.2. 0 leaves images unchanged; above 0, the flips do not depend on it.

    The parameters depend only on the seed, the epoch and the number of the image, not on workers, batches, processes
    or interruptions of the run.
    """

    def __init__(self, strength: float = 1.0) -> None:
        self.strength = strength
        s = strength
        self._transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.RandomAffine(
                    20 * s, (0.06 * s, 0.06 * s), (1 - 0.12 * s, 1 + 0.12 * s), interpolation=InterpolationMode.BILINEAR
                ),
                RandomGamma(1 + 0.25 * s),
                v2.ColorJitter(brightness=0.2 * s, contrast=0.2 * s),
                v2.RandomApply([v2.GaussianBlur(5, (0.1, 0.1 + 0.9 * s))], 0.3),
                v2.RandomApply([v2.GaussianNoise(0, 0.02 * s)], 0.3),
                v2.RandomErasing(min(0.2 * s, 1), scale=(0.01, 0.06), value=0),
            ]
        )

    def __call__(self, images: Sequence[Tensor], keys: Sequence[tuple[int, int, int]]) -> list[Tensor]:
        """Augment images, each (1, S, S) float32 in [0, 1], by their keys (seed, epoch, number)."""
        if self.strength == 0:
            return list(images)
        out = []
        with _own_numbers():
            for image, key in zip(images, keys, strict=True):
                # A hash, so that the random numbers of neighbouring keys are unrelated.
                digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
                torch.default_generator.manual_seed(int.from_bytes(digest, "little") >> 1)
                out.append(self._transform(image).clamp_(0, 1))
        return out
