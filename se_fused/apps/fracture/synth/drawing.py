"""Draw single images, patients with two views, and contact sheets: synthetic phantoms, no clinical meaning."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import default_rng
from numpy.typing import NDArray
from torch import Tensor

from ...._checks import check_int
from ...._errors import InputError
from ..images import save_sheet
from .exposure import Picture, expose
from .fields import Array
from .fractures import CLASSES, Fracture, fracture
from .limbs import FRACTURE, LABEL, VIEWS, Limb, limb

__all__ = [
    "DIFFICULTIES", "NOTE", "Crack", "Radiograph", "class_of", "contact_sheet", "difficulty_of", "draw", "draw_patient",
    "phantoms",
]  # fmt: skip

NOTE = "synthetic phantom, no clinical meaning"
DIFFICULTIES = {"easy": 0.0, "medium": 0.5, "hard": 1.0}
"""Named difficulties. A narrow SE-ResNet-18 learned easy sets of 1,000 patients at 96 pixels within minutes. On medium
sets of that size it was hardly better than chance: they need many more patients and pixels."""

_SEEN = 0.03  # smallest step, as a share of the grey window, that is visible in a smooth region


@dataclass(frozen=True)
class Crack:
    """Position and geometry of a synthetic phantom's fracture in one of its views.

    Attributes:
        box: x0, y0, x1, y1 in pixels of the image, x1 and y1 exclusive: all rays that cross the surface of the
            fracture, and the blur around them. None if none of these rays is in the collimated field.
        visible: whether the fracture changes at least S/12 pixels by more than 0.03 of the grey window and by more than
            three standard deviations of the noise.
        contrast: root mean square of the change over the rays that cross the surface, as a share of the grey window.
        radius: radius of the bone in pixels, the reference for gap and displacement.
        gap: width of the crack in pixels.
        displacement: displacement of the moved fragment across the bone in three dimensions, in pixels.
        displacement_seen: its component in the image plane of this view, in pixels.
        angulation: angulation of the moved fragment in three dimensions, in degrees.
        angulation_seen: its component in the image plane of this view, in degrees.
        tilt: angle between the fracture surface and the cross-section of the bone in degrees; NaN for comminuted.
        facing: angle in degrees between the direction in which the surface rises (or the crack opens) and the image
            plane: at 0 the surface is seen edge-on, at 90 en face.
        hairline: whether the fragments are not displaced and the gap is narrow.
    """

    box: tuple[int, int, int, int] | None
    visible: bool
    contrast: float
    radius: float
    gap: float
    displacement: float
    displacement_seen: float
    angulation: float
    angulation_seen: float
    tilt: float
    facing: float
    hairline: bool


@dataclass(frozen=True)
class Radiograph:
    """One view of a synthetic phantom.

    Attributes:
        image: (S, S) float32 in [0, 1], bone bright.
        view: one of `VIEWS`.
        crack: position of the fracture; None for the class "none".
    """

    image: NDArray[np.float32]
    view: str
    crack: Crack | None


def difficulty_of(value: float | str) -> float:
    """Convert a number, numeric string or name in `DIFFICULTIES` to a difficulty in [0, 1]; InputError otherwise."""
    try:
        number = DIFFICULTIES[value] if isinstance(value, str) and value in DIFFICULTIES else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise InputError(f"difficulty must be {', '.join(DIFFICULTIES)} or a number from 0 to 1; got {value!r}")
    return number


def class_of(seed: int, index: int) -> int:
    """Class number of a patient. Indices 6k to 6k + 5 contain each class once, in a random order."""
    return int(default_rng([seed, index // 6, LABEL]).permutation(len(CLASSES))[index % 6])


def _crack(picture: Picture, patient: Limb, broken: Fracture, view: int) -> Crack | None:
    if broken.kind == "none":
        return None
    size, turn, box = len(picture.grey), patient.turns[view], None
    rows, columns = np.flatnonzero(picture.cut.any(1)), np.flatnonzero(picture.cut.any(0))
    change = picture.change[picture.cut]
    if len(rows):
        edge = 2 + round(0.01 * size)
        low, high = (
            (max(int(a[0]) - edge, 0) for a in (columns, rows)),
            (int(a[-1]) + 1 + edge for a in (columns, rows)),
        )
        x0, y0 = low
        x1, y1 = (min(end, size) for end in high)
        box = x0, y0, x1, y1
    clear = int((change > np.maximum(_SEEN, 3 * picture.grain[picture.cut])).sum())
    cos, sin = math.cos(turn), math.sin(turn)

    def seen(vector: tuple[float, float]) -> float:
        return abs(cos * vector[0] + sin * vector[1])

    return Crack(
        box, clear >= size / 12, float(np.sqrt(np.mean(change**2))) if len(rows) else 0.0, patient.main.radius,
        broken.gap, math.hypot(*broken.displacement), seen(broken.displacement),
        math.degrees(math.atan(math.hypot(*broken.lean))), math.degrees(math.atan(seen(broken.lean))), broken.tilt,
        math.degrees(math.acos(min(abs(math.cos(patient.toward - turn)), 1))), broken.hairline,
    )  # fmt: skip


def _take(
    seed: int, index: int, size: int, label: int, difficulty: float, views: Sequence[int] | None
) -> list[Radiograph]:
    """Draw views of a patient; None draws the view in which the fracture plane is most nearly edge-on."""
    patient = limb(seed, index, size, difficulty)
    stream = default_rng([seed, index, FRACTURE])
    broken = fracture(CLASSES[label], stream, patient.main.radius, patient.toward, difficulty)
    if views is None:
        edge_on = [abs(math.cos(patient.toward - turn)) for turn in patient.turns]
        views = [edge_on.index(max(edge_on))]
    taken = []
    for view in views:
        picture = expose(patient, broken, view, seed, index, size, difficulty)
        taken.append(Radiograph(picture.grey, VIEWS[view], _crack(picture, patient, broken, view)))
    return taken


def _checked(seed: int, index: int, size: int, label: int | str | None) -> tuple[int, int, int, int]:
    seed, index = check_int(seed, "seed", 0), check_int(index, "index", 0)
    size = check_int(size, "size", 32)
    return seed, index, size, class_of(seed, index) if label is None else _class_index(label)


def draw_patient(
    seed: int, index: int, size: int = 224, label: int | str | None = None, difficulty: float | str = 0.0
) -> tuple[Radiograph, Radiograph]:
    """Draw the AP and the lateral view of one synthetic phantom (no clinical meaning).

    Both views show the same limb and fracture from directions about 90 degrees apart, each with its own exposure.
    Arguments, order of classes and errors are those of :func:`draw`.
    """
    seed, index, size, label = _checked(seed, index, size, label)
    front, side = _take(seed, index, size, label, difficulty_of(difficulty), range(len(VIEWS)))
    return front, side


def _class_index(label: int | str) -> int:
    place = CLASSES.index(label) if label in CLASSES else label
    if isinstance(place, str) or check_int(place, "label", 0) >= len(CLASSES):
        raise ValueError(f"label must be one of {', '.join(CLASSES)} or 0 to {len(CLASSES) - 1}; got {label!r}")
    return int(place)


def draw(
    seed: int, index: int, size: int = 224, label: int | str | None = None, difficulty: float | str = 0.0
) -> tuple[NDArray[np.float32], int]:
    """Draw one synthetic phantom (no clinical meaning), in the one of its two views that shows its fracture best.

    The image depends only on the arguments: bitwise on one machine, up to rounding errors on others.

    Args:
        seed: random seed of the data set, >= 0.
        index: number of the patient in the data set, >= 0.
        size: height and width S in pixels, >= 32; the anatomy scales with it.
        label: a class, by its name or its index in `CLASSES`. None: indices 6k to 6k + 5 contain each class once, in a
            random order.
        difficulty: from 0 (easy) to 1 (hard), or a name in `DIFFICULTIES`. Harder means narrower cracks with less
            displacement, more hairline fractures, smaller bones, more structures that mimic a crack, and more noise.

    Returns:
        The image, (S, S) float32 in [0, 1], bone bright; and its class as an index in `CLASSES`.

    Raises:
        TypeError, ValueError: an argument is not an integer, is too small, or is not a class or difficulty.
    """
    seed, index, size, label = _checked(seed, index, size, label)
    return _take(seed, index, size, label, difficulty_of(difficulty), None)[0].image, label


def phantoms(count: int, size: int = 224, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw images 0 to count - 1 of a data set, each a synthetic phantom with no clinical meaning.

    `count` is >= 0; with a multiple of six, all classes are equally frequent. `size` S, `seed` and errors are those of
    `draw`.

    Returns:
        Images, (count, 1, S, S) float32 in [0, 1], bone bright; labels, (count,) int64, indices in `CLASSES`.
    """
    count, size = check_int(count, "count", 0), check_int(size, "size", 32)
    images, labels = torch.empty(count, 1, size, size), torch.empty(count, dtype=torch.int64)
    for i in range(count):
        image, labels[i] = draw(seed, i, size)
        images[i, 0] = torch.from_numpy(image)
    return images, labels


def contact_sheet(images: Tensor | Array, labels: Sequence[int] | Tensor, path: str | os.PathLike[str]) -> None:
    """Write images with their classes as a contact sheet titled "synthetic phantom, no clinical meaning".

    Args:
        images: (N, 1, S, S) or (N, S, S) in [0, 1], N >= 1.
        labels: N indices in `CLASSES`.
        path: a .png, .pdf or .svg, written atomically.

    Raises:
        ValueError: an argument has another shape or an invalid label.
        ImportError: matplotlib is not installed.
    """
    pictures = np.asarray(images, dtype=np.float32)
    pictures = pictures[:, 0] if pictures.ndim == 4 and pictures.shape[1] == 1 else pictures
    if pictures.ndim != 3 or len(pictures) == 0:
        raise ValueError(f"images must be (N, 1, S, S) or (N, S, S) with N >= 1, got {tuple(np.shape(images))}")
    names = [CLASSES[_class_index(label)] for label in np.asarray(labels).ravel().tolist()]
    if len(names) != len(pictures):
        raise ValueError(f"labels must be one for each image: got {len(names)} for {len(pictures)} images")
    save_sheet(pictures, names, path, NOTE)
