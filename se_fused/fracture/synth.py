"""Synthetic long-bone radiographs with a fracture class: a synthetic phantom, no clinical meaning.

A drawn picture, not a simulated scanner: it lets training code be run, tested and shown without patient data.
Each bone is a tube in three dimensions. A fracture is a surface through it, s = g(u, w), which cuts it into fragments
that are moved a little; no line is ever painted, so a fracture looks different from every direction, as in life.

    attenuation = soft + density · (compact + share · marrow)        Beer-Lambert: minus log of the intensity

Coordinates in pixels of the image: ``u`` across the bone, ``w`` along the ray, ``s`` along the bone, the fracture at 0.
All but the fracture comes from random streams that never see the label: away from the moved bone, two images of the
same (seed, index) with different labels are equal.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from torch import Tensor

from .images import check_integer, save_sheet

__all__ = ["CLASSES", "contact_sheet", "draw", "phantoms"]

CLASSES: tuple[str, ...] = ("none", "transverse", "oblique", "spiral", "comminuted", "greenstick")
"""In the order of their labels (synthetic phantom, no clinical meaning)."""

Array = NDArray[Any]  # float32 wherever it is of the image's size
Solid = Callable[[Array, Array, Array], Array]  # (u, w, s) -> distance in pixels to the surface, positive inside

# Random streams of an image; fields are apart, so that (seed, index) shows the same anatomy at every size.
_ANATOMY, _FIELDS, _FRACTURE, _LABEL = range(4)

# Nodes of a ray through one wall and through the marrow; between them a surface counts as flat, so no steps show.
_WALL_NODES, _MARROW_NODES = 5, 11

_L = ((0, 0), (0, 1), (0.6, 1))  # lead markers, strokes in a unit box
_R = ((0, 1), (0, 0), (0.45, 0.03), (0.6, 0.25), (0.45, 0.47), (0, 0.5), (0.25, 0.5), (0.62, 1))


@dataclass(frozen=True)
class _Bone:
    """A tube along s; lengths in pixels. Its section has the half axes radius·ellipse (u) and radius/ellipse (w)."""

    radius: float
    cortex: float  # thickness of the wall / radius
    ellipse: float
    bow: float  # shift in u at the distance `reach`
    reach: float
    joint: float  # s of the joint
    flare: float  # widening at the joint / radius
    phases: Array  # of the outline's waves

    def walls(self, u: Array, s: Array) -> tuple[Array, Array, Array]:
        """Outer radius, inner radius, and how spongy the bone is in [0, 1], each of u's shape."""
        # Distance from the joint's curved surface, negative in the other bone beyond it.
        end = math.copysign(1, self.joint) * (self.joint - s) - 0.16 * u * u / self.radius
        beyond = end < 0
        end = np.abs(end) - 0.1 * self.radius
        spongy = np.exp(-np.maximum(end, 0) / (self.radius * np.where(beyond, np.float32(0.9), np.float32(1.3))))
        outer = self.radius * (1 + self.flare * np.where(beyond, np.float32(0.85), np.float32(1)) * spongy)
        for k, phase in enumerate(self.phases.tolist()):
            outer += 0.012 * self.radius * np.sin(s * ((k + 1) * 2.3 / self.reach) + phase)
        inner = np.maximum(outer - self.cortex * self.radius * (1 - 0.8 * spongy), 0)

        def cap(depth: Array) -> Array:  # the rounded rim where the bone ends
            return np.sqrt(1 - np.clip(1 - depth / (0.5 * self.radius), 0, 1) ** 3) * (depth > 0)

        return outer * cap(end), inner * cap(end - 0.09 * self.radius), spongy


@dataclass(frozen=True)
class _Fragment:
    """A part of a bone and its motion in the image plane: a parallel projection shows none in depth."""

    solid: Solid | None = None  # None: the whole bone
    shift: tuple[float, float] = (0.0, 0.0)  # across, along
    angle: float = 0.0  # radians, about the pivot (u, s)
    pivot: tuple[float, float] = (0.0, 0.0)
    hinge: float = 0.0  # tangent of a smooth bend at s = 0


def _filled(distance: Array) -> Array:
    """(K, P) distances at nodes -> (K-1, P) means of clip(d + 1/2, 0, 1) over the segments, where d is linear."""
    t = distance + 0.5
    total = 0.5 * np.clip(t, 0, 1) ** 2 + np.maximum(t - 1, 0)
    step = np.diff(t, axis=0)
    flat = np.abs(step) < 0.05  # there the quotient would lose its digits
    return np.where(flat, np.clip(t[1:] - 0.5 * step, 0, 1), np.diff(total, axis=0) / np.where(flat, 1, step))


