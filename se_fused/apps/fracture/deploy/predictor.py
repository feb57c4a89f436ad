"""Predictor: class probabilities and heat maps of image files, from one classifier or an ensemble."""

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
    """Predictions by study: the mean probabilities of its images, with the path of the first image and no view.

    Images with the same patient and study form a study; images without a study are grouped by folder. The label is the
    label of the images, or unknown where they differ.
    """
    rows = zip(predictions.paths, predictions.patients, predictions.studies, strict=True)
    return predictions.averaged(
        [(patient, study) if study else ("", "", str(Path(path).parent)) for path, patient, study in rows]
    )


class Predictor:
    """Predicts image files with one classifier or an ensemble.

    Args:
        classifiers: one or several of: a :class:`Classifier`, the folder of a run, a ``model.pt``. The probabilities of
            several classifiers are averaged; each has its own preprocessing.
        device: device of the networks; None: their current device, or the CPU for files.
        batch: batch size, >= 1.
        tta: test-time augmentation: average over each image and its mirror image.
        optimize: whether to apply :func:`se_fused.optimize_for_inference`, which checks its result against float64. A
            network that it rejects runs unchanged; `notes` gives the reason.

    Attributes:
        classifiers: the loaded classifiers in evaluation mode, without optimisation; they compute the heat maps.
        classes: K names.
        notes: notes for the user on how the networks run.

    Raises:
        InputError: a file cannot be loaded, or the classifiers have different classes or another order of classes.
        ValueError: `batch` is too small, or no classifier is given.
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
            raise ValueError("classifiers must be one or several classifiers or files; got none")
        self.classifiers = [self._load(source, device) for source in several]
        self.classes = self.classifiers[0].classes
        for source, classifier in zip(several, self.classifiers, strict=True):
            if classifier.classes != self.classes:
                raise InputError(
                    f"{source if not isinstance(source, Classifier) else source.name}: its classes are "
                    f"{', '.join(classifier.classes)}, but the first classifier's are {', '.join(self.classes)}; "
                    "the members of an ensemble must have the same classes"
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
            self.notes.append(f"{classifier.name} runs without optimisation: {' '.join(str(error).split())}")
            return classifier
        return replace(classifier, model=model)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The distinct input sizes S of the networks, sorted."""
        return tuple(sorted({c.preprocessing.size for c in self.classifiers}))

    def squares(self, picture: Array) -> dict[int, Tensor]:
        """Letterbox an image (H, W) in [0, 1] for the networks: {S: (1, S, S)} for each of `sizes`."""
        return {size: letterbox(picture, size) for size in self.sizes}

    def probabilities(self, pictures: Sequence[dict[int, Tensor]]) -> NDArray[np.float64]:
        """Class probabilities, (N, K), of N results of :meth:`squares`; each row sums to 1."""
        total = np.zeros((len(pictures), len(self.classes)))
        for classifier in self._fast:
            images = torch.stack([picture[classifier.preprocessing.size] for picture in pictures])
            for turned in (images, images.flip(3)) if self.tta else (images,):
                total += classifier.probabilities(turned).double().numpy()
        return np.asarray(total / total.sum(1, keepdims=True))

    def heat(self, picture: dict[int, Tensor], chosen: int) -> Tensor:
        """Grad-CAM heat map of a class, averaged over the networks: (S, S) float32 in [0, 1], S the largest size."""
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
        """Predict all images given by `inputs`.

        Args:
            inputs: files, folders, manifests (:func:`.inputs.find_images`).
            progress: called with a description of the current step and the completed share, 0 to 1.

        Returns:
            One row for each readable image; the others are in ``skipped``, with the reason. Labels, patients, studies
            and views come from the manifest; without one they are -1 and "". Labels outside `classes` are -1.

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
