"""What the adapters share: finding images, reading tables, names of splits and classes, and what was left out."""

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
    """The split that a folder or a cell names ("Train", "val", ...), or ""."""
    return _SPLIT_NAMES.get(name.strip().casefold(), "")


class LeftOut:
    """Counts what does not come into a manifest, by reason, and names the first ones."""

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
    return name.startswith((".", "__MACOSX"))  # "._x.png" holds what a Mac adds to x.png


def sub_folders(folder: Path) -> list[Path]:
    """The folders in a folder, in natural order."""
    try:
        return sorted((f for f in folder.iterdir() if f.is_dir() and not _hidden(f.name)), key=natural_key)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror}; allow reading it") from None


def image_files(folder: Path, kind: str = "picture") -> Iterator[Path]:
    """Files below a folder, in no order: "picture" for PNG, JPEG, TIFF and BMP, "dicom" for DICOM."""
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _hidden(name)]
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if _hidden(name) or (suffix in SUFFIXES) != (kind == "picture"):
                continue
            # A name that is a UID ends in a number; other suffixes are not looked into.
            if suffix in SUFFIXES or suffix in dicom.SUFFIXES:
                yield Path(base, name)
            elif (not suffix or suffix[1:].isdigit()) and dicom.is_dicom(Path(base, name)):
                yield Path(base, name)


def find(folder: Path, kind: str = "picture") -> list[Path]:
    """`image_files` in natural order."""
    return sorted(image_files(folder, kind), key=natural_key)


def one_spelling(records: Sequence[Record]) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """Join labels that differ in upper and lower case or in spaces only, as the first one has it; with notes."""
    first: dict[str, str] = {}
    joined: dict[str, str] = {}
    for label in (record.label for record in records):
        kept = first.setdefault(" ".join(label.split()).casefold(), label)
        if kept != label:
            joined[label] = kept
    changed = tuple(replace(record, label=joined.get(record.label, record.label)) for record in records)
    return changed, tuple(f"class {old!r} is taken for {new!r}" for old, new in joined.items())


def read_table(path: Path, wanted: Iterable[str] = ()) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The column names of a CSV (commas, semicolons or tabs), and its rows with their numbers of line.

    Raises:
        InputError: it cannot be read, has no header, or not the `wanted` columns.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not text in UTF-8; save it as CSV in UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; name a CSV file") from None
    line = content.partition("\n")[0]
    rows = csv.reader(io.StringIO(content), delimiter=max(",;\t", key=line.count))
    try:
        table = [(rows.line_num, [cell.strip() for cell in row]) for row in rows]
    except csv.Error as error:
        raise InputError(f"{path}: is no table: {error}; save it as CSV in UTF-8") from None
    columns = table[0][1] if table else []
    if not any(columns):
        raise InputError(f"{path}: is empty; its first line must name columns")
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise InputError(f"{path}: has several columns named {twice[0]}; rename all but one")
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise InputError(f"{path}: has no column {', '.join(missing)}; it has {', '.join(columns)}")
    padding = [""] * len(columns)
    return columns, [(n, dict(zip(columns, row + padding, strict=False))) for n, row in table[1:] if any(row)]


def header_of(path: Path) -> list[str]:
    """The column names of a CSV as they stand there; none where it is no readable table."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            line = stream.readline(65536)
    except (OSError, UnicodeDecodeError):
        return []
    delimiter = max(",;\t", key=line.count)
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def normal(name: str) -> str:
    """A column's name for comparing: "Patient ID" -> "patient_id"."""
    return re.sub(r"[\s-]+", "_", name.strip().casefold())
