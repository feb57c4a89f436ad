"""PyTorch data set of the radiographs of a manifest."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...._errors import InputError
from ..manifest import Manifest
from .augmentation import Augmentation
from .cache import Decoded, Progress, decode_all

__all__ = ["Item", "RadiographDataset"]

Item = tuple[Tensor, int, int]
"""(image (1, S, S) float32 in [0, 1], class number or -1 without a label, index of the record in the manifest)."""


class RadiographDataset(Dataset[Item]):
    """Images of a manifest with their class numbers. Damaged images are left out and listed in ``damaged``.

    An index is an index into ``manifest``, or a pair (epoch, index); the augmentation depends on the epoch.

    Args:
        manifest: the images.
        classes: class names, in the order of the class numbers.
        size: height and width S in pixels, >= 32.
        cache: "disk", "memory" or "none" as in :func:`se_fused.apps.fracture.data.decode_all`, or the result of that
            function for a manifest that contains these images.
        folder: folder of the cache on disk.
        augmentation: augmentation for training. None leaves images unchanged.
        seed: random seed of the augmentation.
        progress: progress callback of the decoding.

    Attributes:
        manifest: the readable images.
        damaged: {path: reason} of the others.
        labels: class numbers, one for each record.

    Raises:
        InputError: a label is not one of the classes, or the disk is full.
    """

    def __init__(
        self,
        manifest: Manifest,
        classes: Sequence[str],
        size: int,
        *,
        cache: str | Decoded = "memory",
        folder: str | os.PathLike[str] | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        progress: Progress = lambda *_: None,
    ) -> None:
        numbers = {"": -1, **{name: i for i, name in enumerate(classes)}}
        for record in manifest.records:
            if record.label not in numbers:
                raise InputError(
                    f"{record.path}: its label {record.label!r} is not one of the classes {', '.join(classes)}; "
                    "correct the label, or train with a split that has this class"
                )
        if isinstance(cache, str):
            where = None if folder is None else Path(folder)
            cache = decode_all(manifest, size, cache=cache, folder=where, progress=progress)
        self.decoded, self.augmentation, self.seed = cache, augmentation, seed
        self.manifest = Manifest(tuple(r for r in manifest.records if r.path in cache.places), manifest.notes)
        self.damaged = {r.path: cache.damaged[r.path] for r in manifest.records if r.path not in cache.places}
        self.labels = [numbers[record.label] for record in self.manifest.records]

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int | tuple[int, int]) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int | tuple[int, int]]) -> list[Item]:
        pairs = [index if isinstance(index, tuple) else (0, index) for index in indices]
        pictures = [self.decoded.image(self.manifest.records[i].path) for _, i in pairs]
        if self.augmentation is not None:
            pictures = self.augmentation(pictures, [(self.seed, epoch, i) for epoch, i in pairs])
        return [(picture, self.labels[i], i) for picture, (_, i) in zip(pictures, pairs, strict=True)]


def collate(items: Sequence[Item]) -> tuple[Tensor, Tensor, Tensor]:
    """Collate items into images (N, 1, S, S) in channels_last, class numbers (N,) and manifest indices (N,)."""
    pictures = torch.stack([image for image, _, _ in items]).contiguous(memory_format=torch.channels_last)
    return pictures, torch.tensor([label for _, label, _ in items]), torch.tensor([place for _, _, place in items])
