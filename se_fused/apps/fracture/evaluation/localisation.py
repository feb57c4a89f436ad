"""Localisation of fractures by heat maps: scores against boxes, and sheets of overlays.

Boxes come from ``cracks.csv`` of a synthetic data set. Other data have no boxes, so there is only the sheet.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...._checks import check_int
from ...._errors import InputError
from ....bench.report.style import new_figure, save
from ..classifier import Classifier
from ..images import letterboxed, load_radiograph
from ..predictions import Predictions
from .aggregate import Cracks, is_true
from .figures import COLOURS
from .gradcam import grad_cam

__all__ = ["box_on", "energy_in_box", "examples", "heat_maps", "localisation", "overlay_sheet", "pointing_game"]

NOTICE = "Research use only, not a medical device"
Box = tuple[float, float, float, float]


def box_on(box: Sequence[float], height: int, width: int, size: int) -> Box:
    """Transform a box from pixels of an image to pixels of its letterboxed square (:func:`load_radiograph`).

    Args:
        box: edges x0, y0, x1, y1 in pixels from the upper left corner of the image.
        height, width: height and width of the image.
        size: side of the square.
    """
    top, left, high, wide = letterboxed(height, width, size)
    x0, y0, x1, y1 = box
    return left + x0 * wide / width, top + y0 * high / height, left + x1 * wide / width, top + y1 * high / height


def _inside(box: Box, size: int) -> NDArray[np.bool_]:
    """(S, S) mask of the pixels whose centre is in a box; if there is none, the pixel nearest to the box's centre."""
    x0, y0, x1, y1 = box
    middles = np.arange(size) + 0.5
    inside = ((middles >= y0) & (middles <= y1))[:, None] & ((middles >= x0) & (middles <= x1))[None, :]
    if not inside.any():
        row, column = (int(np.clip((a + b) / 2, 0, size - 1)) for a, b in ((y0, y1), (x0, x1)))
        inside[row, column] = True
    return inside


def pointing_game(heat: NDArray[np.float32], boxes: Sequence[Box]) -> NDArray[np.bool_]:
    """Pointing game: whether the hottest pixel is in the box (Zhang et al. 2016, arXiv:1608.00507), without a margin.

    Args:
        heat: (N, S, S); a constant map counts as a miss.
        boxes: N boxes in pixels of the maps.

    Returns:
        (N,) bool.
    """
    hits = []
    for one, box in zip(heat, boxes, strict=True):
        place = np.unravel_index(int(one.argmax()), one.shape)
        hits.append(bool(one.max() > one.min()) and bool(_inside(box, one.shape[0])[place]))
    return np.array(hits, np.bool_)


def energy_in_box(heat: NDArray[np.float32], boxes: Sequence[Box]) -> NDArray[np.float64]:
    """Share of a map's heat in the box (Wang et al. 2020, arXiv:1910.01279, section 4.3); NaN for a map without heat.

    Args:
        heat: (N, S, S), >= 0.
        boxes: N boxes in pixels of the maps.

    Returns:
        (N,) float64.
    """
    shares = []
    for one, box in zip(heat.astype(np.float64), boxes, strict=True):
        total = one.sum()
        shares.append(one[_inside(box, one.shape[0])].sum() / total if total > 0 else np.nan)
    return np.array(shares, np.float64)


