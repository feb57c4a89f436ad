"""Radiographs in DICOM files as grey pictures, as a viewer would show them. Needs pydicom (``se_fused[train]``).

The order is that of DICOM PS3.3 C.11: modality LUT or rescale, then VOI LUT or window, then MONOCHROME1 is inverted.
No value of a header reaches a message, a log or a warning: they name the file, and nothing that was in it.
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
"""Names that are taken for DICOM without a look inside."""

PERCENTILES = (0.1, 99.9)
"""What becomes black and white where a file names no window: of the pixels without padding."""

_EXTRA = 'pip install "se_fused[train]"'
_VIEWS = {"LL": "lateral", "RL": "lateral", "LAT": "lateral", "LATERAL": "lateral", "ML": "lateral", "LM": "lateral"}
_HEADER = ["PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SOPInstanceUID", "ViewPosition", "Laterality"]
_HEADER += ["ImageLaterality", "BodyPartExamined", "NumberOfFrames", "Rows", "Modality"]
_QUIET = threading.Lock()


@dataclass(frozen=True)
class Header:
    """What a data set needs of a DICOM header. "" where it says nothing.

    Attributes:
        patient, study, instance: keys to tell patients, studies and images apart. They are the file's own identifiers:
            make pseudonyms of them, and never print, log or store them. Without a PatientID, the study stands for the
            patient. ``repr`` leaves them out.
        view: "AP", "PA", "lateral", ... or another ViewPosition in capitals.
        laterality: "L", "R" or "B".
        body_part: e.g. "FOREARM".
        frames: how many pictures it holds; 0 for a report and other files without one.
    """

    patient: str = field(repr=False)
    study: str = field(repr=False)
    instance: str = field(repr=False)
    view: str
    laterality: str
    body_part: str
    frames: int


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file is named as DICOM, or has the DICOM mark behind a preamble of 128 bytes."""
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
    """Turn whatever pydicom raises into `failure`, and keep its warnings and its log to itself: they quote values.

    One thread at a time, since the filters of warnings belong to the process.
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
        raise ImportError(f"reading DICOM needs pydicom: {_EXTRA}") from error
    try:
        return pydicom.dcmread(path, **options)
    except pydicom.errors.InvalidDicomError:
        kind = f"named {path.suffix} but " if path.suffix else ""
        raise InputError(f"{path}: {kind}no DICOM file, or damaged at its start; remove or replace it") from None


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
    """Read a file's header alone.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is no DICOM file, or its header is damaged.
        ImportError: pydicom is missing.
    """
    path = Path(path)
    with guarded(path, "its DICOM header is damaged; remove or replace the file"):
        return _header(_dataset(path, stop_before_pixels=True, specific_tags=_HEADER))


def _look_up(item: Any, values: NDArray[Any], signed: bool, little: bool) -> tuple[NDArray[np.float64], int]:
    """Values through a LUT of DICOM, and the highest value that its depth allows.

    pydicom's apply_voi_lut is not used: it keeps places in the type of the table's entries, and they wrap around where
    12-bit pixels meet a table of 8 bits.
    """
    entries, first, bits = (int(value) for value in item.LUTDescriptor)
    entries, first = entries or 65536, first - 65536 if signed and first > 32767 else first
    data = item.LUTData
    if isinstance(data, bytes):
        table = np.frombuffer(data, ("<" if little else ">") + "u2" if len(data) >= 2 * entries else "u1")
    else:
        table = np.asarray(data)
    if not (len(table) >= entries and 8 <= bits <= 16):
        raise ValueError("a table shorter than its descriptor says")
    places = np.clip(np.rint(values) - first, 0, entries - 1).astype(np.int64)
    return table[:entries].astype(np.float64)[places], 2**bits - 1


def _window(dataset: Any) -> Any:
    """The first window as a dataset that gives [0, 255] from pydicom's apply_windowing; None without a usable one."""
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
    """(H, W) stored values of a MONOCHROME image -> float32 in [0, 1]."""
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
    # MONOCHROME1 images state INVERSE as well; that is one inversion said twice (PS3.3 C.8.11.1.1.2).
    inverse = str(dataset.get("PresentationLUTShape") or "").strip().upper() == "INVERSE"
    if dataset.PhotometricInterpretation == "MONOCHROME1" or inverse:
        shown = 1 - shown
    return np.where(image, shown, 0).astype(np.float32)


def _check(dataset: Any, path: Path, header: Header) -> None:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    if "PixelData" not in dataset or header.frames == 0:
        raise InputError(f"{path}: holds no image (a report, a presentation state or the like); leave it out")
    if header.frames > 1:
        raise InputError(f"{path}: holds {header.frames} frames; a radiograph is one image, so export one as a file")
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise InputError(f"{path}: is coloured by a palette, which is no radiograph; leave it out or convert it to PNG")
    syntax = UID(str(dataset.file_meta.get("TransferSyntaxUID") or ""))
    if not syntax:
        raise InputError(f"{path}: does not say how its pixels are stored (no transfer syntax); export it again")
    if syntax.is_encapsulated:
        name = syntax.name if syntax.name != str(syntax) else "an unknown method"
        try:
            ready = get_decoder(syntax).is_available
        except NotImplementedError:
            raise InputError(f"{path}: its pixels are compressed with {name}; export it uncompressed") from None
        if not ready:
            raise InputError(
                f"{path}: its pixels are compressed with {name}, which no installed library reads: {_EXTRA}, "
                "or export it uncompressed"
            )


def read(path: str | os.PathLike[str]) -> tuple[Array, Header]:
    """Read a DICOM radiograph: one frame, MONOCHROME1, MONOCHROME2 or colours (which become luma), 1 to 16 bits.

    Black and white are those of the VOI LUT or of the first window (LINEAR, LINEAR_EXACT, SIGMOID); a file with both is
    seen through the LUT. Without either (or with a window of no width) they are the `PERCENTILES` of the image. White
    is dense bone: MONOCHROME1 and PresentationLUTShape INVERSE are turned. Pixels of PixelPaddingValue count for
    nothing and become black. Compressed pixels (JPEG, JPEG-LS, JPEG 2000) need the decoders of ``se_fused[train]``.

    Returns:
        (H, W) float32 in [0, 1], and the header.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: no DICOM file; no image or several frames in it; damaged or cut off; a compression without decoder.
        ImportError: pydicom is missing.
    """
    path = Path(path)
    with guarded(path, "its DICOM header is damaged; remove or replace the file"):
        dataset = _dataset(path)
        header = _header(dataset)
        _check(dataset, path, header)
    with guarded(path, "its DICOM pixel data are damaged or cut off; remove or replace the file"):
        values = dataset.pixel_array
    with guarded(path, "its DICOM grey scale (LUT, rescale or window) cannot be applied; export it as PNG"):
        if values.ndim == 3:  # pydicom has turned YBR into RGB; ITU-R BT.601 luma, as for pictures
            luma = values.astype(np.float64) @ (0.299, 0.587, 0.114)
            return np.clip(luma / (2 ** int(dataset.BitsStored) - 1), 0, 1).astype(np.float32), header
        return _grey(dataset, values), header
