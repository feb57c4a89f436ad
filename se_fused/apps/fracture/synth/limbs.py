"""Limb of a patient: bones and soft tissue, shared by both views, from a random stream independent of the class."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, default_rng

from .bones import Bone
from .fractures import between

__all__ = ["ANATOMY", "EXPOSURE", "FIELDS", "FRACTURE", "LABEL", "SPLIT", "VIEWS", "Limb", "limb"]

# Random streams. Fields have their own stream, so that a patient has the same anatomy at every image size.
ANATOMY, EXPOSURE, FIELDS, FRACTURE, LABEL, SPLIT = range(6)

VIEWS: tuple[str, ...] = ("AP", "lateral")
"""The two views of a patient, about a right angle apart."""


@dataclass(frozen=True)
class Limb:
    """Anatomy of a limb. Lengths in pixels of the image, angles in radians.

    Attributes:
        main: the bone that may be fractured, at s = 0.
        second: a bone beside it that is never fractured, or None.
        offset: distance from the axis of the main bone to that of the second, in p and q.
        slant: slope of the second bone relative to the main bone, in p and q.
        toward: direction in which the plane of a fracture rises.
        turns: rotation of each of the two views about the bone.
        soft: half width of the soft tissue in each view.
        taper, phase, swelling, swollen_at: parameters of the outline of the soft tissue.
        density: attenuation of compact bone per pixel.
        share: attenuation of the marrow relative to compact bone, away from the joints.
        side: L or R.
        canal, arrest, lucency: nutrient canal (strength, slope, position); growth-arrest lines (strength, number,
            position); spot of thin bone (strength, size, position). Strength 0: none.
    """

    main: Bone
    second: Bone | None
    offset: tuple[float, float]
    slant: tuple[float, float]
    toward: float
    turns: tuple[float, float]
    soft: tuple[float, float]
    taper: float
    phase: float
    swelling: float
    swollen_at: float
    density: float
    share: float
    side: str
    canal: tuple[float, float, tuple[float, float, float]]
    arrest: tuple[float, int, float]
    lucency: tuple[float, float, tuple[float, float, float]]


def _point(rng: Generator, radius: float, reach: float) -> tuple[float, float, float]:
    """A random point on the wall of the bone."""
    turn = rng.uniform(0, 2 * np.pi)
    return radius * math.cos(turn), radius * math.sin(turn), rng.uniform(-reach, reach)


def limb(seed: int, index: int, size: int, difficulty: float) -> Limb:
    """Draw the limb of patient `index` of the data set `seed`, for images of `size` pixels."""
    rng = default_rng([seed, index, ANATOMY])
    radius = size * between(rng, (0.095, 0.125), (0.065, 0.095), difficulty)
    joint = size * math.copysign(rng.uniform(0.38, 0.8), rng.uniform(-1, 1))
    cortex = rng.uniform(0.22, 0.36)

    def bone(thickness: float) -> Bone:
        # Some bones have a healed bend, so that a bent bone is not always a fractured one.
        tangent, away = math.tan(math.radians(rng.normal(0, 6))) * (rng.random() < 0.4), rng.uniform(0, 2 * np.pi)
        return Bone(
            radius * thickness, cortex * rng.uniform(0.9, 1.1), rng.uniform(0.92, 1.08),
            (size * rng.normal(0, 0.012), size * rng.normal(0, 0.012)), 0.5 * size, joint,
            rng.uniform(0.45, 0.75), rng.uniform(0, 2 * np.pi, 3),
            (tangent * math.cos(away), tangent * math.sin(away)), size * rng.uniform(-0.2, 0.2),
        )  # fmt: skip

    main, second, two = bone(1), bone(rng.uniform(0.5, 0.75)), rng.random() < 0.5
    # Beside the main bone in the AP view and partly behind it in the lateral view, like the fibula.
    apart = 1.75 * (main.radius + second.radius) * rng.uniform(0.95, 1.2)
    beside = rng.uniform(0.3, 0.8) * math.copysign(1, rng.uniform(-1, 1)) + math.pi * int(rng.integers(2))
    offset = (two * apart * math.cos(beside), two * apart * math.sin(beside))
    slant = (rng.normal(0, 0.03), rng.normal(0, 0.03))
    toward = rng.uniform(0, 2 * np.pi)
    turns = (math.radians(rng.normal(0, 6)), math.radians(90 + rng.normal(0, 6)))
    soft = tuple(radius * rng.uniform(2.3, 3.3) + 0.6 * math.hypot(*offset) * rng.uniform(0.85, 1) for _ in VIEWS)
    likely = 0.3 + 0.4 * difficulty  # probability of each structure that mimics a crack
    canal = rng.uniform(0.1, 0.3) * (rng.random() < likely), rng.uniform(-0.5, 0.5), _point(rng, radius, 0.4 * size)
    arrest = rng.uniform(0.15, 0.4) * (rng.random() < 0.6 * likely), int(rng.integers(1, 4)), rng.uniform(0.6, 1.9)
    strength, width = rng.uniform(0.2, 0.6) * (rng.random() < 0.5 * likely), rng.uniform(0.1, 0.3)
    lucency = strength, width, _point(rng, 0.6 * radius, 0.4 * size)
    return Limb(
        main, second if two else None, offset, slant, toward, turns, (soft[0], soft[1]),
        rng.uniform(-0.25, 0.25), rng.uniform(0, 6), max(rng.uniform(-0.2, 0.2), 0), rng.normal(0, 0.1),
        rng.uniform(0.45, 0.7) / radius, rng.uniform(0.05, 0.15), "LR"[int(rng.integers(2))], canal, arrest, lucency,
    )  # fmt: skip
