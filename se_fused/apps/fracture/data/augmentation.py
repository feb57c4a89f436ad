"""What a radiograph may undergo and still show the same fracture: torchvision's transforms, drawn per image."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

__all__ = ["Augmentation", "RandomGamma"]


class RandomGamma(v2.Transform):
    """image ** gamma, with log(gamma) uniform in ±log(most): what another exposure or another screen does.

    Args:
        most: the largest gamma, >= 1.
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
    """The random numbers of PyTorch on the CPU are afterwards as they were."""
    state = torch.random.get_rng_state()
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


class Augmentation:
    """Flips, rotation, scale, shift, gamma, contrast, brightness, blur, noise, erased patches; no hue: there is none.

    Images stay letterboxed: what turns in from outside is black, as the letterbox is.

    Args:
        strength: 0 to 2; 1: turned by up to 20°, scaled by up to 12 %, shifted by up to 6 %, gamma up to 1.25, contrast
            and brightness by up to 20 %, with probability 0.3 each blurred and noisy, 0.2 one patch erased. 0 leaves
            images as they are. The flips do not depend on it.

    What an image undergoes depends on the seed, the epoch and its number alone: not on workers, batches or processes,
    nor on where a run was interrupted.
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
        """Each (1, S, S) float32 in [0, 1] -> the same, by its key (seed, epoch, number)."""
        if self.strength == 0:
            return list(images)
        out = []
        with _own_numbers():
            for image, key in zip(images, keys, strict=True):
                # A hash: neighbouring keys are to have nothing in common.
                digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
                torch.default_generator.manual_seed(int.from_bytes(digest, "little") >> 1)
                out.append(self._transform(image).clamp_(0, 1))
        return out
