"""Radiographs of a manifest as a PyTorch data set."""

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
"""(1, S, S) float32 in [0, 1]; the class's number, -1 for none; the record's place in the manifest."""


class RadiographDataset(Dataset[Item]):
    """Images of a manifest with their classes; damaged ones are left out and named in ``damaged``.

    An index is a place in ``manifest``, or a pair (epoch, place), which is what augmentation goes by.

    Args:
        manifest: the images.
        classes: names of the classes, in the order of their numbers.
        size: height and width S in pixels, >= 32.
        cache: "disk", "memory" or "none" as in :func:`se_fused.apps.fracture.data.decode_all`, or what that returned
            for a manifest which holds this one's images.
        folder: of the cache on disk.
        augmentation: for training. None: images as they are.
        seed: of the augmentation.
        progress: of decoding.

    Attributes:
        manifest: the images that can be read.
        damaged: {path: why}.
        labels: numbers of the classes, one for each record.

    Raises:
        InputError: a label is in none of the classes, or the disk is full.
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
                    f"{record.path}: its label {record.label!r} is none of the classes {', '.join(classes)}; correct "
                    "the label, or train with a split that has this class"
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
    """Images (N, 1, S, S), channels last; numbers of the classes (N,); places (N,)."""
    pictures = torch.stack([image for image, _, _ in items]).contiguous(memory_format=torch.channels_last)
    return pictures, torch.tensor([label for _, label, _ in items]), torch.tensor([place for _, _, place in items])
