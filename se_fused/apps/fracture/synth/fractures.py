"""Fracture classes: surfaces that cut a bone, and the displacement of the fragments.

Gap, displacement and angulation have the same distributions for all complete fractures, so only the shape distinguishes
the classes. The tilts of transverse (up to 16 degrees) and oblique fractures (from 38 degrees) do not overlap, so no
fracture is between the two.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from .bones import Fragment, Solid
from .fields import Array, noise

__all__ = ["CLASSES", "Fracture", "between", "fracture"]

CLASSES: tuple[str, ...] = ("none", "transverse", "oblique", "spiral", "comminuted", "greenstick")
"""Fracture classes in the order of their numbers (synthetic phantom, no clinical meaning)."""


@dataclass(frozen=True)
class Fracture:
    """A fracture of a bone. Lengths in pixels, angles in degrees; NaN where a value does not apply to a class.

    Attributes:
        kind: name of the class.
        fragments: the fragments of the bone.
        zone: largest distance of the surfaces from s = 0 along the bone.
        gap: width of the crack.
        displacement: displacement of the moved fragment, as a vector in p and q.
        lean: tangents of the angulation of the moved fragment toward p and q.
        tilt: angle between the surface and the cross-section; for a spiral, the mean slope of its helix.
        hairline: whether the fragments are not displaced and the gap is narrow.
    """

    kind: str
    fragments: tuple[Fragment, ...] = (Fragment(),)
    zone: float = 0.0
    gap: float = math.nan
    displacement: tuple[float, float] = (0.0, 0.0)
    lean: tuple[float, float] = (0.0, 0.0)
    tilt: float = math.nan
    hairline: bool = False


def between(rng: Generator, easy: tuple[float, float], hard: tuple[float, float], difficulty: float) -> float:
    """Uniform random number; its limits are interpolated between `easy` and `hard` by the difficulty."""
    low, high = (a + (b - a) * difficulty for a, b in zip(easy, hard, strict=True))
    return rng.uniform(low, high)


class _Roughness:
    """Roughness of a fracture surface: smooth noise over two coordinates, in pixels, from a lookup table."""

    def __init__(self, rng: Generator, radius: float) -> None:
        self.scale, self.cells = 16 / radius, 64
        self.table = (noise(rng, self.cells, 1.2, 3.0) * (radius * rng.uniform(0.04, 0.08))).ravel()

    def __call__(self, p: Array, q: Array) -> Array:
        place = np.clip(p * self.scale + self.cells / 2, 0, self.cells - 1).astype(np.int32)
        place *= self.cells
        place += np.clip(q * self.scale + self.cells / 2, 0, self.cells - 1).astype(np.int32)
        return self.table.take(place)


def plane(rng: Generator, radius: float, tilt: float, toward: float, at: float = 0.0) -> Solid:
    """Signed distance from a rough plane, tilted by `tilt` radians from the cross-section toward the angle `toward`."""
    rough, cos_tilt = _Roughness(rng, radius), math.cos(tilt)
    a, b = math.tan(tilt) * math.cos(toward), math.tan(tilt) * math.sin(toward)
    return lambda p, q, s: ((s - at - a * p) - b * q - rough(p, q)) * cos_tilt


def helix(rng: Generator, radius: float, pitch: float, toward: float) -> Solid:
    """Signed distance from one turn of a helical surface, closed by a steep longitudinal limb opposite `toward`."""
    rough, limb = _Roughness(rng, radius), 0.2  # share of the limb in the turn
    cos, sin = math.cos(toward), math.sin(toward)

    def distance(p: Array, q: Array, s: Array) -> Array:
        turn = np.arctan2(q * cos - p * sin, p * cos + q * sin) * np.float32(1 / math.pi)  # 0 toward, ±1 at the limb
        size = np.abs(turn)
        rise = 0.5 * pitch * np.sign(turn) * np.minimum(size / (1 - limb), (1 - size) / limb)
        slope = pitch / (2 * math.pi) / np.where(size < 1 - limb, np.float32(1 - limb), np.float32(limb))
        return (s - rise - rough(p, q)) / np.hypot(1, slope / np.maximum(np.hypot(p, q), 0.4 * radius))

    return distance


def _greenstick(rng: Generator, radius: float, gap: float, toward: float, difficulty: float) -> Fracture:
    """Greenstick fracture: a wedge-shaped crack from the tension side ends inside the bone, which bends there."""
    tilt = math.radians(rng.uniform(0, 26))
    surface = plane(rng, radius, tilt, toward + math.pi * int(rng.integers(2)))
    tip, run = radius * rng.uniform(-0.1, 0.3), radius * rng.uniform(-0.9, 0.9)
    rough, cos, sin = _Roughness(rng, radius), math.cos(toward), math.sin(toward)
    bend = -math.tan(math.radians(between(rng, (5, 14), (2, 7), difficulty)))

    def distance(p: Array, q: Array, s: Array) -> Array:
        depth = p * cos + q * sin - tip  # distance from the crack tip toward the tension side
        crack = np.maximum(np.abs(surface(p, q, s)) - gap * (0.2 + 0.75 * depth / radius), -depth)
        # At its tip, the crack turns and continues along the bone.
        along = np.maximum(np.abs(depth + 1.5 * rough(s, q)) - 0.16 * gap, np.abs(s - run / 2) - abs(run) / 2)
        return np.minimum(crack, along)

    hinge = bend * cos, bend * sin
    part = Fragment(distance, hinge=hinge)
    return Fracture("greenstick", (part,), 2.2 * radius, gap, lean=hinge, tilt=math.degrees(tilt))


def _comminuted(
    rng: Generator, radius: float, gap: float, shift: tuple[float, float], lean: tuple[float, float], loose: float
) -> Fracture:
    """Comminuted fracture: two ends and three to five scattered fragments between them, cells of a Voronoi diagram."""
    half, count = radius * rng.uniform(0.9, 1.5), int(rng.integers(3, 6))
    low, high = (plane(rng, radius, math.radians(rng.uniform(10, 42)), rng.uniform(-4, 4), at) for at in (-half, half))
    rough = _Roughness(rng, radius)
    turn = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(count) / count  # evenly spaced around the axis
    seeds = np.stack([0.6 * radius * np.cos(turn), 0.6 * radius * np.sin(turn), rng.uniform(-half, half, count)], 1)
    moves, leans = rng.normal(0, 0.2 * radius * loose, (count, 3)), rng.normal(0, 0.2 * loose, (count, 2))

    def piece(k: int) -> Solid:
        def distance(p: Array, q: Array, s: Array) -> Array:
            d, bumps = np.minimum(low(p, q, s), -high(p, q, s)), rough(p, q)
            for j in set(range(count)) - {k}:
                normal = (seeds[k] - seeds[j]) / np.linalg.norm(seeds[k] - seeds[j])
                (a, b, c), offset = normal.tolist(), float((normal * (seeds[k] + seeds[j])).sum()) / 2
                np.minimum(d, (a * p + c * s - offset) + b * q + (bumps if k > j else -bumps), out=d)
            return d - gap / 2

        return distance

    parts = [
        Fragment(lambda p, q, s: -low(p, q, s) - gap / 2),
        Fragment(lambda p, q, s: np.minimum(low(p, q, s), high(p, q, s)) - gap / 2, (*shift, 0.0), lean),
    ]
    for k, ((dp, dq, ds), tilts) in enumerate(zip(moves.tolist(), leans.tolist(), strict=True)):
        moved = shift[0] / 2 + dp, shift[1] / 2 + dq, ds
        leant = lean[0] / 2 + tilts[0], lean[1] / 2 + tilts[1]
        a, b, c = seeds[k].tolist()
        parts.append(Fragment(piece(k), moved, leant, (a, b, c)))
    return Fracture("comminuted", tuple(parts), half + 2 * radius, gap, shift, lean)


def fracture(kind: str, rng: Generator, radius: float, toward: float, difficulty: float) -> Fracture:
    """Draw a random fracture of a class.

    Args:
        kind: one of `CLASSES`.
        rng: random generator for this fracture only.
        radius: radius of the bone in pixels.
        toward: direction in the section (radians, 0 is p) in which a plane rises or a crack opens.
        difficulty: 0 to 1.
    """
    hairline = rng.random() < 0.03 + 0.32 * difficulty
    gap = radius * between(rng, (0.12, 0.24), (0.07, 0.15), difficulty)
    away, leaning = rng.uniform(0, 2 * np.pi, 2).tolist()
    aside = radius * min(rng.exponential(0.36 - 0.22 * difficulty), 0.9)
    angle = math.tan(math.radians(min(abs(rng.normal(0, 6.5 - 3.5 * difficulty)), 13)))
    slide = rng.uniform(0.5, 1)
    if hairline:
        gap, aside, angle = radius * between(rng, (0.10, 0.12), (0.05, 0.08), difficulty), 0.0, 0.0
    if kind == "none":
        return Fracture("none")
    if kind == "greenstick":
        return _greenstick(rng, radius, 1.1 * gap, toward, difficulty)
    shift, lean = (
        (aside * math.cos(away), aside * math.sin(away)),
        (angle * math.cos(leaning), angle * math.sin(leaning)),
    )
    if kind == "comminuted":
        whole = _comminuted(rng, radius, gap, shift, lean, 0.35 if hairline else 1 - 0.4 * difficulty)
        return replace(whole, hairline=hairline)
    if kind == "spiral":
        pitch = radius * math.copysign(rng.uniform(3.2, 5), rng.uniform(-1, 1))
        # Rotated by 90 degrees, so that the limb is in front of or behind the axis; at the outline it would be hidden.
        surface, slope, zone = helix(rng, radius, pitch, toward + math.pi / 2), 0.0, abs(pitch) / 2
        tilt = math.atan(abs(pitch) / (2 * math.pi * radius))
    else:
        tilt = math.radians(rng.uniform(0, 16) if kind == "transverse" else rng.uniform(38, 58))
        surface, slope, zone = plane(rng, radius, tilt, toward), math.tan(tilt), 2 * radius
    along = slope * slide * (shift[0] * math.cos(toward) + shift[1] * math.sin(toward))  # sliding along the plane
    parts = (
        Fragment(lambda p, q, s: -surface(p, q, s) - gap / 2),
        Fragment(lambda p, q, s: surface(p, q, s) - gap / 2, (*shift, along), lean),
    )
    return Fracture(kind, parts, zone + radius, gap, shift, lean, math.degrees(tilt), hairline)