def _project(bone: _Bone, x: Array, y: Array, fragments: Sequence[_Fragment], zone: float = 0.0) -> Array:
    """(3, S, S): path lengths in pixels through compact bone and marrow, and how spongy the bone is in [0, 1]."""
    layers = np.zeros((3, *x.shape), np.float32)
    limit = bone.radius * (1.1 + bone.flare) * max(bone.ellipse, 1)
    for part in fragments:
        (pu, ps), (du, ds), cos, sin = part.pivot, part.shift, math.cos(part.angle), math.sin(part.angle)
        u = (x - (pu + du)) * cos + (y - (ps + ds)) * sin + pu
        s = (y - (ps + ds)) * cos - (x - (pu + du)) * sin + ps
        u -= bone.bow * (s / bone.reach) ** 2 + part.hinge * 0.5 * (s + np.hypot(s, np.float32(0.5 * bone.radius)))
        band = np.abs(u) < limit
        u, s = u[band], s[band]
        outer, inner, spongy = bone.walls(u, s)
        outer = np.sqrt(np.maximum(outer**2 - (u / bone.ellipse) ** 2, 0)) / bone.ellipse  # half chords
        inner = np.sqrt(np.maximum(inner**2 - (u / bone.ellipse) ** 2, 0)) / bone.ellipse
        there = np.ones_like(u) if part.solid is None else np.clip(part.solid(u, np.zeros_like(u), s) + 0.5, 0, 1)
        lengths = np.stack([2 * (outer - inner) * there, 2 * inner * there])
        if part.solid is not None:  # beyond the zone a fragment is there or not for the whole depth
            near = (np.abs(s) < zone) & (outer > 0)
            wall = inner[near] + (outer - inner)[near] * np.linspace(0, 1, _WALL_NODES, dtype=np.float32)[:, None]
            middle = inner[near] * np.linspace(-1, 1, _MARROW_NODES, dtype=np.float32)[1:-1, None]
            w = np.concatenate([-wall[::-1], middle, wall])
            filled = _filled(part.solid(u[near], w, s[near])) * np.diff(w, axis=0)
            first, last = _WALL_NODES - 1, len(filled) - _WALL_NODES + 1
            lengths[:, near] = filled[:first].sum(0) + filled[last:].sum(0), filled[first:last].sum(0)
        layers[:2, band] += lengths
        layers[2, band] = np.maximum(layers[2, band], spongy * there)
    return layers


def _filter(image: Array, gain: Callable[[Array, Array], Array]) -> Array:
    """The image with its spectrum times gain(fy, fx), frequencies in cycles an image; it wraps round."""
    fy, fx = (f(len(image), 1 / len(image)) for f in (np.fft.fftfreq, np.fft.rfftfreq))
    return np.fft.irfft2(np.fft.rfft2(image) * gain(fy[:, None], fx), image.shape).astype(np.float32)


def _noise(rng: Generator, size: int, power: float, corner: float, axis: float = 0.0, pull: float = 1.0) -> Array:
    """(size, size), mean 0, deviation 1, spectrum 1/f^power above `corner` cycles, `pull` times longer along `axis`."""

    def gain(fy: Array, fx: Array) -> Array:
        along, across = fy * math.cos(axis) - fx * math.sin(axis), fx * math.cos(axis) + fy * math.sin(axis)
        return ((along * pull) ** 2 + across**2 + corner**2) ** (-power / 2)

    field = _filter(rng.standard_normal((size, size), np.float32), gain)
    return (field - field.mean()) / field.std()


def _blur(image: Array, sigma: float) -> Array:
    """Gaussian blur, sigma in pixels, cut at three sigma; the border's pixels go on outside."""
    reach, size = math.ceil(3 * sigma), len(image)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    for _ in range(2):  # no matrix product: BLAS threads would fight those of data loaders
        wide = np.pad(image, ((reach, reach), (0, 0)), mode="edge")
        image = sum(tap * wide[k : k + size] for k, tap in enumerate((taps / taps.sum()).tolist())).T
    return image


def _roughness(rng: Generator, radius: float) -> Callable[[Array, Array], Array]:
    """Bumps in pixels over two coordinates: smooth noise in a table."""
    cells, scale, middle = 64, 16 / radius, 32
    table = (_noise(rng, cells, 1.2, 3.0) * (radius * rng.uniform(0.04, 0.08))).ravel()

    def height(u: Array, w: Array) -> Array:
        row, column = (np.clip(a * scale + middle, 0, cells - 1).astype(np.int32) for a in (u, w))
        return table[row * cells + column]

    return height


