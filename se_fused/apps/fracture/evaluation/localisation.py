"""Whether heat maps fall on the fracture: scores against boxes, and sheets of overlays to look at.

Boxes come from the synthetic set's ``cracks.csv``; other data have none, and then there is only the sheet.
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
    """A box in pixels of an image -> in pixels of its letterboxed square, as :func:`load_radiograph` makes it.

    Args:
        box: x0, y0, x1, y1, edges, in pixels from the upper left corner of the image.
        height, width: of the image.
        size: of the square.
    """
    top, left, high, wide = letterboxed(height, width, size)
    x0, y0, x1, y1 = box
    return left + x0 * wide / width, top + y0 * high / height, left + x1 * wide / width, top + y1 * high / height


def _inside(box: Box, size: int) -> NDArray[np.bool_]:
    """(S, S): the pixels that a box covers by their middle; the one nearest to its middle if it covers none."""
    x0, y0, x1, y1 = box
    middles = np.arange(size) + 0.5
    inside = ((middles >= y0) & (middles <= y1))[:, None] & ((middles >= x0) & (middles <= x1))[None, :]
    if not inside.any():
        row, column = (int(np.clip((a + b) / 2, 0, size - 1)) for a, b in ((y0, y1), (x0, x1)))
        inside[row, column] = True
    return inside


def pointing_game(heat: NDArray[np.float32], boxes: Sequence[Box]) -> NDArray[np.bool_]:
    """Whether the hottest pixel lies in the box (Zhang et al. 2016, arXiv:1608.00507), without a margin around it.

    Args:
        heat: (N, S, S); a map of one value throughout points nowhere.
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
    """The share of a map's heat that lies in the box (Wang et al. 2020, arXiv:1910.01279, section 4.3); NaN of no heat.

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
            f"{path}: was predicted and cannot be read now: {why}; bring it back or evaluate anew"
        ) from None


def _picture(path: str, size: int) -> Tensor:
    with _named(path):
        return load_radiograph(path, size)


def heat_maps(
    classifier: Classifier, paths: Sequence[str], classes: Sequence[int] | None = None, batch: int = 16
) -> tuple[Tensor, Tensor]:
    """Images of files and their Grad-CAM, (N, S, S) float32 in [0, 1] each.

    Args:
        classifier: its network stays where it is.
        paths: N readable images.
        classes: N numbers of the classes that are asked about; None: the predicted ones.
        batch: images at a time.

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
    """{row: box in pixels of the image} of the rows whose crack has a box and can be seen."""
    found = {}
    for i, path in enumerate(predictions.paths):
        row = cracks.get(os.path.normpath(path), {})
        if not all(row.get(name) for name in ("x0", "y0", "x1", "y1")) or not is_true(row, "visible", True):
            continue
        try:
            x0, y0, x1, y1 = (float(row[name]) for name in ("x0", "y0", "x1", "y1"))
        except ValueError:
            raise InputError(f"cracks.csv: {Path(path).name}: x0, y0, x1, y1 must be numbers; write it anew") from None
        found[i] = (x0, y0, x1, y1)
    return found


def _size_of(path: str) -> tuple[int, int]:
    """Height and width of an image file, from its head."""
    from PIL import Image

    with _named(path), Image.open(path) as image:
        return image.height, image.width


def localisation(
    classifier: Classifier, predictions: Predictions, cracks: Cracks, limit: int = 200
) -> dict[str, Any] | None:
    """Pointing game and energy in the box of Grad-CAM for the true class, on fractures that are visible.

    Args:
        classifier: whose maps.
        predictions: of a set with boxes.
        cracks: from :func:`read_cracks`.
        limit: at most so many images, spread evenly over the set.

    Returns:
        ``{"images", "pointing_game", "energy_in_box", "box_share"}``, and the first two of the images that were
        predicted rightly ("right"). "box_share" is the mean share of the square that a box covers: what both scores are
        for heat that knows nothing. None where no box is known.
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
    """Rows to look at: of each class in turn the one that is most surely right, then the one that is most surely wrong.

    Without labels the surest of all.
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
    """Radiographs beside the same with the heat of the predicted class over it, and a box where one is known.

    Args:
        classifier: whose maps.
        predictions: its predictions; :func:`examples` chooses from them.
        path: a .png, .pdf or .svg.
        cracks: from :func:`read_cracks`.
        remark: what is said of the data below the heading.
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
    # White and vermilion, and a word: not told by colour alone.
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
            title, colour = f"right: {said}", "white"
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
    """One sentence of :func:`localisation`."""
    pointing, energy = found["pointing_game"], found["energy_in_box"]
    return (
        f"On {found['images']} visible fractures the hottest point of Grad-CAM for the true class lies in the crack's "
        f"box in {100 * pointing:.1f} %, and {'–' if energy is None else f'{100 * energy:.1f}'} % of the heat does; "
        f"heat that knows nothing would give {100 * found['box_share']:.1f} % in both."
    )
