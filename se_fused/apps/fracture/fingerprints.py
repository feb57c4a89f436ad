"""Fingerprints (hashes and a thumbnail) of images, for the search for duplicates."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from . import images
from .similarity import SIDE

__all__ = ["Fingerprint", "fingerprint", "fingerprints"]

Progress = Callable[[str, float], None]
Array = NDArray[np.float32]

_UNIFORM = 0.04  # range of grey values (black is 0, white is 1) of a uniform line; JPEG noise on black stays below it


@dataclass(frozen=True)
class Fingerprint:
    """Fingerprint of one readable image.

    Attributes:
        file: SHA-256 of the file's bytes.
        pixels: SHA-256 of the decoded image; equal pixels in another file format have the same hash.
        thumbnail: (SIDE, SIDE) uint8, without uniform borders.
        height, width: in pixels.
        bits: bits per pixel of the file's grey or colour channel; 0 if unknown.
        contrast: standard deviation of the grey values, which range from 0 to 1.
    """

    file: str
    pixels: str
    thumbnail: NDArray[np.uint8]
    height: int
    width: int
    bits: int
    contrast: float


def _inside(lines: Array) -> slice:
    """The lines that remain after uniform lines are removed at both ends."""
    low, high = np.percentile(lines, [2, 98], axis=1)
    kept = np.flatnonzero(high - low > _UNIFORM)
    if len(kept) == 0 or kept[-1] + 1 - kept[0] < len(lines) / 4:
        return slice(None)  # less than a quarter would remain, too little to compare
    return slice(kept[0], kept[-1] + 1)


def _thumbnail(grey: Array) -> NDArray[np.uint8]:
    """(SIDE, SIDE) thumbnail without uniform borders, with full contrast and the image's aspect ratio.

    The shorter side is padded by repeating the border. Black bars would add edges, at a different place in each
    cropped copy.
    """
    inside = grey[_inside(grey), _inside(grey.T)]
    low, high = np.percentile(inside, [1, 99]).tolist()
    inside = np.clip((inside - low) / max(high - low, 0.02), 0, 1).astype(np.float32)
    height, width = (max(1, round(side * SIDE / max(inside.shape))) for side in inside.shape)
    small = F.interpolate(
        torch.from_numpy(inside)[None, None], (height, width), mode="bilinear", antialias=True, align_corners=False
    )[0, 0].numpy()
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    around = (top, SIDE - height - top), (left, SIDE - width - left)
    return np.pad((small * 255).round().clip(0, 255).astype(np.uint8), around, mode="edge")


def _bits(path: Path) -> int:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return {"1": 1, "I;16": 16, "I;16B": 16, "I;16L": 16, "I": 32, "F": 32}.get(image.mode, 8)
    except OSError:
        return 0


def fingerprint(path: Path) -> Fingerprint:
    """Read one image and compute its fingerprint.

    Raises:
        OSError, ValueError: the file is missing or damaged.
    """
    grey = images.decode(path)
    return Fingerprint(
        file=hashlib.sha256(path.read_bytes()).hexdigest(),
        pixels=hashlib.sha256(repr(grey.shape).encode() + np.ascontiguousarray(grey).tobytes()).hexdigest(),
        thumbnail=_thumbnail(grey),
        height=grey.shape[0],
        width=grey.shape[1],
        bits=_bits(path),
        contrast=float(grey.std()),
    )


def fingerprints(
    paths: Sequence[Path], progress: Progress = lambda what, share: None
) -> tuple[dict[Path, Fingerprint], dict[Path, str]]:
    """Compute the fingerprints of many images in threads.

    Returns:
        {path: fingerprint} of the readable images and {path: reason} of the others, both in the order of `paths`.
    """

    def one(path: Path) -> Fingerprint | str:
        try:
            return fingerprint(path)
        except (OSError, ValueError) as error:
            return " ".join(str(error).removeprefix(f"{path}: ").split())

    read: dict[Path, Fingerprint] = {}
    damaged: dict[Path, str] = {}
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for number, (path, found) in enumerate(zip(paths, pool.map(one, paths), strict=True), 1):
            if isinstance(found, str):
                damaged[path] = found
            else:
                read[path] = found
            progress(f"reading {path.name}", number / len(paths))
    return read, damaged