def _plane(rng: Generator, radius: float, tilt: float, toward: float, at: float = 0.0) -> Solid:
    """Distance above a rough plane, `tilt` radians off the cross-section, rising toward the angle `toward`."""
    rough, cos_tilt = _roughness(rng, radius), math.cos(tilt)
    a, b = math.tan(tilt) * math.cos(toward), math.tan(tilt) * math.sin(toward)
    return lambda u, w, s: ((s - at - a * u) - b * w - rough(u, w)) * cos_tilt


def _helix(rng: Generator, radius: float, pitch: float, toward: float) -> Solid:
    """Distance above a helical surface of one turn, closed by a steep limb along the bone opposite `toward`."""
    rough, limb = _roughness(rng, radius), 0.2  # the limb's share of the turn

    def distance(u: Array, w: Array, s: Array) -> Array:
        turn = (np.arctan2(w, u) - (toward - math.pi)) % (2 * math.pi) / math.pi - 1
        size = np.abs(turn)
        rise = 0.5 * pitch * np.sign(turn) * np.minimum(size / (1 - limb), (1 - size) / limb)
        slope = pitch / (2 * math.pi) / np.where(size < 1 - limb, np.float32(1 - limb), np.float32(limb))
        return (s - rise - rough(u, w)) / np.hypot(1, slope / np.maximum(np.hypot(u, w), 0.4 * radius))

    return distance


def _greenstick(rng: Generator, radius: float, gap: float, toward: float) -> tuple[list[_Fragment], float]:
    """A wedge-shaped crack from the stretched side that ends inside the bone; the bone bends about its whole side."""
    surface = _plane(rng, radius, math.radians(rng.uniform(0, 28)), toward + math.pi * int(rng.integers(2)))
    tip, run = radius * rng.uniform(-0.1, 0.3), radius * rng.uniform(-0.9, 0.9)
    rough, cos, sin = _roughness(rng, radius), math.cos(toward), math.sin(toward)
    hinge = -math.copysign(math.tan(math.radians(rng.uniform(5, 14))), cos)

    def distance(u: Array, w: Array, s: Array) -> Array:
        depth = u * cos + w * sin - tip  # from the crack's tip toward the stretched side
        crack = np.maximum(np.abs(surface(u, w, s)) - gap * (0.2 + 0.75 * depth / radius), -depth)
        # At its tip it turns and runs on along the fibres.
        along = np.maximum(np.abs(depth + 1.5 * rough(s, w)) - 0.16 * gap, np.abs(s - run / 2) - abs(run) / 2)
        return np.minimum(crack, along)

    return [_Fragment(distance, hinge=hinge)], 2.2 * radius


def _comminuted(rng: Generator, radius: float, gap: float, aside: float, angle: float) -> tuple[list[_Fragment], float]:
    """Two ends, and between them three to five pieces: the cells of a Voronoi diagram, a little scattered."""
    half, count = radius * rng.uniform(0.9, 1.5), int(rng.integers(3, 6))
    low, high = (_plane(rng, radius, math.radians(rng.uniform(10, 42)), rng.uniform(-4, 4), at) for at in (-half, half))
    rough = _roughness(rng, radius)
    turn = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(count) / count  # spread about the axis, not on a heap
    seeds = np.stack([0.6 * radius * np.cos(turn), 0.6 * radius * np.sin(turn), rng.uniform(-half, half, count)], 1)
    moves, turns = rng.normal(0, 0.2 * radius, (count, 2)).tolist(), rng.normal(0, 0.2, count).tolist()

    def piece(k: int) -> Solid:
        def distance(u: Array, w: Array, s: Array) -> Array:
            d, bumps = np.minimum(low(u, w, s), -high(u, w, s)), rough(u, w)
            for j in set(range(count)) - {k}:
                normal = (seeds[k] - seeds[j]) / np.linalg.norm(seeds[k] - seeds[j])
                (a, b, c), offset = normal.tolist(), float(normal @ (seeds[k] + seeds[j])) / 2
                d = np.minimum(d, (a * u + c * s - offset) + b * w + (bumps if k > j else -bumps))
            return d - gap / 2

        return distance

    parts = [
        _Fragment(lambda u, w, s: -low(u, w, s) - gap / 2),
        _Fragment(lambda u, w, s: np.minimum(low(u, w, s), high(u, w, s)) - gap / 2, (aside, 0.0), angle),
    ]
    for k, (du, ds) in enumerate(moves):
        pivot = float(seeds[k, 0]), float(seeds[k, 2])
        parts.append(_Fragment(piece(k), (aside / 2 + du, ds), angle / 2 + turns[k], pivot))
    return parts, half + 2 * radius


