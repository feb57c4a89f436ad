"""Reads an uploaded radiograph: checks limits, decodes it in memory, and removes its bytes."""

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
"""First bytes of PNG, JPEG, TIFF and BMP files. Pillow supports more formats, but some of them call other programs."""
_WANTED = "send a PNG, JPEG, TIFF, BMP or DICOM file"
_DEFLATED = "1.2.840.10008.1.2.1.99"


async def read_body(request: Request, limit: int, seconds: float) -> bytearray:
    """Read the body of a request.

    A body that is too large is read and discarded, up to twice the limit, before it is rejected: closing the connection
    while a browser is still sending resets it, and the browser does not receive the error message. A client that sends
    ``Expect: 100-continue`` (like curl) is rejected at once.

    Raises:
        HTTPException: 413 for more than `limit` bytes, 408 after `seconds`, 422 for an empty body, 400 if the client
            disconnects.
    """
    too_large = HTTPException(
        413, f"larger than the limit of {limit / 1e6:g} MB; send a smaller file", {"Connection": "close"}
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
            raise HTTPException(408, "the upload took too long", {"Connection": "close"}) from None
    except ClientDisconnect:
        raise HTTPException(400, "the upload was interrupted") from None  # not received; avoids a logged exception
    if refused:
        raise too_large
    if not body:
        raise HTTPException(422, f"the file is empty; {_WANTED}")
    return body


@contextmanager
def private_file(body: bytearray) -> Iterator[Path]:
    """Path of a file with the content `body`: an anonymous file in memory, removed with the process at the latest.

    Systems without anonymous files use a temporary file that only this user can read.
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
    """Number of pixels according to the file's header, without decoding the image."""
    if dicom:
        import pydicom
        from pydicom.filereader import read_file_meta_info

        with guarded(path, "its DICOM header is damaged"):
            syntax = str(read_file_meta_info(path).get("TransferSyntaxUID", ""))
            # The header is in the deflated part, whose size is unknown before it is inflated.
            if syntax == _DEFLATED:
                raise InputError("deflated DICOM is not supported here; save it uncompressed, or as JPEG 2000")
            tags = ["Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"]
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
            return math.prod(max(1, int(header.get(tag) or 1)) for tag in tags)
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # read_picture has a lower limit and raises
        with Image.open(path, formats=("PNG", "JPEG", "TIFF", "BMP")) as image:
            return image.width * image.height


def read_picture(body: bytearray, max_pixels: int) -> NDArray[np.float32]:
    """Decode an upload through a temporary file (:func:`private_file`), which is removed afterwards.

    The file format is recognised by the first bytes.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        ValueError: the upload is not an image, is damaged, or has more than `max_pixels`. The message contains no path.
    """
    dicom = body[128:132] == b"DICM"  # PS3.10, section 7.1
    if not (dicom or body.startswith(_STARTS)):
        raise ValueError(f"not a supported image file; {_WANTED}")
    with private_file(body) as path:
        try:
            pixels = _pixels(path, dicom)
            if pixels > max_pixels:
                raise ValueError(f"{pixels / 1e6:.0f} million pixels; the limit is {max_pixels / 1e6:g} million")
            return decode(path)
        except Exception as error:  # decoders raise any exception on damaged data
            reason = str(error).replace(f"{path}: ", "").replace(str(path), "the file")
            raise ValueError(" ".join(reason.split()) or type(error).__name__) from None
