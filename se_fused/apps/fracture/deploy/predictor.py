"""Trained classifiers on files: probabilities, averaged over networks, mirror images and studies, and heat maps."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...._checks import check_int
from ...._errors import InputError
from ....nn import optimize_for_inference
from ..classifier import Classifier
from ..evaluation.gradcam import grad_cam
from ..evaluation.predicting import read_batches
from ..images import decode, letterbox
from ..manifest import Record
from ..predictions import Predictions
from .inputs import find_images

__all__ = ["Predictor", "by_study"]

Array = NDArray[np.float32]
Source = Classifier | str | os.PathLike[str]


def by_study(predictions: Predictions) -> Predictions:
    """One row for each study: the mean of its images' probabilities, under its first image's path, view "".

    A study is what has the same patient and study; where an image has no study, the images of its folder are one. Its
    label is that of its images, or unknown where they differ.
    """
    rows = zip(predictions.paths, predictions.patients, predictions.studies, strict=True)
    return predictions.averaged(
        [(patient, study) if study else ("", "", str(Path(path).parent)) for path, patient, study in rows]
    )


class Predictor:
    """A classifier, or an ensemble, that takes files.

    Args:
        classifiers: one or several: a :class:`Classifier`, a run's folder or a ``model.pt``. The probabilities of
            several are averaged; each keeps its own preprocessing.
        device: where they run; None: where they are, the CPU for files.
        batch: images at once, >= 1.
        tta: test-time augmentation: the mean over each image and its mirror image.
        optimize: run :func:`se_fused.optimize_for_inference`, which checks its result against float64; a network that
            it refuses runs as it is, and `notes` says why.

    Attributes:
        classifiers: as loaded, in evaluation mode; heat maps are theirs.
        classes: K names.
        notes: what a user should know of how the networks run.

    Raises:
        InputError: a file cannot be loaded, or the classifiers do not know the same classes in the same order.
        ValueError: `batch` is too small, or no classifier was given.
    """

    def __init__(
        self,
        classifiers: Source | Sequence[Source],
        *,
        device: torch.device | str | None = None,
        batch: int = 16,
        tta: bool = False,
        optimize: bool = True,
    ) -> None:
        self.batch, self.tta = check_int(batch, "batch", 1), tta
        several = [classifiers] if isinstance(classifiers, Classifier | str | os.PathLike) else list(classifiers)
        if not several:
            raise ValueError("classifiers must be one or several, got none")
        self.classifiers = [self._load(source, device) for source in several]
        self.classes = self.classifiers[0].classes
        for source, classifier in zip(several, self.classifiers, strict=True):
            if classifier.classes != self.classes:
                raise InputError(
                    f"{source if not isinstance(source, Classifier) else source.name}: its classes are "
                    f"{', '.join(classifier.classes)}, those of the first are {', '.join(self.classes)}; "
                    "an ensemble's members must have been trained on the same classes"
                )
        self.notes: list[str] = []
        self._fast = [self._optimized(classifier) if optimize else classifier for classifier in self.classifiers]

    @staticmethod
    def _load(source: Source, device: torch.device | str | None) -> Classifier:
        if not isinstance(source, Classifier):
            return Classifier.load(source, device or "cpu")
        source.model.eval()
        if device is not None:
            source.model.to(device)
        return source

    def _optimized(self, classifier: Classifier) -> Classifier:
        size, place = classifier.preprocessing.size, next(classifier.model.parameters())
        noise = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(0))
        example = classifier.preprocessing.normalize(noise.to(place.device, place.dtype))
        try:
            model: nn.Module = optimize_for_inference(classifier.model, example)
        except (ValueError, RuntimeError) as error:
            self.notes.append(f"{classifier.name} runs as it was trained: {' '.join(str(error).split())}")
            return classifier
        return replace(classifier, model=model)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The distinct sizes of squares that the networks take."""
        return tuple(sorted({c.preprocessing.size for c in self.classifiers}))

    def squares(self, picture: Array) -> dict[int, Tensor]:
        """(H, W) in [0, 1] -> {size S: (1, S, S)}, for each of `sizes`."""
        return {size: letterbox(picture, size) for size in self.sizes}

    def probabilities(self, pictures: Sequence[dict[int, Tensor]]) -> NDArray[np.float64]:
        """N results of :meth:`squares` -> (N, K), rows that sum to 1."""
        total = np.zeros((len(pictures), len(self.classes)))
        for classifier in self._fast:
            images = torch.stack([picture[classifier.preprocessing.size] for picture in pictures])
            for turned in (images, images.flip(3)) if self.tta else (images,):
                total += classifier.probabilities(turned).double().numpy()
        return np.asarray(total / total.sum(1, keepdims=True))

    def heat(self, picture: dict[int, Tensor], chosen: int) -> Tensor:
        """Grad-CAM of a class, the mean over the networks: (S, S) float32 in [0, 1], S the largest of `sizes`."""
        maps = []
        for classifier in self.classifiers:
            place = next(classifier.model.parameters())
            image = picture[classifier.preprocessing.size][None].to(place.device, place.dtype)
            heat = grad_cam(classifier.model, classifier.preprocessing.normalize(image), [chosen])
            size = (self.sizes[-1], self.sizes[-1])
            maps.append(torch.nn.functional.interpolate(heat[None], size, mode="bilinear", align_corners=False)[0, 0])
        return torch.stack(maps).mean(0)

    def predict(
        self,
        inputs: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
        progress: Callable[[str, float], None] = lambda *_: None,
    ) -> Predictions:
        """All images that `inputs` name.

        Args:
            inputs: files, folders, manifests (:func:`.inputs.find_images`).
            progress: told what was done, and which share of all.

        Returns:
            One row for each image that could be read; the others are in ``skipped``, with the reason. Labels, patients,
            studies and views are those of a manifest; -1 and "" without one, and for labels that no class is named.

        Raises:
            InputError: a manifest cannot be read.
        """
        named = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
        records, empty = find_images(named)
        skipped = [(str(path), reason) for path, reason in empty]
        seen = 0
        done: list[Record] = []
        rows = [np.empty((0, len(self.classes)))]
        for some, pictures, damaged in read_batches(records, self.batch, lambda path: self.squares(decode(path))):
            done += some
            skipped += damaged
            if pictures:
                rows.append(self.probabilities(pictures))
            seen += len(some) + len(damaged)
            progress(f"{len(done)} of {len(records)} images", seen / len(records))
        return Predictions.of(self.classes, done, np.concatenate(rows), skipped)