def _break(kind: str, rng: Generator, radius: float) -> tuple[list[_Fragment], float]:
    """The fragments of a class, and how far its surfaces may reach along s in pixels."""
    # One distribution of gap, displacement and angle for all complete fractures: only the shape tells the class.
    # The radiographer chose a view that shows it: within 45 degrees of the image plane.
    gap, toward = radius * rng.uniform(0.1, 0.22), math.radians(rng.uniform(-45, 45) + 180 * int(rng.integers(2)))
    aside = radius * math.copysign(min(rng.exponential(0.28), 0.9), rng.uniform(-1, 1))
    angle, slide = math.radians(min(max(rng.normal(0, 5), -11), 11)), rng.uniform(0.5, 1)
    if kind == "none":
        return [_Fragment()], 0.0
    if kind == "greenstick":
        return _greenstick(rng, radius, gap, toward)
    if kind == "comminuted":
        return _comminuted(rng, radius, gap, aside, angle)
    if kind == "spiral":
        pitch = radius * math.copysign(rng.uniform(3.2, 5), rng.uniform(-1, 1))
        # The limb lies before or behind the axis, because at the outline it would hide in the cortex.
        surface, slope, zone = _helix(rng, radius, pitch, toward + math.pi / 2), 0.0, abs(pitch) / 2
    else:
        tilt = math.radians(rng.uniform(0, 16) if kind == "transverse" else rng.uniform(38, 58))
        surface, slope, zone = _plane(rng, radius, tilt, toward), math.tan(tilt) * math.cos(toward), 2 * radius
    far = _Fragment(lambda u, w, s: surface(u, w, s) - gap / 2, (aside, slope * aside * slide), angle)
    return [_Fragment(lambda u, w, s: -surface(u, w, s) - gap / 2), far], zone + radius


def _frame(rng: Generator, grey: Array, xx: Array, yy: Array) -> Array:
    """Lay the collimator (dark, at times with a film's bright rim) and a lead letter over the picture."""
    size, turn, aperture = len(grey), rng.normal(0, 0.05), rng.uniform([0.36, 0.42], [0.56, 0.6])
    across, down = xx - size / 2, yy - size / 2
    height, at, shine = size * rng.uniform(0.05, 0.075), size * rng.uniform(0.06, [0.2, 0.85]), rng.uniform(0.7, 1)
    points = at + height * np.array(_L if rng.random() < 0.5 else _R)
    if rng.random() < 0.4:
        away = np.full_like(grey, size)
        for (ax, ay), (dx, dy) in zip(points.tolist(), np.diff(points, axis=0).tolist(), strict=False):
            t = np.clip(((xx - ax) * dx + (yy - ay) * dy) / (dx * dx + dy * dy), 0, 1)
            away = np.minimum(away, np.hypot(xx - ax - t * dx, yy - ay - t * dy))
        grey = np.maximum(grey, shine * np.clip(0.09 * height + 0.5 - away, 0, 1))
    edge = np.abs(across * math.cos(turn) + down * math.sin(turn)) - size * aperture[0]
    edge = np.maximum(edge, np.abs(down * math.cos(turn) - across * math.sin(turn)) - size * aperture[1])
    shut, rim = np.clip(edge + 0.5, 0, 1), np.clip(0.011 * size - np.abs(edge - 0.011 * size), 0, 1)
    return grey * (1 - shut) + shut * (rng.choice([0, 0.01, 0.03]) + 0.85 * (rng.random() < 0.2) * rim)


