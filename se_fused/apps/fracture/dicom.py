"""Read DICOM radiographs as grey images, as a viewer shows them. Requires pydicom (``se_fused[train]``).

The steps follow DICOM PS3.3 C.11: modality LUT or rescale, then VOI LUT or window, then inversion of MONOCHROME1.
Messages, logs and warnings name the file but never contain a value of its header, because headers identify patients.
"""

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._errors import InputError

__all__ = ["SUFFIXES", "Header", "guarded", "is_dicom", "read", "read_header"]

Array = NDArray[np.float32]

SUFFIXES = frozenset({".dcm", ".dicom"})
"""File name suffixes that identify a DICOM file without reading it."""

PERCENTILES = (0.1, 99.9)
"""Percentiles of the pixel values (without padding) that become black and white in a file without LUT and window."""

_EXTRA = 'pip install "se_fused[train]"'
_VIEWS = {"LL": "lateral", "RL": "lateral", "LAT": "lateral", "LATERAL": "lateral", "ML": "lateral", "LM": "lateral"}
_HEADER = ["PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SOPInstanceUID", "ViewPosition", "Laterality"]
_HEADER += ["ImageLaterality", "BodyPartExamined", "NumberOfFrames", "Rows", "Modality"]
_QUIET = threading.Lock()


@dataclass(frozen=True)
class Header:
    """The fields of a DICOM header that a data set needs; "" where a field is missing.

    Attributes:
        patient, study, instance: keys that distinguish patients, studies and images. They contain the identifiers of
            the file: replace them by pseudonyms and never print, log or store them. Without a PatientID, the study
            replaces the patient. ``repr`` omits them.
        view: "AP", "PA", "lateral", ... or another ViewPosition in capitals.
        laterality: "L", "R" or "B".
        body_part: e.g. "FOREARM".
        frames: number of images in the file; 0 for a report and other files without an image.
    """

    patient: str = field(repr=False)
    study: str = field(repr=False)
    instance: str = field(repr=False)
    view: str
    laterality: str
    body_part: str
    frames: int


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file has a DICOM suffix, or the DICOM prefix "DICM" after a preamble of 128 bytes."""
    path = Path(path)
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


@contextmanager
def guarded(path: Path, failure: str) -> Iterator[None]:
    """Replace any exception of pydicom by an InputError with the text `failure`, and suppress its warnings and log.

    pydicom's messages quote header values. One thread at a time, because warning filters are global to the process.
    """
    log = logging.getLogger("pydicom")
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        propagate, log.propagate = log.propagate, False
        try:
            yield
        except (InputError, ImportError, FileNotFoundError):
            raise
        except Exception:
            raise InputError(f"{path}: {failure}") from None
        finally:
            log.propagate = propagate


def _dataset(path: Path, **options: Any) -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise ImportError(f"reading DICOM files requires pydicom: {_EXTRA}") from error
    try:
        return pydicom.dcmread(path, **options)
    except pydicom.errors.InvalidDicomError:
        kind = f"named {path.suffix} but " if path.suffix else ""
        raise InputError(f"{path}: {kind}not a DICOM file, or its start is damaged; remove or replace it") from None


def _header(dataset: Any) -> Header:
    def text(name: str) -> str:
        value = dataset.get(name)
        return "" if value is None else str(value).strip()

    patient, study, view = text("PatientID"), text("StudyInstanceUID"), text("ViewPosition").upper()
    key = f"patient\0{text('IssuerOfPatientID')}\0{patient}" if patient else study and f"study\0{study}"
    return Header(
        patient=key,
        study=study,
        instance=text("SOPInstanceUID"),
        view=_VIEWS.get(view, view),
        laterality=(text("ImageLaterality") or text("Laterality")).upper(),
        body_part=text("BodyPartExamined").upper(),
        frames=int(dataset.get("NumberOfFrames") or 1) if dataset.get("Rows") else 0,
    )


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of a DICOM file without its pixels.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is not DICOM, or its header is damaged.
        ImportError: pydicom is not installed.
    """
    path = Path(path)
    with guarded(path, "its DICOM header is damaged; remove or replace the file"):
        return _header(_dataset(path, stop_before_pixels=True, specific_tags=_HEADER))


def _look_up(item: Any, values: NDArray[Any], signed: bool, little: bool) -> tuple[NDArray[np.float64], int]:
    """Apply a DICOM LUT to pixel values; returns the result and the highest value of the LUT's bit depth.

    pydicom's apply_voi_lut is not used: it stores table indices in the dtype of the table's entries, so the indices of
    12-bit pixels overflow for a table of 8-bit entries.
    """
    entries, first, bits = (int(value) for value in item.LUTDescriptor)
    entries, first = entries or 65536, first - 65536 if signed and first > 32767 else first
    data = item.LUTData
    if isinstance(data, bytes):
        table = np.frombuffer(data, ("<" if little else ">") + "u2" if len(data) >= 2 * entries else "u1")
    else:
        table = np.asarray(data)
    if not (len(table) >= entries and 8 <= bits <= 16):
        raise ValueError("the LUT has fewer entries than its descriptor states, or an unsupported bit depth")
    places = np.clip(np.rint(values) - first, 0, entries - 1).astype(np.int64)
    return table[:entries].astype(np.float64)[places], 2**bits - 1


