"""Bones as three-dimensional tubes, cut into fragments, and the path lengths of rays through them.

Coordinates of a bone, in pixels of the image: ``p`` across it in the AP view, ``q`` across it in the lateral view,
``s`` along it, with the fracture at s = 0. In a view rotated by ``turn`` about the bone, ``u = p·cos + q·sin`` runs
from left to right and ``w = q·cos − p·sin`` along the rays.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .fields import Array

__all__ = ["Bone", "Fragment", "Projection", "Solid", "filled", "project"]

Solid = Callable[[Array, Array, Array], Array]  # (p, q, s) -> distance in pixels to the surface, positive inside

# Nodes of a ray through one wall and through the marrow. Surfaces are linear between nodes, so no steps are visible.
_WALL_NODES, _MARROW_NODES = 5, 11
_NODES = 2 * _WALL_NODES + _MARROW_NODES - 2


def _smooth_ramp(s: Array, soft: float) -> Array:
    """max(s, 0), smoothed over the length `soft`."""
    return 0.5 * (s + np.hypot(s, np.float32(soft)))


@dataclass(frozen=True)
class Bone:
    """A bone: a tube along s, in pixels. Its section has the semi-axes radius·ellipse (p) and radius/ellipse (q)."""

    radius: float
    cortex: float  # thickness of the wall / radius
    ellipse: float
    bow: tuple[float, float]  # displacement in p and q at the distance `reach`
    reach: float
    joint: float  # s of the joint
    flare: float  # widening at the joint / radius
    phases: Array  # phases of the outline's waves
    bend: tuple[float, float] = (0.0, 0.0)  # tangents of a smooth bend from a healed fracture
    bend_at: float = 0.0  # s of the bend

    def walls(self, u: Array, s: Array) -> tuple[Array, Array, Array]:
        """Outer radius, inner radius and share of spongy bone in [0, 1], each with the shape of u."""
        # Distance from the curved surface of the joint, negative in the adjacent bone beyond it.
        end = math.copysign(1, self.joint) * (self.joint - s) - (0.16 / self.radius) * u * u
        beyond = end < 0
        end = np.abs(end) - 0.1 * self.radius
        width = np.where(beyond, np.float32(-1 / 0.9 / self.radius), np.float32(-1 / 1.3 / self.radius))
        spongy = np.exp(np.maximum(end, 0) * width)
        outer = 1 + np.where(beyond, np.float32(0.85 * self.flare), np.float32(self.flare)) * spongy
        for k, phase in enumerate(self.phases.tolist()):
            outer += 0.012 * np.sin(s * ((k + 1) * 2.3 / self.reach) + phase)
        inner = np.maximum(outer - self.cortex * (1 - 0.8 * spongy), 0)

        def cap(depth: Array) -> Array:  # the rounded rim where the bone ends
            return np.sqrt(1 - np.clip(1 - depth / (0.5 * self.radius), 0, 1) ** 3) * (depth > 0)

        ends = end < 0.6 * self.radius  # elsewhere the cap is 1
        if ends.any():
            outer[ends] *= cap(end[ends])
            inner[ends] *= cap(end[ends] - 0.09 * self.radius)
        return outer * self.radius, inner * self.radius, spongy


@dataclass(frozen=True)
class Fragment:
    """A fragment of a bone and its motion. It is tilted about `pivot` by `lean`, the tangents toward p and q."""

    solid: Solid | None = None  # None: the whole bone
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)  # translation in p, q, s
    lean: tuple[float, float] = (0.0, 0.0)
    pivot: tuple[float, float, float] = (0.0, 0.0, 0.0)
    hinge: tuple[float, float] = (0.0, 0.0)  # tangents of a smooth bend at s = 0


class Projection(NamedTuple):
    """Path lengths of the rays of an image through a bone, each (S, S)."""

    compact: Array  # path length in compact bone, in pixels
    marrow: Array  # path length in the marrow, in pixels
    spongy: Array  # share of spongy bone in [0, 1]
    cut: Array  # whether the ray crosses the surface of a fracture


def filled(distance: Array) -> Array:
    """Mean of clip(d + 1/2, 0, 1) over each segment, (K-1, P), for distances (K, P) that are linear between nodes."""
    t = distance + np.float32(0.5)
    low, step = np.clip(t, 0, 1), np.diff(t, axis=0)
    flat = np.abs(step) < 0.05  # here the quotient would lose precision
    total = low * (t - np.float32(0.5) * low)  # the integral of clip(t, 0, 1)
    return np.where(flat, np.clip(t[1:] - 0.5 * step, 0, 1), np.diff(total, axis=0) / np.where(flat, 1, step))


def project(
    bone: Bone, turn: float, x: Array, y: Array, fragments: Sequence[Fragment] = (Fragment(),), zone: float = 0.0
) -> Projection:
    """Project a bone: path lengths of parallel rays through its fragments.

    Args:
        bone: the bone.
        turn: rotation of the view in radians; 0 is the AP view, pi/2 the lateral view.
        x, y: (S, S) coordinates of the pixels across and along the bone.
        fragments: fragments of the bone.
        zone: largest distance of their surfaces from s = 0, in pixels.
    """
    compact, marrow, spongy_layer = (np.zeros(x.shape, np.float32) for _ in range(3))
    cut = np.zeros(x.shape, bool)
    cos, sin = math.cos(turn), math.sin(turn)
    square = bone.ellipse**2
    wide, skew = sin * sin / square + cos * cos * square, cos * sin * (square - 1 / square)  # of the elliptic section
    limit = bone.radius * (1.1 + bone.flare) * math.sqrt(wide)
    bow, bend = (cos * a + sin * b for a, b in (bone.bow, bone.bend))
    for part in fragments:
        pu, ps = cos * part.pivot[0] + sin * part.pivot[1], part.pivot[2]
        du, ds = cos * part.shift[0] + sin * part.shift[1], part.shift[2]
        # A lean in the image plane is a rotation of the image; a lean in depth shears the fragment along the ray.
        angle = -math.atan(cos * part.lean[0] + sin * part.lean[1])
        depth_lean, hinge = cos * part.lean[1] - sin * part.lean[0], cos * part.hinge[0] + sin * part.hinge[1]
        near_x, near_y, c, k = x - (pu + du), y - (ps + ds), math.cos(angle), math.sin(angle)
        u, s = near_x * c + near_y * k + pu, near_y * c - near_x * k + ps
        u -= (bow / bone.reach**2) * s * s
        if bend:
            u -= bend * _smooth_ramp(s - bone.bend_at, bone.radius)
        if hinge:
            u -= hinge * _smooth_ramp(s, 0.5 * bone.radius)
        band = np.flatnonzero(np.abs(u) < limit)
        u, s = u.ravel()[band], s.ravel()[band]
        outer, inner, spongy = bone.walls(u, s)
        outer, inner = (np.sqrt(np.maximum(wide * r * r - u * u, 0)) / wide for r in (outer, inner))  # half chords
        lengths = 2 * (outer - inner), 2 * inner
        if part.solid is not None:
            # Beyond the zone, a ray is inside or outside a fragment over its whole depth.
            axis, ends = np.zeros(2, np.float32), np.array([-2 * zone, 2 * zone], np.float32)
            there = (part.solid(axis, axis, ends) > 0).astype(np.float32)[(s > 0).astype(np.int8)]
            inside = np.flatnonzero((np.abs(s) < zone) & (outer > 0))
            middle = part.solid(u[inside] * cos, u[inside] * sin, s[inside])
            there[inside] = np.clip(middle + 0.5, 0, 1)
            lengths = lengths[0] * there, lengths[1] * there
            # The same holds for rays too short to reach a surface; `solid` is only an approximate distance.
            near = inside[np.abs(middle) < 2.5 * outer[inside] + 0.4 * bone.radius]
            v, half, core = u[near], outer[near], inner[near]
            w = np.empty((_NODES, len(near)), np.float32)
            w[-_WALL_NODES:] = core + (half - core) * np.linspace(0, 1, _WALL_NODES, dtype=np.float32)[:, None]
            w[:_WALL_NODES] = -w[: -_WALL_NODES - 1 : -1]
            w[_WALL_NODES:-_WALL_NODES] = core * np.linspace(-1, 1, _MARROW_NODES, dtype=np.float32)[1:-1, None]
            w -= (skew / wide) * v
            p, q = v * cos - w * sin, v * sin + w * cos
            parts = filled(part.solid(p, q, s[near] + depth_lean * w)) * np.diff(w, axis=0)
            first, last = _WALL_NODES - 1, len(parts) - _WALL_NODES + 1
            lengths[0][near] = parts[:first].sum(0) + parts[last:].sum(0)
            lengths[1][near] = parts[first:last].sum(0)
            share = (lengths[0][near] + lengths[1][near]) / np.maximum(2 * half, 0.3)
            cut.ravel()[band[near[(share > 0.03) & (share < 0.97) & (half > 0.5)]]] = True
            spongy = spongy * there
        compact.ravel()[band] += lengths[0]
        marrow.ravel()[band] += lengths[1]
        spongy_layer.ravel()[band] = np.maximum(spongy_layer.ravel()[band], spongy)
    return Projection(compact, marrow, spongy_layer, cut)