def _render(seed: int, index: int, size: int, label: int) -> Array:
    rng, fields = default_rng([seed, index, _ANATOMY]), default_rng([seed, index, _FIELDS])
    radius, axis = size * rng.uniform(0.085, 0.12), math.radians(min(max(rng.normal(0, 13), -40), 40))
    joint = size * math.copysign(rng.uniform(0.38, 0.8), rng.uniform(-1, 1))

    def bone(thickness: float) -> _Bone:
        cortex, ellipse, bow = rng.uniform(0.22, 0.36), rng.uniform(0.92, 1.08), size * rng.normal(0, 0.012)
        flare, phases = rng.uniform(0.45, 0.75), rng.uniform(0, 2 * np.pi, 3)
        return _Bone(radius * thickness, cortex, ellipse, bow, 0.5 * size, joint, flare, phases)

    yy, xx = np.mgrid[0:size, 0:size].astype(np.float32) + 0.5
    across, down = xx - size * rng.uniform(0.42, 0.58), yy - size * rng.uniform(0.42, 0.58)
    x, y = across * math.cos(axis) + down * math.sin(axis), down * math.cos(axis) - across * math.sin(axis)
    main, second, lean, two = bone(1), bone(rng.uniform(0.5, 0.75)), rng.normal(0, 0.03), rng.random() < 0.5
    offset = two * math.copysign(1.75 * (main.radius + second.radius) * rng.uniform(0.95, 1.2), rng.uniform(-1, 1))
    whole = _project(main, x, y, [_Fragment()])
    # The second bone is never broken, so its presence tells nothing.
    beside = _project(second, x - offset - lean * y, y, [_Fragment()]) if two else np.zeros_like(whole)
    parts, zone = _break(CLASSES[label], default_rng([seed, index, _FRACTURE]), radius)
    broken = _project(main, x, y, parts, zone)

    # Skin and the denser muscle: two half-ellipses, their width wandering along the limb, perhaps swollen.
    half, taper, phase = radius * rng.uniform(2.3, 3.3) + 0.6 * abs(offset), rng.uniform(-0.25, 0.25), rng.uniform(0, 6)
    v, swelling, centre = y / size, max(rng.uniform(-0.2, 0.2), 0), rng.normal(0, 0.1)
    width = 1 + taper * v + 0.04 * np.sin(3 * v + phase) + 0.02 * np.sin(8 * v + 2 * phase)
    width = half * (width + swelling * np.exp(-(((v - centre) / 0.2) ** 2)))
    beyond = (x - 0.5 * offset - rng.uniform(-0.18, 0.18) * half) / width
    muscle = np.sqrt(np.maximum(1 - (beyond / rng.uniform(0.75, 0.9)) ** 2, 0))
    soft = (0.6 * np.sqrt(np.maximum(1 - beyond**2, 0)) + 0.4 * muscle) * width / half
    soft *= 1 + 0.03 * _noise(fields, size, 2.0, 5, axis, 3.0) + 0.015 * _noise(fields, size, 2.0, 3)
    # What can be mistaken for a crack: a fold of the skin, and a vessel's canal through the cortex.
    fold, slope, place = max(rng.uniform(-0.08, 0.06), 0), rng.uniform(-1, 1), rng.uniform(-0.6, 0.6) * size
    soft += fold * (np.abs(beyond) < 1) / (1 + np.exp(np.clip(y - place - slope * x, -30, 30)))
    canal, slope = max(rng.uniform(-0.3, 0.3), 0), rng.uniform(-0.5, 0.5)
    cx, cy = x - rng.uniform(-0.9, 0.9) * radius, y - rng.uniform(-0.4, 0.4) * size
    canal = canal * np.exp(-(((cx - slope * cy) / (0.05 * radius)) ** 2) - (cy / (0.9 * radius)) ** 4)

    # Spongy bone is a net of fine struts, densest at the joint; compact bone has faint streaks along it.
    struts, streaks = _noise(fields, size, 0.75, 12, axis, 1.6), _noise(fields, size, 0.6, 8, axis, 5.0)
    # On a real tibia radiograph, with the soft tissue's peak at 1, marrow added 0.33 and the cortex's edge 0.5.
    dose, density, share = rng.uniform(0.8, 1.4), rng.uniform(0.45, 0.7) / radius, rng.uniform(0.05, 0.15)

    def intensity(layers: Array) -> Array:
        compact, marrow, spongy = layers[0], layers[1], np.minimum(layers[2], 1)
        marrow = marrow * (share + 0.18 * spongy) * np.maximum(1 + (0.08 + 0.15 * spongy) * struts, 0)
        return np.exp(-dose * (soft + density * (compact * np.maximum(1 + 0.05 * streaks - canal, 0.2) + marrow)))

    # Scatter and the grey window come from the intact limb: from the broken one they would carry the class far away.
    intact = intensity(whole + beside)
    veil = _filter(intact, lambda fy, fx: np.exp(-2 * (0.09 * np.pi) ** 2 * (fy**2 + fx**2)))
    scatter, heel = rng.uniform(0.03, 0.12) * veil, 1 + rng.uniform(-0.1, 0.1) * (yy / size - 0.5)
    sharpness, quanta = rng.uniform(0.4, 0.7) * size / 224, rng.uniform(0.002, 0.008)
    light = _blur(intensity(broken + beside) + scatter, max(sharpness, 0.3)) * heel
    light += quanta * np.sqrt(light) * 2 * _blur(fields.standard_normal((size, size), np.float32), 0.5)
    low, high = np.quantile(-np.log((intact + scatter) * heel), [0.02, 0.997]).tolist()
    low, high = min(low, 0.05) - 0.04, high * rng.uniform(1.0, 1.1)
    grey = np.maximum((-np.log(np.maximum(light, 1e-4)) - low) / (high - low), 0)
    grey = (grey / (1 + grey**8) ** (1 / 8)) ** rng.uniform(1.05, 1.6)  # a film's shoulder: overlaps stay readable
    grey += max(rng.uniform(-0.6, 0.6), 0) * (grey - _blur(grey, 2.2 * size / 224))
    return np.clip(_frame(rng, grey, xx, yy)[:, :: 1 if rng.random() < 0.5 else -1], 0, 1).astype(np.float32)


