"""Overview sheet of a synthetic data set: a few patients of each class in both views, with each crack marked."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from ...._errors import InputError
from ..images import load_radiograph
from ..manifest import Manifest, Record
from .drawing import NOTE
from .fields import Array
from .fractures import CLASSES
from .sets import load_cracks

__all__ = ["draw_sheet"]

_PATIENTS, _SIDE, _GAP, _LABEL, _TOP, _DPI = 4, 224, 10, 120, 64, 130
_MARK = (1.0, 0.72, 0.2)


def _corners(picture: Array, box: tuple[int, int, int, int], scale: float) -> None:
    """Mark a box by its corners in an image (S, S, 3), in place."""
    side, arm = len(picture) - 1, max(5, len(picture) // 32)
    x0, y0, x1, y1 = (min(max(round(value * scale), 0), side) for value in box)
    for x, inward in ((x0, 1), (x1, -1)):
        for y, down in ((y0, 1), (y1, -1)):
            picture[y, slice(*sorted((x, min(max(x + inward * arm, 0), side))))] = _MARK
            picture[slice(*sorted((y, min(max(y + down * arm, 0), side)))), x] = _MARK


def _chosen(manifest: Manifest) -> dict[str, list[list[Record]]]:
    """{class: records of its first patients, grouped by patient}."""
    by_class: dict[str, dict[str, list[Record]]] = {name: {} for name in CLASSES}
    for record in manifest.records:
        by_class[record.label].setdefault(record.patient, []).append(record)
    return {name: list(patients.values())[:_PATIENTS] for name, patients in by_class.items() if patients}


def draw_sheet(folder: str | os.PathLike[str], path: str | os.PathLike[str], boxes: bool = True) -> None:
    """Draw the first patients of each class of a set written by :func:`write_set` as one image.

    The images are synthetic phantoms and have no clinical meaning.

    Args:
        folder: folder of the set.
        path: a .png, .pdf or .svg.
        boxes: whether to mark the cracks.

    Raises:
        InputError: the folder contains no set, or Pillow or matplotlib is not installed.
    """
    try:
        from ....bench.report.style import new_figure, save

        folder = Path(folder)
        manifest, cracks = Manifest.load(folder / "manifest.csv"), load_cracks(folder)
        rows = _chosen(manifest)
        columns = max(map(len, rows.values()))
        pair = 2 * _SIDE + 2
        width = _LABEL + columns * (pair + _GAP)
        height = _TOP + len(rows) * (_SIDE + _GAP)
        canvas = np.full((height, width, 3), 0.06, np.float32)
        places = {}
        for i, (name, patients) in enumerate(rows.items()):
            top = _TOP + i * (_SIDE + _GAP)
            places[name] = top + _SIDE / 2
            for j, views in enumerate(patients):
                for k, record in enumerate(views):
                    left = _LABEL + j * (pair + _GAP) + k * (_SIDE + 2)
                    grey = load_radiograph(record.path, _SIDE)[0].numpy()
                    picture = np.repeat(grey[:, :, None], 3, axis=2)
                    crack = cracks.get(record.path)
                    if boxes and crack is not None and crack.box is not None:
                        from PIL import Image

                        with Image.open(record.path) as image:
                            _corners(picture, crack.box, _SIDE / image.width)
                    canvas[top : top + _SIDE, left : left + _SIDE] = picture
        figure = new_figure(width / _DPI, height / _DPI)
    except ImportError as error:
        raise InputError(
            f'drawing a sheet requires Pillow and matplotlib: pip install "se_fused[train]" ({error})'
        ) from None
    figure.set_layout_engine("none")
    figure.patch.set_facecolor((0.06, 0.06, 0.06))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(canvas, interpolation="none", aspect="auto")
    axes.axis("off")
    white: dict[str, Any] = {"color": (0.92, 0.92, 0.92), "family": "sans-serif"}
    axes.text(width / 2, 22, NOTE, ha="center", va="center", fontsize=12, **white)
    for j in range(columns):
        for k, view in enumerate(("AP", "lateral")):
            middle = _LABEL + j * (pair + _GAP) + k * (_SIDE + 2) + _SIDE / 2
            axes.text(middle, _TOP - 12, view, ha="center", va="center", fontsize=8, **white)
    for name, middle in places.items():
        axes.text(_LABEL - 12, middle, name, ha="right", va="center", fontsize=9, **white)
    save(figure, path)
