"""Predictions for the images of a manifest, and reading of images in batches."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ...._checks import check_int
from ...._errors import InputError
from ..classifier import Classifier
from ..images import load_radiograph
from ..manifest import Manifest, Record
from ..predictions import Predictions

__all__ = ["kept_predictions", "predict_manifest", "read_batches"]

T = TypeVar("T")

_READERS = 4  # threads: decoders release the global interpreter lock
_NAMED = 5


def read_batches(
    records: Sequence[Record], batch: int, read: Callable[[Path], T]
) -> Iterator[tuple[list[Record], list[T], list[tuple[str, str]]]]:
    """Read images in threads, one batch ahead of the consumer, so that memory does not grow with the data set.

    Args:
        records: records of the images.
        batch: batch size, >= 1.
        read: function that reads an image; ValueError and OSError mean that it cannot be read.

    Yields:
        For each batch: the records that could be read, the results of `read`, and (path, reason) of the others.
    """

    def one(record: Record) -> tuple[T | None, str]:
        try:
            return read(record.path), ""
        except (ValueError, OSError) as error:
            return None, str(error).removeprefix(f"{record.path}: ") or type(error).__name__

    chunks = [records[i : i + batch] for i in range(0, len(records), batch)]
    with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool:
        ahead = [pool.submit(one, record) for record in chunks[0]] if chunks else []
        for turn, chunk in enumerate(chunks):
            results = [future.result() for future in ahead]
            ahead = [pool.submit(one, record) for later in chunks[turn + 1 : turn + 2] for record in later]
            pairs = list(zip(chunk, results, strict=True))
            yield (
                [record for record, (_, why) in pairs if not why],
                [found for found, why in results if found is not None],
                [(str(record.path), why) for record, (_, why) in pairs if why],
            )


def _probabilities(classifier: Classifier, images: Tensor, tta: bool) -> Tensor:
    found = classifier.probabilities(images)
    # A mirrored limb looks like a limb of the other side of the body, so mirroring gives a valid radiograph.
    return (found + classifier.probabilities(images.flip(3))) / 2 if tta else found


def predict_manifest(
    classifier: Classifier,
    manifest: Manifest,
    batch: int = 32,
    progress: Callable[[str, float], None] | None = None,
    tta: bool = False,
) -> Predictions:
    """Predict the class probabilities of each image of a manifest, in its order.

    The network runs in evaluation mode; its mode is restored afterwards. The next batch is read while the current one
    is computed.

    Args:
        classifier: the classifier, with its classes and preprocessing.
        manifest: the images; those without a label get the label -1.
        batch: batch size, >= 1.
        progress: called with a description of the current step and the completed share, 0 to 1.
        tta: test-time augmentation: average the probabilities of an image and its mirror image.

    Returns:
        A row for each readable image; the others are in ``skipped``, with the reason.

    Raises:
        InputError: the manifest is empty, has labels that are not classes of the classifier, or none of its images can
            be read.
    """
    batch = check_int(batch, "batch", 1)
    known = {"", *classifier.classes}
    unknown = [record for record in manifest.records if record.label not in known]
    if unknown:
        names = sorted({record.label for record in unknown})
        raise InputError(
            f"{unknown[0].path}: the classifier has no class {_listed(names)} ({len(unknown)} images); its classes are "
            f"{', '.join(classifier.classes)}: correct the labels, or train with these classes"
        )
    if not manifest.records:
        raise InputError("the manifest has no images of this split; give another split or manifest")
    size, total = classifier.preprocessing.size, len(manifest)
    kept: list[Record] = []
    found: list[Tensor] = []
    skipped: list[tuple[str, str]] = []
    training = classifier.model.training
    classifier.model.eval()
    try:
        for some, images, damaged in read_batches(manifest.records, batch, lambda path: load_radiograph(path, size)):
            kept += some
            skipped += damaged
            if images:
                found.append(_probabilities(classifier, torch.stack(images), tta))
            if progress is not None:
                progress("predicting", (len(kept) + len(skipped)) / total)
    finally:
        classifier.model.train(training)
    if not kept:
        path, why = skipped[-1]
        raise InputError(f"{path}: none of {total} images could be read; reason for this last one: {why}")
    probabilities = torch.cat(found).double()
    # float32 rounding changes the sums by 1e-7; the metrics need exact sums.
    exact = (probabilities / probabilities.sum(1, keepdim=True)).numpy()
    return Predictions.of(classifier.classes, kept, exact, skipped)


def kept_predictions(
    folder: Path,
    split: str,
    classifier: Classifier,
    manifest: Manifest,
    progress: Callable[[str, float], None] | None = None,
) -> Predictions | None:
    """A run's predictions of a split, from its folder or else computed and saved there; None without images.

    Raises:
        InputError: the saved table is damaged, or no image can be read.
    """
    path, part = folder / "predictions" / f"{split}.csv", manifest.where(split)
    if path.is_file():
        return Predictions.load(path)
    if not len(part):
        return None
    made = predict_manifest(classifier, part, progress=progress)
    path.parent.mkdir(exist_ok=True)
    made.save(path)
    return made


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(repr, names[:_NAMED])) + more