def _class_index(label: int | str) -> int:
    place = CLASSES.index(label) if label in CLASSES else label
    if isinstance(place, str) or check_integer("label", place, 0) >= len(CLASSES):
        raise ValueError(f"label must be one of {', '.join(CLASSES)}, or 0 to {len(CLASSES) - 1}; got {label!r}")
    return int(place)


def draw(seed: int, index: int, size: int = 224, label: int | str | None = None) -> tuple[NDArray[np.float32], int]:
    """Draw one synthetic phantom (no clinical meaning).

    It depends on these arguments alone: to the bit on one machine, up to rounding elsewhere.

    Args:
        seed: number of the data set, >= 0.
        index: number of the image in it, >= 0.
        size: height and width S in pixels, >= 32; the anatomy scales with it.
        label: a class, by its name or its place in `CLASSES`. None: every six indices from a multiple of six on hold
            each class once, in an order of their own.

    Returns:
        The image, (S, S) float32 in [0, 1], bone bright; and its place in `CLASSES`.

    Raises:
        TypeError, ValueError: an argument is no integer, is too small, or names no class.
    """
    seed, index = check_integer("seed", seed, 0), check_integer("index", index, 0)
    size = check_integer("size", size, 32)
    if label is None:
        label = int(default_rng([seed, index // 6, _LABEL]).permutation(len(CLASSES))[index % 6])
    label = _class_index(label)
    return _render(seed, index, size, label), label


def phantoms(count: int, size: int = 224, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw images 0 to count - 1 of a data set, each a synthetic phantom with no clinical meaning.

    `count` >= 0, where a multiple of six holds as many of each class; `size` S, `seed` and errors are those of `draw`.

    Returns:
        Images, (count, 1, S, S) float32 in [0, 1], bone bright; labels, (count,) int64, places in `CLASSES`.
    """
    count, size = check_integer("count", count, 0), check_integer("size", size, 32)
    images, labels = torch.empty(count, 1, size, size), torch.empty(count, dtype=torch.int64)
    for i in range(count):
        image, labels[i] = draw(seed, i, size)
        images[i, 0] = torch.from_numpy(image)
    return images, labels


def contact_sheet(images: Tensor | Array, labels: Sequence[int] | Tensor, path: str | os.PathLike[str]) -> None:
    """Write images with their classes as one picture, headed "synthetic phantom, no clinical meaning".

    `images` are (N, 1, S, S) or (N, S, S) in [0, 1], N >= 1; `labels` N places in `CLASSES`; `path` a .png, .pdf, .svg,
    which appears whole or not at all. ValueError if they are not so, ImportError without matplotlib.
    """
    pictures = np.asarray(images, dtype=np.float32)
    pictures = pictures[:, 0] if pictures.ndim == 4 and pictures.shape[1] == 1 else pictures
    if pictures.ndim != 3 or len(pictures) == 0:
        raise ValueError(f"images must be (N, 1, S, S) or (N, S, S) with N >= 1, got {tuple(np.shape(images))}")
    names = [CLASSES[_class_index(label)] for label in np.asarray(labels).ravel().tolist()]
    if len(names) != len(pictures):
        raise ValueError(f"labels must be one for each image: got {len(names)} for {len(pictures)} images")
    save_sheet(pictures, names, path, "synthetic phantom, no clinical meaning")
