"""Helpers of the adapters: find images, read tables, normalise names of splits and classes, report omitted files."""

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ...._errors import InputError
from .. import dicom
from ..images import SUFFIXES
from ..manifest import Record, natural_key

__all__ = [
    "LeftOut",
    "find",
    "header_of",
    "image_files",
    "normal",
    "one_spelling",
    "read_table",
    "split_of",
    "sub_folders",
]

_SPLIT_NAMES = {"training": "train", "val": "valid", "validation": "valid", "dev": "valid", "testing": "test"}
_SPLIT_NAMES |= {name: name for name in ("train", "valid", "test")}
_SHOWN = 3


def split_of(name: str) -> str:
    """Split named by a folder or a table cell ("Train", "val", ...); "" for other names."""
    return _SPLIT_NAMES.get(name.strip().casefold(), "")


class LeftOut:
    """Counts the files left out of a manifest by reason, and names the first ones of each reason."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._found: dict[str, list[str]] = {}

    def add(self, reason: str, what: Path | str) -> None:
        if isinstance(what, Path) and what.is_relative_to(self._root):
            what = what.relative_to(self._root).as_posix()
        self._found.setdefault(reason, []).append(str(what))

    def notes(self) -> tuple[str, ...]:
        """One line for each reason: "2 left out, the file is missing: a.png, b.png"."""
        lines = []
        for reason, names in self._found.items():
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            lines.append(f"{len(names)} left out, {reason}: {', '.join(names[:_SHOWN])}{more}")
        return tuple(lines)


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))  # "._x.png" contains the metadata that macOS adds to x.png


def sub_folders(folder: Path) -> list[Path]:
    """Sub-folders of a folder in natural order, without hidden ones."""
    try:
        return sorted((f for f in folder.iterdir() if f.is_dir() and not _hidden(f.name)), key=natural_key)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror}; check its permissions") from None


def image_files(folder: Path, kind: str = "picture") -> Iterator[Path]:
    """Image files below a folder, in no order; kind "picture": PNG, JPEG, TIFF and BMP, kind "dicom": DICOM."""
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _hidden(name)]
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if _hidden(name) or (suffix in SUFFIXES) != (kind == "picture"):
                continue
            # A file named by a UID has a number as suffix. Files with other suffixes are not opened.
            if suffix in SUFFIXES or suffix in dicom.SUFFIXES:
                yield Path(base, name)
            elif (not suffix or suffix[1:].isdigit()) and dicom.is_dicom(Path(base, name)):
                yield Path(base, name)


def find(folder: Path, kind: str = "picture") -> list[Path]:
    """The files of `image_files` in natural order."""
    return sorted(image_files(folder, kind), key=natural_key)


def one_spelling(records: Sequence[Record]) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """Merge labels that differ only in case or spaces into the first spelling; returns the records and notes."""
    first: dict[str, str] = {}
    joined: dict[str, str] = {}
    for label in (record.label for record in records):
        kept = first.setdefault(" ".join(label.split()).casefold(), label)
        if kept != label:
            joined[label] = kept
    changed = tuple(replace(record, label=joined.get(record.label, record.label)) for record in records)
    return changed, tuple(f"class {old!r} is read as {new!r}" for old, new in joined.items())


def read_table(path: Path, wanted: Iterable[str] = ()) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read a CSV (with commas, semicolons or tabs): its column names, and its rows with their line numbers.

    Raises:
        InputError: the file cannot be read, has no header, or lacks one of the `wanted` columns.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; save it as CSV in UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; give a CSV file") from None
    line = content.partition("\n")[0]
    rows = csv.reader(io.StringIO(content), delimiter=max(",;\t", key=line.count))
    try:
        table = [(rows.line_num, [cell.strip() for cell in row]) for row in rows]
    except csv.Error as error:
        raise InputError(f"{path}: is not a CSV table: {error}; save it as CSV in UTF-8") from None
    columns = table[0][1] if table else []
    if not any(columns):
        raise InputError(f"{path}: is empty; its first line must name the columns")
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise InputError(f"{path}: has several columns named {twice[0]}; rename all but one")
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise InputError(f"{path}: has no column {', '.join(missing)}; its columns are {', '.join(columns)}")
    padding = [""] * len(columns)
    return columns, [(n, dict(zip(columns, row + padding, strict=False))) for n, row in table[1:] if any(row)]


def header_of(path: Path) -> list[str]:
    """Column names of a CSV, unchanged; an empty list if the file is not a readable table."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            line = stream.readline(65536)
    except (OSError, UnicodeDecodeError):
        return []
    delimiter = max(",;\t", key=line.count)
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def normal(name: str) -> str:
    """Normalised column name for comparisons: "Patient ID" -> "patient_id"."""
    return re.sub(r"[\s-]+", "_", name.strip().casefold())
