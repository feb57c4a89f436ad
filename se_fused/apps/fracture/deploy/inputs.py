"""Find the images for prediction in files, folders and manifests."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..dicom import is_dicom
from ..images import PICTURES, files
from ..manifest import Manifest, Record

__all__ = ["find_images"]


def _below(folder: Path) -> list[Path]:
    """Image files below a folder. DICOM files without a known suffix are recognised by their content."""
    return [path for path in files(folder) if path.suffix.lower() in PICTURES or is_dicom(path)]


def find_images(inputs: Sequence[str | os.PathLike[str]]) -> tuple[list[Record], list[tuple[Path, str]]]:
    """Find the images given by files, folders and manifests, each once.

    Args:
        inputs: files of any name; folders, searched to any depth for PNG, JPEG, TIFF, BMP and DICOM files in natural
            order, without hidden ones; and manifests (.csv), which add labels, patients and studies.

    Returns:
        The records, and the inputs without an image as (path, reason).

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
                empty.append((path, "contains no images; expected PNG, JPEG, TIFF, BMP or DICOM files"))
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
