"""Exposure of one view of a limb: soft tissue, structures that mimic cracks, noise, film response and frame.

    attenuation = soft + density · (compact + share · marrow)        Beer-Lambert: minus log of the intensity

All random numbers come from streams that are independent of the class, and non-local effects (scatter, the grey window)
are computed from the intact limb. So the class changes the image only where the bone is broken.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, default_rng

from .bones import Projection, project
from .fields import Array, blur, cloud, low_pass, noise
from .fractures import Fracture, between
from .limbs import EXPOSURE, FIELDS, Limb

__all__ = ["Picture", "expose"]

# Lead letters: strokes in a box of width 0.6 and height 1.
_LETTERS: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "L": (((0, 0), (0, 1), (0.55, 1)),),
    "R": (((0, 1), (0, 0), (0.4, 0.03), (0.55, 0.25), (0.4, 0.47), (0, 0.5), (0.2, 0.5), (0.58, 1)),),
    "A": (((0, 1), (0.3, 0), (0.6, 1)), ((0.12, 0.66), (0.48, 0.66))),
    "P": (((0, 1), (0, 0), (0.4, 0.03), (0.55, 0.26), (0.4, 0.5), (0, 0.52)),),
    "T": (((0, 0), (0.6, 0)), ((0.3, 0), (0.3, 1))),
}


class Picture(NamedTuple):
    """A drawn image and maps of its fracture, each (S, S). The maps are computed before noise is added."""

    grey: Array  # grey values in [0, 1]
    cut: Array  # bool: rays that cross the surface of the fracture, inside the collimated field
    change: Array  # change of the image by the fracture, as a share of the grey window
    grain: Array  # standard deviation of the noise, as a share of the grey window


def _strokes(grey: Array, text: str, left: float, top: float, height: float, shine: float) -> None:
    """Draw lead letters over the image, in place."""
    size, thick = len(grey), max(0.085 * height, 0.6)
    x0, y0 = max(math.floor(left - thick - 1), 0), max(math.floor(top - thick - 1), 0)
    x1, y1 = (
        min(math.ceil(left + 0.8 * height * len(text) + thick), size),
        min(math.ceil(top + height + thick + 1), size),
    )
    if x1 <= x0 or y1 <= y0:
        return
    yy, xx = np.mgrid[y0:y1, x0:x1].astype(np.float32) + 0.5
    away = np.full_like(xx, size)
    for place, letter in enumerate(text):
        for stroke in _LETTERS.get(letter, ()):
            points = np.array(stroke) * height + (left + 0.8 * height * place, top)
            for (ax, ay), (dx, dy) in zip(points.tolist(), np.diff(points, axis=0).tolist(), strict=False):
                t = np.clip(((xx - ax) * dx + (yy - ay) * dy) / (dx * dx + dy * dy), 0, 1)
                np.minimum(away, np.hypot(xx - ax - t * dx, yy - ay - t * dy), out=away)
    part = grey[y0:y1, x0:x1]
    np.maximum(part, shine * np.clip(thick + 0.5 - away, 0, 1), out=part)


def _metal(rng: Generator, xx: Array, yy: Array, likely: float) -> Array | float:
    """Attenuation of a bead or a wire on the skin, or 0."""
    size = len(xx)
    there, bead = rng.random() < likely, rng.random() < 0.5
    cx, cy, turn = size * rng.uniform(0.1, 0.9), size * rng.uniform(0.1, 0.9), rng.uniform(0, np.pi)
    width, length = size * rng.uniform(0.004, 0.008), size * rng.uniform(0.15, 0.5)
    if not there:
        return 0.0
    dx, dy = xx - cx, yy - cy
    if bead:
        return 2.5 * np.clip(2.2 * width + 0.5 - np.hypot(dx, dy), 0, 1)
    along, across = dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)
    across = across + (0.3 / length) * along * along
    return 1.6 * np.clip(width + 0.5 - np.abs(across), 0, 1) * (np.abs(along) < length / 2)


def _soft(limb: Limb, view: int, rng: Generator, clouds: Array, x: Array, y: Array, difficulty: float) -> Array:
    """Attenuation of skin, muscle, and a bandage or cast; about 1 in the middle."""
    size, half = len(x), limb.soft[view]
    offset = math.cos(limb.turns[view]) * limb.offset[0] + math.sin(limb.turns[view]) * limb.offset[1]
    v = y * np.float32(1 / size)
    width = 1 + limb.taper * v + 0.04 * np.sin(3 * v + limb.phase) + 0.02 * np.sin(8 * v + 2 * limb.phase)
    width += limb.swelling * np.exp(-(((v - limb.swollen_at) / 0.2) ** 2))
    beyond = (x - 0.5 * offset - rng.uniform(-0.18, 0.18) * half) / (half * width)
    square = beyond * beyond
    soft = 0.6 * np.sqrt(np.maximum(1 - square, 0))  # chords of an ellipse for the skin, and below for the muscle
    soft += 0.4 * np.sqrt(np.maximum(1 - square / rng.uniform(0.75, 0.9) ** 2, 0))
    soft *= width * (1 + clouds)
    fold, slope = rng.uniform(0.015, 0.07) * (rng.random() < 0.35 + 0.3 * difficulty), rng.uniform(-1, 1)
    place = rng.uniform(-0.6, 0.6) * size
    if fold:  # a skin fold, or the edge of a bandage
        soft += fold * (square < 1) / (1 + np.exp(np.clip(y - place - slope * x, -30, 30)))
    cast, gap, thick = rng.random() < 0.05 + 0.12 * difficulty, rng.uniform(1.04, 1.12), rng.uniform(0.09, 0.16)
    weave = rng.uniform(0.03, 0.06)
    if cast:
        shell = np.sqrt(np.maximum((gap + thick) ** 2 - square, 0)) - np.sqrt(np.maximum(gap**2 - square, 0))
        threads = np.sin(x * (0.7 / (weave * size) * 6)) * np.sin(y * (6 / (weave * size)))
        soft += 0.9 * shell * (1 + 0.08 * threads + 2 * clouds)
    return soft


def _mimics(limb: Limb, view: int, x: Array, y: Array) -> tuple[Array | float, Array | float]:
    """Structures that mimic cracks: the share of bone missing in a canal or a thin spot, and growth-arrest lines."""
    turn, radius = limb.turns[view], limb.main.radius
    missing: Array | float = 0.0
    lines: Array | float = 0.0

    def at(point: tuple[float, float, float]) -> tuple[Array, Array]:
        return x - (math.cos(turn) * point[0] + math.sin(turn) * point[1]), y - point[2]

    strength, slope, place = limb.canal
    if strength:
        cx, cy = at(place)
        missing = missing + strength * np.exp(
            -(((cx - slope * cy) / (0.05 * radius)) ** 2) - (cy / (0.9 * radius)) ** 4
        )
    strength, width, place = limb.lucency
    if strength:
        cx, cy = at(place)
        depth = (cx * cx + 0.5 * cy * cy) / (width * radius) ** 2
        missing = missing + strength * (np.exp(-(depth**2)) - 0.35 * np.exp(-((np.sqrt(depth) - 1.35) ** 2) * 40))
    strength, count, first = limb.arrest
    if strength:
        joint = limb.main.joint
        end = (math.copysign(1, joint) * (joint - y) - (0.16 / radius) * x * x) / radius
        for k in range(count):
            lines = lines + strength * 0.8**k * np.exp(-(((end - first - 0.22 * k) / 0.04) ** 2))
    return missing, lines


def _frame(rng: Generator, grey: Array, xx: Array, yy: Array, letters: str) -> tuple[Array, Array]:
    """Add the dark collimator border (sometimes with a bright film edge) and lead letters; also returns its mask."""
    size, turn, aperture = len(grey), rng.normal(0, 0.05), rng.uniform([0.36, 0.42], [0.56, 0.6]).tolist()
    height, left, top = size * rng.uniform(0.05, 0.075), size * rng.uniform(0.04, 0.24), size * rng.uniform(0.05, 0.88)
    left = left if rng.random() < 0.5 else size - left - 0.8 * height * len(letters)
    shine, there, rim_there = rng.uniform(0.75, 1), rng.random() < 0.5, rng.random() < 0.2
    black = float(rng.choice([0, 0.01, 0.03]))
    if there:
        _strokes(grey, letters, left, top, height, shine)
    across, down = xx - size / 2, yy - size / 2
    edge = np.abs(across * math.cos(turn) + down * math.sin(turn)) - size * aperture[0]
    np.maximum(edge, np.abs(down * math.cos(turn) - across * math.sin(turn)) - size * aperture[1], out=edge)
    shut = np.clip(edge + 0.5, 0, 1)
    over: Array | float = black
    if rim_there:
        over = black + 0.85 * np.clip(0.011 * size - np.abs(edge - 0.011 * size), 0, 1)
    return grey * (1 - shut) + shut * over, shut


def _bones(limb: Limb, view: int, x: Array, y: Array) -> tuple[Projection, Projection | None]:
    turn = limb.turns[view]
    whole, beside = project(limb.main, turn, x, y), None
    if limb.second is not None:  # never broken, so its presence is independent of the class
        cos, sin = math.cos(turn), math.sin(turn)
        lean, offset = cos * limb.slant[0] + sin * limb.slant[1], cos * limb.offset[0] + sin * limb.offset[1]
        beside = project(limb.second, turn, x - offset - lean * y, y)
    return whole, beside


def expose(limb: Limb, broken: Fracture, view: int, seed: int, index: int, size: int, difficulty: float) -> Picture:
    """Draw the radiograph of one view.

    Args:
        limb: the patient's limb.
        broken: the fracture of the main bone.
        view: 0 is AP, 1 lateral.
        seed, index: seed of the data set and number of the patient, for the random streams of the exposure.
        size: height and width S in pixels.
        difficulty: 0 to 1.
    """
    rng, fields = (default_rng([seed, index, stream, view]) for stream in (EXPOSURE, FIELDS))
    axis = math.radians(min(max(rng.normal(0, 12 + 10 * difficulty), -40), 40))
    any_way, mirrored, reach = rng.uniform(-np.pi, np.pi), rng.random() < 0.5, 0.08 + 0.06 * difficulty
    axis = any_way if rng.random() < 0.25 * difficulty else axis
    centre = size * (0.5 + rng.uniform(-reach, reach)), size * (0.5 + rng.uniform(-reach, reach))
    yy, xx = np.mgrid[0:size, 0:size].astype(np.float32) + 0.5
    across, down = xx - centre[0], yy - centre[1]
    x, y = across * math.cos(axis) + down * math.sin(axis), down * math.cos(axis) - across * math.sin(axis)

    whole, beside = _bones(limb, view, x, y)
    clouds = 0.03 * cloud(fields, size, 2.0, 5, axis, 3.0) + 0.015 * cloud(fields, size, 2.0, 3)
    soft = _soft(limb, view, rng, clouds, x, y, difficulty)
    soft += _metal(rng, xx, yy, 0.05 + 0.1 * difficulty)
    # Texture: spongy bone is a net of fine struts, densest at the joint; compact bone has faint longitudinal streaks.
    struts, streaks = noise(fields, size, 0.75, 12, axis, 1.6), noise(fields, size, 0.6, 8, axis, 5.0)
    missing, lines = _mimics(limb, view, x, y)
    # Measured on a real tibia radiograph, relative to a soft-tissue peak of 1: marrow adds 0.33, the cortex edge 0.5.
    dose = rng.uniform(0.8, 1.4)
    solid = np.maximum(1 + 0.05 * streaks - missing, 0.2)
    texture = tuple(np.broadcast_to(field, x.shape).ravel() for field in (soft, struts, solid, lines))

    def attenuation(part: Projection, at: Array | slice) -> Array:
        compact, marrow, spongy = (layer.ravel()[at] for layer in part[:3])
        if beside is not None:
            compact, marrow = compact + beside.compact.ravel()[at], marrow + beside.marrow.ravel()[at]
            spongy = np.maximum(spongy, beside.spongy.ravel()[at])
        tissue, net, wall, line = (field[at] for field in texture)
        net = np.maximum(1 + (0.08 + 0.2 * spongy) * net, 0)
        return dose * (
            tissue + limb.density * (compact * wall + marrow * ((limb.share + 0.18 * spongy) * net + 0.5 * line))
        )

    light = np.exp(-attenuation(whole, slice(None))).reshape(x.shape)
    scatter = rng.uniform(0.03, 0.12 + 0.1 * difficulty) * low_pass(light, 0.09)
    heel = 1 + rng.uniform(-0.1, 0.1) * (1 + difficulty) * (yy * np.float32(1 / size) - 0.5)
    sharpness = max(rng.uniform(0.4, 0.7) * (1 + 0.5 * difficulty) * size / 224, 0.3)
    quanta = between(rng, (0.002, 0.008), (0.006, 0.02), difficulty)
    low, high = np.quantile(-np.log(((light + scatter) * heel)[::2, ::2]), [0.02, 0.997]).tolist()
    low, high = min(low, 0.05) - 0.04, high * rng.uniform(1.0, 1.1)
    gamma, sharpen = rng.uniform(1.05, 1.6), max(rng.uniform(-0.6, 0.6), 0)

    intact = light + scatter
    cut, change = np.zeros(x.shape, bool), np.zeros(x.shape, np.float32)
    if broken.kind != "none":
        parts = project(limb.main, limb.turns[view], x, y, broken.fragments, broken.zone)
        cut = parts.cut
        moved = np.flatnonzero((np.abs(parts.compact - whole.compact) + np.abs(parts.marrow - whole.marrow)) > 0)
        light = light.copy()
        light.ravel()[moved] = np.exp(-attenuation(parts, moved))
    light = light + scatter
    seen = blur(light, sharpness)
    if broken.kind != "none":
        change = np.abs(np.log(np.maximum(seen, 1e-4) / blur(intact, sharpness))) / (high - low)
    deviation = np.sqrt(seen * heel) * (2 * quanta)
    light = seen * heel + deviation * blur(fields.standard_normal((size, size), np.float32), 0.5)
    grey = np.maximum((-np.log(np.maximum(light, 1e-4)) - low) * (1 / (high - low)), 0)
    eighth = np.square(np.square(np.square(grey)))
    grey = (grey / (1 + eighth) ** np.float32(1 / 8)) ** np.float32(gamma)  # film shoulder: no hard clipping at white
    if sharpen:
        grey += np.float32(sharpen) * (grey - blur(grey, 2.2 * size / 224))
    turned = slice(None, None, -1 if mirrored else 1)
    letters = limb.side + ("", " AP" if view == 0 else " LAT")[int(rng.integers(2))]
    grey, shut = _frame(rng, grey[:, turned].copy(), xx, yy, letters)
    cut, change, deviation = cut[:, turned] & (shut < 0.5), change[:, turned], deviation[:, turned]
    noise_share = 0.5 * deviation / (np.maximum(seen * heel, 1e-4)[:, turned] * (high - low))
    return Picture(np.clip(grey, 0, 1).astype(np.float32), cut, change, noise_share)