@contextmanager
def _named(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or str(error).removeprefix(f"{path}: ")
        raise InputError(
            f"{path}: was predicted, but can no longer be read: {why}; restore it or evaluate again"
        ) from None


def _picture(path: str, size: int) -> Tensor:
    with _named(path):
        return load_radiograph(path, size)


def heat_maps(
    classifier: Classifier, paths: Sequence[str], classes: Sequence[int] | None = None, batch: int = 16
) -> tuple[Tensor, Tensor]:
    """Images and their Grad-CAM heat maps, (N, S, S) float32 in [0, 1] each.

    Args:
        classifier: the classifier; its network stays on its device.
        paths: N readable images.
        classes: N class numbers for the heat maps; None: the predicted classes.
        batch: batch size.

    Raises:
        InputError: a file cannot be read.
    """
    check_int(batch, "batch", 1)
    place = next(classifier.model.parameters())
    size, pictures, heats = classifier.preprocessing.size, [], []
    for start in range(0, len(paths), batch):
        images = torch.stack([_picture(path, size) for path in paths[start : start + batch]])
        x = classifier.preprocessing.normalize(images.to(place.device, place.dtype))
        wanted = None if classes is None else list(classes[start : start + batch])
        heats.append(grad_cam(classifier.model, x.contiguous(memory_format=torch.channels_last), wanted))
        pictures.append(images[:, 0])
    return torch.cat(pictures), torch.cat(heats)


def _boxes(predictions: Predictions, cracks: Cracks) -> dict[int, Box]:
    """{row: box in pixels of the image} of the rows with a box and a visible crack."""
    found = {}
    for i, path in enumerate(predictions.paths):
        row = cracks.get(os.path.normpath(path), {})
        if not all(row.get(name) for name in ("x0", "y0", "x1", "y1")) or not is_true(row, "visible", True):
            continue
        try:
            x0, y0, x1, y1 = (float(row[name]) for name in ("x0", "y0", "x1", "y1"))
        except ValueError:
            raise InputError(f"cracks.csv: {Path(path).name}: x0, y0, x1, y1 must be numbers; write it again") from None
        found[i] = (x0, y0, x1, y1)
    return found


def _size_of(path: str) -> tuple[int, int]:
    """Height and width of an image file, from its header."""
    from PIL import Image

    with _named(path), Image.open(path) as image:
        return image.height, image.width


def localisation(
    classifier: Classifier, predictions: Predictions, cracks: Cracks, limit: int = 200
) -> dict[str, Any] | None:
    """Localisation scores of Grad-CAM for the true class on images with a visible fracture.

    Args:
        classifier: the classifier whose heat maps are scored.
        predictions: predictions of images with boxes.
        cracks: from :func:`read_cracks`.
        limit: maximum number of images, spread evenly over the set.

    Returns:
        ``{"images", "pointing_game", "energy_in_box", "box_share", "right"}``. "box_share" is the mean share of the
        square that a box covers, the expected value of both scores for a random heat map. "right" has the first three
        entries for the correctly predicted images. None if no box is known.
    """
    boxes = {i: box for i, box in _boxes(predictions, cracks).items() if predictions.labels[i] >= 0}
    if not boxes:
        return None
    places = np.array(sorted(boxes))
    places = places[np.unique(np.linspace(0, len(places) - 1, min(limit, len(places))).round().astype(int))]
    size = classifier.preprocessing.size
    paths = [predictions.paths[i] for i in places]
    mapped = [box_on(boxes[i], *_size_of(path), size) for i, path in zip(places, paths, strict=True)]
    _, heat = heat_maps(classifier, paths, predictions.labels[places].tolist())
    hits, energy = pointing_game(heat.numpy(), mapped), energy_in_box(heat.numpy(), mapped)
    right = predictions.predicted[places] == predictions.labels[places]

    def scores(chosen: NDArray[np.bool_]) -> dict[str, Any]:
        warm = energy[chosen & np.isfinite(energy)]
        return {
            "images": int(chosen.sum()),
            "pointing_game": float(hits[chosen].mean()) if chosen.any() else None,
            "energy_in_box": float(warm.mean()) if len(warm) else None,
        }

    share = float(np.mean([_inside(box, size).mean() for box in mapped]))
    return {**scores(np.ones(len(places), np.bool_)), "box_share": share, "right": scores(right)}


def examples(predictions: Predictions, count: int = 12) -> NDArray[np.int64]:
    """Rows of example images: for each class in turn, the most confident correct and the most confident wrong ones.

    Without labels, the most confident predictions of all.
    """
    sure, right = predictions.probabilities.max(1), predictions.predicted == predictions.labels
    queues = []
    for k in range(len(predictions.classes)):
        for wanted in (right, ~right):
            rows = np.flatnonzero((predictions.labels == k) & wanted)
            queues.append(rows[np.argsort(-sure[rows], kind="stable")].tolist())
    if not any(queues):
        queues = [np.argsort(-sure, kind="stable").tolist()]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return np.array(sorted(chosen, key=lambda i: (predictions.labels[i], not right[i], -sure[i])), np.int64)


def overlay_sheet(
    classifier: Classifier,
    predictions: Predictions,
    path: str | os.PathLike[str],
    cracks: Cracks | None = None,
    remark: str = "",
) -> None:
    """Write a sheet of radiographs, each beside the same image with the heat map of the predicted class.

    A box marks the fracture where its position is known.

    Args:
        classifier: the classifier whose heat maps are drawn.
        predictions: its predictions; :func:`examples` selects the images.
        path: a .png, .pdf or .svg.
        cracks: from :func:`read_cracks`.
        remark: text about the data, below the heading.
    """
    rows = examples(predictions)
    some = predictions.take(rows)
    images, heats = heat_maps(classifier, some.paths, some.predicted.tolist())
    boxes = _boxes(some, cracks or {})
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure = new_figure(4.3 * columns, 2.62 * lines + 0.7)
    figure.set_facecolor("#111111")
    heading = "Grad-CAM of the predicted class, brighter is hotter (inferno)"
    figure.suptitle(f"{heading}\n{remark + '. ' if remark else ''}{NOTICE}", color="white", fontsize=11)
    # Correct and wrong predictions differ by a word, not only by colour.
    for k, axes in enumerate(figure.subplots(lines, columns, squeeze=False).ravel()):
        axes.axis("off")
        if k >= len(rows):
            continue
        size = images.shape[1]
        pair = np.concatenate([images[k].numpy(), images[k].numpy()], 1)
        axes.imshow(pair, cmap="gray", vmin=0, vmax=1)
        heat = heats[k].numpy()
        extent = (size - 0.5, 2 * size - 0.5, size - 0.5, -0.5)
        axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.65 * heat**0.7, extent=extent)
        axes.set_xlim(-0.5, 2 * size - 0.5)
        if k in boxes:
            _draw_box(axes, box_on(boxes[k], *_size_of(some.paths[k]), size), size)
        best = int(some.predicted[k])
        said = f"{some.classes[best]} {100 * some.probabilities[k, best]:.0f} %"
        label = some.classes[some.labels[k]] if some.labels[k] >= 0 else ""
        if not label:
            title, colour = f"predicted {said}", "white"
        elif some.labels[k] == best:
            title, colour = f"correct: {said}", "white"
        else:
            title, colour = f"wrong: {label}, predicted {said}", "#ff9a5c"
        axes.set_title(title, color=colour, fontsize=10)
    save(figure, path)


def _draw_box(axes: Any, box: Box, size: int) -> None:
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = box
    for shift in (0, size):
        axes.add_patch(
            Rectangle((x0 + shift - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=COLOURS[5], linewidth=1.3)
        )


def summary(found: Mapping[str, Any]) -> str:
    """Summary sentence for the result of :func:`localisation`."""
    pointing, energy = found["pointing_game"], found["energy_in_box"]
    return (
        f"On {found['images']} images with a visible fracture, the hottest point of Grad-CAM for the true class is in "
        f"the crack's box in {100 * pointing:.1f} %, and {'–' if energy is None else f'{100 * energy:.1f}'} % of the "
        f"heat is in the box; a random heat map would give {100 * found['box_share']:.1f} % in both."
    )
