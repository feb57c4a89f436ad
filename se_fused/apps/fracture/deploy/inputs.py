"""Which images are meant by what somebody named: files, folders, a manifest."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..dicom import is_dicom
from ..images import PICTURES, files
from ..manifest import Manifest, Record

__all__ = ["find_images"]


def _below(folder: Path) -> list[Path]:
    """By their names; DICOM files often have none, or end in the last number of a UID, and are known by their start."""
    return [path for path in files(folder) if path.suffix.lower() in PICTURES or is_dicom(path)]


def find_images(inputs: Sequence[str | os.PathLike[str]]) -> tuple[list[Record], list[tuple[Path, str]]]:
    """The images that were named, each once.

    Args:
        inputs: files, which are taken as they are; folders, searched to any depth for PNG, JPEG, TIFF, BMP and DICOM
            files in natural order, hidden ones passed over; manifests (.csv), which bring labels, patients and studies.

    Returns:
        The records, and what was named but holds no image, as (path, reason).

    Raises:
        InputError: a manifest cannot be read.
    """
    records: dict[Path, Record] = {}
    empty: list[tuple[Path, str]] = []
    for given in inputs:
        path = Path(os.path.abspath(given))
        if path.is_dir():
            found = [Record(image) for image in _below(path)]
            if not found:
                empty.append((path, "no images in it: PNG, JPEG, TIFF, BMP or DICOM files are wanted"))
        elif path.suffix.lower() == ".csv" and path.is_file():
            found = list(Manifest.load(path).records)
        elif path.is_file():
            found = [Record(path)]
        else:
            found = []
            empty.append((path, "no such file or folder"))
        for record in found:
            records.setdefault(record.path, record)
    return list(records.values()), empty
