"""Baselines of a classifier: the most frequent class, and a logistic regression on thumbnails.

A network that does not beat the logistic regression has learnt brightness and framing, not fractures.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...._errors import InputError
from ..images import load_radiograph
from ..manifest import Manifest, Record
from ..predictions import Predictions
from .predicting import read_batches

__all__ = ["THUMBNAIL", "TITLES", "logistic", "majority"]

THUMBNAIL = 16
"""Height and width of the input of the logistic regression in pixels."""

TITLES = {"majority": "most frequent class", "logistic": f"logistic regression, {THUMBNAIL}×{THUMBNAIL} pixels"}
"""Names of the baselines in tables."""

_BATCH = 32  # images read ahead


def _train(manifest: Manifest) -> Manifest:
    found = Manifest(tuple(r for r in manifest.where("train").records if r.label))
    if not found.records:
        raise InputError("the manifest has no labelled images of the split train, on which the baselines are fitted")
    return found


def majority(manifest: Manifest, split: str = "test") -> Predictions:
    """Baseline whose probabilities are the class shares in train, so it always predicts the most frequent class.

    Raises:
        InputError: train has no labelled images.
    """
    labels = [r.label for r in _train(manifest).records]
    shares = np.array([labels.count(name) / len(labels) for name in manifest.classes])
    records = list(manifest.where(split).records)
    return Predictions.of(manifest.classes, records, np.tile(shares, (len(records), 1)))


def _pictures(
    manifest: Manifest, skipped: list[tuple[str, str]], tick: Callable[[int], None]
) -> tuple[list[Record], NDArray[np.float64]]:
    kept, rows = [], []
    for some, images, damaged in read_batches(manifest.records, _BATCH, lambda path: load_radiograph(path, THUMBNAIL)):
        kept += some
        rows += [image.numpy().astype(np.float64).ravel() for image in images]
        skipped += damaged
        tick(len(some) + len(damaged))
    return kept, np.array(rows)


def logistic(
    manifest: Manifest, split: str = "test", progress: Callable[[str, float], None] | None = None
) -> Predictions:
    """Baseline: logistic regression on standardised thumbnails of `THUMBNAIL` pixels, fitted on train.

    Args:
        manifest: manifest with labels and splits.
        split: split to predict.
        progress: called with a description of the current step and the completed share, 0 to 1.

    Returns:
        A row for each readable image of the split; unreadable images of both splits are in ``skipped``.

    Raises:
        InputError: train has no readable images or only one class, the split has no readable image, or scikit-learn is
            not installed.
    """
    try:  # imported here, because an evaluation works without this baseline
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise InputError(f'scikit-learn is not installed ({error}): pip install "se_fused[train]"') from None
    train, other = _train(manifest), manifest.where(split)
    skipped: list[tuple[str, str]] = []
    done = 0

    def tick(images: int) -> None:
        nonlocal done
        done += images
        if progress is not None:
            progress("baselines", done / (len(train) + len(other)))

    fitted, pictures = _pictures(train, skipped, tick)
    judged, others = _pictures(other, skipped, tick)
    labels = [record.label for record in fitted]
    if len(set(labels)) < 2 or not judged:
        what = f"no readable images of the split {split}" if not judged else "images of one class only in train"
        raise InputError(f"the manifest has {what}, so the baseline cannot be fitted")
    # C is small (strong regularisation), because a small set has about as many images as pixels. The intercept is not
    # penalised.
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    model.fit(pictures, labels)
    found = np.zeros((len(judged), len(manifest.classes)))
    places = {name: i for i, name in enumerate(manifest.classes)}
    found[:, [places[name] for name in model.classes_]] = model.predict_proba(others)
    return Predictions.of(manifest.classes, judged, found, skipped)
