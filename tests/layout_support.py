"""Tiny data sets as their publishers lay them out, and DICOM files: written by the tests, nothing is shipped."""

from pathlib import Path

import numpy as np

SECRET = "DOE^JOHN"
"""The patient's name in every DICOM file: it must turn up nowhere."""


def picture(path: Path, seed: int = 0, bits: int = 8, size: tuple[int, int] = (12, 9)) -> Path:
    """A noisy grey PNG or JPEG of a few pixels."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 2**bits, size)
    Image.fromarray(values.astype(np.uint16 if bits == 16 else np.uint8)).save(path)
    return path


def text(path: Path, content: str, bom: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8-sig" if bom else "utf-8")
    return path


def write_dicom(path: Path, pixels: np.ndarray | None, bits: int = 0, syntax: str = "", compress: str = "", **elements):
    """A DX image with those stored values ((H, W), (frames, H, W) or (H, W, 3)), or a file without an image.

    bits: stored, of 8 or 16 allocated; by default those of the array's type. syntax, compress: UIDs of the transfer
    syntax to write as, or to compress with (RLE and JPEG 2000 have encoders). elements: by keyword; None removes one.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.PatientName, data.PatientID, data.Modality = SECRET, "SECRET-ID-77", "DX"
    data.ViewPosition, data.ImageLaterality, data.BodyPartExamined = "AP", "L", "FOREARM"
    if pixels is not None:
        allocated = 8 * pixels.dtype.itemsize
        data.SamplesPerPixel = 3 if pixels.shape[-1] == 3 else 1
        data.PhotometricInterpretation = "RGB" if data.SamplesPerPixel == 3 else "MONOCHROME2"
        if data.SamplesPerPixel == 3:
            data.PlanarConfiguration, (data.Rows, data.Columns) = 0, pixels.shape[:2]
        else:
            data.Rows, data.Columns = pixels.shape[-2:]
            if pixels.ndim == 3:
                data.NumberOfFrames = len(pixels)
        data.BitsAllocated, data.BitsStored = allocated, bits or allocated
        data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
        data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        data["PixelData"].VR = "OB" if allocated == 8 else "OW"
    for name, value in elements.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    if compress:
        data.compress(compress)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def lut(entries, first: int, bits: int, words: bool = False):
    """The sequence of a modality or VOI LUT; `words`: as OW bytes in place of US numbers."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    item = Dataset()
    item.add_new(0x00283002, "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    table = np.asarray(entries, np.uint16)
    item.add_new(0x00283006, "OW" if words else "US", table.tobytes() if words else table.tolist())
    return Sequence([item])
