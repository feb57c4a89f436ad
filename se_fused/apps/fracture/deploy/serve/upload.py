"""An upload's bytes as a picture. Limits come first; the bytes are gone when the picture is there."""

import asyncio
import math
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from fastapi import HTTPException, Request
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect

from ....._errors import InputError
from ...dicom import guarded
from ...images import decode

__all__ = ["private_file", "read_body", "read_picture"]

_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*", b"BM")
"""Of PNG, JPEG, TIFF and BMP. Pillow knows many more formats, some of which call other programs."""
_WANTED = "a PNG, JPEG, TIFF, BMP or DICOM file is wanted"
_DEFLATED = "1.2.840.10008.1.2.1.99"


async def read_body(request: Request, limit: int, seconds: float) -> bytearray:
    """The request's body, or a refusal.

    What is too large is read away before it is refused, as much again as is taken and no part of it kept: a connection
    that is closed while a browser still sends is reset, and the reason is lost on its way. Who asks before sending
    (``Expect: 100-continue``, as curl does) is told at once.

    Raises:
        HTTPException: 413 above `limit` bytes, 408 if it takes longer than `seconds`, 422 if there is none.
    """
    too_large = HTTPException(
        413, f"larger than the {limit / 1e6:g} MB that are taken; send a smaller file", {"Connection": "close"}
    )
    announced = request.headers.get("content-length", "")
    refused = announced.isdecimal() and int(announced) > limit
    if refused and request.headers.get("expect", "").casefold() == "100-continue":
        raise too_large
    body, arrived = bytearray(), 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                arrived += len(part)
                refused = refused or arrived > limit
                if arrived > 2 * limit:
                    break
                if refused:
                    body.clear()
                else:
                    body += part
    except TimeoutError:
        if not refused:
            raise HTTPException(408, "the file took too long to arrive", {"Connection": "close"}) from None
    except ClientDisconnect:
        raise HTTPException(400, "the file broke off") from None  # nobody reads it; an error would be logged
    if refused:
        raise too_large
    if not body:
        raise HTTPException(422, f"the file is empty; {_WANTED}")
    return body


@contextmanager
def private_file(body: bytearray) -> Iterator[Path]:
    """A path that reads as `body`: a file in memory without a name, which ends with the process at the latest.

    Where the system has none, a file that only this user can read, in the folder for temporary ones.
    """
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("upload"), "wb") as stream:
            stream.write(body)
            stream.flush()
            yield Path(f"/proc/self/fd/{stream.fileno()}")
    else:
        with tempfile.TemporaryDirectory(prefix="se-fused-") as folder:  # 0700
            path = Path(folder, "upload")
            with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as stream:
                stream.write(body)
            yield path


def _pixels(path: Path, dicom: bool) -> int:
    """How many pixels the header promises; nothing is decoded for it."""
    if dicom:
        import pydicom
        from pydicom.filereader import read_file_meta_info

        with guarded(path, "its DICOM header is damaged"):
            syntax = str(read_file_meta_info(path).get("TransferSyntaxUID", ""))
            # Its header lies in the deflated part, whose size is not known before it is inflated.
            if syntax == _DEFLATED:
                raise InputError("deflated DICOM is not taken here; save it uncompressed, or as JPEG 2000")
            tags = ["Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"]
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
            return math.prod(max(1, int(header.get(tag) or 1)) for tag in tags)
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower, and an error
        with Image.open(path, formats=("PNG", "JPEG", "TIFF", "BMP")) as image:
            return image.width * image.height


def read_picture(body: bytearray, max_pixels: int) -> NDArray[np.float32]:
    """Decode an upload, which no longer exists outside of `body` when that is done (:func:`private_file`).

    Its kind is told by its first bytes, not by a name.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        ValueError: no picture, damaged, or more than `max_pixels`; the message names no path.
    """
    dicom = body[128:132] == b"DICM"  # PS3.10, section 7.1
    if not (dicom or body.startswith(_STARTS)):
        raise ValueError(f"not a radiograph's file; {_WANTED}")
    with private_file(body) as path:
        try:
            pixels = _pixels(path, dicom)
            if pixels > max_pixels:
                raise ValueError(f"{pixels / 1e6:.0f} million pixels; {max_pixels / 1e6:g} million are the most")
            return decode(path)
        except Exception as error:  # on damaged data decoders raise anything
            reason = str(error).replace(f"{path}: ", "").replace(str(path), "the file")
            raise ValueError(" ".join(reason.split()) or type(error).__name__) from None
