"""From a manifest to predictions: the one way from files to probabilities, for training, evaluation and `predict`."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..classifier import Classifier
from ..errors import InputError
from ..images import check_integer, load_radiograph
from ..manifest import Manifest, Record
from ..predictions import Predictions

__all__ = ["predict_manifest"]

_READERS = 4  # threads: decoders let go of the interpreter's lock
_NAMED = 5


def _read(record: Record, size: int) -> Tensor | str:
    """(1, S, S), or why there is none."""
    try:
        return load_radiograph(record.path, size)
    except (ValueError, OSError) as error:
        return str(error).removeprefix(f"{record.path}: ")


def _probabilities(classifier: Classifier, images: Tensor, tta: bool) -> Tensor:
    found = classifier.probabilities(images)
    # A mirrored limb is the other side's: the one change of view that gives another radiograph of the same class.
    return (found + classifier.probabilities(images.flip(3))) / 2 if tta else found


def predict_manifest(
    classifier: Classifier,
    manifest: Manifest,
    batch: int = 32,
    device: torch.device | str | None = None,
    progress: Callable[[str, float], None] | None = None,
    tta: bool = False,
) -> Predictions:
    """The probabilities of each image of a manifest, in its order.

    The network runs in evaluation mode and is left in the mode it was in. Where the next batch is read while one is
    computed, reading takes no time of its own.

    Args:
        classifier: whose labels and preprocessing count.
        manifest: images; those without a label get the label -1.
        batch: images at a time, >= 1.
        device: where the network is moved first; None: it stays where it is.
        progress: told what is being done and the share of it that is done.
        tta: mean of the probabilities of an image and its mirror image.

    Returns:
        A row for each image that can be read; the others are in ``skipped``, with the reason.

    Raises:
        InputError: the manifest is empty, has labels that the classifier does not know, or none of its images can be
            read.
    """
    batch = check_integer("batch", batch, 1)
    numbers = {"": -1, **{name: i for i, name in enumerate(classifier.classes)}}
    unknown = [record for record in manifest.records if record.label not in numbers]
    if unknown:
        names = sorted({record.label for record in unknown})
        raise InputError(
            f"{unknown[0].path}: the classifier does not know {_listed(names)} ({len(unknown)} images); it knows "
            f"{', '.join(classifier.classes)}: correct the labels, or train with these classes"
        )
    if not manifest.records:
        raise InputError("the manifest holds no images of this split; give another split or manifest")
    if device is not None:
        classifier.model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    size, total = classifier.preprocessing.size, len(manifest)
    chunks = [manifest.records[i : i + batch] for i in range(0, total, batch)]
    kept: list[Record] = []
    found: list[Tensor] = []
    skipped: list[tuple[str, str]] = []
    training = classifier.model.training
    classifier.model.eval()
    try:
        with ThreadPoolExecutor(_READERS) as pool:

            def ahead(chunk: Sequence[Record]) -> list[Future[Tensor | str]]:
                return [pool.submit(_read, record, size) for record in chunk]

            waiting = ahead(chunks[0])
            for turn, chunk in enumerate(chunks):
                results = [future.result() for future in waiting]
                waiting = ahead(chunks[turn + 1]) if turn + 1 < len(chunks) else []
                images = [image for image in results if isinstance(image, Tensor)]
                kept += [r for r, image in zip(chunk, results, strict=True) if isinstance(image, Tensor)]
                skipped += [(str(r.path), why) for r, why in zip(chunk, results, strict=True) if isinstance(why, str)]
                if images:
                    found.append(_probabilities(classifier, torch.stack(images), tta))
                if progress is not None:
                    progress("predicting", min((turn + 1) * batch, total) / total)
    finally:
        classifier.model.train(training)
    if not kept:
        path, why = skipped[-1]
        raise InputError(f"{path}: none of {total} images could be read; of this last one: {why}")
    probabilities = torch.cat(found).double()
    return Predictions(
        classifier.classes,
        tuple(str(r.path) for r in kept),
        tuple(r.patient for r in kept),
        tuple(r.study for r in kept),
        tuple(r.view for r in kept),
        np.array([numbers[r.label] for r in kept], np.int64),
        # Rounding to float32 leaves sums off by 1e-7; metrics want exact ones.
        (probabilities / probabilities.sum(1, keepdim=True)).numpy(),
        tuple(skipped),
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(repr, names[:_NAMED])) + more
