"""Manifest: the table (path, label, patient, study, view, split, source) into which every data set is converted.

Splits, audit, training and evaluation use only this table. It is stored as CSV. Paths of images below the folder of the
CSV file are relative to that folder, so that the whole folder can be moved.
"""

import csv
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from ..._atomic_write import write_text
from ..._errors import InputError

__all__ = ["NEGATIVES", "SPLITS", "Manifest", "Record", "natural_key", "ordered_classes", "plural"]

SPLITS = ("train", "valid", "test")
"""Names of the splits. A record without a split has ""."""

NEGATIVES = frozenset({"none", "normal", "healthy", "negative", "no fracture", "not fractured", "non fractured"})
"""Labels that mean "no fracture", in lower case with spaces for ``_`` and ``-``. Such a class is sorted first."""


@dataclass(frozen=True)
class Record:
    """One image of a manifest. Unknown fields are "".

    Attributes:
        path: absolute path of the image.
        label: class of the image, or "" for an image to predict.
        patient: pseudonym of the patient; all images of a patient go into the same split. Where the data set names no
            patients, a group of near duplicates ("group-0001", :mod:`se_fused.apps.fracture.duplicates`).
        study: identifier of images taken together, unique within a patient.
        view: "AP", "lateral", ...
        split: one of `SPLITS`, or "".
        source: name of the data set.
    """

    path: Path
    label: str = ""
    patient: str = ""
    study: str = ""
    view: str = ""
    split: str = ""
    source: str = ""


_COLUMNS = tuple(f.name for f in fields(Record))


def plural(count: int, name: str) -> str:
    """ "1 image", "2 images"."""
    return f"{count} {name}{'' if count == 1 else 's'}"


def natural_key(text: object) -> list[tuple[int, int | str]]:
    """Sort key that places 'image 2' before 'image 10' and ignores case."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", str(text).casefold())]


def ordered_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels without "", labels that mean "no fracture" first, then in natural order.

    This is the order of the classes of every manifest.
    """
    names = {label for label in labels if label}
    return tuple(sorted(names, key=lambda n: (re.sub("[_-]", " ", n.casefold()) not in NEGATIVES, natural_key(n))))


@dataclass(frozen=True)
class Manifest:
    """The images of a data set with their labels, patients, studies, views and splits.

    Attributes:
        records: one for each image.
        notes: remarks from reading the data set, such as the images left out and the reasons; not stored in the file.
    """

    records: tuple[Record, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in order; the index of a class is its number."""
        return ordered_classes(record.label for record in self.records)

    def where(self, split: str) -> "Manifest":
        """The records of a split."""
        return Manifest(tuple(record for record in self.records if record.split == split), self.notes)

    def counts(self) -> dict[str, Counter[str]]:
        """{split: {label: images}}."""
        found: dict[str, Counter[str]] = {}
        for record in self.records:
            found.setdefault(record.split, Counter())[record.label] += 1
        return found

    def with_columns(self, **columns: Sequence[str]) -> "Manifest":
        """A copy with replaced columns, e.g. ``with_columns(split=[...])``; each has one string for each record."""
        for name, values in columns.items():
            if len(values) != len(self.records):
                raise ValueError(f"{name} must have one value for each of {len(self)} records, got {len(values)}")
        rows = (
            replace(record, **{name: values[i] for name, values in columns.items()})  # type: ignore[arg-type]
            for i, record in enumerate(self.records)
        )
        return Manifest(tuple(rows), self.notes)

    def text(self, folder: Path) -> str:
        """The table as CSV, with paths relative to `folder` for the images below it."""
        out = io.StringIO()
        table = csv.writer(out, lineterminator="\n")
        table.writerow(_COLUMNS)
        base = folder.resolve()
        for record in self.records:
            path = record.path.relative_to(base).as_posix() if record.path.is_relative_to(base) else str(record.path)
            table.writerow((path, *(getattr(record, name) for name in _COLUMNS[1:])))
        return out.getvalue()

    def digest(self) -> str:
        """SHA-256 of file names, labels, patients, studies, views and splits; independent of the folder's location."""
        rows = sorted("\0".join((r.path.name, r.label, r.patient, r.study, r.view, r.split)) for r in self.records)
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the CSV file atomically."""
        write_text(Path(path), self.text(Path(path).parent))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Manifest":
        """Read a CSV with the columns path and label and optionally the others, in any order.

        Other columns are ignored. The images themselves are not checked.

        Raises:
            InputError: there is no such file, it has no column path or label, a row has no path, a path occurs twice,
                or a split has an unknown name.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{path}: cannot be read as a manifest: {error}; make one with se-fused fracture prepare"
            ) from None
        rows = csv.DictReader(io.StringIO(text))
        missing = [name for name in ("path", "label") if name not in (rows.fieldnames or ())]
        if missing:
            raise InputError(f"{path}: has no column {' and '.join(missing)}; its first line must contain path, label")
        base, records, seen = path.parent.resolve(), [], set()
        for line, row in enumerate(rows, 2):
            values = {name: (row.get(name) or "").strip() for name in _COLUMNS}
            if not values["path"]:
                raise InputError(f"{path}: line {line} has no path; add the path or remove the line")
            if values["split"] not in ("", *SPLITS):
                raise InputError(f"{path}: line {line}: split must be train, valid, test or empty: {values['split']!r}")
            full = Path(os.path.normpath(base / values.pop("path")))
            if full in seen:
                raise InputError(f"{path}: line {line}: {full.name} occurs twice; remove one of the lines")
            seen.add(full)
            records.append(Record(full, **values))
        if not records:
            raise InputError(f"{path}: contains no images; make a manifest with se-fused fracture prepare")
        return cls(tuple(records))
