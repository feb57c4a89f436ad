"""Batch samplers for one or several processes, and data loaders that measure the time spent waiting for batches."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from ...._errors import InputError
from .dataset import RadiographDataset, collate

__all__ = ["SAMPLING", "Batches", "Loader", "RadiographData", "class_order"]

SAMPLING = ("shuffled", "balanced")
_SHUFFLE = 1  # separates the random stream of the order from other streams of the same seed


def class_order(labels: Sequence[int], generator: np.random.Generator) -> list[int]:
    """Indices for class-balanced sampling, as many as there are labels.

    All classes occur equally often; the images of each class repeat in random order.
    """
    numbers = np.asarray(labels)
    members = [np.flatnonzero(numbers == label) for label in np.unique(numbers)]
    wanted = -(-len(numbers) // len(members))
    queues = [
        np.concatenate([generator.permutation(places) for _ in range(-(-wanted // len(places)))])[:wanted]
        for places in members
    ]
    return [int(i) for i in generator.permutation(np.concatenate(queues))[: len(numbers)]]


class Batches(Sampler[list[tuple[int, int]]]):
    """Batch sampler that yields lists of (epoch, index).

    The order depends only on the seed and the epoch, so a resumed run repeats it. Process `rank` of `world` processes
    takes every `world`-th image of each global batch, starting at image `rank`, so all processes have equally many.
    Images that do not fill the last batch are left out; they differ from epoch to epoch.

    Args:
        labels: class numbers of the images.
        batch: batch size of one process.
        seed: random seed of the order.
        epoch: function that returns the current epoch; called at the start of each iteration.
        sampling: "shuffled": each image once; "balanced": each class equally often (:func:`class_order`).
        rank, world: number of this process, and number of processes.
    """

    def __init__(
        self,
        labels: Sequence[int],
        batch: int,
        seed: int,
        epoch: Callable[[], int],
        sampling: str = "shuffled",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.labels, self.seed, self.epoch, self.sampling = labels, seed, epoch, sampling
        self.rank, self.world = rank, world
        self.batch = max(1, min(batch, len(labels) // world))

    def __len__(self) -> int:
        return len(self.labels) // (self.batch * self.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch()
        generator = np.random.default_rng([self.seed, _SHUFFLE, epoch])
        if self.sampling == "balanced":
            order = class_order(self.labels, generator)
        else:
            order = [int(i) for i in generator.permutation(len(self.labels))]
        step = self.batch * self.world
        for i in range(len(self)):
            yield [(epoch, place) for place in order[i * step : (i + 1) * step][self.rank :: self.world]]


class Loader(DataLoader[Any]):
    """DataLoader that measures how long the training waits for batches.

    Attributes:
        waited: seconds spent waiting since it was last set to 0. Time during which the GPU still had work to do does
            not count.
    """

    waited = 0.0

    def __iter__(self) -> Any:
        batches = super().__iter__()
        cuda = self.pin_memory and torch.cuda.is_available()
        while True:
            queued = torch.cuda.current_stream().record_event() if cuda else None
            begin = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            if queued is None or queued.query():
                self.waited += time.perf_counter() - begin
            yield batch


class RadiographData(pl.LightningDataModule):
    """Lightning data module with the data loaders of a run.

    Args:
        train, valid, test: data sets; valid and test may be empty.
        batch: batch size of one process.
        sampling: one of `SAMPLING`.
        seed: random seed of the order.
        workers: worker processes of a loader; 0: images are loaded in the training process.
        pin: whether to use pinned memory, for a GPU.
    """

    def __init__(
        self,
        train: RadiographDataset,
        valid: RadiographDataset,
        test: RadiographDataset,
        *,
        batch: int,
        sampling: str = "shuffled",
        seed: int = 0,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        super().__init__()
        if len(train) < 2:
            raise InputError(f"training needs at least 2 readable images, got {len(train)}; add images to split train")
        self.sets = {"train": train, "valid": valid, "test": test}
        self.batch, self.sampling, self.seed, self.workers, self.pin = batch, sampling, seed, workers, pin
        self.training: Loader | None = None

    def _loader(self, data: RadiographDataset, batches: Any, workers: int) -> Loader:
        return Loader(
            data, batch_sampler=batches, num_workers=workers, collate_fn=collate, pin_memory=self.pin,
            persistent_workers=workers > 0, prefetch_factor=4 if workers else None,
        )  # fmt: skip

    def train_dataloader(self) -> Loader:
        trainer = self.trainer
        assert trainer is not None
        data = self.sets["train"]
        batches = Batches(
            data.labels, self.batch, self.seed, lambda: trainer.current_epoch, self.sampling,
            trainer.global_rank, trainer.world_size,
        )  # fmt: skip
        self.training = self._loader(data, batches, self.workers)
        return self.training

    def val_dataloader(self) -> Loader:
        trainer = self.trainer
        assert trainer is not None
        return self.ordered("valid", trainer.global_rank, trainer.world_size)

    def ordered(self, split: str, rank: int = 0, world: int = 1) -> Loader:
        """Loader of every image of a split once, in the order of the manifest, divided among the processes."""
        data = self.sets[split]
        mine = list(range(rank, len(data), world))
        batches = [mine[i : i + self.batch] for i in range(0, len(mine), self.batch)]
        return self._loader(data, batches, min(self.workers, 4))
