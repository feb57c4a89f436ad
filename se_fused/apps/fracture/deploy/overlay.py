"""Images for display: a radiograph at viewing size, its heat map as an overlay, and a caption with the prediction."""

import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...._atomic_write import write_whole
from ..images import letterboxed
from . import RESEARCH_USE_ONLY

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["heat_colours", "heat_on_picture", "png", "shown", "write_overlay"]

Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]
LONGEST = 1024
"""Largest length of the longer side of a displayed image in pixels."""


def shown(picture: Array, longest: int = LONGEST) -> Bytes:
    """Convert an image (H, W) in [0, 1] to 8 bits (h, w), with at most `longest` pixels on the longer side."""
    height, width = picture.shape
    share = min(1.0, longest / max(height, width))
    size = max(1, round(height * share)), max(1, round(width * share))
    grey = torch.from_numpy(np.ascontiguousarray(picture, np.float32))[None, None]
    if size != (height, width):
        grey = F.interpolate(grey, size, mode="bilinear", antialias=True, align_corners=False)
    return grey[0, 0].clamp(0, 1).mul(255).round().byte().numpy()


def heat_on_picture(heat: Tensor, size: tuple[int, int]) -> Array:
    """Map a heat map of the letterboxed square, (S, S), to the pixels of the image: (h, w) in [0, 1]."""
    top, left, high, wide = letterboxed(*size, heat.shape[0])
    part = heat[top : top + high, left : left + wide]
    large = F.interpolate(part[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    return np.asarray(large.clamp(0, 1).numpy(), np.float32)


@cache
def _colours() -> Bytes:
    from matplotlib import colormaps

    return np.asarray(colormaps["inferno"](np.linspace(0, 1, 256), bytes=True)[:, :3], np.uint8)


def heat_colours(heat: Array, opaque: float = 0.65) -> Bytes:
    """Colour a heat map (h, w) in [0, 1] as RGBA (h, w, 4): lightness and opacity rise with heat, up to `opaque`."""
    place = np.rint(heat * 255).astype(np.uint8)
    alpha = np.rint(heat * 255 * opaque).astype(np.uint8)
    return np.concatenate((_colours()[place], alpha[..., None]), axis=2)


def png(pixels: Bytes) -> bytes:
    """Encode (h, w) grey or (h, w, 4) RGBA pixels as a PNG file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _caption(width: int, lines: list[tuple[str, int, str]]) -> "Image":
    from PIL import Image, ImageDraw, ImageFont

    height = sum(round(size * 1.5) for _, size, _ in lines) + 16
    band = Image.new("RGB", (width, height), "#0b0d10")
    draw, top = ImageDraw.Draw(band), 8
    for text, size, colour in lines:
        font = ImageFont.load_default(size)
        while size > 8 and draw.textlength(text, font) > width - 24:  # reduce the font until the text fits
            size -= 1
            font = ImageFont.load_default(size)
        draw.text((12, top), text, fill=colour, font=font)
        top += round(size * 1.5)
    return band


def write_overlay(path: Path, picture: Array, heat: Tensor, said: str, warning: str = "") -> None:
    """Write a PNG with the radiograph, the radiograph with its heat map, and a caption. The file is written atomically.

    Args:
        path: output file.
        picture: image (H, W) in [0, 1].
        heat: heat map (S, S) in [0, 1] of the letterboxed square.
        said: first line of the caption, such as the class and its probability.
        warning: last line of the caption; "" for none.
    """
    from PIL import Image

    grey = shown(picture, 640)
    small = 320 / max(grey.shape)
    plain = Image.fromarray(grey).convert("RGBA")
    if small > 1:
        plain = plain.resize((round(grey.shape[1] * small), round(grey.shape[0] * small)), Image.Resampling.BICUBIC)
    coloured = Image.fromarray(heat_colours(heat_on_picture(heat, (plain.height, plain.width))))
    lines = [(said, 20, "#ffffff"), ("Heat: Grad-CAM of this class", 14, "#aab4c0"), (RESEARCH_USE_ONLY, 14, "#ffc46b")]
    lines += [(warning, 14, "#ffc46b")] if warning else []
    caption = _caption(2 * plain.width + 4, lines)
    sheet = Image.new("RGB", (caption.width, plain.height + caption.height), "#0b0d10")
    sheet.paste(plain.convert("RGB"), (0, 0))
    sheet.paste(Image.alpha_composite(plain, coloured).convert("RGB"), (plain.width + 4, 0))
    sheet.paste(caption, (0, plain.height))
    write_whole(path, lambda part: sheet.save(part))