def _window(dataset: Any) -> Any:
    """The first window, as a dataset with which pydicom's apply_windowing returns [0, 255]; None if none is usable."""
    from pydicom.dataset import Dataset
    from pydicom.multival import MultiValue

    centre, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    if centre is None or width is None:
        return None
    first = [value[0] if isinstance(value, MultiValue) else value for value in (centre, width)]
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    if not (float(first[1]) >= 1 or (float(first[1]) > 0 and function != "LINEAR")):
        return None
    window = Dataset()
    window.PhotometricInterpretation, window.BitsStored, window.PixelRepresentation = "MONOCHROME2", 8, 0
    window.WindowCenter, window.WindowWidth = (float(value) for value in first)
    window.VOILUTFunction = function
    return window


def _grey(dataset: Any, values: NDArray[Any]) -> Array:
    """Convert the stored values (H, W) of a MONOCHROME image to float32 in [0, 1]."""
    from pydicom.pixels.processing import apply_windowing

    signed, little = bool(dataset.get("PixelRepresentation")), bool(dataset.original_encoding[1])
    image = np.ones(values.shape, bool)
    padding = dataset.get("PixelPaddingValue")
    if padding is not None:
        limit = dataset.get("PixelPaddingRangeLimit")
        low, high = sorted((int(padding), int(padding if limit is None else limit)))
        image = (values < low) | (values > high)
    shown = values.astype(np.float64)
    if dataset.get("ModalityLUTSequence"):
        shown, _ = _look_up(dataset.ModalityLUTSequence[0], shown, signed, little)
        signed = False
    elif dataset.get("RescaleSlope") is not None and dataset.get("RescaleIntercept") is not None:
        shown = shown * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    window = _window(dataset)
    if dataset.get("VOILUTSequence"):
        signed = signed or float(dataset.get("RescaleIntercept") or 0) < 0
        shown, white = _look_up(dataset.VOILUTSequence[0], shown, signed, little)
        shown = shown / white
    elif window is not None:
        shown = apply_windowing(shown, window) / 255
    elif image.any():
        black, white = np.percentile(shown[image], PERCENTILES)
        shown = (shown - black) / max(white - black, 1e-12)
    if not np.isfinite(shown).all():
        raise ValueError("NaN or infinite values")
    shown = np.clip(shown, 0, 1)
    # MONOCHROME1 images also state INVERSE; both mean the same single inversion (PS3.3 C.8.11.1.1.2).
    inverse = str(dataset.get("PresentationLUTShape") or "").strip().upper() == "INVERSE"
    if dataset.PhotometricInterpretation == "MONOCHROME1" or inverse:
        shown = 1 - shown
    return np.where(image, shown, 0).astype(np.float32)


def _check(dataset: Any, path: Path, header: Header) -> None:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    if "PixelData" not in dataset or header.frames == 0:
        raise InputError(f"{path}: contains no image (e.g. a report or a presentation state); leave it out")
    if header.frames > 1:
        raise InputError(f"{path}: contains {header.frames} frames; a radiograph is one image: export a single frame")
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise InputError(f"{path}: is a palette colour image, not a radiograph; leave it out or convert it to PNG")
    syntax = UID(str(dataset.file_meta.get("TransferSyntaxUID") or ""))
    if not syntax:
        raise InputError(f"{path}: does not state how its pixels are stored (no transfer syntax); export it again")
    if syntax.is_encapsulated:
        name = syntax.name if syntax.name != str(syntax) else "an unknown method"
        try:
            ready = get_decoder(syntax).is_available
        except NotImplementedError:
            raise InputError(f"{path}: its pixels are compressed with {name}; export it uncompressed") from None
        if not ready:
            raise InputError(
                f"{path}: its pixels are compressed with {name}, which no installed library decodes: {_EXTRA}, "
                "or export it uncompressed"
            )


def read(path: str | os.PathLike[str]) -> tuple[Array, Header]:
    """Read a DICOM radiograph: one frame, MONOCHROME1, MONOCHROME2 or colours (which become luma), 1 to 16 bits.

    The VOI LUT or, without one, the first window (LINEAR, LINEAR_EXACT, SIGMOID) defines black and white. Without
    either, or with a window of width 0, the `PERCENTILES` of the image define them. Dense bone is white: MONOCHROME1
    and PresentationLUTShape INVERSE are inverted. Pixels in the range of PixelPaddingValue are ignored and become
    black. Compressed pixels (JPEG, JPEG-LS, JPEG 2000) need the decoders of ``se_fused[train]``.

    Returns:
        (H, W) float32 in [0, 1], and the header.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is not DICOM, contains no image or several frames, is damaged or truncated, or has a
            compression without an installed decoder.
        ImportError: pydicom is not installed.
    """
    path = Path(path)
    with guarded(path, "its DICOM header is damaged; remove or replace the file"):
        dataset = _dataset(path)
        header = _header(dataset)
        _check(dataset, path, header)
    with guarded(path, "its DICOM pixel data are damaged or truncated; remove or replace the file"):
        values = dataset.pixel_array
    with guarded(path, "its DICOM grey scale (LUT, rescale or window) cannot be applied; export it as PNG"):
        if values.ndim == 3:  # pydicom has converted YBR to RGB; ITU-R BT.601 luma, as for other image files
            luma = values.astype(np.float64) @ (0.299, 0.587, 0.114)
            return np.clip(luma / (2 ** int(dataset.BitsStored) - 1), 0, 1).astype(np.float32), header
        return _grey(dataset, values), header
