"""What a classifier has to beat: the most frequent class, and a logistic regression on thumbnails.

A network that is no better than the second has learnt brightness and framing, not fractures.
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
"""Height and width of the regression's pictures."""

TITLES = {"majority": "most frequent class", "logistic": f"logistic regression, {THUMBNAIL}×{THUMBNAIL} pixels"}
"""What tables call them."""

_BATCH = 32  # images read ahead


def _train(manifest: Manifest) -> Manifest:
    found = Manifest(tuple(r for r in manifest.where("train").records if r.label))
    if not found.records:
        raise InputError("the manifest has no labelled images of the split train, which baselines are fitted on")
    return found


def majority(manifest: Manifest, split: str = "test") -> Predictions:
    """Every image of a split gets the shares of the classes in train; so the most frequent one is predicted.

    Raises:
        InputError: there are no images of train.
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
    """Logistic regression on standardised thumbnails of `THUMBNAIL` pixels, fitted on train, said of a split.

    Args:
        manifest: labelled, with splits.
        split: what to predict.
        progress: told what is being done and the share of it that is done.

    Returns:
        A row for each image that can be read; the others, of either split, are in ``skipped``.

    Raises:
        InputError: train has no readable images or only one class, or the split has no readable image; or scikit-learn
            is not installed.
    """
    try:  # here, because an evaluation can do without this one row
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
        raise InputError(f"the manifest has {what}, so there is no baseline to fit")
    # C: strong, for there are as many pixels as images in a small set. The intercept is not penalised.
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    model.fit(pictures, labels)
    found = np.zeros((len(judged), len(manifest.classes)))
    places = {name: i for i, name in enumerate(manifest.classes)}
    found[:, [places[name] for name in model.classes_]] = model.predict_proba(others)
    return Predictions.of(manifest.classes, judged, found, skipped)
